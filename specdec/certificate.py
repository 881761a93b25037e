"""The certificate: at load time, our view of a model is compared with the model itself.

This is what lets any architecture be tried: one that computes something our loop does not know is refused by name
instead of decoding subtly wrong text.
"""

from __future__ import annotations

import torch
from specdec_kernels import pack_tree
from torch import Tensor
from transformers import PreTrainedModel

from .cache import Rows
from .target import Target
from .tree import TokenTree

# Relative distance of logits that rounding explains; a missing scale, window or mask is far above.
TOLERANCE = {
    torch.float64: 1e-6,  # the library's eager attention takes its softmax in float32 all the same
    torch.float32: 1e-3,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}
PROMPT = 9
# Two branches and a deeper leaf; the last node of a long branch is not the last node of the tree.
PARENTS = [-1, 0, 0, 1, 2, 2, 3, 6]
PATHS = ([0, 1, 3, 6, 7], [0, 2, 4], [0, 2, 5])
# Widths at which CPU libraries change how they multiply.
EXACT_WIDTHS = (2, 3, 5, 8, 16, 17, 33)


def _prompt(vocabulary: int, rows: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocabulary, (rows, length), generator=generator)


@torch.inference_mode()
def own_logits(model: PreTrainedModel) -> list[Tensor]:
    """Run the model's own forward on the probe: per path `[PROMPT + len(path), V]` logits."""
    prompt = _prompt(model.config.get_text_config().vocab_size, 1, PROMPT)
    texts = (torch.cat([prompt, torch.tensor([path])], 1) for path in PATHS)
    return [model(text.to(model.device), use_cache=False).logits[0] for text in texts]


@torch.inference_mode()
def certify(target: Target, own: list[Tensor]) -> None:
    """Compare prefill, tree verification and a shallow-deep split with the model's own forward.

    Args:
        target: the view to check, prepared or not.
        own: from `own_logits`, before anything was prepared.

    Raises:
        ValueError: if logits differ by more than rounding explains; names the model and the part.
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
    tree, rows = TokenTree(*packed[:7]), Rows.first(1, target.device)
    cache = target.new_cache(rows=1, capacity=PROMPT, tree_capacity=nodes)

    prefilled = target.prefill(prompt, [PROMPT], cache).logits
    verified = target.verify(tree, cache, rows).logits[0]
    middle = max(1, target.config.num_hidden_layers // 3)
    cache.open(tree.ancestors, tree.depth, rows)
    shallow = target.run_layers(target.embed(tokens), cache, 0, middle)
    split = target.head(target.run_layers(shallow, cache, middle)).logits[0]
    for path, logits in zip(PATHS, own, strict=True):
        _compare(target, "prefill", prefilled, logits[PROMPT - 1 : PROMPT])
        _compare(target, "tree verification", verified[path], logits[PROMPT:])
        _compare(target, "the shallow-deep split", split[path], logits[PROMPT:])


def _compare(target: Target, part: str, ours: Tensor, own: Tensor) -> None:
    distance = float((ours.double() - own.double()).norm() / own.double().norm().clamp(min=1e-30))
    limit = TOLERANCE[target.dtype]
    if not distance <= limit:  # also where it is NaN
        raise ValueError(
            f"model: {type(target.model).__name__} is not supported: expected {part} to agree with the "
            f"model's own forward to {limit:.0e}, got a relative difference of {distance:.1e}"
        )


@torch.inference_mode()
def certify_exact(target: Target) -> None:
    """Show that on this machine a node's logits do not depend on what is verified beside it.

    Args:
        target: made with `exact=True`.

    Raises:
        ValueError: if one bit differs between a pass over several nodes or rows and passes over one.
    """
    length, longest = 40, max(EXACT_WIDTHS)
    prompts = _prompt(target.config.vocab_size, 3, length).to(target.device)
    chain = _prompt(target.config.vocab_size, 1, longest).to(target.device)
    row = Rows.first(1, target.device)
    cache = target.new_cache(rows=1, capacity=length + longest, tree_capacity=longest)
    alone = target.prefill(prompts[:1], [length], cache).logits

    steps = []
    for at in range(longest):
        step = TokenTree.chain(chain[:, at : at + 1])
        steps.append(target.verify(step, cache, row).logits[0, 0])
        cache.set_lengths([length + at + 1])
    batch = target.new_cache(rows=3, capacity=length, tree_capacity=2)
    differs = (
        []
        if torch.equal(target.prefill(prompts, [length] * 3, batch).logits[:1], alone)
        else ["a batch"]
    )
    for width in EXACT_WIDTHS:
        cache.set_lengths([length])
        logits = target.verify(TokenTree.chain(chain[:, :width]), cache, row).logits[0]
        if not torch.equal(logits, torch.stack(steps[:width])):
            differs.append(f"{width} nodes")
    if differs:
        raise ValueError(
            f"exact: expected {target.dtype} passes on this machine to give the same bits alone and together, "
            f"got differences with {', '.join(differs)}; decode without exact"
        )
