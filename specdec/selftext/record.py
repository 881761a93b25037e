"""One conversation, as it is written and kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

KEPT, EMPTY, EXCLUDED, DUPLICATE = "", "empty", "excluded", "duplicate"


@dataclass(slots=True)
class Record:
    """A conversation's tokens, and how they came about."""

    number: int
    """Of the conversation in its run."""
    part: int
    """1 for a passage that conversation `number` is about, otherwise 0."""
    category: str
    """What kind of user asked."""
    temperature: float | None
    """Of the answers; 0 for the best token each, None where it is not known."""
    ids: list[int] = field(default_factory=list)
    """All tokens, template included."""
    spans: list[int] = field(default_factory=list)
    """How they divide: tokens of a prompt, of its answer, of the next prompt, and so on."""
    texts: list[str] = field(default_factory=list)
    """Turn, answer, turn, answer; known while it is written."""
    cut: int = 0
    """Answer tokens left out because they went in circles."""
    dropped: str = KEPT
    """Why it is not kept: empty, excluded or duplicate."""

    def add(self, turn: str, prompt: list[int], answer: list[int], text: str, cut: int) -> None:
        """Add a turn and its answer, behind a prompt that begins with all the record holds."""
        self.spans += [len(prompt) - len(self.ids), len(answer)]
        self.ids = prompt + answer
        self.texts += [turn, text]
        self.cut += cut

    @property
    def answer_tokens(self) -> int:
        """Count what was answered."""
        return sum(self.spans[1::2])

    @property
    def answers(self) -> list[list[int]]:
        """List the answers' tokens."""
        ends = list(accumulate(self.spans))
        return [self.ids[b:e] for b, e in zip(ends[::2], ends[1::2], strict=True)]

    def drop(self, reason: str) -> Record:
        """Let go of all tokens, and say why."""
        self.ids, self.spans, self.dropped = [], [], reason
        return self

    def facts(self) -> list[object]:
        """List what is kept beside the ids."""
        return [getattr(self, name) for name in FACTS]

    @classmethod
    def of(cls, facts: list[Any], ids: list[int]) -> Record:
        """Make a record again of what was kept."""
        return cls(**dict(zip(FACTS, facts, strict=True)), ids=ids)


FACTS = ("number", "part", "category", "temperature", "spans", "cut", "dropped")


@dataclass(frozen=True, slots=True)
class Conversation:
    """A prompt and the target's answer to it, as token ids; of several turns, the last answer."""

    prompt_ids: list[int]
    answer_ids: list[int]
