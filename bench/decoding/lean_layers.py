"""What layers in few operators save: passes and whole texts, with the library's layers and with ours, in turns.

    python -m bench.decoding.lean_layers --json bench/results/lean_layers.json

Models: the default one, and random ones of the shapes of others, of four layers. Goes to the file that is named.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Qwen3Config

from bench import ROOT
from specdec.evaluate.benchmark import chat_prompts, describe_machine
from specdec.evaluate.methods import Runner
from specdec.evaluate.questions import read_questions
from specdec.load import Layers, load_target
from specdec.model.cache import Rows
from specdec.model.target import Target
from specdec.session import end_tokens
from specdec.sources.models import load_model
from specdec.tree import TokenTree

QUESTIONS = ROOT / "tests/data/questions.jsonl"
PREFIX, WIDTHS, ROUNDS, PROMPTS, NEW = 300, (1, 8, 16), 40, 26, 64
KINDS: tuple[Layers, ...] = ("library", "auto")
LAYERS = 4
SHAPES = {
    "qwen3-0.6b": Qwen3Config(
        vocab_size=1000, hidden_size=1024, intermediate_size=3072, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, num_hidden_layers=LAYERS,
    ),
    "llama-1b": LlamaConfig(
        vocab_size=1000, hidden_size=2048, intermediate_size=8192, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, num_hidden_layers=LAYERS,
    ),
    "gemma3-270m": Gemma3TextConfig(
        vocab_size=1000, hidden_size=640, intermediate_size=2048, num_attention_heads=4,
        num_key_value_heads=1, head_dim=256, num_hidden_layers=LAYERS, sliding_window=512,
    ),
}  # fmt: skip


def time_passes(targets: dict[str, Target]) -> dict[str, dict[str, float]]:
    """Time passes of several widths and a prefill, the targets in turns; medians in milliseconds."""
    caches: dict[str, Any] = {}
    ids = torch.randint(0, 1000, (1, PREFIX), generator=torch.Generator().manual_seed(0))
    rows = Rows.first(1, torch.device("cpu"))

    def prefill(name: str) -> None:
        caches[name].set_lengths([0])
        targets[name].prefill(ids, [PREFIX], caches[name])

    found = {}
    with torch.inference_mode():
        for name, target in targets.items():
            caches[name] = target.new_cache(rows=1, capacity=PREFIX, tree_capacity=max(WIDTHS))
            prefill(name)
        for width in (*WIDTHS, PREFIX):
            seconds: dict[str, list[float]] = {name: [] for name in targets}
            for turn in range(ROUNDS // (4 if width == PREFIX else 1)):
                for name, target in targets.items():
                    began = time.perf_counter()
                    if width == PREFIX:
                        prefill(name)
                    else:
                        target.verify(TokenTree.chain(ids[:, :width]), caches[name], rows)
                    if turn > 2:
                        seconds[name].append(time.perf_counter() - began)
            key = "prefill" if width == PREFIX else str(width)
            found[key] = {name: 1e3 * statistics.median(s) for name, s in seconds.items()}
    return found


def read_bandwidth(size: int = 256 << 20) -> float:
    """Measure gigabytes that are read per second: the sum of a large tensor."""
    numbers = torch.ones(size // 4)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        numbers.sum()
        times.append(time.perf_counter() - began)
    return size / min(times) / 1e9


def time_texts(dtype: torch.dtype, targets: dict[str, Target]) -> dict[str, float]:
    """Let plain and mixed write with both kinds of layers, and the library with its own; tokens per second."""
    stock, _ = load_model(dtype=dtype)
    eos = end_tokens(stock.generation_config)
    runners = {k: Runner(t, stock, max_nodes=16, eos=eos) for k, t in targets.items()}
    methods = [("library", "transformers"), *((k, m) for m in ("plain", "mixed") for k in KINDS)]
    tokens, seconds = dict.fromkeys(methods, 0), dict.fromkeys(methods, 0.0)
    texts: dict[tuple[str, str], list[list[int]]] = {how: [] for how in methods}
    questions = read_questions(QUESTIONS)
    some = [questions[at * len(questions) // PROMPTS] for at in range(PROMPTS)]  # of all categories
    prompts = list(chat_prompts(targets["auto"].tokenizer, some, turns=1))
    for at, prompt in enumerate(prompts):
        for kind, method in methods[at % len(methods) :] + methods[: at % len(methods)]:
            written = runners[kind].write(method, prompt.ids, NEW)
            tokens[kind, method] += len(written.tokens)
            seconds[kind, method] += written.prefill_seconds + written.decode_seconds
            texts[kind, method].append(written.tokens)
    own = texts["library", "transformers"]
    return {
        "prompts": len(prompts),
        **{f"{m}, {k}": tokens[k, m] / seconds[k, m] for k, m in methods},
        **{f"identical {m}, {k}": sum(a == b for a, b in zip(texts[k, m], own, strict=True)) for k, m in methods},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    options = parser.parse_args()
    result: dict[str, Any] = {"new_tokens": NEW, "prefix": PREFIX, "dtypes": {}}
    for dtype in (torch.float32, torch.bfloat16):
        targets = {kind: load_target(dtype=dtype, layers=kind) for kind in KINDS}
        result["machine"] = describe_machine(targets["auto"], "-")
        name = str(dtype).removeprefix("torch.")
        weights = sum(p.nbytes for p in targets["auto"].model.parameters())
        bandwidth = read_bandwidth()
        row = {
            "passes": time_passes(targets), "gigabytes_per_second": bandwidth,
            "weights_milliseconds": weights / bandwidth / 1e6, "texts": time_texts(dtype, targets),
        }  # fmt: skip
        row["shapes"] = {}
        for shape, config in SHAPES.items():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
            models = {kind: load_target(model, prepack=True, layers=kind) for kind in KINDS[::-1]}
            row["shapes"][shape] = time_passes(models)
        result["dtypes"][name] = row
        print(json.dumps({name: row}, indent=1), flush=True)
    options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
