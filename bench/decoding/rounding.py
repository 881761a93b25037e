"""How far bfloat16 misjudges the distance of the two best logits: the measurement behind the tie rule.

    python -m bench.decoding.rounding --json bench/results/rounding_cpu_bfloat16.json

The library's own model reads the stored answers in one pass, in bfloat16 and with the same weights in float64.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from rich.progress import track

from bench import ROOT
from specdec.evaluate.questions import read_questions
from specdec.sources.models import load_model

DATA = ROOT / "tests" / "data"
QUANTILES = (0.5, 0.99, 0.999, 1.0)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    options = parser.parse_args()
    (half, tokenizer), (full, _) = (load_model(dtype=torch.bfloat16) for _ in range(2))
    full = full.double()
    answers = json.loads((DATA / "library_greedy.json").read_text())["answers"]

    errors = []
    for question in track(read_questions(DATA / "questions.jsonl")):
        messages = [{"role": "user", "content": question.turns[0]}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        answer = answers[str(question.question_id)]
        ids = torch.tensor([prompt + answer[:-1]])
        rough, exact = (
            model(ids, use_cache=False, logits_to_keep=len(answer)).logits[0].double()
            for model in (half, full)
        )
        best = exact.topk(2)
        gap = rough.gather(1, best.indices).diff(dim=1) - best.values.diff(dim=1)
        errors.append((gap[:, 0] / best.values[:, 0]).abs())
    relative = torch.cat(errors)
    quantiles = relative.quantile(torch.tensor(QUANTILES, dtype=torch.float64)).tolist()
    result = {
        "tokens": len(relative),
        "relative_error_of_top_two_gap": dict(zip(map(str, QUANTILES), quantiles, strict=True)),
        "above_2^-5": int((relative > 2**-5).sum()),
        "above_2^-4": int((relative > 2**-4).sum()),
        "torch": torch.__version__,
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
