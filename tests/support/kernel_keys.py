"""What Triton would look compiled kernels up by, over sizes as decodes vary them, in whole decodes, and after warm-up.

Run where kernels are not interpreted; writes JSON of `[[kernel, constants, arguments, options], …]` by name. With `--all` a
sweep goes through every number of nodes, else through those at the edges of tiles.
"""

import json
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from known_costs import known_costs
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessorList
from transformers.generation.logits_process import TemperatureLogitsWarper

from specdec.drafters import LookupDrafter, MixedDrafter, PlainDrafter
from specdec.drafters.kangaroo import KangarooConfig, KangarooDrafter
from specdec.drafters.parts.coupling import CANDIDATES
from specdec.drafters.redrafter import ReDrafter, ReDrafterConfig, ReDrafterModel
from specdec.model.target import Target
from specdec.pickers import PathPicker, sampler
from specdec.sampling import new_sampling
from specdec.session import Session
from specdec_kernels import (
    DraftStepWeights,
    HeadWeights,
    accept_tree,
    beam_step,
    commit_kv,
    coupled_log_probs,
    draft_step,
    early_exit_step,
    lm_head_beams,
    lm_head_topk,
    pack_tree,
    pick_tokens,
    tree_attention,
    warmup,
)
from specdec_kernels.early_exit import AdapterWeights
from specdec_kernels.gpu import KNOWN
from specdec_kernels.testing.absent_gpu import CUDA, absent_gpu
from specdec_kernels.testing.aot import launch_keys
from specdec_kernels.testing.poison import filled_empty
from specdec_kernels.warmup import (
    BeamDraftShape,
    DecodeShape,
    Draws,
    ExitDraftShape,
    Heads,
    HeadShape,
)

ARCH = "sm_90"
BATCHES, SEEDS = (1, 2, 3, 16), (0, 1, 2**31, 2**63 + 5)
NODE_COUNTS = range(1, 66) if "--all" in sys.argv else (1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65)  # fmt: skip


def ids(*shape):
    return torch.zeros(shape, dtype=torch.int64)


def floats(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype)


# Sweeps


