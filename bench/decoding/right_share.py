"""How often proposals were right, by method: what the tables of the training-free methods are made from.

    python -m bench.decoding.right_share --prompts question.jsonl --drafter lookahead --drafter recycling

Of every node whose parent the target agreed with, its source (a rank or a place, as the method counts them) and its
depth are noted, and whether the target agreed with it too. Prints shares by source of first proposals, and by depth of
later ones. Question files other than the benchmark's are the ones to use.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from specdec import Session, load_target
from specdec.drafters import load_drafter
from specdec.evaluate.benchmark import chat_prompts
from specdec.evaluate.questions import read_questions
from specdec.observer import Round
from specdec.session import end_tokens


class RightShare:
    """Counts, by depth and source, nodes with a right parent and those that were right themselves."""

    def __init__(self) -> None:
        self.tried: Counter[tuple[int, int]] = Counter()
        self.right: Counter[tuple[int, int]] = Counter()
        self.claimed: Counter[int] = Counter()
        self.came_true: Counter[int] = Counter()
        self.rounds = 0

    def __call__(self, round: Round) -> None:
        for tree in round.trees():
            self.rounds += 1
            depth = [0] * len(tree.tokens)
            on_path = set(tree.path)
            for node, parent in enumerate(tree.parents):
                if node == 0:
                    continue
                depth[node] = depth[parent] + 1
                tenth = int(10 * 2.718281828 ** tree.scores[node])
                self.claimed[tenth] += 1
                self.came_true[tenth] += node in on_path
                if parent in on_path:
                    which = depth[node], tree.sources[node]
                    self.tried[which] += 1
                    self.right[which] += node in on_path

    def share(self, chosen: list[tuple[int, int]]) -> str:
        tried, right = (sum(c[which] for which in chosen) for c in (self.tried, self.right))
        return f"{right / tried:.3f} of {tried}" if tried else ""

    def tables(self, name: str) -> list[Table]:
        depths = sorted({depth for depth, _ in self.tried})
        grid = Table("source", *(f"depth {depth}" for depth in depths), "all", title=name)
        for source in sorted({source for _, source in self.tried}):
            cells = [self.share([(depth, source)]) for depth in depths]
            grid.add_row(str(source), *cells, self.share([(d, source) for d in depths]))
        every = [self.share([w for w in self.tried if w[0] == depth]) for depth in depths]
        grid.add_row("all", *every, self.share(list(self.tried)))
        held = Table(
            "claimed", "came true", "nodes", title=f"{name}: scores against what came true"
        )
        for tenth in sorted(self.claimed):
            nodes = self.claimed[tenth]
            held.add_row(f"{tenth / 10:.1f}", f"{self.came_true[tenth] / nodes:.3f}", str(nodes))
        return [grid, held]


def main() -> None:
    """Write texts with each drafter, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=Path, required=True, help="a JSONL file as of Spec-Bench")
    parser.add_argument("--drafter", action="append", required=True, help="a name; may be repeated")
    parser.add_argument("--per-category", type=int, default=3)
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--max-nodes", type=int, default=64)
    parser.add_argument("--min-prob", type=float, default=1e-6, help="0 for the method's own")
    options = parser.parse_args()
    target = load_target()
    questions = read_questions(options.prompts, per_category=options.per_category)
    prompts = [prompt.ids for prompt in chat_prompts(target.tokenizer, questions, turns=1)]
    for name in options.drafter:
        settings = {"min_prob": options.min_prob} if options.min_prob else {}
        drafter = load_drafter(name, target, **settings)
        share = RightShare()
        tokens = 0
        for prompt in track(prompts, description=name):
            written = Session(target, drafter, max_nodes=options.max_nodes, guard=False).generate(
                [prompt],
                max_new_tokens=options.max_new_tokens,
                eos_token_ids=end_tokens(target.model.generation_config),
                on_round=share,
            )
            tokens += len(written.tokens[0]) - 1
        print(f"{name}: {tokens / share.rounds:.3f} tokens per round")
        for table in share.tables(name):
            Console().print(table)


if __name__ == "__main__":
    main()
