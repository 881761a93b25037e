"""The certificate: a load-time comparison of a `Target`'s logits with the model's own forward.

Any architecture can therefore be tried: a model that computes something else than the target's loop raises an error
instead of generating wrong text.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec_kernels import pack_tree

from ..host.locks import lock_of
from ..tree import TokenTree
from .cache import Rows
from .parts import LAYER_TYPES
from .target import Target

# Relative difference of logits that rounding explains; a missing scale, window or mask differs far more.
TOLERANCE = {
    torch.float64: 1e-6,  # transformers' eager attention computes its softmax in float32
    torch.float32: 1e-3,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}
PROMPT = 9
# The probe's tree: two branches and a deeper leaf; the deepest node of a branch is not the tree's last node.
PARENTS = [-1, 0, 0, 1, 2, 2, 3, 6]
PATHS = ([0, 1, 3, 6, 7], [0, 2, 4], [0, 2, 5])
# Widths at which CPU libraries may change their matrix product. Small ones are compared with steps of one node, wide ones
# with pieces of a compared width.
EXACT_WIDTHS = (2, 3, 5, 8, 16, 17, 32)
EXACT_WIDE = (33, 64, 256)


def _prompt(vocabulary: int, rows: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocabulary, (rows, length), generator=generator)


@torch.inference_mode()
def own_logits(model: PreTrainedModel) -> list[Tensor]:
    """Run the model's own forward on the probe; returns logits `[PROMPT + len(path), V]` per path."""
    prompt = _prompt(model.config.get_text_config().vocab_size, 1, PROMPT)
    texts = (torch.cat([prompt, torch.tensor([path])], 1) for path in PATHS)
    with lock_of(model):  # another thread's pass replaces the layers' attention
        return [model(text.to(model.device), use_cache=False).logits[0] for text in texts]


@torch.inference_mode()
def certify(target: Target, own: list[Tensor]) -> None:
    """Compare prefill, tree verification and a shallow-deep split with the model's own forward.

    Args:
        target: the target to check, prepacked or not.
        own: from `own_logits`, before the model was prepacked.

    Raises:
        ValueError: naming the model and the part, if logits differ by more than rounding explains.
    """
    nodes = len(PARENTS)
    prompt = _prompt(target.config.vocab_size, 1, PROMPT).to(target.device)
    tokens = torch.arange(nodes, device=target.device)[None]
    parents = torch.tensor([PARENTS], device=target.device)
    packed = pack_tree(
        tokens[:, 0],
        tokens[:, 1:],
        parents[:, 1:] - 1,
        torch.zeros(1, nodes - 1, device=target.device),
        capacity=nodes,
        max_depth=nodes - 1,
    )
    tree, rows = TokenTree.from_packed(packed), Rows.first(1, target.device)
    cache = target.new_cache(rows=1, capacity=PROMPT, tree_capacity=nodes)

    prefilled = target.prefill(prompt, [PROMPT], cache).logits
    verified = target.verify(tree, cache, rows).logits[0]
    assert cache.current is not None
    _check_windows(target, cache.current.windows)
    middle = max(1, len(target.layer_types) // 3)
    cache.open(tree.ancestors, tree.depth, rows)
    shallow = target.run_layers(target.embed(tokens), cache, 0, middle)
    split = target.head(target.run_layers(shallow, cache, middle)).logits[0]
    for path, logits in zip(PATHS, own, strict=True):
        _compare(target, "prefill", prefilled, logits[PROMPT - 1 : PROMPT])
        _compare(target, "tree verification", verified[path], logits[PROMPT:])
        _compare(target, "the shallow-deep split", split[path], logits[PROMPT:])


def _check_windows(target: Target, seen: dict[int, int | None]) -> None:
    """Compare the sliding windows that layers request with the config, as the probe is shorter than most windows."""
    window = getattr(target.config, "sliding_window", None)
    # Layers without types are all equal.
    windows = dict(zip(LAYER_TYPES, (window, None, window), strict=True))
    for layer, kind in enumerate(target.layer_types):
        if layer not in seen or seen[layer] != windows[kind]:
            raise ValueError(
                f"model: {type(target.model).__name__} is not supported: expected layer {layer} to attend with the "
                f"window {windows[kind]} of its configuration, got {seen.get(layer, 'no call of the attention interface')}"
            )


def _compare(target: Target, part: str, ours: Tensor, own: Tensor) -> None:
    ours, own = ours.cpu().double(), own.cpu().double()  # some devices lack float64
    distance = float((ours - own).norm() / own.norm().clamp(min=1e-30))
    limit = TOLERANCE[target.dtype]
    if not distance <= limit:  # also catches NaN
        raise ValueError(
            f"model: {type(target.model).__name__} is not supported: expected {part} to agree with the "
            f"model's own forward to {limit:.0e}, got a relative difference of {distance:.1e}"
        )


@torch.inference_mode()
def certify_exact(target: Target) -> None:
    """Check that on this machine a node's logits do not depend on other nodes of the pass.

    Args:
        target: created with `exact=True`.

    Raises:
        ValueError: if any bit differs between a pass over several nodes or rows and passes over one.
    """
    length, longest, rows = 40, max(EXACT_WIDE), 3
    prompts = _prompt(target.config.vocab_size, rows, length).to(target.device)
    chains = _prompt(target.config.vocab_size, rows, longest).to(target.device)
    first = Rows.first(1, target.device)
    cache = target.new_cache(rows=1, capacity=length + longest, tree_capacity=longest)
    alone = target.prefill(prompts[:1], [length], cache).logits

    def verify(begin: int, end: int) -> Tensor:
        cache.set_lengths([length + begin])
        return target.verify(TokenTree.chain(chains[:1, begin:end]), cache, first).logits[0]

    differs = []
    proven = max(EXACT_WIDTHS)
    steps = torch.cat([verify(at, at + 1) for at in range(proven)])
    for width in EXACT_WIDTHS:
        if not torch.equal(verify(0, width), steps[:width]):
            differs.append(f"{width} nodes")
    pieces = torch.cat([verify(at, at + proven) for at in range(0, longest, proven)])
    for width in EXACT_WIDE:
        if not torch.equal(verify(0, width), pieces[:width]):
            differs.append(f"{width} nodes")

    batch = target.new_cache(rows=rows, capacity=length, tree_capacity=proven)
    together = target.prefill(prompts, [length] * rows, batch).logits
    trees = TokenTree.chain(chains[:, :proven])
    nodes = target.verify(trees, batch, Rows.first(rows, target.device)).logits
    if not torch.equal(together[:1], alone) or not torch.equal(nodes[0], steps):
        differs.append(f"{rows} rows")
    if differs:
        raise ValueError(
            f"exact: expected {target.dtype} passes on this machine to give the same bits alone and together, "
            f"got differences with {', '.join(differs)}; decode without exact"
        )
