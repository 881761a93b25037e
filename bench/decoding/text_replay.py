"""What drafters that need no model gain on known text: tokens per round, nodes per round, processor time per draft.

    python -m bench.decoding.text_replay --json bench/results/text_replay.json [--store STORE --build]

The loop is the one that decodes; in place of a model stands the text that it wrote, greedy text: a token is accepted where
it is the one that comes next. Prompts are divided by a hash: settings and tables were chosen on one half ("development"),
and figures are reported of the other ("test"). `--build` first builds a store of the development half of the self-text.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from known_costs import known_costs
from torch import Tensor

from bench import ROOT
from specdec.costs.spending import Spending
from specdec.datastore.build import build_datastore
from specdec.datastore.store import Datastore
from specdec.decode import decode
from specdec.drafters import Drafter
from specdec.drafters.lookup import LookupDrafter
from specdec.drafters.rest import RestDrafter
from specdec.drafters.suffix import SuffixDrafter
from specdec.evaluate.questions import read_questions
from specdec.metrics import Metrics
from specdec.model.passed import Verified
from specdec.prompts import Prompts
from specdec.selftext.conversation import read_records
from specdec.state import State
from specdec.text import Text
from specdec.tree import Accepted, TokenTree

DATA = ROOT / "tests" / "data"
SELF_TEXT = ROOT / "bench" / "training" / "self_text.db"
NODES = (4, 8, 16, 32)
SESSION = "suffix, in one session"  # the texts of a category, one after another
MARGIN = 65


class Known(NamedTuple):
    """A prompt and what the model writes behind it."""

    category: str
    prompt: list[int]
    answer: list[int]

    @property
    def development(self) -> bool:
        return hashlib.sha256(str(self.prompt).encode()).digest()[0] % 2 == 0


class ProcessorTime(Metrics):
    """Counts the time that this thread computes, whatever else the machine does."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.thread_time()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.thread_time() - began


class ReplayedCache:
    """Lengths, and nothing that they are of."""

    places = None

    def __init__(self, lengths: list[int]) -> None:
        self.shape = (0, 2, len(lengths))
        self.host_lengths, self.lengths = list(lengths), torch.tensor(lengths)
        self.current: Any = None

    def commit(self, accepted: Accepted, rows: Any) -> None:
        self.lengths[rows.ids] += accepted.lengths + 1


class Replay:
    """Target and picker in one: says what the text says."""

    sampling = None

    def __init__(self, whole: Sequence[list[int]]) -> None:
        longest = max(map(len, whole)) + MARGIN
        self.text = torch.tensor([text + [-1] * (longest - len(text)) for text in whole])

    def prefill(self, ids: Tensor, lengths: list[int], cache: Any, *others: Any) -> Verified:
        cache.host_lengths, cache.lengths = list(lengths), torch.tensor(lengths)
        nothing = torch.zeros(len(lengths), 1)
        return Verified(nothing, nothing)

    def verify(self, tree: TokenTree, cache: Any, rows: Any, *others: Any) -> Verified:
        cache.current = SimpleNamespace(prefix_lens=cache.lengths[rows.ids])
        nothing = torch.zeros(*tree.tokens.shape, 1)
        return Verified(nothing, nothing)

    def pick(self, state: State, tree: TokenTree, logits: Tensor) -> Tensor:
        return self.text[state.rows.ids[:, None], state.position_after(tree.depth)]


def replay(
    drafter: Drafter, texts: Sequence[Known], nodes: int, memory: dict[object, Any] | None = None
) -> Metrics:
    """Decode known answers of one batch."""
    prompts = [list(text.prompt) for text in texts]
    whole = Replay([text.prompt + text.answer for text in texts])
    limits = [len(text.answer) for text in texts]
    cache: Any = ReplayedCache([0] * len(prompts))
    text = Text(prompts, limits, margin=MARGIN, device=torch.device("cpu"))
    state = State(cache, text, eos_token_ids=frozenset())
    if memory is not None:
        state.memory = memory
    metrics, target = ProcessorTime(), whole
    # One machine's prices, so that texts can be compared anywhere.
    costs = known_costs(target, drafter)
    spending = Spending(drafter, costs, layers=1, max_nodes=nodes, guarded=False)
    for _ in decode(
        target, drafter, whole, state, Prompts(state),  # type: ignore[arg-type]
        spending=spending, metrics=metrics,
    ):  # fmt: skip
        pass
    assert all(
        row == text.prompt + text.answer for row, text in zip(state.text.host, texts, strict=True)
    )
    return metrics


