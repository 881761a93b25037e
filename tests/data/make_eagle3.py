"""Makes tests/data/eagle3 from outputs of the authors' code (github.com/SafeAILab/EAGLE) on tiny, briefly trained models.

Usage: make_eagle3.py FOLDER, where FOLDER/<case>/ holds base/ (a Hugging Face Llama), draft/ (the authors' layout),
golden.json and golden.npz, made on a CPU in float32. What follows from other entries is left out.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent / "eagle3"
CASES = ("gqa_d2t", "mha_fullvocab")
FILES = ("config.json", "model.safetensors", "pytorch_model.bin")
KEPT = ("config", "prompt", "final", "greedy", "rounds")
OF_ROUND = (
    "first_scores", "levels", "topk_min_gap", "tree_tokens", "tree_scores", "sample_token", "parents", "draft_kv_len",
    "input_len", "position_ids", "verified_argmax_node", "accepted_tokens", "next_token", "accepted_path_nodes",
)  # fmt: skip
OF_LEVEL = ("input_tokens", "position_ids", "node_topk_draft_ids", "frontier_scores")


def main() -> None:
    source = Path(sys.argv[1])
    for case in CASES:
        for part in ("base", "draft"):
            (HERE / case / part).mkdir(parents=True, exist_ok=True)
            for file in FILES:
                if (source / case / part / file).exists():
                    shutil.copyfile(source / case / part / file, HERE / case / part / file)
        golden = json.loads((source / case / "golden.json").read_text())
        rounds = [{name: r[name] for name in OF_ROUND} for r in golden["rounds"]]
        for kept in rounds:
            kept["levels"] = [{name: x[name] for name in OF_LEVEL} for x in kept["levels"]]
        kept = {name: golden[name] for name in KEPT} | {"rounds": rounds}
        (HERE / case / "golden.json").write_text(json.dumps(kept) + "\n")
        arrays = np.load(source / case / "golden.npz")
        drop = ("tree_logits", "final_draft_k", "final_draft_v")
        arrays = {name: arrays[name] for name in arrays.files if not name.endswith(drop)}
        np.savez_compressed(HERE / case / "golden.npz", **arrays)


if __name__ == "__main__":
    main()
