"""Record one text, written by plain decoding and with drafting: when each token came, and who proposed it.

    python -m bench.recording.record --json bench/results/recording.json

Greedy text of the default model, so both ways write the same tokens. They take turns after one run of each that is not
counted; the run with the median time of each way is kept. Run nothing else meanwhile. `make bench-report` draws it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from specdec import DEFAULT_MODEL, Round, Session, load_target
from specdec.evaluate.benchmark import describe_machine
from specdec.huggingface.streaming import Detokenizer
from specdec.session import end_tokens
from specdec.sources.tokenizing import chat_ids

PROMPT = "Give three tips for sleeping better."
WAYS = {"plain": "plain", "drafted": "auto"}


def written(session: Session, ids: list[int], new_tokens: int) -> dict[str, Any]:
    """Write the text once, and say when each round ended and what it gave."""
    rounds: list[tuple[float, list[int], int]] = []

    def note(done: Round) -> None:
        (row,) = done.emitted
        rounds.append((perf_counter() - began, row.tokens, row.drafted))

    tokenizer, model = session.target.tokenizer, session.target.model
    session.cache = None  # the prompt is read anew in each run
    began = perf_counter()
    session.generate(
        [ids],
        max_new_tokens=new_tokens,
        eos_token_ids=end_tokens(model.generation_config),
        on_round=note,
    )
    text = Detokenizer(tokenizer)
    events = [
        {
            "at": round(at, 4),
            "tokens": [[text.add(token), place < drafted] for place, token in enumerate(tokens)],
        }
        for at, tokens, drafted in rounds
    ]
    count = sum(len(tokens) for _, tokens, _ in rounds)
    seconds = rounds[-1][0]
    return {
        "ids": [token for _, tokens, _ in rounds for token in tokens],
        "tokens": count,
        "seconds": round(seconds, 4),
        "tokens_per_second": round(count / seconds, 2),
        "tokens_per_round": round((count - 1) / (len(rounds) - 1), 3),
        "rounds": events,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.recording.record",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--json", type=Path, required=True, help="Where the recording goes.")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()

    target = load_target(dtype=getattr(torch, asked.dtype))
    ids = chat_ids(target.tokenizer, [{"role": "user", "content": asked.prompt}])
    sessions = {way: Session(target, drafter) for way, drafter in WAYS.items()}
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for repeat in range(asked.repeats + 1):
        for way, session in sessions.items():
            run = written(session, ids, asked.new_tokens)
            if repeat:
                runs[way].append(run)
            print(way, run["tokens"], run["seconds"], run["tokens_per_round"], flush=True)
    kept = {way: sorted(all_, key=lambda run: run["seconds"])[len(all_) // 2] for way, all_ in runs.items()}  # fmt: skip
    same = kept["plain"].pop("ids") == kept["drafted"].pop("ids")
    recording = {
        "machine": describe_machine(target, "plain"),
        "model": DEFAULT_MODEL,
        "prompt": asked.prompt,
        "repeats": asked.repeats,
        "same_text": same,
        "runs": kept,
    }
    asked.json.write_text(json.dumps(recording, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
