"""Write library_greedy.json: what the library's own greedy generation says to questions.jsonl in float32.

Run from the repository's root after `make demo`; takes about ten minutes. It uses the library alone, on a model
that nothing was prepared on, so that the tests compare with an independent answer.
"""

import json
import sys
from pathlib import Path

import torch
import transformers

from specdec.evaluate.questions import read_questions
from specdec.sources.models import load_model

NEW_TOKENS = 128
HERE = Path(__file__).parent


def main() -> None:
    model, tokenizer = load_model(dtype=torch.float32)
    questions = read_questions(HERE / "questions.jsonl")
    answers = {}
    for question in questions:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": question.turns[0]}],
            add_generation_prompt=True,
            return_tensors="pt",
        )
        out = model.generate(**ids, max_new_tokens=NEW_TOKENS, do_sample=False)
        answers[question.question_id] = out[0, ids["input_ids"].shape[1] :].tolist()
        print(f"{len(answers)}/{len(questions)} {question.category}", file=sys.stderr, flush=True)
    written = {
        "dtype": "float32",
        "new_tokens": NEW_TOKENS,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "answers": answers,
    }
    (HERE / "library_greedy.json").write_text(json.dumps(written) + "\n")


if __name__ == "__main__":
    main()
