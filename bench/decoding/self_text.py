"""Tokens per second of self-text: continuous batching against the library's `generate` on padded batches.

    python -m bench.decoding.self_text --json bench/results/self_text.json

User turns are answered by both, a third of them sampled, in one process on one thread, in turn; the library has the
same prepacked layers. It answers the first of the turns, as its rate does not depend on their number; ours has a rate
while rows are refilled, from when as many conversations have ended as half the rows until the last one begins, and one
with the beginning and the end. Then what a second token per row would cost, which is what speculation would have to earn.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import transformers

from bench import ROOT
from specdec import load_target
from specdec.evaluate.benchmark import device_name
from specdec.host.quiet import quiet
from specdec.selftext.conversation import read_records
from specdec.selftext.row_cache import RowCache, RowsPass
from specdec.selftext.template import Template
from specdec.selftext.writer import ANSWER_TEMPERATURE, SelfWriter
from specdec.session import end_tokens

STORE = ROOT / "bench" / "training" / "self_text.db"
SAMPLED_EVERY = 3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    parser.add_argument("--turns", type=int, default=512, help="user turns")
    parser.add_argument("--padded-turns", type=int, default=192, help="of them, for the library")
    parser.add_argument("--answer-tokens", type=int, default=224)
    parser.add_argument(
        "--padded-batch", type=int, default=64, help="rows of the library's batches"
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[128], help="rows of ours")
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    target = load_target(dtype=torch.bfloat16)
    stock = load_target(dtype=torch.bfloat16, layers="library")  # prepacked in place
    template = Template.of(target.tokenizer)
    records = (r for r in read_records(STORE) if r.ids)
    turns = [template.texts_of(r.ids, r.spans)[0] for r in islice(records, options.turns)]
    prompts = [
        target.tokenizer(template.prompt([], turn), add_special_tokens=False)["input_ids"]
        for turn in turns
    ]
    runs: dict[str, list[float]] = {}
    for _ in range(options.repeats):
        began = time.perf_counter()
        some = prompts[: options.padded_turns]
        tokens = padded(stock, some, options.padded_batch, options.answer_tokens)
        runs.setdefault("padded", []).append(tokens / (time.perf_counter() - began))
        for batch in options.batches:
            writer = SelfWriter(target, batch=batch, answer_tokens=options.answer_tokens)
            refilled, whole = continuous(writer, turns)
            runs.setdefault(f"continuous {batch}, refilled", []).append(refilled)
            runs.setdefault(f"continuous {batch}, whole run", []).append(whole)
        print(
            {name: [round(rate, 1) for rate in rates] for name, rates in runs.items()}, flush=True
        )
    found = {
        "device": device_name(target.device),
        "threads": torch.get_num_threads(),
        "dtype": "bfloat16",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "turns": options.turns,
        "answer_tokens": options.answer_tokens,
        "tokens_per_second": {name: statistics.median(rates) for name, rates in runs.items()},
        "pass_with_a_second_token": {str(rows): second_token(target, rows) for rows in (64, 128)},
    }
    options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


@torch.inference_mode()
def padded(target: Any, prompts: list[list[int]], batch: int, tokens: int) -> int:
    """Answer with the library's `generate`, `batch` prompts at a time; return the tokens up to each row's end."""
    ends = set(end_tokens(target.model.generation_config))
    total = 0
    for number, begin in enumerate(range(0, len(prompts), batch)):
        rows = prompts[begin : begin + batch]
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        sampled = number % SAMPLED_EVERY == SAMPLED_EVERY - 1
        how: dict[str, Any] = {"temperature": ANSWER_TEMPERATURE, "top_k": 50} if sampled else {}
        with quiet():
            out = target.model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=tokens,
                do_sample=sampled,
                pad_token_id=0,
                **how,
            )
        for row in out[:, longest:].tolist():
            total += next((at + 1 for at, token in enumerate(row) if token in ends), len(row))
    return total


def continuous(writer: SelfWriter, turns: list[str]) -> tuple[float, float]:
    """Answer with ours; return tokens per second while rows are refilled, and of the whole run."""
    began, begun = time.perf_counter(), []

    def numbers() -> Iterator[int]:
        for number in range(len(turns)):
            begun.append(time.perf_counter())
            yield number

    ended = [
        (time.perf_counter(), sum(record.answer_tokens for record in records))
        for records in writer.write(numbers(), turns)
    ]
    steady, last = ended[writer.batch // 2][0], begun[-1]
    refilled = sum(tokens for at, tokens in ended if steady < at <= last) / (last - steady)
    return refilled, sum(tokens for _, tokens in ended) / (ended[-1][0] - began)


def second_token(target: Any, rows: int) -> float:
    """Say how many times as long a pass would take with a second token per row, if its attention were free."""
    alone, *without_prefix = (
        pass_seconds(target, *shape) for shape in ((rows, 450), (rows, 1), (2 * rows, 1))
    )
    return 1 + (without_prefix[1] - without_prefix[0]) / alone


@torch.inference_mode()
def pass_seconds(target: Any, rows: int, longest: int) -> float:
    """Time a pass of one token behind each row's prefix of up to `longest` tokens, head included; the median of seven."""
    lengths = sorted(torch.linspace(min(40, longest), longest, rows).long().tolist(), reverse=True)
    cache = RowCache(
        layers=len(target.layer_types),
        rows=rows,
        capacity=512,
        dtype=target.dtype,
        device=target.device,
    )
    ids = torch.randint(0, target.config.vocab_size, (rows, 1))
    times = []
    for _ in range(8):
        began = time.perf_counter()
        cache.current = RowsPass(cache, lengths, [1] * rows)
        target.head(target.run_layers(target.embed(ids), cache)[:, 0])
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


if __name__ == "__main__":
    main()
