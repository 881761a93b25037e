"""What anyone has without kernels: the same function in plain PyTorch, as it is and through `torch.compile`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bench.ops.cases import Call

from .attention import attention_peers
from .head import PLAIN, head_peer

Peer = Callable[[], Any]
# What takes seconds to make.
COMPILED = ("compiled", "topk compiled", "flex")


def peers_of(call: Call, backend: str) -> dict[str, Callable[[], Peer]]:
    """Name the ways to do what a call does; each is made when it is asked for, which may take long or fail.

    Args:
        call: of a public function.
        backend: of `torch.compile`.
    """
    ready: dict[str, Any] = {}
    own: dict[str, Callable[[], Peer]] = {}
    if call.name == "tree_attention":
        ready, own = attention_peers(call.arguments, backend)
    elif call.name in PLAIN:
        # The reference's order among equals takes PyTorch a sort of the vocabulary.
        plain = head_peer(call.name, call.arguments)
        own = {"topk": lambda: plain, "topk compiled": lambda: _compiled(plain, backend)}
    reference = partial(call.function, **{**call.arguments, **ready}, impl="reference")
    return {"eager": lambda: reference, "compiled": lambda: _compiled(reference, backend), **own}


def _compiled(peer: partial[Any], backend: str) -> Peer:
    torch._dynamo.reset()  # shapes of other cases count against a limit of recompilations
    compiled = torch.compile(peer.func, dynamic=False, backend=backend)
    return partial(compiled, *peer.args, **peer.keywords)
