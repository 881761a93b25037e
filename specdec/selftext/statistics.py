"""What is in a file of conversations, in figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .loops import loop_end
from .record import KEPT, Record

# Distinct n-grams grow fewer the more text there is: files are compared by their first answers.
SAMPLE_TOKENS = 200_000
LONGEST_GRAM = 4


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of some conversations. Shares are of 1."""

    conversations: int
    dropped: dict[str, int]
    """Conversations that are not kept, by reason."""
    tokens: int
    """All, prompts and templates included."""
    answer_tokens: int
    answers: int
    answer_median: int
    """Tokens of an answer; half of them have fewer."""
    answer_90th: int
    greedy: float
    """Share of answer tokens that are the best of the target's; of those whose temperature is known."""
    cut: float
    """Share of written answer tokens that were left out because they went in circles."""
    circles: float
    """Share of answer tokens that go in circles behind the second time around."""
    distinct: dict[int, float]
    """Distinct n-grams to all n-grams of the first 200,000 answer tokens, by n."""
    categories: dict[str, float]
    """Shares of answer tokens."""

    @classmethod
    def of(cls, records: Iterable[Record]) -> Statistics:
        """Count."""
        dropped: Counter[str] = Counter()
        categories: Counter[str] = Counter()
        temperatures: Counter[bool | None] = Counter()
        lengths: list[int] = []
        sample: list[list[int]] = []
        tokens = cut = circles = conversations = sampled = 0
        for record in records:
            cut += record.cut
            if record.dropped != KEPT:
                dropped[record.dropped] += 1
                continue
            conversations += 1
            tokens += len(record.ids)
            categories[record.category] += record.answer_tokens
            known = record.temperature is not None
            temperatures[record.temperature == 0 if known else None] += record.answer_tokens
            for answer in record.answers:
                if sampled < SAMPLE_TOKENS:
                    sample.append(answer)
                    sampled += len(answer)
                lengths.append(len(answer))
                circles += len(answer) - loop_end(answer)
        total = sum(lengths)
        known_tokens = temperatures[True] + temperatures[False]
        return cls(
            conversations=conversations,
            dropped=dict(dropped),
            tokens=tokens,
            answer_tokens=total,
            answers=len(lengths),
            answer_median=int(np.percentile(lengths or [0], 50)),
            answer_90th=int(np.percentile(lengths or [0], 90)),
            greedy=temperatures[True] / max(known_tokens, 1),
            cut=cut / max(total + cut, 1),
            circles=circles / max(total, 1),
            distinct={n: _distinct(sample, n) for n in range(1, LONGEST_GRAM + 1)},
            categories={name: count / max(total, 1) for name, count in categories.most_common()},
        )

    def lines(self) -> dict[str, str]:
        """Write each figure as people read it."""
        lines = {
            "conversations": f"{self.conversations:,}",
            "tokens": f"{self.tokens:,}",
            "answer tokens": f"{self.answer_tokens:,}",
            "answers": f"{self.answers:,}",
            "tokens of an answer, median": f"{self.answer_median}",
            "tokens of an answer, 90th percentile": f"{self.answer_90th}",
            "greedy": f"{self.greedy:.0%}",
            "cut: went in circles": f"{self.cut:.1%}",
            "left that goes in circles": f"{self.circles:.1%}",
        }
        lines |= {f"dropped: {reason}": f"{n:,}" for reason, n in sorted(self.dropped.items())}
        lines |= {f"distinct {n}-grams": f"{share:.1%}" for n, share in self.distinct.items()}
        return lines | {name: f"{share:.1%}" for name, share in self.categories.items()}


def _distinct(answers: list[list[int]], n: int) -> float:
    grams = [tuple(ids[at : at + n]) for ids in answers for at in range(len(ids) - n + 1)]
    return len(set(grams)) / max(len(grams), 1)
