"""Record what the library prepares for a `custom_generate` function, beside the tokens of text, for the families in the tests.

    python -m bench.releases.prepared                              # of the pinned release, whenever that changes
    PYTHONPATH=.compat/oldest python -m bench.releases.prepared     # of the oldest

Goes to bench/results/prepared.json. A caller's own argument is refused by name; these would look like one. tests/specdec/huggingface/test_prepared.py holds the installed release and
`specdec.method` to the record.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
import transformers
from rich.progress import track
from torch import Tensor
from transformers import PreTrainedModel

from bench import ROOT
from families import VISION_LANGUAGE, WORKING, tiny_of, tiny_vision_of

RECORD = ROOT / "bench/results/prepared.json"
# A row of its own, and a batch that is padded.
MASKS = ([[1, 1, 1, 1]], [[0, 1, 1, 1], [1, 1, 1, 1]])


def tiny(model_type: str) -> PreTrainedModel:
    return (tiny_vision_of if model_type in VISION_LANGUAGE else tiny_of)(model_type)


def prepared_for(model: PreTrainedModel) -> dict[str, str]:
    """Return the kind of value of each argument that the library prepares for text."""
    kinds: dict[str, list[str]] = {}

    def method(
        model: Any, input_ids: Tensor, *_: Any, synced_gpus: bool = False, **others: Any
    ) -> Tensor:
        for name, value in others.items():
            if name not in ("logits_processor", "stopping_criteria", "generation_config"):
                kinds.setdefault(name, []).append(kind_of(value, input_ids))
        return input_ids

    for mask in map(torch.tensor, MASKS):
        model.generate(mask + 6, attention_mask=mask, custom_generate=method, max_new_tokens=1)
    return {name: " or ".join(dict.fromkeys(found)) for name, found in sorted(kinds.items())}


def kind_of(value: object, ids: Tensor) -> str:
    """Describe a value: of tensors dtype and shape, where R and L are the rows and columns of the input."""
    if isinstance(value, Tensor):
        *more, rows, columns = value.shape
        assert rows in (1, len(ids)) and columns == ids.shape[1]
        return f"{value.dtype} {[*more, 'R', 'L']}".replace("'", "")
    return type(value).__name__ if isinstance(value, transformers.Cache) else repr(value)


def main() -> None:
    families: dict[str, list[str]] = {}
    for name in track(sorted({*WORKING, *VISION_LANGUAGE})):
        if name in transformers.CONFIG_MAPPING:
            kinds = json.dumps(prepared_for(tiny(name)))
            families.setdefault(kinds, []).append(name)
    groups = [
        {"arguments": json.loads(kinds), "families": names} for kinds, names in families.items()
    ]
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    record[transformers.__version__] = groups
    RECORD.write_text(json.dumps(dict(sorted(record.items())), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    ).parse_args()
    main()
