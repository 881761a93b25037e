"""Tree attention as a module without parameters."""

from __future__ import annotations

from torch import Tensor, nn

from ..dispatch import Impl
from .ops import tree_attention
from .tiles import SplitPolicy


class TreeAttention(nn.Module):
    """Tree attention with fixed settings; compiles without graph breaks."""

    def __init__(
        self,
        *,
        scale: float | None = None,
        softcap: float | None = None,
        window: int | None = None,
        split_policy: SplitPolicy = "auto",
        impl: Impl = "auto",
    ) -> None:
        """Create the module; settings as in `tree_attention`."""
        super().__init__()
        self.scale, self.softcap, self.window = scale, softcap, window
        self.split_policy, self.impl = split_policy, impl

    def forward(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        *,
        prefix_lens: Tensor,
        ancestors: Tensor,
        depth: Tensor,
        cache_rows: Tensor | None = None,
        shared_rows: Tensor | None = None,
        shared_lens: Tensor | None = None,
    ) -> Tensor:
        """Attend; arguments and result as in `tree_attention`."""
        return tree_attention(
            q,
            k_cache,
            v_cache,
            prefix_lens=prefix_lens,
            ancestors=ancestors,
            depth=depth,
            cache_rows=cache_rows,
            shared_rows=shared_rows,
            shared_lens=shared_lens,
            scale=self.scale,
            softcap=self.softcap,
            window=self.window,
            split_policy=self.split_policy,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        """Return the settings for `repr`."""
        return (
            f"scale={self.scale}, softcap={self.softcap}, window={self.window}, "
            f"split_policy={self.split_policy!r}, impl={self.impl!r}"
        )
