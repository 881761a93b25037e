"""Questions in Spec-Bench's file format: one JSON object per line."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..host.json_files import is_text, read_json_lines, shown, texts_of


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
        limit: most questions in total.
        per_category: most questions per category.

    Raises:
        ValueError: if the file cannot be read, a line is not such an object, or there is no question.
    """
    questions = []
    seen: Counter[str] = Counter()
    for number, line, fields in read_json_lines(path, "prompts"):
        question = _question(fields)
        if question is None:
            raise ValueError(
                f"prompts: expected an object with question_id, category and a list turns of texts in {path} "
                f"line {number}, got {shown(line)}"
            )
        seen[question.category] += 1
        if per_category is None or seen[question.category] <= per_category:
            questions.append(question)
    if not questions[:limit]:
        raise ValueError(f"prompts: expected at least one question in {path}, got none")
    return questions[:limit]


def _question(fields: dict[str, Any]) -> Question | None:
    category, turns = fields.get("category"), texts_of(fields.get("turns"))
    try:
        number = int(fields["question_id"])
    except (KeyError, OverflowError, TypeError, ValueError):
        return None
    return Question(number, str(category), turns) if is_text(category) and turns else None
