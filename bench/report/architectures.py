"""Tables of bench/decoding/architectures.py."""

from __future__ import annotations

import re
from typing import Any

from bench.report.pages import table


def architecture_tables(result: dict[str, Any]) -> dict[str, str]:
    works = [family for family in result["families"] if family["works"]]
    refused = [family for family in result["families"] if not family["works"]]
    shape, versions = result["shape"], result["versions"]
    facts = (
        f"{len(works)} families work, {len(refused)} are refused. Random models with {shape['num_hidden_layers']} layers, "
        f"hidden size {shape['hidden_size']}, vocabulary {shape['vocab_size']}, in {result['dtype']}; "
        f"two prompts of different lengths in one batch, {result['new_tokens']} new tokens each; drafters: "
        f"{{drafters}}; {', '.join(f'{name} {version}' for name, version in versions.items())}."
    )
    (drafters,) = {family["reason"] for family in works}
    return {
        "working": table(["`model_type`", "class"], [_names(family) for family in works])
        + "\n\n"
        + facts.format(drafters=drafters),
        "refused": table(
            ["`model_type`", "class", "reason"],
            [[*_names(family), _why(family["reason"])] for family in refused],
        ),
    }


def _names(family: dict[str, Any]) -> list[str]:
    return [f"`{family['model_type']}`", f"`{family['model']}`"]


def _why(reason: str) -> str:
    """Return the reason without the model's name, which has its own column."""
    why = re.sub(r"^model: (\w+ is not supported: )?", "", reason)
    return why.replace("|", "\\|")
