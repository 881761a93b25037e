"""Error bounds of kernels: at most twice the error of the reference in the same precision."""

from __future__ import annotations

import torch
from torch import Tensor


def assert_no_worse(out: Tensor, reference: Tensor, exact: Tensor, *, factor: float = 2.0) -> None:
    """Compare a kernel's error with the reference's own, both against float64.

    Args:
        out: the kernel's result.
        reference: the reference's result, computed from the same inputs in the same dtype.
        exact: the float64 result for these inputs.
        factor: allowed error, as a multiple of the reference's.

    Raises:
        AssertionError: if dtype or shape differ, `out` holds NaN, or its largest error or its root mean square error
            is above `factor` times the reference's plus two roundings of the largest value, one in its dtype and one
            in float32. The roundings matter if the reference happens to be exact.
    """
    assert out.dtype == reference.dtype, f"expected {reference.dtype}, got {out.dtype}"
    assert out.shape == reference.shape, f"expected {list(reference.shape)}, got {list(out.shape)}"
    assert exact.dtype == torch.float64, f"exact: expected float64, got {exact.dtype}"
    if out.numel() == 0:
        return
    assert not out.isnan().any(), "NaN in the result"
    infinite = exact.isinf()
    assert torch.equal(out.double()[infinite], exact[infinite]), "infinities differ"
    largest = exact[~infinite].abs().amax().item() if (~infinite).any() else 0.0
    # One rounding to the result's dtype, and one in float32 before it.
    rounding = (torch.finfo(out.dtype).eps + torch.finfo(torch.float32).eps) / 2 * largest
    ours, theirs = ((x.double() - exact)[~infinite] for x in (out, reference))
    for name, measure in (
        ("largest", lambda e: e.abs().amax()),
        ("mean square", lambda e: e.square().mean().sqrt()),
    ):
        if ours.numel():
            found, allowed = measure(ours).item(), factor * measure(theirs).item() + rounding
            assert found <= allowed, (
                f"{name} error: expected at most {allowed:.3g}, got {found:.3g}"
            )
