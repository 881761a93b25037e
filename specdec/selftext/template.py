"""`Template`: the fixed parts of a chat template, between user turns and answers."""

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
    """Formats conversations with a tokenizer's chat template. Texts are turn, answer, turn, answer."""

    tokenizer: Any
    end_of_turn: str
    """Text after a user turn that has no answer; may be empty."""
    before_turn: str
    """Text before every user turn; the first may have more before it."""
    before_answer: str
    """Text between a user turn and its answer."""

    @classmethod
    def of(cls, tokenizer: Any) -> Template:
        """Extract the parts of a tokenizer's chat template.

        Raises:
            ValueError: if the tokenizer has no chat template, or one with another structure.
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
        """Format a conversation up to the start of the next user turn."""
        return chat_text(self.tokenizer, _messages([*texts, MARK])).partition(MARK)[0]

    def prompt(self, texts: Sequence[str], turn: str) -> str:
        """Format a conversation and a user turn, up to the start of the answer."""
        return chat_text(self.tokenizer, _messages([*texts, turn]), add_generation_prompt=True)

    def texts_of(self, ids: list[int], spans: list[int]) -> list[str]:
        """Return the user turns and answers of tokens, which `spans` divides into prompts and answers."""
        ends = list(accumulate(spans))
        texts = []
        for at, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
            answer = at % 2 == 1
            # The end token of an answer also comes before the next turn.
            begin = begin if answer else max(0, begin - 1)
            text = str(self.tokenizer.decode(ids[begin:end], skip_special_tokens=answer))
            texts.append(text if answer else self._turn_of(text))
        return texts

    def _turn_of(self, prompt: str) -> str:
        turn = prompt.removesuffix(self.before_answer)
        return turn.rpartition(self.before_turn)[2] if self.before_turn else turn


def _messages(texts: Sequence[str]) -> list[dict[str, str]]:
    return [{"role": ROLES[at % 2], "content": text} for at, text in enumerate(texts)]
