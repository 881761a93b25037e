"""What a round asks of a GPU: launches per stage, and how often the host waits; counted without a GPU.

    python -m bench.counted.launches --json bench/results/launches.json

A small random model says it lies on a GPU, so all code goes the way it goes there. Our kernels are counted and not run:
tokens mean nothing, counts do, because nothing but the tokens of a round is read by the host.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from known_costs import known_costs
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessorList
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
)

from specdec.drafters import Drafter, LookupDrafter, MixedDrafter, PlainDrafter, SuffixDrafter
from specdec.drafters.eagle3 import Eagle3Config, Eagle3Drafter, new_module
from specdec.drafters.kangaroo import KangarooConfig, KangarooDrafter
from specdec.drafters.lookahead import LookaheadDrafter
from specdec.drafters.medusa import MedusaConfig, MedusaDrafter, MedusaModel
from specdec.drafters.model import ModelDrafter
from specdec.drafters.recycling import RecyclingDrafter
from specdec.drafters.redrafter import ReDrafter, ReDrafterConfig, ReDrafterModel
from specdec.metrics import Metrics
from specdec.model.target import Target
from specdec.pickers import PathPicker, Picker, sampler
from specdec.sampling import new_sampling
from specdec.session import Session
from specdec_kernels.gpu import KNOWN
from specdec_kernels.testing.absent_gpu import CUDA, absent_gpu
from specdec_kernels.testing.calls import Calls, Counts, counted_calls

GPU = "sm_90"
WIDTHS = (1, 2, 4, 8, 16, 32, 64)
LAYERS, VOCABULARY, WIDTH = 2, 128, 64
PROMPTS = [[5, 6, 7, 8, 9], [11, 12, 13, 14, 11, 12, 13]]
NODES, NEW_TOKENS, ROUNDS = 64, 32, 2
BETWEEN = "between"

Round = dict[str, Counts]
NewPicker = Callable[[Target], Picker]


class CountedStages(Metrics):
    """Sorts what is counted by round and stage; the first entry is prefill, the last one what follows the last round."""

    def __init__(self, calls: Calls) -> None:
        super().__init__()
        self.calls = calls
        self.counted: list[Round] = [{}]

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        calls, counted = self.calls, self.counted
        calls.counts = counted[-1].setdefault(name, Counts())
        with super().stage(name):
            yield
        # The first thing that is drafted is nothing: drafters see the prompts.
        if name == "emit" or (name == "draft" and "prefill" in counted[-1]):
            counted.append({})
        calls.counts = counted[-1].setdefault(BETWEEN, Counts())


def count_rounds(
    target: Target, drafter: Drafter, new_picker: NewPicker | None = None
) -> list[Round]:
    """Decode a few rounds without running kernels; within `absent_gpu`."""
    picker = new_picker(target) if new_picker else None
    # One machine's prices, so that what is counted depends on none.
    costs = known_costs(target, drafter)
    with counted_calls(dry=True) as calls:
        stages = CountedStages(calls)
        session = Session(target, drafter, max_nodes=NODES, costs=costs, guard=False)
        stream = session.stream(PROMPTS, max_new_tokens=NEW_TOKENS, picker=picker, metrics=stages)
        for _ in islice(stream, 1 + ROUNDS):
            pass
        stream.close()
    return stages.counted[1 : 1 + ROUNDS]


def small_target(layers: int = LAYERS) -> Target:
    """Make a random model on the GPU that is not there; within `absent_gpu`."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=256,
    )  # fmt: skip
    torch.manual_seed(0)
    return Target(LlamaForCausalLM(config).eval().to(CUDA))


def redrafter(target: Target, beam_width: int) -> Drafter:
    config = ReDrafterConfig(WIDTH, exit_dim=2 * WIDTH, beam_width=beam_width)
    return ReDrafter(target, ReDrafterModel(config, VOCABULARY))


def medusa(target: Target) -> Drafter:
    return MedusaDrafter(target, MedusaModel(MedusaConfig(WIDTH), VOCABULARY))


def kangaroo(target: Target) -> Drafter:
    config = KangarooConfig(WIDTH, heads=4, kv_heads=2, head_dim=16, exit_layer=1)
    return KangarooDrafter(target, config, config.new_adapter())


def eagle3(target: Target) -> Drafter:
    config = Eagle3Config.beside(target.config, layers=(1,))
    return Eagle3Drafter(target, config, new_module(config, VOCABULARY, None))


def drafters(target: Target) -> Iterator[tuple[str, int | None, Drafter]]:
    """Make each method, with its beam width where it has one."""
    yield "plain", None, PlainDrafter()
    yield "lookup", None, LookupDrafter()
    yield "suffix", None, SuffixDrafter()
    yield "recycling", None, RecyclingDrafter(vocabulary_size=VOCABULARY)
    yield "lookahead", None, LookaheadDrafter()
    yield "model", None, ModelDrafter(target, small_target(1))
    yield "kangaroo", None, kangaroo(target)
    yield "medusa", None, medusa(target)
    yield "eagle3", None, eagle3(target)
    for width in WIDTHS:
        yield "redrafter", width, redrafter(target, width)
    for width in WIDTHS:
        yield "mixed", width, MixedDrafter([redrafter(target, width), LookupDrafter()])


def drawn(target: Target) -> Picker:
    """Draw with settings alone."""
    sampling = new_sampling(0, range(len(PROMPTS)), target.device, temperature=0.7, top_p=0.9)
    return sampler(sampling, target)


def processed(target: Target) -> Picker:
    """Draw from what the library's processors make of each row."""
    sampling = new_sampling(0, range(len(PROMPTS)), target.device, temperature=0.7)
    processors = [RepetitionPenaltyLogitsProcessor(1.2), TemperatureLogitsWarper(0.7)]
    return PathPicker(sampling, [LogitsProcessorList(processors) for _ in PROMPTS])


def picks(target: Target) -> Iterator[tuple[str, Drafter, NewPicker]]:
    """Make the ways to draw, of a chain and of a tree."""
    for how, picker in (("drawn", drawn), ("drawn, processed", processed)):
        yield f"plain, {how}", PlainDrafter(), picker
        yield f"mixed, {how}", MixedDrafter([redrafter(target, 4), LookupDrafter()]), picker


def describe(counted: list[Round]) -> dict[str, dict[str, Any]]:
    """Write out the first round, which the others are like."""
    first, *others = [
        {
            stage: {
                "kernels": dict(counts.kernels),
                "aten": counts.aten.total(),
                "reads": dict(counts.reads),
                "uploads": dict(counts.uploads),
            }
            for stage, counts in each.items()
        }
        for each in counted
    ]
    if any(other != first for other in others):
        raise RuntimeError(f"rounds: expected all alike, got {first} and {others}")
    return first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    options = parser.parse_args()
    with absent_gpu(CUDA, KNOWN[GPU]):
        target = small_target()
        runs = [
            {
                "method": method,
                "beam_width": width,
                "stages": describe(count_rounds(target, drafter)),
            }
            for method, width, drafter in drafters(target)
        ]
        runs += [
            {"method": method, "beam_width": None, "stages": describe(count_rounds(target, *how))}
            for method, *how in picks(target)
        ]
        deeper = describe(count_rounds(small_target(LAYERS + 1), PlainDrafter()))
    result = {
        "gpu": GPU,
        "layers": LAYERS,
        "batch": len(PROMPTS),
        "versions": {name: version(name) for name in ("torch", "triton", "transformers")},
        "runs": runs,
        "one_layer_more": deeper,
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
