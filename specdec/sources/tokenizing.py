"""What a tokenizer makes of texts and conversations. Its files, chat template included, are the model's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..host.reasons import foreign


@contextmanager
def _tokenizing() -> Iterator[None]:
    from ..host.quiet import quiet  # arguments are checked before transformers is there

    # What is too long for the model is an error of ours.
    with foreign("model: expected a tokenizer that can read this, got another"), quiet():
        yield


def check_chat_template(tokenizer: Any) -> None:
    """Raise ValueError unless the tokenizer can write a conversation as the model expects it."""
    if getattr(tokenizer, "chat_template", None) is None:
        raise ValueError("model: expected a tokenizer with a chat template, got none")


def text_ids(tokenizer: Any, text: str, **options: Any) -> list[int]:
    """Read a text; ValueError if the tokenizer cannot."""
    with _tokenizing():
        return list(tokenizer(text, **options)["input_ids"])


def ids_of_texts(tokenizer: Any, texts: list[str], **options: Any) -> list[list[int]]:
    """Read many texts at once, which takes less time each; ValueError if the tokenizer cannot."""
    with _tokenizing():
        return [list(ids) for ids in tokenizer(texts, **options)["input_ids"]] if texts else []


def chat_text(tokenizer: Any, messages: list[dict[str, str]], **options: Any) -> str:
    """Write a conversation as the model expects it; ValueError if that cannot be."""
    with _tokenizing():
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))


def chat_ids(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """Read a conversation up to where an answer begins; ValueError if the tokenizer cannot."""
    with _tokenizing():
        encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        return list(encoded["input_ids"])
