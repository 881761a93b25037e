"""RMSNorm in the order of the authors' code: statistics in float32 at least, and the scale multiplies what was rounded."""

from __future__ import annotations

from torch import Tensor, nn

from specdec_kernels.early_exit.reference import rms_norm


class RMSNorm(nn.RMSNorm):
    """RMSNorm whose weight has the input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `[..., E]`."""
        assert self.eps is not None
        return rms_norm(x, self.weight, self.eps)
