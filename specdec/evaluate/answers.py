"""How methods come to write: they take turns on every prompt, or each writes all prompts as one list."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from .method_names import PLAIN, TRANSFORMERS
from .methods import Runner, Written
from .questions import Question

WARMUP_TOKENS = 8


class Prompt(NamedTuple):
    """One prompt of a benchmark."""

    question: Question
    turn: int
    ids: list[int]
    answer: Callable[[list[int]], None]
    """Told the reference's answer, before the next prompt is asked for."""


class Answers(NamedTuple):
    """What all methods wrote for one prompt."""

    prompt: Prompt
    written: dict[str, Written]
    plain: list[int]
    """The plain loop's text, of this prompt alone."""
    expected: list[int]
    """The reference's."""


Progress = Callable[[Question, str], None]


def taking_turns(
    runner: Runner,
    prompts: Iterable[Prompt],
    methods: list[str],
    reference: str,
    max_new_tokens: int,
    progress: Progress,
) -> Iterator[Answers]:
    """Let methods, the plain loop among them, write each prompt one after another."""
    for at, prompt in enumerate(prompts):
        # Another method begins each time, so that none always has the warm or the cold machine.
        order = methods[at % len(methods) :] + methods[: at % len(methods)]
        if at == 0:
            for method in order:
                runner.write(method, prompt.ids, min(WARMUP_TOKENS, max_new_tokens))
        written = {}
        for method in order:
            progress(prompt.question, method)
            written[method] = runner.write(method, prompt.ids, max_new_tokens)
        expected = written[reference].tokens
        prompt.answer(expected)
        yield Answers(prompt, written, written[PLAIN].tokens, expected)


def as_lists(
    runner: Runner,
    prompts: Iterable[Prompt],
    methods: list[str],
    rows_at_once: int,
    max_new_tokens: int,
    progress: Progress,
) -> Iterator[Answers]:
    """Let each of our methods write all prompts as one list; the library's, and the reference, write them one by one.

    The reference is the plain loop. Prompts must not need answers of others.
    """
    asked = list(prompts)
    texts = [prompt.ids for prompt in asked]
    ours = [method for method in methods if not method.startswith(TRANSFORMERS)]
    for method in ours:
        short = min(WARMUP_TOKENS, max_new_tokens)
        runner.write_list(method, texts[:rows_at_once], short, rows_at_once)
    lists = {}
    for method in ours:

        def ended(row: int, method: str = method) -> None:
            progress(asked[row].question, method)

        lists[method] = runner.write_list(method, texts, max_new_tokens, rows_at_once, ended)
    for at, prompt in enumerate(asked):
        written = {}
        for method in methods:
            if method in ours:
                written[method] = lists[method][at]
                continue
            if at == 0:
                runner.write(method, prompt.ids, min(WARMUP_TOKENS, max_new_tokens))
            progress(prompt.question, method)
            written[method] = runner.write(method, prompt.ids, max_new_tokens)
        progress(prompt.question, f"{PLAIN}, alone")
        expected = runner.write(PLAIN, prompt.ids, max_new_tokens).tokens
        yield Answers(prompt, written, expected, expected)
