"""Statistics of a file of conversations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .loops import loop_end
from .record import KEPT, Record

# The share of distinct n-grams falls with the amount of text, so files are compared by their first answer tokens.
SAMPLE_TOKENS = 200_000
LONGEST_GRAM = 4


@dataclass(frozen=True, slots=True)
class Statistics:
    """Statistics of conversations; shares are from 0 to 1."""

    conversations: int
    dropped: dict[str, int]
    """Conversations that are not kept, by reason."""
    tokens: int
    """All tokens, prompts and templates included."""
    answer_tokens: int
    answers: int
    answer_median: int
    """Median tokens per answer."""
    answer_90th: int
    greedy: float
    """Share of greedy answer tokens, of those whose temperature is known."""
    cut: float
    """Share of generated answer tokens that were cut off as repetition."""
    circles: float
    """Share of answer tokens that still repeat, after the second repetition."""
    distinct: dict[int, float]
    """Distinct n-grams divided by all n-grams of the first 200,000 answer tokens, by n."""
    categories: dict[str, float]
    """Share of answer tokens, by category."""

    @classmethod
    def of(cls, records: Iterable[Record]) -> Statistics:
        """Compute the statistics of records."""
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
        """Format each figure, by its label."""
        lines = {
            "conversations": f"{self.conversations:,}",
            "tokens": f"{self.tokens:,}",
            "answer tokens": f"{self.answer_tokens:,}",
            "answers": f"{self.answers:,}",
            "tokens per answer, median": f"{self.answer_median}",
            "tokens per answer, 90th percentile": f"{self.answer_90th}",
            "greedy": f"{self.greedy:.0%}",
            "repetition cut off": f"{self.cut:.1%}",
            "repetition left": f"{self.circles:.1%}",
        }
        lines |= {f"dropped: {reason}": f"{n:,}" for reason, n in sorted(self.dropped.items())}
        lines |= {f"distinct {n}-grams": f"{share:.1%}" for n, share in self.distinct.items()}
        return lines | {name: f"{share:.1%}" for name, share in self.categories.items()}


def _distinct(answers: list[list[int]], n: int) -> float:
    grams = [tuple(ids[at : at + n]) for ids in answers for at in range(len(ids) - n + 1)]
    return len(set(grams)) / max(len(grams), 1)
