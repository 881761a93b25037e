"""Write tests/data/kangaroo from outputs of the authors' code (github.com/Equationliu/Kangaroo) on tiny models.

    python tests/data/make_kangaroo.py FOLDER

FOLDER holds one folder per case: `base/` (Hugging Face Llama, sharded .bin), `adapter/` (config.json and
pytorch_model.bin, the authors' layout) and `golden.json` (settings, prompt, per round what was drafted, how surely, what
the target said, how many tokens were accepted, and the final ids), made on a CPU in float32. Weights go into one
safetensors file per distinct model, the adapter's with the prefix `adapter.` and under our names.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

CASES = {"mha_base": "mha_base", "gqa": "gqa", "eos_stop": "mha_base"}  # case: whose weights
ADAPTER = {
    "layers.0.input_layernorm": "input_norm",
    **{f"layers.0.self_attn.{name}_proj": f"{name}_proj" for name in "qkvo"},
    "norm": "output_norm",
}
KEPT = ("config", "prompt", "final", "accept_lengths", "rounds")
HERE = Path(__file__).parent / "kangaroo"


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    weights = {}
    for file in sorted(folder.glob("*.bin")):
        weights |= torch.load(file, weights_only=True)
    return weights


def main(source: Path) -> None:
    HERE.mkdir(exist_ok=True)
    written = {}
    for case, model in CASES.items():
        weights = read_weights(source / case / "base")
        for name, weight in read_weights(source / case / "adapter").items():
            weights[f"adapter.{ADAPTER[name.removesuffix('.weight')]}.weight"] = weight
        weights = {name: weight.float().contiguous() for name, weight in weights.items()}
        if case == model:
            save_file(weights, HERE / f"{case}.safetensors")
            written[case] = weights
        else:
            assert all(torch.equal(weights[name], x) for name, x in written[model].items())
        golden = json.loads((source / case / "golden.json").read_text())
        kept = {name: golden[name] for name in KEPT} | {"weights": f"{model}.safetensors"}
        (HERE / f"{case}.json").write_text(json.dumps(kept) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
