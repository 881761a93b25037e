"""Rungs that every op's tests climb: registered as torch wants it, whole under `torch.compile`, never silent."""

import pytest
import torch
from torch._inductor.utils import fresh_cache
from torch.utils._pytree import tree_leaves


def check_op(op, *arguments):
    """Run torch's own checks of schema, fake results and dispatch on a registered op."""
    torch.library.opcheck(op, arguments)


def check_compiles_whole(function, *variants):
    """Compile without a graph break, statically and dynamically, and compare with eager results.

    Each variant is a tuple of arguments; the second and later ones have other sizes.
    """
    for dynamic in (False, True):
        torch._dynamo.reset()
        with fresh_cache():  # the caches do not notice that a fake has changed
            compiled = torch.compile(function, fullgraph=True, dynamic=dynamic)
            for arguments in variants[: 2 if dynamic else 1]:
                expected, found = (
                    tree_leaves(function(*arguments)),
                    tree_leaves(compiled(*arguments)),
                )
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
