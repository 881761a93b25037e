"""Text that a target writes on a GPU to learn from: as much at once as memory holds, for as long as there is time."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

from bench import ROOT
from bench.gpu.run import Row

QUESTIONS = ROOT / "tests/data/questions.jsonl"
LONGEST = 1024
"""Tokens of a conversation, its template included: what memory is counted for."""
MAX_ROWS = 1024
SEED = 0


def rows_that_fit(target: Any) -> int:
    """Say how many conversations the device's free memory holds: keys, values and a step's logits."""
    import torch

    if target.device.type != "cuda":
        return 4
    free, _ = torch.cuda.mem_get_info()
    config = target.config
    heads = config.num_key_value_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    slot = 2 * config.num_hidden_layers * heads * size * target.dtype.itemsize
    # A pass takes memory beside the cache, and picking tokens copies logits.
    row = 1.25 * LONGEST * slot + 12 * config.vocab_size * 4
    return max(1, min(MAX_ROWS, int(0.6 * free / row)))


def write_text(
    target: Any, out: Path, rows: int, answer_tokens: int, until: float, progress: Any
) -> Row:
    """Let the target write into a store, as much at once as fits, until the time is over; at least a conversation a row."""
    import torch

    from specdec.checkpoints import TargetFacts
    from specdec.evaluate.questions import read_questions
    from specdec.selftext.overlap import Overlap
    from specdec.selftext.record import EMPTY, EXCLUDED
    from specdec.selftext.store import Store

    exclude = Overlap.of(text for q in read_questions(QUESTIONS) for text in q.turns)
    kept: list[Any] = []
    data: Row = {}
    began = time.monotonic()
    with Store.write(out, asdict(TargetFacts.of(target))) as store:
        asked = {"seed": SEED, "answer_tokens": answer_tokens}
        run = store.begin(asked, {"torch": torch.__version__})
        for fitting, records in written(target, rows, answer_tokens, progress):
            for record in records:
                if not record.ids:
                    record.drop(EMPTY)
                elif any(text in exclude for text in record.texts):
                    record.drop(EXCLUDED)
                else:
                    kept.append(record)
            store.add(run, records)
            over = len(kept) >= fitting and time.monotonic() > until
            if over or time.monotonic() - progress.saved > 5:
                data = described(fitting, kept, time.monotonic() - began)
                progress.save(data=data)
                total, speed = data["answer_tokens"], data["tokens_per_second"]
                progress.say(f"{total} answer tokens, {speed:.0f} a second")
            if over:
                break
        store.finish()
    return data


def written(
    target: Any, rows: int, answer_tokens: int, progress: Any
) -> Iterator[tuple[int, list[Any]]]:
    """Give out conversations as they end, and how many are written at once: half as many when memory is full."""
    import torch

    from specdec.selftext.writer import SelfWriter

    done: set[int] = set()
    while True:
        writer = SelfWriter(target, batch=rows, answer_tokens=answer_tokens, seed=SEED)
        try:
            for records in writer.write(number for number in count() if number not in done):
                done.add(records[-1].number)
                yield rows, records
        except torch.OutOfMemoryError:
            if rows == 1:
                raise
        # Behind the handler: what failed holds memory until it is left.
        rows //= 2
        progress.say(f"memory holds fewer: {rows} conversations at once")
        torch.cuda.empty_cache()


def described(rows: int, records: list[Any], seconds: float) -> Row:
    """Say what is known of the text."""
    answers = [answer for record in records for answer in record.answers]
    seen = Counter(token for answer in answers for token in answer)
    total = sum(map(len, answers))
    return {
        "rows": rows,
        "conversations": len(records),
        "modes": dict(Counter("sampled" if record.temperature else "greedy" for record in records)),
        "answer_tokens": total,
        "prompt_tokens": sum(len(record.ids) for record in records) - total,
        "mean_answer": total / max(1, len(answers)),
        "longest_answer": max(map(len, answers), default=0),
        "different_tokens": len(seen),
        "share_of_8192_tokens": sum(n for _, n in seen.most_common(8192)) / max(1, total),
        "tokens_per_second": total / seconds,
        "seconds": seconds,
    }


def write_lines(store: Path, out: Path) -> None:
    """Write conversations by number: in the order of the store, those that are held out would be the shortest."""
    from specdec.selftext.conversation import read_records

    with out.open("w", encoding="utf-8") as file:
        for record in sorted(read_records(store), key=lambda record: (record.number, record.part)):
            if record.ids:
                answer = len(record.ids) - record.spans[-1]
                line = {"prompt_ids": record.ids[:answer], "answer_ids": record.ids[answer:]}
                file.write(json.dumps(line) + "\n")
