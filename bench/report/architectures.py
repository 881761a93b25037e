"""The tables of what bench/decoding/architectures.py tried."""

from __future__ import annotations

import re
from typing import Any

from bench.report.pages import table


def architecture_tables(result: dict[str, Any]) -> dict[str, str]:
    works = [family for family in result["families"] if family["works"]]
    refused = [family for family in result["families"] if not family["works"]]
    shape, versions = result["shape"], result["versions"]
    facts = (
        f"{len(works)} families work, {len(refused)} are refused. Random models of {shape['num_hidden_layers']} layers, "
        f"hidden size {shape['hidden_size']}, vocabulary {shape['vocab_size']}, in {result['dtype']}; "
        f"{result['new_tokens']} new tokens for each of two prompts of different lengths in one batch, drafted by "
        f"{{drafters}}; {', '.join(f'{name} {version}' for name, version in versions.items())}."
    )
    (drafters,) = {family["reason"] for family in works}
    return {
        "working": _left(["`model_type`", "class"], [_names(family) for family in works])
        + "\n\n"
        + facts.format(drafters=drafters),
        "refused": _left(
            ["`model_type`", "class", "why"],
            [[*_names(family), _why(family["reason"])] for family in refused],
        ),
    }


def _names(family: dict[str, Any]) -> list[str]:
    return [f"`{family['model_type']}`", f"`{family['model']}`"]


def _why(reason: str) -> str:
    """The reason without the model's name, which stands beside it."""
    why = re.sub(r"^model: (\w+ is not supported: )?", "", reason)
    return why.replace("|", "\\|")


def _left(header: list[str], rows: list[list[str]]) -> str:
    return table(header, rows).replace("---:", "---")