def sweep_tree_attention():
    for heads, kv_heads, size in ((32, 8, 128), (9, 3, 64)):
        cache = floats(16, kv_heads, 9000, size)
        for batch, nodes in product(BATCHES, NODE_COUNTS):
            q = floats(batch, heads, nodes, size).transpose(1, 2)
            for prefix, named, shared in product((0, 17, 256, 4999, 8000), (False, True), (False, True)):  # fmt: skip
                rows = ids(batch) if named else None
                both = {"shared_rows": ids(batch), "shared_lens": ids(batch)} if shared else {}
                columns = cache[:, :, : prefix + nodes]
                tree_attention(
                    q, columns, columns, prefix_lens=ids(batch), ancestors=ids(batch, nodes, -(-nodes // 64)),
                    depth=ids(batch, nodes), cache_rows=rows, **both, window=prefix + 1, impl="triton",
                )  # fmt: skip


def sweep_commit_kv():
    # With a stride beyond 32 bits, and without.
    for rows, nodes, slots in product(BATCHES, (2, 5, 16, 64), (100, 131072)):
        kv, row = floats(1, 2, rows, 8, slots, 128), ids(rows)
        commit_kv(kv, ids(rows, nodes), row, prefix_lens=row, cache_rows=row, impl="triton")


def sweep_accept_tree():
    for rows, nodes in product(BATCHES, range(1, 65)):
        node, row = ids(rows, nodes), ids(rows)
        accept_tree(node, node, node, ids(rows, nodes, 1), row, node, impl="triton")


def sweep_pack_tree():
    for rows, count, capacity in product(BATCHES, (1, 2, 15, 16, 48, 64), (1, 2, 16, 33, 64)):
        entry, row, scores = ids(rows, count), ids(rows), torch.zeros(rows, count)
        pack_tree(
            row, entry, entry, scores, capacity=capacity, max_depth=count, source=entry, valid=entry.bool(),
            row_depth=row, impl="triton",
        )  # fmt: skip


def sweep_beam_step():
    for rows, beams, count, width in product(BATCHES, (1, 2, 8, 16), (1, 3, 16), (1, 8, 16)):
        scores, log_probs = torch.zeros(rows, beams), torch.zeros(rows, beams, count)
        beam_step(scores, log_probs, ids(rows, beams, count), width, impl="triton")


def sweep_coupled_log_probs():
    for rows, beams, count, seed in product(BATCHES, (1, 8, 16), (1, 15, 16, 32), SEEDS):
        key = {"seed": seed, "streams": ids(rows), "positions": ids(rows)}
        candidates = torch.zeros(rows, beams, count), ids(rows, beams, count)
        coupled_log_probs(*candidates, **key, temperature=1.0, sharpness=0.5, impl="triton")


def sweep_lm_head():
    for vocabulary in (1000, 32000, 128256):
        weight = floats(vocabulary, 64)
        for rows, k in product((1, 2, 16, 17, 70), (1, 2, 10, 16)):
            lm_head_topk(floats(rows, 64), weight, k, impl="triton")
        for rows, beams, width in product(BATCHES, (1, 2, 10, 16), (1, 10, 16)):
            scores = torch.zeros(rows, beams)
            lm_head_beams(floats(rows, beams, 64), weight, scores, width, impl="triton")


def sweep_draft_step():
    weights = DraftStepWeights(
        floats(64, 64), floats(64, 64), floats(64), floats(128, 64), [floats(128, 128)], [floats(128)]
    )  # fmt: skip
    for rows, width, before in product(BATCHES, (1, 2, 5, 16), (1, 5)):
        draft_step(
            ids(rows, width), ids(rows, width), floats(rows, before, 64), floats(rows, 64), floats(rows, 128),
            floats(1000, 64), weights, impl="triton",
        )  # fmt: skip


def sweep_early_exit():
    adapter = AdapterWeights(
        floats(64), floats(64, 64), floats(32, 64), floats(32, 64), floats(64, 64), floats(64), 10000.0, 1e-6
    )  # fmt: skip
    head, cache = HeadWeights(floats(1000, 64)), floats(16, 2, 2000, 16)
    for rows, columns, steps, named in product((1, 2, 3, 8, 15), (1, 16, 17, 600, 1999), (1, 6, 16), (False, True)):  # fmt: skip
        tokens, sure = ids(rows, steps), torch.zeros(rows, steps)
        for step in range(0, steps, 3):
            early_exit_step(
                floats(rows, 64), cache[:, :, :columns], cache[:, :, :columns], adapter, head,
                prefix_lens=ids(rows), positions=ids(rows), stopped=ids(rows).bool(), tokens=tokens[:, step],
                confidence=sure[:, step], eta=0.5, cache_rows=ids(rows) if named else None,
                appends=ids(rows).bool(), impl="triton",
            )  # fmt: skip


def sweep_pick_tokens():
    for rows, seed, filters in product((1, 2, 16, 33), SEEDS, ({}, {"top_k": 50}, {"top_k": 64})):
        key = {"seed": seed, "streams": ids(rows), "positions": ids(rows)}
        pick_tokens(floats(rows, 49152), **key, **filters, impl="triton")


SWEEPS = {
    name.removeprefix("sweep_"): sweep
    for name, sweep in list(globals().items())
    if name.startswith("sweep_")
}

# Decodes. The model is small, but wide enough that layers are cut in more than one way.

LAYERS, VOCABULARY, WIDTH, SLOTS, NODES, BEAMS, GAMMA = 2, 8000, 256, 700, 32, 6, 5
TARGET = (4, 2, 64)
PROMPTS = [[5] * 600, [6] * 40, [7] * 257, [8, 9, 10]]
LOOKUP_PROPOSALS = 60


def new_target():
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=LAYERS,
        num_attention_heads=TARGET[0], num_key_value_heads=TARGET[1], head_dim=TARGET[2],
        max_position_embeddings=2048,
    )  # fmt: skip
    return Target(LlamaForCausalLM(config).eval().to(torch.bfloat16).to(CUDA))


def redrafter(target, exit_dim=2 * WIDTH):
    config = ReDrafterConfig(WIDTH, exit_dim=exit_dim, beam_width=BEAMS)
    vocabulary = torch.arange(0, VOCABULARY, 2)
    return ReDrafter(target, ReDrafterModel(config, VOCABULARY, vocabulary))


def kangaroo(target):
    config = KangarooConfig(WIDTH, heads=4, kv_heads=4, head_dim=32, exit_layer=1, gamma=GAMMA)
    return KangarooDrafter(target, config, config.new_adapter())


def mixed(target):
    return MixedDrafter([redrafter(target, exit_dim=96), LookupDrafter()])


def drawn(target):
    settings = {"temperature": 0.7, "top_k": 40, "top_p": 0.9}
    return sampler(new_sampling(0, range(2 * len(PROMPTS)), target.device, **settings), target)


def processed(target):
    sampling = new_sampling(1 << 40, range(len(PROMPTS)), target.device, temperature=0.7)
    return PathPicker(
        sampling, [LogitsProcessorList([TemperatureLogitsWarper(0.7)]) for _ in PROMPTS]
    )


# Of each decode the drafter, the picker, copies of each prompt, and what warm-up must be told beyond the target.
HEAD = HeadShape(2 * WIDTH, VOCABULARY // 2, mapped=True)
DRAFTS = BeamDraftShape(HEAD, None, residual_blocks=2, beam_width=BEAMS)
DRAWS = Draws(0.7, 40, 0.9)
DECODES = {
    "plain": (lambda target: PlainDrafter(), None, 1, {}),
    "plain-copies": (lambda target: PlainDrafter(), drawn, 2, {"draws": DRAWS, "copies": True}),
    "lookup": (lambda target: LookupDrafter(), None, 1, {"proposals": LOOKUP_PROPOSALS}),
    "kangaroo": (
        kangaroo, None, 1,
        {"proposals": GAMMA, "early_exit": ExitDraftShape(HeadShape(WIDTH, VOCABULARY), Heads(4, 4, 32))},
    ),
    "redrafter": (redrafter, None, 1, {"proposals": 5 * BEAMS, "beams": DRAFTS}),
    "redrafter-drawn": (
        redrafter, drawn, 2,
        {
            "proposals": 5 * BEAMS, "draws": DRAWS, "copies": True,
            "beams": replace(DRAFTS, candidates=CANDIDATES, coupled=True),
        },
    ),
    "mixed-processed": (
        mixed, processed, 1,
        {
            "proposals": 5 * BEAMS + LOOKUP_PROPOSALS, "draws": Draws(dtype=torch.float32),
            "beams": replace(
                DRAFTS, head=replace(HEAD, width=96), exit_dim=96, candidates=CANDIDATES, coupled=True
            ),
        },
    ),
}  # fmt: skip


def decode(make_drafter, make_picker, copies):
    # What kernels would have written is zero: every round adds a token to every text.
    with absent_gpu(CUDA, KNOWN[ARCH]), filled_empty(torch.Tensor.zero_):
        target = new_target()
        with torch.no_grad():
            picker = make_picker and make_picker(target)
        drafter = make_drafter(target)
        costs = known_costs(target, drafter)
        session = Session(target, drafter, max_nodes=NODES, costs=costs, guard=False)
        for count, new in ((len(PROMPTS), 14), (1, 12)):
            stream = session.stream(
                PROMPTS[:count],
                max_new_tokens=new,
                picker=picker,
                copies=copies,
                stops=lambda row, text: row == 0 and text.shape[1] > len(PROMPTS[0]) + 5,
            )
            for _ in stream:
                pass


def warm_up(copies, changes):
    shape = DecodeShape(
        torch.bfloat16, LAYERS, WIDTH, VOCABULARY, Heads(*TARGET), rows=copies * len(PROMPTS), nodes=NODES, slots=SLOTS,
        **changes,
    )  # fmt: skip
    with absent_gpu(CUDA, KNOWN[ARCH]):
        warmup(shape, CUDA)


def spoiled():
    """Look for the keys of a kernel that takes a number of nodes into account."""
    from specdec_kernels.accept_tree.kernel import _accept_tree_kernel as kernel

    (nodes,) = (parameter for parameter in kernel.params if parameter.name == "nodes")
    kernel.device_caches.clear()
    nodes.do_not_specialize = False
    try:
        return launch_keys(ARCH, sweep_accept_tree)
    finally:
        kernel.device_caches.clear()
        nodes.do_not_specialize = True


def main(path):
    torch.manual_seed(0)
    found = {name: launch_keys(ARCH, sweep) for name, sweep in SWEEPS.items()}
    found["spoiled"] = spoiled()
    for name, (make_drafter, make_picker, copies, changes) in DECODES.items():
        found[f"decode {name}"] = launch_keys(ARCH, lambda: decode(make_drafter, make_picker, copies))  # noqa: B023  # fmt: skip
        found[f"warm-up {name}"] = launch_keys(ARCH, lambda: warm_up(copies, changes))  # noqa: B023
    path.write_text(json.dumps({name: list(keys) for name, keys in found.items()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
