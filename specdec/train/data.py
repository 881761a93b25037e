"""Self-written data: the target asks itself questions and answers them.

A drafter has to guess what the target writes, so the best text to learn from is the target's own. Nothing else is
needed: user turns are sampled from the model behind a few opening words, answers are written greedily and sampled.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..json_files import is_text, read_json_lines, shown, texts_of
from ..quiet import quiet
from ..reading import chat_text, check_chat_template, text_ids
from ..target import Target
from ..whole_file import appended_file, whole_file
from .openers import OPENERS, Opener

# Every third batch of answers is sampled: greedy text alone repeats itself, sampled text alone is not what is decoded.
SAMPLED_EVERY = 3
TURN = {"temperature": 1.0, "top_k": 50, "top_p": 1.0}
ANSWER = {"temperature": 0.8, "top_k": 50, "top_p": 1.0}
OVERLAP = 13
BEGIN = b'{"prompt_ids": ['
MARK = "\u2063user turn\u2063"


@dataclass(frozen=True, slots=True)
class Conversation:
    """A prompt and the target's answer to it, as token ids."""

    prompt_ids: list[int]
    answer_ids: list[int]


@dataclass(frozen=True, slots=True)
class Overlap:
    """The word n-grams of texts that must stay out of training."""

    ngrams: frozenset[tuple[str, ...]]

    @classmethod
    def of(cls, texts: Iterable[str]) -> Overlap:
        """Collect the 13-grams of `texts`; of a shorter text, the whole."""
        return cls(frozenset(gram for text in texts for gram in _ngrams(text)))

    def __contains__(self, text: object) -> bool:
        """Tell whether a text shares a 13-gram with any of them."""
        return not self.ngrams.isdisjoint(_ngrams(str(text)))