def greedy_answers() -> Iterator[Known]:
    """The library's own greedy text to the questions of the tests."""
    from specdec.sources.models import load_tokenizer
    from specdec.sources.tokenizing import chat_ids

    tokenizer = load_tokenizer()
    answers = json.loads((DATA / "library_greedy.json").read_text())["answers"]
    for question in read_questions(DATA / "questions.jsonl"):
        prompt = chat_ids(tokenizer, [{"role": "user", "content": question.turns[0]}])
        yield Known(question.category, prompt, answers[str(question.question_id)])


def self_text() -> Iterator[Known]:
    """The greedy conversations of the store, each up to its last answer."""
    for record in read_records(SELF_TEXT):
        if record.temperature == 0 and record.ids and record.spans[-1]:
            ends = len(record.ids) - record.spans[-1]
            yield Known(record.category, record.ids[:ends], record.ids[ends:])


def measure(drafter: Drafter, texts: Sequence[Known], nodes: int, *, session: bool) -> Metrics:
    """Decode texts one after another; in one session, or each in its own."""
    total, memory = Metrics(), {}  # type: ignore[var-annotated]
    for text in texts:
        total.add(replay(drafter, [text], nodes, memory if session else None))
    return total


def figures(total: Metrics) -> dict[str, float]:
    rounds = len(total.gains)
    return {
        "tokens": sum(total.gains) / rounds,
        "nodes": total.nodes / rounds,
        "ms": 1e3 * total.seconds["draft"] / rounds,
    }


def drafters_of(store: Path | None) -> dict[str, Drafter]:
    made: dict[str, Drafter] = {
        "lookup": LookupDrafter(),
        "suffix": SuffixDrafter(),
        SESSION: SuffixDrafter(),
    }
    if store is not None:
        made["rest"] = RestDrafter(Datastore.open(store))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--store", type=Path, help="of `--build`, or of `specdec datastore build`")
    parser.add_argument("--build", action="store_true")
    parser.add_argument("--development", action="store_true", help="report that half instead")
    parser.add_argument("--nodes", nargs="+", type=int, default=NODES)
    parser.add_argument("--limit", type=int, default=12, help="texts per category of self-text")
    options = parser.parse_args()
    if options.build:
        build(options.store)
    torch.set_num_threads(1)
    results: list[dict[str, Any]] = []
    for source, texts in {"questions": greedy_answers(), "self-text": self_text()}.items():
        groups: dict[str, list[Known]] = defaultdict(list)
        for text in texts:
            group = groups[text.category]
            if text.development == options.development and len(group) < options.limit:
                group.append(text)
        for (name, drafter), nodes in itertools.product(
            drafters_of(options.store).items(), options.nodes
        ):
            everything = Metrics()
            for category, group in groups.items():
                one = measure(drafter, group, nodes, session=name == SESSION)
                everything.add(one)
                if group:
                    results.append(row(source, category, len(group), nodes, name, one))
            every = sum(map(len, groups.values()))
            results.append(row(source, "all", every, nodes, name, everything))
            print(json.dumps(results[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


def row(
    source: str, category: str, texts: int, nodes: int, name: str, total: Metrics
) -> dict[str, Any]:
    found = {key: round(value, 3) for key, value in figures(total).items()}
    return {"source": source, "category": category, "texts": texts, "limit": nodes, "drafter": name, **found}  # fmt: skip


def build(store: Path) -> None:
    texts = (k.prompt + k.answer for k in self_text() if k.development)
    print(build_datastore(store, texts, vocabulary_size=49152))


if __name__ == "__main__":
    main()
