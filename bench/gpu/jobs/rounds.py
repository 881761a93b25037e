"""Part two: what a round costs from end to end, without anybody's weights.

Models of two known shapes are made on the device. Their numbers are random, but the head is the embedding moved by one token,
so the text is certain: 1, 2, 3, … A drafter that knows it proposes what is accepted as often as a script says. And
`verify`, as it is, is captured in a CUDA graph: what a round would take if the host took no time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from bench.gpu.jobs.stages import device_stages
from bench.gpu.run import Job, Row, Run
from specdec.drafters import Budget, Drafter, PlainDrafter, Proposals
from specdec.metrics import Metrics
from specdec.model.cache import Rows, TreeCache
from specdec.model.target import Target
from specdec.session import Generation, Session
from specdec.state import State
from specdec.tree import TokenTree
from specdec_kernels.ancestors import ancestor_matrix, pack_bits
from specdec_kernels.testing.trees import depths, make_parents

SMOLLM2 = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "rope_theta": 1e5,
}  # fmt: skip
LLAMA3 = {
    "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "rope_theta": 5e5,
}  # fmt: skip
TINY = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip
NODES = 16
TOKENS_A_ROUND = (1.5, 2.5, 4.0)
REPEATS = 20


@dataclass(frozen=True, eq=False)
class Shape:
    """What is measured of one model."""

    name: str
    sizes: dict[str, Any]
    dtype: torch.dtype
    prompt: int
    new: int
    certain: bool = True
    """Whether the text is; otherwise it depends on every number, so that only exact arithmetic repeats it."""


SHAPES = (
    Shape("135M", SMOLLM2, torch.bfloat16, 512, 96),
    Shape("8B", LLAMA3, torch.bfloat16, 512, 64),
    Shape("135M, uncertain", SMOLLM2, torch.float32, 512, 64, certain=False),
)
SHAPES_DRY = (
    Shape("tiny", TINY, torch.float32, 12, 12),
    Shape("tiny, uncertain", TINY, torch.float32, 12, 12, certain=False),
)


def jobs(run: Run) -> list[Job]:
    """List what is measured, all of one model before the next one is made."""
    found = []
    for shape in SHAPES_DRY if run.dry else SHAPES:
        for batch in (1, 8) if shape.certain and not run.dry else (1,):
            for nodes in ((1, 16, 32) if batch == 1 else (16,)) if shape.certain else ():
                name = f"{shape.name} verify N {nodes} B {batch}"
                found.append(Job(name, partial(time_verify, run, shape, nodes, batch)))
            name = f"{shape.name} texts B {batch}"
            found.append(Job(name, partial(time_texts, run, shape, batch)))
    return found


@lru_cache(maxsize=1)
def target_of(shape: Shape, device: str) -> Target:
    """Make a model whose text is certain: layers add little to an embedding that the head knows by one token less."""
    torch.manual_seed(0)
    # Wide where the text shall depend on all that is computed.
    spread = shape.sizes["hidden_size"] ** -0.5 * (0.5 if shape.certain else 2.0)
    config = LlamaConfig(
        **shape.sizes, initializer_range=spread, max_position_embeddings=8192,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with torch.inference_mode(False), torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=shape.dtype).eval()
    if shape.certain:
        with torch.no_grad():
            embedding = model.get_input_embeddings().weight
            embedding.normal_(std=2.0)
            scale = shape.sizes["hidden_size"] ** -0.5 / 2
            model.get_output_embeddings().weight.copy_(embedding.roll(1, 0) * scale)
    return Target(model)


def prompts_of(shape: Shape, batch: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    shape_of_prompts = (batch, shape.prompt)
    drawn = torch.randint(0, shape.sizes["vocab_size"], shape_of_prompts, generator=generator)
    prompts: list[list[int]] = drawn.tolist()
    return prompts


class Oracle(Drafter):
    """Knows the text, and proposes as much of it as a script says, among tokens that are wrong."""

    def __init__(self, texts: list[list[int]], tokens_a_round: float, vocabulary: int) -> None:
        self.texts, self.vocabulary = texts, vocabulary
        self.share, self.rounds = tokens_a_round - 1, 0

    def start(self, state: State) -> None:
        """Put the texts on the device once: a round shall wait for no copy."""
        longest = max(map(len, self.texts))
        padded = [text + [0] * (longest + NODES - len(text)) for text in self.texts]
        self.known = torch.tensor(padded, device=state.text.ids.device)
        self.rounds = 0
        whole = int(self.share)
        self.plans = {n: self._plan(n, state.text.ids.device) for n in (whole, whole + 1)}

    def _plan(self, right: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Say for each proposal which token of the text it is, by how much it is wrong, its parent and its score."""
        index = torch.arange(NODES - 1, device=device)
        offset = torch.where(index <= right, index, 0)
        wrong = torch.where(index < right, 0, 1 + index)
        parents = torch.where(index <= right, index - 1, -1)
        return offset, wrong, parents, -0.01 * (index + 1).float()

    def draft(self, state: State, budget: Budget) -> Proposals:
        """Propose 15 tokens of which the script's number is right, one after another."""
        right = int((self.rounds + 1) * self.share + 1e-6) - int(self.rounds * self.share + 1e-6)
        self.rounds += 1
        offset, wrong, parents, scores = self.plans[right]
        known = self.known[state.rows.ids]
        truth = known.gather(1, state.lengths[:, None] + 1 + offset)  # [B, K]
        tokens = (truth + wrong) % self.vocabulary
        whole = torch.ones_like(tokens)
        return Proposals(
            tokens, parents * whole, scores * whole, whole.bool(), torch.zeros_like(whole)
        )


