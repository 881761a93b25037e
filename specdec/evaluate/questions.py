"""Questions in Spec-Bench's file format: one JSON object per line."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Question:
    """One line of `question.jsonl`."""

    question_id: int
    category: str
    turns: list[str]


def read_questions(
    path: Path, *, limit: int | None = None, per_category: int | None = None
) -> list[Question]:
    """Read questions in the order of the file.

    Args:
        path: a JSONL file whose lines have `question_id`, `category` and `turns`.
        limit: most questions in all.
        per_category: most questions of one category.

    Raises:
        ValueError: if the file cannot be read, a line is not such an object, or nothing is left.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"prompts: expected a readable JSONL file, got {path} ({error})"
        ) from error
    questions = []
    seen: Counter[str] = Counter()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        question = _parse(path, number, line)
        seen[question.category] += 1
        if per_category is None or seen[question.category] <= per_category:
            questions.append(question)
    if not questions[:limit]:
        raise ValueError(f"prompts: expected at least one question in {path}, got none")
    return questions[:limit]


def _parse(path: Path, number: int, line: str) -> Question:
    try:
        fields = json.loads(line)
        question = Question(
            int(fields["question_id"]), str(fields["category"]), list(fields["turns"])
        )
        valid = bool(question.turns) and all(isinstance(t, str) and t for t in question.turns)
    except (json.JSONDecodeError, KeyError, TypeError, ValueError):
        valid = False
    if not valid:
        shown = line if len(line) <= 60 else line[:57] + "..."
        raise ValueError(
            f"prompts: expected an object with question_id, category and turns in {path} line {number}, got {shown}"
        )
    return question
