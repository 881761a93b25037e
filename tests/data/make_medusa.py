"""Write tests/data/medusa from outputs of the authors' code (github.com/FasterDecoding/Medusa) on tiny models.

    python tests/data/make_medusa.py FOLDER

FOLDER holds one folder per case: `base/` (a Hugging Face Llama), `medusa/` (config.json and medusa_lm_head.pt, the
authors' layout), `golden.json` (settings, prompt, tree, per round what the heads said, what was verified and accepted,
and the final ids beside greedy ones) and `golden.npz` (logits of the heads, and a training step), made on a CPU in
float32. Weights and arrays go into one safetensors file per case, the heads' with the prefix `medusa.`.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

CASES = {
    "mha_small": ("medusa_logits", "train/"),
    "gqa_3heads": ("medusa_logits",),
    "tok0_pad_bug": (),
}
KEPT = ("config", "prompt", "tree", "final", "greedy")
ROUND = (
    "head_topk", "head_topk_logprob", "root", "tree_tokens", "input_len", "position_ids",
    "accepted_path_nodes", "accepted_tokens", "next_root",
)  # fmt: skip
HERE = Path(__file__).parent / "medusa"


def main(source: Path) -> None:
    HERE.mkdir(exist_ok=True)
    for case, arrays in CASES.items():
        folder = source / case
        golden = json.loads((folder / "golden.json").read_text())
        kept = {name: golden[name] for name in KEPT}
        kept["rounds"] = [{name: each[name] for name in ROUND} for each in golden["rounds"]]
        kept["model"] = json.loads((folder / "base" / "config.json").read_text())
        kept["medusa"] = json.loads((folder / "medusa" / "config.json").read_text())
        (HERE / f"{case}.json").write_text(json.dumps(kept) + "\n")
        weights = load_file(folder / "base" / "model.safetensors")
        heads = torch.load(folder / "medusa" / "medusa_lm_head.pt", weights_only=True)
        weights |= {f"medusa.{name}": weight.contiguous() for name, weight in heads.items()}
        for name, array in np.load(folder / "golden.npz").items():
            if any(part in name for part in arrays):
                weights[f"golden.{name}"] = torch.from_numpy(array)
        save_file(weights, HERE / f"{case}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