def time_texts(run: Run, shape: Shape, batch: int) -> Iterator[Row]:
    """Let the plain loop write, then the oracle replay it; their texts must be one."""
    target, prompts = target_of(shape, run.device), prompts_of(shape, batch)
    plain = write(target, PlainDrafter(), prompts, shape.new)
    yield described(run, target, PlainDrafter(), prompts, shape, plain.tokens, "plain")
    whole = [p + new for p, new in zip(prompts, plain.tokens, strict=True)]
    for tokens_a_round in (2.5,) if run.dry else TOKENS_A_ROUND:
        oracle = Oracle(whole, tokens_a_round, shape.sizes["vocab_size"])
        name = f"oracle {tokens_a_round:g}"
        yield described(run, target, oracle, prompts, shape, plain.tokens, name)


def described(
    run: Run, target: Target, drafter: Drafter, prompts: list[list[int]], shape: Shape,
    expected: list[list[int]], name: str,
) -> Row:  # fmt: skip
    """Time a method's second text, and profile a third one."""
    write(target, drafter, prompts, shape.new)
    found = write(target, drafter, prompts, shape.new)
    metrics = found.metrics
    rounds = metrics.rounds / len(prompts)
    row = {
        "kind": "texts", "model": shape.name, "batch": len(prompts), "method": name,
        "identical": found.tokens == expected, "rounds": rounds,
        "tokens_per_round": metrics.tokens_per_round,
        "round_milliseconds": metrics.decode_seconds / rounds * 1e3,
        "host_stages": {k: s / rounds for k, s in metrics.seconds.items() if k != "prefill"},
    }  # fmt: skip
    few = min(shape.new, 16)
    seen: list[float] = []

    def again(metrics: Metrics) -> None:
        seen.append(write(target, drafter, prompts, few, metrics).metrics.rounds / len(prompts))

    stages, launches = device_stages(run.dry, again)
    per_round = {k: s / seen[0] for k, s in stages.items() if k != "prefill"}
    total = sum(launches[stage] for stage in per_round) / seen[0]
    return {**row, "device_stages": per_round, "launches_per_round": total}


def write(
    target: Target,
    drafter: Drafter,
    prompts: list[list[int]],
    new: int,
    metrics: Metrics | None = None,
) -> Generation:
    session = Session(target, drafter, max_nodes=NODES, guard=False)
    return session.generate(prompts, max_new_tokens=new, metrics=metrics)


@torch.inference_mode()
def time_verify(run: Run, shape: Shape, nodes: int, batch: int) -> Iterator[Row]:
    """Time one pass over a tree as the host launches it, and as a graph replays it."""
    target, prompts = target_of(shape, run.device), prompts_of(shape, batch)
    cache, rows, tree = ready(target, prompts, nodes)

    def verify() -> Tensor:
        return target.verify(tree, cache, rows).logits

    for _ in range(3):
        expected = verify()
    repeats = 2 if run.dry else REPEATS
    launched, waited = host_times(verify, run, repeats)
    row = {
        "kind": "verify", "model": shape.name, "batch": batch, "nodes": nodes,
        "prefix": shape.prompt, "launch_milliseconds": launched, "eager_milliseconds": waited,
    }  # fmt: skip
    yield row
    if not run.dry:
        yield {**row, **replayed(verify, expected, repeats)}


def ready(
    target: Target, prompts: list[list[int]], nodes: int
) -> tuple[TreeCache, Rows, TokenTree]:
    """Read the prompts, and make a tree for each."""
    batch, device = len(prompts), target.device
    cache = target.new_cache(rows=batch, capacity=len(prompts[0]) + 64, tree_capacity=64)
    ids = torch.tensor(prompts, device=device)
    target.prefill(ids, [len(prompt) for prompt in prompts], cache)
    generator = torch.Generator().manual_seed(nodes)
    parents = torch.stack([make_parents("random", nodes, generator) for _ in prompts])
    fields = {
        "tokens": torch.arange(nodes).repeat(batch, 1),
        "parents": parents,
        "depth": depths(parents),
        "ancestors": pack_bits(ancestor_matrix(parents)),
        "sizes": torch.full((batch,), nodes),
        "scores": torch.zeros(batch, nodes),
        "source": torch.zeros_like(parents),
    }
    tree = TokenTree(**{name: x.to(device) for name, x in fields.items()})
    return cache, Rows.first(batch, device), tree


def host_times(call: Callable[[], Any], run: Run, repeats: int) -> tuple[float, float]:
    """Return milliseconds until a call returns, and until the device is done."""
    spent = []
    for _ in range(repeats):
        times = [time.perf_counter()]
        call()
        times.append(time.perf_counter())
        if not run.dry:
            torch.cuda.synchronize()
        times.append(time.perf_counter())
        spent.append([(end - times[0]) * 1e3 for _, end in pairwise(times)])
    launched, waited = zip(*spent, strict=True)
    return median(launched), median(waited)


def replayed(call: Callable[[], Tensor], expected: Tensor, repeats: int) -> Row:
    """Capture a call, and time its replays; what cannot be captured says why."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = call()
    graph.replay()
    same = bool((found == expected).all())
    events = [[torch.cuda.Event(enable_timing=True) for _ in "ab"] for _ in range(repeats)]
    for start, end in events:
        start.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    times = [start.elapsed_time(end) for start, end in events]
    return {"graph_milliseconds": median(times), "same": same}
