"""Reads training conversations from stores and JSONL files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from ..host.json_files import is_text, read_json_lines, shown, texts_of
from ..sources.tokenizing import text_ids
from .record import Conversation, Record
from .store import Store, StoredConversations, is_store

if TYPE_CHECKING:
    from ..model.target import Target

# Modes in files of earlier versions, and their temperatures.
MODES = {"greedy": 0.0, "sampled": 0.8}


def read_conversations(path: Path, tokenizer: Any = None) -> Sequence[Conversation]:
    """Read a store, or a JSONL file (gzipped or not) whose lines have `prompt_ids` and `answer_ids`, or a `text`.

    A text needs a tokenizer; its first token becomes the prompt. A store stays on disk, and its conversations are unpacked
    when accessed.

    Raises:
        ValueError: if the file cannot be read or a line has another form.
    """
    if is_store(path):
        return StoredConversations(Store.read(path))
    return [conversation for conversation, _ in _lines(path, tokenizer)]


def read_records(path: Path, tokenizer: Any = None) -> Iterator[Record]:
    """Read the same files as `read_conversations`, as full records."""
    if is_store(path):
        yield from (record for _, record in Store.read(path).records())
        return
    for number, (conversation, fields) in enumerate(_lines(path, tokenizer)):
        ids = conversation.prompt_ids + conversation.answer_ids
        spans = [len(conversation.prompt_ids), len(conversation.answer_ids)]
        temperature = MODES.get(str(fields.get("mode")))
        yield Record(number, 0, "unknown", temperature, ids, spans)


def _lines(path: Path, tokenizer: Any) -> Iterator[tuple[Conversation, dict[str, Any]]]:
    for number, line, fields in read_json_lines(path, "data"):
        conversation = _conversation(fields, tokenizer)
        if conversation is None:
            raise ValueError(
                "data: expected an object with prompt_ids and answer_ids, or a text, in "
                f"{path} line {number}, got {shown(line)}"
            )
        yield conversation, fields


def _conversation(fields: dict[str, Any], tokenizer: Any) -> Conversation | None:
    prompt: object
    answer: object
    if tokenizer is not None and is_text(text := fields.get("text")):
        ids = text_ids(tokenizer, str(text))
        prompt, answer = ids[:1], ids[1:]  # the first token has no prediction
    else:
        prompt, answer = fields.get("prompt_ids"), fields.get("answer_ids")
    if not isinstance(prompt, list) or not isinstance(answer, list):
        return None
    ids = prompt + answer
    valid = bool(ids) and all(type(i) is int and i >= 0 for i in ids)
    return Conversation(prompt, answer) if valid else None


class Joined(Sequence[Conversation]):
    """The conversations of several files as one sequence, without copying."""

    def __init__(self, files: Sequence[Sequence[Conversation]]) -> None:
        """Join files in order."""
        self.places = [(file, at) for file in files for at in range(len(file))]

    def __len__(self) -> int:
        """Return the number of all conversations."""
        return len(self.places)

    @overload
    def __getitem__(self, at: int) -> Conversation: ...
    @overload
    def __getitem__(self, at: slice) -> Joined: ...
    def __getitem__(self, at: int | slice) -> Conversation | Joined:
        """Read one conversation, or return a slice without reading it."""
        if isinstance(at, slice):
            part = Joined([])
            part.places = self.places[at]
            return part
        file, place = self.places[at]
        return file[place]


def check_conversations(conversations: Sequence[Conversation], target: Target) -> None:
    """Raise ValueError unless a target can read all of them."""
    vocabulary, positions = target.config.vocab_size, target.position_limit
    for number, conversation in enumerate(conversations, 1):
        ids = conversation.prompt_ids + conversation.answer_ids
        if max(ids) >= vocabulary:
            raise ValueError(
                f"data: expected ids below {vocabulary}, got {max(ids)} in conversation {number}"
            )
        if not 2 <= len(ids) <= positions or not conversation.prompt_ids:
            raise ValueError(
                f"data: expected a prompt and 2 to {positions} tokens, got {len(conversation.prompt_ids)} and "
                f"{len(ids)} in conversation {number}"
            )


def read_turns(path: Path) -> list[str]:
    """Read user turns from a JSONL file whose lines have `text`, `prompt` or, as in Spec-Bench, a list `turns`.

    Raises:
        ValueError: if the file cannot be read, a line has none of them, or there is no turn.
    """
    turns = []
    for number, line, fields in read_json_lines(path, "prompts"):
        texts = [fields.get("text"), fields.get("prompt"), *(texts_of(fields.get("turns")) or [])]
        turn = next((text for text in texts if text), None)
        if not is_text(turn):
            raise ValueError(
                f"prompts: expected an object with text, prompt or a list turns of texts in {path} line {number}, "
                f"got {shown(line)}"
            )
        turns.append(str(turn))
    if not turns:
        raise ValueError(f"prompts: expected at least one turn in {path}, got none")
    return turns
