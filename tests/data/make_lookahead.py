"""Write tests/data/lookahead from outputs of the authors' code (github.com/hao-ai-lab/LookaheadDecoding) on tiny models.

    python tests/data/make_lookahead.py FOLDER

FOLDER holds one folder per case: `base/` (a Hugging Face Llama), `golden.json` (settings, prompt, per step the window,
the guesses, the target's tokens, the pool and what was accepted) and `golden.npz` (masks and logits of some steps), made
on a CPU in float32. The model's weights, masks and logits go into one safetensors file per case.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

KEPT = ("config", "prompt", "final", "initial_window", "initial_pool", "steps")
HERE = Path(__file__).parent / "lookahead"


def main(source: Path) -> None:
    HERE.mkdir(exist_ok=True)
    for folder in sorted(source.iterdir()):
        golden = json.loads((folder / "golden.json").read_text())
        kept = {name: golden[name] for name in KEPT}
        kept["model"] = json.loads((folder / "base" / "config.json").read_text())
        (HERE / f"{folder.name}.json").write_text(json.dumps(kept) + "\n")
        weights = load_file(folder / "base" / "model.safetensors")
        for name, array in np.load(folder / "golden.npz").items():
            if name.endswith(("mask", "window_logits")):
                weights[f"golden.{name}"] = torch.from_numpy(array)
        save_file(weights, HERE / f"{folder.name}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
