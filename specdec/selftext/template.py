"""A chat template taken apart: what stands between the words of the user and of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from typing import Any

from ..sources.tokenizing import chat_text, check_chat_template

MARK = "\u2063mark\u2063"
ROLES = ("user", "assistant")


@dataclass(frozen=True, slots=True)
class Template:
    """Writes conversations as a tokenizer's model expects them. Texts are turn, answer, turn, answer."""

    tokenizer: Any
    end_of_turn: str
    """What follows a user turn if no answer is asked for; may be empty."""
    before_turn: str
    """What stands before every user turn, and may be more before the first."""
    before_answer: str
    """What stands between a user turn and its answer."""

    @classmethod
    def of(cls, tokenizer: Any) -> Template:
        """Take the template apart.

        Raises:
            ValueError: if the tokenizer has no chat template, or one that cannot be used.
        """
        check_chat_template(tokenizer)
        first, third = (
            chat_text(tokenizer, _messages([*texts, MARK])).partition(MARK)
            for texts in ([], ["a", "b"])
        )
        pairs = zip(first[0][::-1], third[0][::-1], strict=False)
        backwards = [a for a, b in takewhile(lambda pair: pair[0] == pair[1], pairs)]
        asked = chat_text(tokenizer, _messages([MARK]), add_generation_prompt=True)
        return cls(tokenizer, first[2], "".join(reversed(backwards)), asked.partition(MARK)[2])

    def until_turn(self, texts: Sequence[str]) -> str:
        """Write a conversation up to where the next user turn begins."""
        return chat_text(self.tokenizer, _messages([*texts, MARK])).partition(MARK)[0]

    def prompt(self, texts: Sequence[str], turn: str) -> str:
        """Write a conversation and a user turn, up to where the answer begins."""
        return chat_text(self.tokenizer, _messages([*texts, turn]), add_generation_prompt=True)

    def texts_of(self, ids: list[int], spans: list[int]) -> list[str]:
        """Read user turns and answers from tokens that divide into prompts and answers, in turn."""
        ends = list(accumulate(spans))
        texts = []
        for at, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
            answer = at % 2 == 1
            # What ends an answer stands before a turn as well.
            begin = begin if answer else max(0, begin - 1)
            text = str(self.tokenizer.decode(ids[begin:end], skip_special_tokens=answer))
            texts.append(text if answer else self._turn_of(text))
        return texts

    def _turn_of(self, prompt: str) -> str:
        turn = prompt.removesuffix(self.before_answer)
        return turn.rpartition(self.before_turn)[2] if self.before_turn else turn


def _messages(texts: Sequence[str]) -> list[dict[str, str]]:
    return [{"role": ROLES[at % 2], "content": text} for at, text in enumerate(texts)]
