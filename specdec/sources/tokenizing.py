"""Tokenizing of texts and conversations, with tokenizers' failures as `ValueError`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..host.reasons import foreign


@contextmanager
def _tokenizing() -> Iterator[None]:
    from ..host.quiet import quiet  # imports transformers

    # Texts that are too long for the model get an error elsewhere, so transformers' warning is hidden.
    with foreign("model: expected a tokenizer that can read this, got another"), quiet():
        yield


def check_chat_template(tokenizer: Any) -> None:
    """Raise ValueError unless the tokenizer has a chat template."""
    if getattr(tokenizer, "chat_template", None) is None:
        raise ValueError("model: expected a tokenizer with a chat template, got none")


def text_ids(tokenizer: Any, text: str, **options: Any) -> list[int]:
    """Return the ids of a text; ValueError if the tokenizer fails."""
    with _tokenizing():
        return list(tokenizer(text, **options)["input_ids"])


def ids_of_texts(tokenizer: Any, texts: list[str], **options: Any) -> list[list[int]]:
    """Return the ids of many texts at once, which is faster per text; ValueError if the tokenizer fails."""
    with _tokenizing():
        return [list(ids) for ids in tokenizer(texts, **options)["input_ids"]] if texts else []


def chat_text(tokenizer: Any, messages: list[dict[str, str]], **options: Any) -> str:
    """Format a conversation with the chat template; ValueError if the tokenizer fails."""
    with _tokenizing():
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))


def chat_ids(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """Return the ids of a conversation up to the start of the next answer; ValueError if the tokenizer fails."""
    with _tokenizing():
        encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        return list(encoded["input_ids"])
