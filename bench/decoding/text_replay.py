"""What drafters that need no model gain on known text: tokens per round, nodes per round, time per draft.

    python -m bench.decoding.text_replay --json bench/results/text_replay.json [--store STORE --build]

The loop is the one that decodes; in place of a model stands the text that it wrote, greedy text: a token is accepted where
it is the one that comes next. Prompts are divided by a hash: settings and tables were chosen on one half ("development"),
and figures are reported of the other ("test"). `--build` first builds a store of the development half of the self-text.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench import ROOT
from specdec.decode import decode
from specdec.drafters import Drafter
from specdec.drafters.lookup import LookupDrafter
from specdec.evaluate.questions import read_questions
from specdec.metrics import Metrics
from specdec.model.passed import Verified
from specdec.selftext.conversation import read_records
from specdec.state import State
from specdec.text import Text
from specdec.tree import Accepted, TokenTree

DATA = ROOT / "tests" / "data"
SELF_TEXT = ROOT / "bench" / "training" / "self_text.db"
NODES = (4, 8, 16, 32)
MARGIN = 65


class Known(NamedTuple):
    """A prompt and what the model writes behind it."""

    category: str
    prompt: list[int]
    answer: list[int]

    @property
    def development(self) -> bool:
        return hashlib.sha256(str(self.prompt).encode()).digest()[0] % 2 == 0


class ReplayedCache:
    """Lengths, and nothing that they are of."""

    def __init__(self, lengths: list[int]) -> None:
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

    def verify(self, tree: TokenTree, cache: Any, rows: Any, shallow: Any) -> Verified:
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
    cache: Any = ReplayedCache([len(prompt) for prompt in prompts])
    text = Text(prompts, limits, margin=MARGIN, device=torch.device("cpu"))
    state = State(cache, text, eos_token_ids=frozenset())
    if memory is not None:
        state.memory = memory
    zeros = torch.zeros(len(texts), 1)
    metrics, target = Metrics(), whole
    for _ in decode(
        target, drafter, whole, state, Verified(zeros, zeros),  # type: ignore[arg-type]
        nodes_of_rows=lambda rows: nodes, metrics=metrics,
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


def figures(drafter: Drafter, texts: Sequence[Known], nodes: int) -> dict[str, float]:
    total = Metrics()
    for text in texts:
        total.add(replay(drafter, [text], nodes))
    rounds = len(total.gains)
    return {
        "tokens": sum(total.gains) / rounds,
        "nodes": total.nodes / rounds,
        "ms": 1e3 * total.seconds["draft"] / rounds,
    }


def drafters_of(names: Sequence[str], store: Path | None) -> dict[str, Drafter]:
    from specdec.drafters.suffix import SuffixDrafter

    made: dict[str, Drafter] = {"lookup": LookupDrafter(), "suffix": SuffixDrafter()}
    if store is not None:
        from specdec.datastore.store import Datastore
        from specdec.drafters.rest import RestDrafter

        made["rest"] = RestDrafter(Datastore.open(store))
    return {name: made[name] for name in names if name in made}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--store", type=Path)
    parser.add_argument("--build", action="store_true")
    parser.add_argument("--drafters", nargs="+", default=["lookup", "suffix", "rest"])
    parser.add_argument("--development", action="store_true", help="report that half instead")
    parser.add_argument("--nodes", nargs="+", type=int, default=NODES)
    parser.add_argument("--limit", type=int, default=25, help="texts per category of self-text")
    options = parser.parse_args()
    if options.build:
        build(options.store)
    sources = {"questions": list(greedy_answers()), "self-text": list(self_text())}
    drafters = drafters_of(options.drafters, options.store)
    results = []
    torch.set_num_threads(1)
    for source, texts in sources.items():
        by_category = defaultdict(list)
        for text in texts:
            if (
                text.development == options.development
                and len(by_category[text.category]) < options.limit
            ):
                by_category[text.category].append(text)
        everything = [text for group in by_category.values() for text in group]
        for category, group in {"all": everything, **by_category}.items():
            for nodes in options.nodes if category == "all" else [16]:
                for name, drafter in drafters.items():
                    found = figures(drafter, group, nodes)
                    row = {
                        "source": source,
                        "category": category,
                        "texts": len(group),
                        "limit": nodes,
                        "drafter": name,
                        **found,
                    }
                    results.append(row)
                    print(
                        f"{source:10} {category:16} {len(group):4} {nodes:3} {name:8}",
                        *(f"{k} {v:.3f}" for k, v in found.items()),
                        flush=True,
                    )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


def build(store: Path) -> None:
    from specdec.datastore.build import build_datastore

    texts = (k.prompt + k.answer for k in self_text() if k.development)
    print(build_datastore(store, texts, vocabulary_size=49152))


if __name__ == "__main__":
    main()
