"""Makes tests/data/redrafter from outputs of the authors' code on tiny random models.

Usage: make_redrafter.py FOLDER, where FOLDER/<set>/ holds llm/, drafter/ (Apple's layout) and golden.npz. Distributions
over the vocabulary are kept for the first step only: later steps are checked by what was chosen from them.
"""

import shutil
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent / "redrafter"
SETS = ("greedy_b2_s0", "greedy_b1_w1", "greedy_norn", "sample_t1_s0")
LARGE = ("/logits", "/draft_log_probs")


def main() -> None:
    source = Path(sys.argv[1])
    for name in SETS:
        for part in ("llm", "drafter"):
            (HERE / name / part).mkdir(parents=True, exist_ok=True)
            for file in ("config.json", "model.safetensors"):
                shutil.copyfile(source / name / part / file, HERE / name / part / file)
        golden = np.load(source / name / "golden.npz")
        kept = {
            key: golden[key]
            for key in golden.files
            if key != "final_kv"
            and (not key.endswith(LARGE) or key.startswith(("step0/", "train/")))
        }
        np.savez_compressed(HERE / name / "golden.npz", **kept)
        shutil.copyfile(source / name / "summary.json", HERE / name / "summary.json")


if __name__ == "__main__":
    main()