def _ngrams(text: str) -> Iterator[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    for first in range(max(1, len(words) - OVERLAP + 1)):
        yield tuple(words[first : first + OVERLAP])


def read_conversations(path: Path, tokenizer: Any = None) -> list[Conversation]:
    """Read a JSONL file, gzipped or not, whose lines hold `prompt_ids` and `answer_ids`, or a `text` of any origin.

    A text needs a tokenizer. Its first token is its prompt: nothing is expected before that.

    Raises:
        ValueError: if the file cannot be read or a line is something else.
    """
    conversations = []
    for number, line, fields in read_json_lines(path, "data"):
        conversation = _conversation(fields, tokenizer)
        if conversation is None:
            raise ValueError(
                "data: expected an object with prompt_ids and answer_ids, or a text, in "
                f"{path} line {number}, got {shown(line)}"
            )
        conversations.append(conversation)
    return conversations


def _conversation(fields: dict[str, Any], tokenizer: Any) -> Conversation | None:
    prompt: object
    answer: object
    if tokenizer is not None and is_text(text := fields.get("text")):
        ids = text_ids(tokenizer, str(text))
        prompt, answer = ids[:1], ids[1:]  # nothing is expected before the first token
    else:
        prompt, answer = fields.get("prompt_ids"), fields.get("answer_ids")
    if not isinstance(prompt, list) or not isinstance(answer, list):
        return None
    ids = prompt + answer
    valid = bool(ids) and all(type(i) is int and i >= 0 for i in ids)
    return Conversation(prompt, answer) if valid else None


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


class SelfWriter:
    """Lets a target write conversations, batch by batch; a batch depends on the seed and its number alone."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        *,
        batch: int = 32,
        answer_tokens: int = 224,
        seed: int = 0,
        positions: int | None = None,
    ) -> None:
        """Prepare.

        Args:
            model: the target, in evaluation mode.
            tokenizer: its tokenizer, with a chat template.
            batch: conversations written at once.
            answer_tokens: most tokens of an answer.
            seed: of openers and samples.
            positions: most tokens of a conversation; None for no bound.

        Raises:
            ValueError: if the tokenizer has no chat template.
        """
        check_chat_template(tokenizer)
        self.model, self.tokenizer = model, tokenizer
        self.batch, self.answer_tokens, self.seed = batch, answer_tokens, seed
        self.positions = math.inf if positions is None else positions
        whole = chat_text(tokenizer, [{"role": "user", "content": MARK}])
        self.before_turn, _, self.after_turn = whole.partition(MARK)

    def write(
        self, number: int, exclude: Overlap, turns: list[str] | None = None
    ) -> list[dict[str, Any]]:
        """Write one batch.

        Args:
            number: which one, from 0.
            exclude: user turns that overlap with these texts are dropped.
            turns: user turns to answer; None lets the model write its own.

        Returns:
            Lines for a data file: `prompt_ids`, `answer_ids` and `mode` (greedy or sampled).
        """
        torch.manual_seed(self.seed * 1_000_003 + number)
        if turns is None:
            turns = self._turns(random.Random(f"{self.seed} {number}"))
        turns = [turn for turn in turns if turn.strip() and turn not in exclude]
        ids = [prompt for turn in turns if len(prompt := self._prompt(turn)) < self.positions]
        if not ids:
            return []
        sampled = number % SAMPLED_EVERY == SAMPLED_EVERY - 1
        answers = self._generate(ids, self.answer_tokens, ANSWER if sampled else None)
        mode = "sampled" if sampled else "greedy"
        return [
            {"prompt_ids": prompt, "answer_ids": answer, "mode": mode}
            for prompt, answer in zip(ids, answers, strict=True)
            if answer
        ]

    def check_turns(self, turns: list[str]) -> None:
        """Raise ValueError for a user turn that leaves no room for an answer."""
        for number, turn in enumerate(turns, 1):
            if (length := len(self._prompt(turn))) >= self.positions:
                raise ValueError(
                    f"prompts: expected fewer tokens than the model's {self.positions} positions, "
                    f"got {length} in turn {number}"
                )

    def _prompt(self, turn: str) -> list[int]:
        messages = [{"role": "user", "content": turn}]
        text = chat_text(self.tokenizer, messages, add_generation_prompt=True)
        return text_ids(self.tokenizer, text, add_special_tokens=False)

    def _turns(self, choice: random.Random) -> list[str]:
        # Rows of one batch are equally long at most, so short and long turns are not mixed.
        most = choice.choice(OPENERS).tokens
        openers = choice.choices([o for o in OPENERS if o.tokens == most], k=self.batch)
        ids = [
            text_ids(self.tokenizer, self.before_turn + o.text, add_special_tokens=False)
            for o in openers
        ]
        written = self._generate(ids, most, TURN)
        return [self._turn(o, new) for o, new in zip(openers, written, strict=True)]

    def _turn(self, opener: Opener, new: list[int]) -> str:
        text = opener.text + str(self.tokenizer.decode(new, skip_special_tokens=True))
        # A base model ends a turn with the words of its template, not with a token.
        return text.split(self.after_turn)[0] if self.after_turn else text

    @torch.inference_mode()
    def _generate(
        self, prompts: list[list[int]], tokens: int, sampling: dict[str, Any] | None
    ) -> list[list[int]]:
        longest = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id or 0
        ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        ends = self.model.generation_config.eos_token_id
        ends = [ends] if isinstance(ends, int) else list(ends or [])
        with quiet():  # padding is where it should be, and a token may look like it
            out = self.model.generate(
                ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                max_new_tokens=int(min(tokens, self.positions - longest)),
                do_sample=sampling is not None,
                pad_token_id=pad,
                **(sampling or {}),
            )
        return [_until(new, ends) for new in out[:, longest:].tolist()]


def _until(ids: list[int], ends: list[int]) -> list[int]:
    """Cut behind the first end token, which stays."""
    return ids[: next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))]


def write_data(
    writer: SelfWriter,
    out: Path,
    *,
    tokens: int,
    exclude: Overlap,
    turns: list[str] | None = None,
    progress: Callable[[int], None] = lambda tokens: None,
) -> int:
    """Append batches to a JSONL file until it holds enough answer tokens; a second call goes on where it ended.

    Args:
        writer: makes the batches.
        out: the file; an unfinished last batch in it is written again.
        tokens: answer tokens wanted.
        exclude: texts that must not be trained on.
        turns: user turns to answer, each once; None lets the model write its own.
        progress: told the answer tokens written so far.

    Returns:
        Answer tokens in the file.
    """
    check_out(out)
    # What a batch depends on, besides its number.
    made = {"seed": writer.seed, "size": writer.batch, "answer_tokens": writer.answer_tokens}
    number, written = _resume(out, made)
    progress(written)
    while written < tokens:
        begin = number * writer.batch
        if turns is not None and begin >= len(turns):
            break
        given = None if turns is None else turns[begin : begin + writer.batch]
        lines = writer.write(number, exclude, given)
        with appended_file(out) as file:
            for line in lines:
                file.write(json.dumps({**line, "batch": number, **made}).encode() + b"\n")
        written += sum(len(line["answer_ids"]) for line in lines)
        number += 1
        progress(written)
    return written


def check_out(out: Path) -> None:
    """Raise ValueError for a name that says that the file is packed, as it is written plain."""
    if out.suffix == ".gz":
        raise ValueError(f"out: expected a name that does not end in .gz, got {out}")


def _resume(out: Path, made: dict[str, int]) -> tuple[int, int]:
    """Cut off the last batch, which may be incomplete; return its number and the answer tokens before it.

    Raises:
        ValueError: if the file is something else, or its batches were made in another way.
    """
    if not out.exists():
        return 0, 0
    try:
        lines = out.read_bytes().splitlines(keepends=True)
        cut = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""
        records = [json.loads(line) for line in lines]
        numbers = [record["batch"] for record in records]
        others = [record for record in records if any(record[k] != v for k, v in made.items())]
        last = max(numbers, default=0)
        kept = numbers.index(last) if numbers else 0
        written = sum(len(record["answer_ids"]) for record in records[:kept])
        ours = cut[: len(BEGIN)] == BEGIN[: len(cut)]  # or the one line of some other file
        valid = ours and type(last) is int and 0 <= last < 1 << 32
    except (KeyError, RecursionError, TypeError, ValueError):
        valid = False
    if not valid:
        raise ValueError(f"out: expected a file that specdec data began, got {out}")
    if others:
        found = {name: others[0][name] for name in made}
        raise ValueError(f"out: expected a file made with {made}, got one with {found} in {out}")
    with whole_file(out) as scratch:
        scratch.write_bytes(b"".join(lines[:kept]))
    return last, written


def read_turns(path: Path) -> list[str]:
    """Read user turns from a JSONL file whose lines have `text`, `prompt` or, as in Spec-Bench, a list `turns`.

    Raises:
        ValueError: if the file cannot be read, a line has none of them, or nothing is there.
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
