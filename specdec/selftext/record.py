"""Records of generated conversations."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

KEPT, EMPTY, EXCLUDED, DUPLICATE = "", "empty", "excluded", "duplicate"


@dataclass(slots=True)
class Record:
    """A conversation's tokens and origin."""

    number: int
    """Number of the conversation in its run."""
    part: int
    """1 for a passage that conversation `number` is about, otherwise 0."""
    category: str
    """Category of the first opener."""
    temperature: float | None
    """Temperature of the answers; 0 for greedy, None if unknown."""
    ids: list[int] = field(default_factory=list)
    """All tokens, template included."""
    spans: list[int] = field(default_factory=list)
    """Numbers of tokens of a prompt, its answer, the next prompt, and so on."""
    texts: list[str] = field(default_factory=list)
    """Turn, answer, turn, answer; only set during generation."""
    cut: int = 0
    """Answer tokens that were cut off as repetition."""
    dropped: str = KEPT
    """Why the conversation is not kept: empty, excluded or duplicate."""

    def add(self, turn: str, prompt: list[int], answer: list[int], text: str, cut: int) -> None:
        """Add a turn and its answer; the prompt begins with all tokens of the record."""
        self.spans += [len(prompt) - len(self.ids), len(answer)]
        self.ids = prompt + answer
        self.texts += [turn, text]
        self.cut += cut

    @property
    def answer_tokens(self) -> int:
        """Return the number of answer tokens."""
        return sum(self.spans[1::2])

    @property
    def answers(self) -> list[list[int]]:
        """Return the tokens of each answer."""
        ends = list(accumulate(self.spans))
        return [self.ids[b:e] for b, e in zip(ends[::2], ends[1::2], strict=True)]

    def drop(self, reason: str) -> Record:
        """Delete all tokens, and record the reason."""
        self.ids, self.spans, self.dropped = [], [], reason
        return self

    def facts(self) -> list[object]:
        """Return the stored fields except the ids."""
        return [getattr(self, name) for name in FACTS]

    @classmethod
    def of(cls, facts: list[Any], ids: list[int]) -> Record:
        """Create a record from stored fields and ids."""
        return cls(**dict(zip(FACTS, facts, strict=True)), ids=ids)


FACTS = ("number", "part", "category", "temperature", "spans", "cut", "dropped")


@dataclass(frozen=True, slots=True)
class Conversation:
    """A prompt and the target's answer as token ids; with several turns, the last answer."""

    prompt_ids: list[int]
    answer_ids: list[int]
