"""Sampled text with drafters and without: 20 questions, four settings, three drafters, in float32.

    python -m bench.decoding.sampling_equality --json bench/results/sampling_equality.json

Every text is written by the loop without a drafter first; the others have to be the same, token for token. One that is
not is kept with the place where it parts, and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

import specdec
from bench import ROOT
from specdec.evaluate.benchmark import chat_prompts, describe_machine
from specdec.evaluate.questions import read_questions
from specdec.model.target import Target

QUESTIONS = ROOT / "tests/data/questions.jsonl"
SETTINGS: dict[str, dict[str, Any]] = {
    "T 0.7, top-p 0.9": {"temperature": 0.7, "top_p": 0.9, "top_k": 0},
    "T 1.0": {"temperature": 1.0, "top_k": 0},
    "T 1.3, top-k 50": {"temperature": 1.3, "top_k": 50},
    "T 1.0, repetition penalty 1.2": {"temperature": 1.0, "top_k": 0, "repetition_penalty": 1.2},
}
DRAFTERS = ("redrafter", "kangaroo", "mixed")
PROMPTS, NEW = 20, 48


@dataclass(frozen=True, slots=True)
class Comparison:
    """One text against the one that is written without a drafter."""

    setting: str
    drafter: str
    prompt: int
    tokens: int
    """Of the text without a drafter."""
    parts: int | None
    """How many tokens are the same before the texts part; None if they do not."""


def shortest_prompts(target: Target, count: int) -> list[Tensor]:
    """Give the shortest of the questions, two of each category, `[1, L]` each."""
    asked = chat_prompts(target.tokenizer, read_questions(QUESTIONS, per_category=2), turns=1)
    return [torch.tensor([p.ids]) for p in sorted(asked, key=lambda p: len(p.ids))[:count]]


def write(target: Target, ids: Tensor, drafter: str, **options: Any) -> list[int]:
    """Return the new tokens of one text."""
    out = specdec.generate(
        target, ids, drafter, attention_mask=torch.ones_like(ids), do_sample=True, **options
    )
    assert isinstance(out, Tensor)
    return out[0, ids.shape[1] :].tolist()


def compare(
    target: Target, prompts: Sequence[Tensor], setting: str, drafters: Sequence[str], new: int = NEW
) -> list[Comparison]:
    """Write each prompt without a drafter and with each; the seed is the prompt's number."""
    found = []
    for seed, ids in enumerate(track(prompts, description=setting)):
        options = {**SETTINGS[setting], "seed": seed, "max_new_tokens": new}
        expected = write(target, ids, "plain", **options)
        for drafter in drafters:
            text = write(target, ids, drafter, **options)
            parts = None
            if text != expected:
                same = [ours == theirs for ours, theirs in zip(text, expected, strict=False)]
                parts = [*same, False].index(False)
            found.append(Comparison(setting, drafter, seed, len(expected), parts))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    options = parser.parse_args()
    target = specdec.load_target()
    prompts = shortest_prompts(target, PROMPTS)
    texts = [asdict(c) for s in SETTINGS for c in compare(target, prompts, s, DRAFTERS)]
    content = {"machine": describe_machine(target, "plain"), "new_tokens": NEW, "texts": texts}
    options.json.write_text(json.dumps(content, indent=1) + "\n")
    if any(text["parts"] is not None for text in texts):
        raise SystemExit("texts: expected all the same, got some that part; see the file")


if __name__ == "__main__":
    main()
