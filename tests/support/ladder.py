"""Tests that every op passes: registration, `torch.compile`, no silent fallback."""

import pytest
import torch
from torch.utils._pytree import tree_leaves


def check_op(op, *arguments):
    """Run torch's own checks of schema, fake results and dispatch on a registered op."""
    torch.library.opcheck(op, arguments)


def every_way(test):
    """Parametrise a test of compilation: by `impl`, and by whether sizes are `dynamic`."""
    ways = pytest.mark.parametrize("impl", ["triton", "reference"])
    sizes = pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
    return pytest.mark.sampled(pytest.mark.slow(ways(sizes(test))))


def check_compiles_whole(function, *variants, dynamic):
    """Compile without a graph break and compare with eager results.

    Each variant is a tuple of arguments; the second and later ones have other sizes, for what is dynamic.
    """
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic)
    for arguments in variants if dynamic else variants[:1]:
        expected, found = (tree_leaves(f(*arguments)) for f in (function, compiled))
        for x, y in zip(expected, found, strict=True):
            torch.testing.assert_close(y, x, equal_nan=True)


def check_never_silent(call):
    """A kernel asked for by name is never replaced: `call(impl)` raises where it cannot run."""
    with pytest.raises(
        ValueError, match=r"impl: expected 'auto', 'triton' or 'reference', got 'fast'"
    ):
        call("fast")
    if not torch.cuda.is_available():
        from triton import knobs

        with knobs.runtime.scope():
            knobs.runtime.interpret = False
            with pytest.raises(
                ValueError, match="impl: expected a CUDA device or TRITON_INTERPRET=1"
            ):
                call("triton")
