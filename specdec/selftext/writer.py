"""`SelfWriter`: generates training conversations with the target model alone.

A drafter predicts the target's text, so it is best trained on that text. User turns are sampled from the target after a
few opening words, some around a passage that it generated before; answers are greedy or sampled.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import count

from ..model.target import Target
from ..session import end_tokens
from ..sources.tokenizing import text_ids
from .continuous_batching import ContinuousBatch, Request, Script, Written
from .follow_ups import FOLLOW_UPS, PASSAGES
from .openers import CATEGORIES, PASSAGE, Opener
from .record import Record
from .template import Template

# Share of sampled answers. Greedy text alone repeats itself; sampled text alone differs from greedy decoding.
SAMPLED = 1 / 3
TURN_TEMPERATURE, ANSWER_TEMPERATURE = 1.0, 0.8
# Weights of conversations with one to four turns.
TURNS = (60, 25, 10, 5)
# Most tokens per text: every row of a batch pays for attention to the longest one.
MAX_TOKENS = 1024
# Noise streams per conversation; one is for its passage.
STREAMS = 2


class SelfWriter:
    """Generates conversations; each depends on the seed and its number, and through rounding on others in the batch."""

    def __init__(
        self, target: Target, *, batch: int = 128, answer_tokens: int = 512, seed: int = 0
    ) -> None:
        """Create a writer.

        Args:
            target: a target whose tokenizer has a chat template.
            batch: conversations generated at the same time.
            answer_tokens: most tokens per answer.
            seed: seed of openers and sampling, 0 to 2**64 - 1.

        Raises:
            ValueError: if the tokenizer has no chat template.
        """
        self.target, self.tokenizer = target, target.tokenizer
        self.template = Template.of(target.tokenizer)
        self.batch, self.answer_tokens, self.seed = batch, answer_tokens, seed
        self.max_tokens = min(MAX_TOKENS, target.position_limit)

    def write(
        self, numbers: Iterable[int] | None = None, turns: Sequence[str] | None = None
    ) -> Iterator[list[Record]]:
        """Generate conversations, and yield each when it ends.

        Args:
            numbers: numbers of the conversations, from 0; None for all.
            turns: user turns to answer, by number; None lets the target generate them.

        Returns:
            Per conversation its records; a passage has a record of its own. A record without tokens was not answered.
        """
        batch = ContinuousBatch(
            self.target,
            rows=self.batch,
            capacity=self.max_tokens,
            seed=self.seed,
            end_tokens=frozenset(end_tokens(self.target.model.generation_config)),
        )
        if turns is None:
            scripts = (self._own(number) for number in (count() if numbers is None else numbers))
        else:
            asked = range(len(turns)) if numbers is None else numbers
            scripts = (self._given(number, turns[number]) for number in asked)
        return batch.run(scripts)

    def check_turns(self, turns: Sequence[str]) -> None:
        """Raise ValueError for a user turn that leaves no room for an answer."""
        for number, turn in enumerate(turns, 1):
            if (length := len(self._ids(self.template.prompt([], turn)))) >= self.max_tokens:
                raise ValueError(
                    f"prompts: expected fewer than {self.max_tokens} tokens, got {length} in turn {number}"
                )

    def _own(self, number: int) -> Script[list[Record]]:
        choice = random.Random(f"{self.seed} {number}")
        name = choice.choices(list(CATEGORIES), [c.share for c in CATEGORIES.values()])[0]
        opener = choice.choice(CATEGORIES[name].openers)
        turns = choice.choices(range(1, len(TURNS) + 1), TURNS)[0]
        openers = [opener, *choice.choices(FOLLOW_UPS, k=turns - 1)]
        temperature = ANSWER_TEMPERATURE if choice.random() < SAMPLED else 0.0
        records, passage = [], ""
        if PASSAGE in opener.text:
            asked = choice.choice(PASSAGES)
            record = yield from self._talk(
                Record(number, 1, "passages", ANSWER_TEMPERATURE), [asked]
            )
            if not record.texts[1:]:
                return [record]
            records, passage = [record], record.texts[1].strip()
            openers = [o._replace(text=o.text.replace(PASSAGE, passage)) for o in openers]
        record = yield from self._talk(Record(number, 0, name, temperature), openers)
        return [*records, record]

    def _given(self, number: int, turn: str) -> Script[list[Record]]:
        temperature = ANSWER_TEMPERATURE if number % round(1 / SAMPLED) == 0 else 0.0
        record = yield from self._talk(Record(number, 0, "given", temperature), [Opener(turn, 0)])
        return [record]

    def _talk(
        self, record: Record, openers: Iterable[Opener]
    ) -> Generator[Request, Written, Record]:
        """Fill a record turn by turn, until the openers, the room or the answers end."""
        stream = record.number * STREAMS + record.part
        for opener in openers:
            turn = opener.text
            if opener.tokens:
                ids = self._ids(self.template.until_turn(record.texts) + turn)
                # Without a template and opening words there may be no tokens.
                if not ids or len(ids) + opener.tokens >= self.max_tokens:
                    break
                written = yield Request(ids, opener.tokens, TURN_TEMPERATURE, stream)
                turn += self._text(written.ids)
                # A base model ends a turn with its template's words instead of a token.
                turn = (
                    turn.split(self.template.end_of_turn)[0] if self.template.end_of_turn else turn
                )
            ids = self._ids(self.template.prompt(record.texts, turn))
            # A conversation cannot continue if the tokenizer's ids of its text differ from the generated ids.
            if (
                not turn.strip()
                or len(ids) >= self.max_tokens
                or ids[: len(record.ids)] != record.ids
            ):
                break
            room = min(self.answer_tokens, self.max_tokens - len(ids))
            written = yield Request(ids, room, record.temperature or 0.0, stream)
            if not written.ids:
                break
            record.add(turn, ids, written.ids, self._text(written.ids), written.cut)
        return record

    def _ids(self, text: str) -> list[int]:
        return text_ids(self.tokenizer, text, add_special_tokens=False)

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))
