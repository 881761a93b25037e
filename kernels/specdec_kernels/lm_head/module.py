"""The head as a module, for drafters and for whoever builds a decoder."""

from __future__ import annotations

from torch import Tensor, nn

from ..dispatch import Impl
from .ops import check_topk, run_topk
from .reference import SureToken, TopTokens, finish_logits, sure_token, top_tokens
from .weights import HeadWeights


class LMHeadTopK(nn.Module):
    """A head that answers with the k most likely tokens; its linear layer may be packed for the CPU."""

    id_map: Tensor | None

    def __init__(
        self,
        linear: nn.Linear,
        *,
        logit_scale: float | None = None,
        softcap: float | None = None,
        id_map: Tensor | None = None,
        impl: Impl = "auto",
    ) -> None:
        """Take a linear layer `E -> V`; options as in `HeadWeights`, logits rounded to the layer's dtype."""
        super().__init__()
        self.linear = linear
        self.logit_scale, self.softcap = logit_scale, softcap
        self.impl = impl
        self.register_buffer("id_map", id_map, persistent=False)

    @property
    def weights(self) -> HeadWeights:
        """The head as functions take it; logits are rounded to the layer's dtype."""
        weight, bias = self.linear.weight, self.linear.bias
        return HeadWeights(weight, bias, self.id_map, self.logit_scale, self.softcap, weight.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits `[..., V]`, for training and for references."""
        return finish_logits(self.linear(hidden), self.weights)

    def forward(self, hidden: Tensor, k: int) -> TopTokens:
        """Take the `k` most likely tokens of `[R, E]` rows; without the kernel, by way of the linear layer's own call.

        Raises:
            TypeError: as `lm_head_topk` does.
            ValueError: as `lm_head_topk` does.
        """
        if check_topk(hidden, self.weights, k, self.impl):
            return run_topk(hidden, self.weights, k)
        return top_tokens(self.logits(hidden), k, self.id_map)

    def confidence(self, hidden: Tensor) -> SureToken:
        """Take the most likely token of `[R, E]` rows and its probability."""
        return sure_token(self(hidden, 1))
