"""What a smaller model drafts: the default model cut after some layers, and whole, drafts for itself.

    python -m bench.decoding.model_drafter --questions 4 --tokens 20 --threads 1 --json bench/results/model_drafter.json

No two models of one vocabulary are at hand, so the small one is the first layers of the target with the target's own norm
and head. Nothing was trained to end there: it drafts badly. All layers together show the most that any model can reach.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path

import torch
import transformers

from bench import ROOT
from specdec import Metrics, Session, load_target
from specdec.drafters import PlainDrafter
from specdec.drafters.model import ModelConfig, ModelDrafter
from specdec.evaluate.benchmark import device_name
from specdec.evaluate.questions import read_questions
from specdec.model.target import Target
from specdec.selftext.template import Template
from specdec.session import end_tokens
from specdec.sources.models import load_model

QUESTIONS = ROOT / "tests" / "data" / "questions.jsonl"


def cut(layers: int) -> Target:
    """Load the first layers of the default model."""
    model, _ = load_model(dtype=torch.float32)
    decoder = model.model
    del decoder.layers[layers:]
    decoder.config.num_hidden_layers = layers
    if getattr(decoder.config, "layer_types", None):
        decoder.config.layer_types = decoder.config.layer_types[:layers]
    return load_target(model, prepack=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--layers", type=int, nargs="+", default=[5, 10, 15, 30])
    parser.add_argument("--widths", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--questions", type=int, default=6, help="one per category at most")
    parser.add_argument("--tokens", type=int, default=48, help="of each answer")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    target = load_target()
    template = Template.of(target.tokenizer)
    questions = read_questions(QUESTIONS, per_category=1, limit=options.questions)
    texts = [template.prompt([], question.turns[0]) for question in questions]
    prompts = [target.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    eos = end_tokens(target.model.generation_config)

    def write(drafter: PlainDrafter | ModelDrafter) -> tuple[list[list[int]], Metrics]:
        session, metrics, texts = Session(target, drafter), Metrics(), []
        for prompt in prompts:
            written = session.generate(
                [prompt], max_new_tokens=options.tokens, eos_token_ids=eos, metrics=metrics
            )
            texts += written.tokens
        return texts, metrics

    plain, _ = write(PlainDrafter())
    runs = []
    small: Target | None = None
    for layers, width in product(options.layers, options.widths):
        if small is None or len(small.layer_types) != layers:
            small = cut(layers)
        # All steps, so that the figure is the model's and not of a setting.
        config = ModelConfig(width=width, min_prob=0, min_step_prob=0)
        texts, metrics = write(ModelDrafter(target, small, config))
        run = {
            "layers": layers,
            "width": width,
            "length": config.length,
            "tokens_per_round": round(metrics.tokens_per_round, 3),
            "equal_texts": sum(a == b for a, b in zip(texts, plain, strict=True)),
        }
        runs.append(run)
        print(run, flush=True)
    result = {
        "device": device_name(target.device),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": options.threads,
        "dtype": "float32",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "texts": len(prompts),
        "tokens": sum(map(len, plain)),
        "runs": runs,
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
