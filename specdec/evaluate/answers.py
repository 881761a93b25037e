"""Runs methods on prompts: alternating on every prompt, or each method on all prompts as one list."""

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
    """Called with the reference's answer before the next prompt is requested."""


class Answers(NamedTuple):
    """The answers of all methods to one prompt."""

    prompt: Prompt
    written: dict[str, Written]
    plain: list[int]
    """The plain loop's tokens for this prompt alone."""
    expected: list[int]
    """The reference's tokens."""


Progress = Callable[[Question, str], None]


def taking_turns(
    runner: Runner,
    prompts: Iterable[Prompt],
    methods: list[str],
    reference: str,
    max_new_tokens: int,
    progress: Progress,
) -> Iterator[Answers]:
    """Run all methods, the plain loop included, on each prompt in turn."""
    for at, prompt in enumerate(prompts):
        # The first method changes with each prompt, so that none always runs on a warm or a cold machine.
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
    """Run each specdec method on all prompts as one list; transformers' methods and the reference run them one by one.

    The reference is the plain loop. No prompt may need another's answer.
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
