"""The language-model head as a module."""

from __future__ import annotations

from torch import Tensor, nn

from ..dispatch import Impl
from .ops import check_topk, run_topk
from .reference import SureToken, TopTokens, finish_logits, sure_token, top_tokens
from .weights import HeadWeights


class LMHeadTopK(nn.Module):
    """A head that returns the k most likely tokens; its linear layer may be prepacked for the CPU."""

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
        """Create a head from a linear layer `E -> V`; options as in `HeadWeights`. Logits are rounded to its dtype."""
        super().__init__()
        self.linear = linear
        self.logit_scale, self.softcap = logit_scale, softcap
        self.impl = impl
        self.register_buffer("id_map", id_map, persistent=False)

    @property
    def weights(self) -> HeadWeights:
        """The head's weights for `lm_head_topk`; logits are rounded to the layer's dtype."""
        weight, bias = self.linear.weight, self.linear.bias
        return HeadWeights(weight, bias, self.id_map, self.logit_scale, self.softcap, weight.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits `[..., V]`, for training and references."""
        return finish_logits(self.linear(hidden), self.weights)

    def forward(self, hidden: Tensor, k: int) -> TopTokens:
        """Return the `k` most likely tokens of rows `[R, E]`; without the kernel, calls the linear layer.

        Raises:
            TypeError: as `lm_head_topk` does.
            ValueError: as `lm_head_topk` does.
        """
        if check_topk(hidden, self.weights, k, self.impl):
            return run_topk(hidden, self.weights, k)
        return top_tokens(self.logits(hidden), k, self.id_map)

    def confidence(self, hidden: Tensor) -> SureToken:
        """Return the most likely token of rows `[R, E]` and its probability."""
        return sure_token(self(hidden, 1))
