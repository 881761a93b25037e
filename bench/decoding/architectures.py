"""Try every family of models that the tests list, and record which decode losslessly and why others are refused.

    python -m bench.decoding.architectures --json bench/results/architectures.json

The judgement is that of tests/specdec/model/test_architectures.py.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import asdict
from pathlib import Path

import torch
import transformers
from rich.progress import track

from families import NEW, REFUSED, SHAPE, WORKING, judge, tiny_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="where the verdicts go")
    path: Path = parser.parse_args().json
    families = [asdict(judge(tiny_of(name))) for name in track(sorted({*WORKING, *REFUSED}))]
    result = {
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "dtype": "float64",
        "new_tokens": NEW,
        "shape": {name: SHAPE[name] for name in ("hidden_size", "num_hidden_layers", "vocab_size")},
        "families": families,
    }
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
