"""Text for trainings that are compared: the same conversations for all, and questions that none learns from."""

from __future__ import annotations

import json
import random
from pathlib import Path

from bench import ROOT
from specdec.evaluate.questions import read_questions
from specdec.model.target import Target
from specdec.selftext.conversation import read_records
from specdec.selftext.template import Template

QUESTIONS = ROOT / "tests" / "data" / "questions.jsonl"
HELD_OUT = 24


def write_questions(target: Target, path: Path) -> Path:
    """Write the prompts that are judged on, as conversations that hold nothing to learn."""
    template = Template.of(target.tokenizer)
    questions = read_questions(QUESTIONS)
    random.Random(0).shuffle(questions)
    with path.open("w") as file:
        for question in questions[:HELD_OUT]:
            prompt = template.prompt([], question.turns[0])
            ids = target.tokenizer(prompt, add_special_tokens=False)["input_ids"]
            file.write(json.dumps({"prompt_ids": ids, "answer_ids": [2]}) + "\n")
    return path


def choose(
    source: Path, out: Path, *, tokens: int | None = None, answer_tokens: int | None = None
) -> dict[str, int]:
    """Write conversations in random order until they hold enough tokens, or answer tokens; count them."""
    wanted = {"tokens": tokens, "answer_tokens": answer_tokens}
    records = [record for record in read_records(source) if record.ids]
    random.Random(1).shuffle(records)
    counts = {"conversations": 0, "tokens": 0, "answer_tokens": 0}
    with out.open("w") as file:
        for record in records:
            if any(counts[name] >= most for name, most in wanted.items() if most):
                break
            prompt = len(record.ids) - record.spans[-1]
            line = {"prompt_ids": record.ids[:prompt], "answer_ids": record.ids[prompt:]}
            file.write(json.dumps(line) + "\n")
            counts["conversations"] += 1
            counts["tokens"] += len(record.ids)
            counts["answer_tokens"] += record.answer_tokens
    return counts
