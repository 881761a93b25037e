"""The cost table: milliseconds of the target's passes and of drafts, measured once per machine and kept on disk.

It depends on the processor, the threads, the model, its dtype, how its layers run, and torch. No clock is read during
generation, so equal calls give equal trees.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
import transformers

from ..drafters.protocol import DraftCost, Drafter
from ..host.json_files import read_json
from ..host.processor import processor
from ..host.whole_file import whole_file
from ..model.target import Target
from ..sources.embedded_files import cache_folder
from .line import CostLine


@dataclass(frozen=True)
class Costs:
    """A cost table."""

    passes: tuple[tuple[int, float], ...]
    """Numbers of nodes (of all rows together) and milliseconds of a pass."""
    drafts: Mapping[str, DraftCost] = field(default_factory=dict)
    """Cost of a draft, by the drafter's name."""
    tree: float = 0.0
    """Milliseconds that packing, picking, accepting and committing take longer for a tree than for a single token."""
    machine: Mapping[str, str] = field(default_factory=dict)
    """The machine and software of the measurement."""

    @cached_property
    def line(self) -> CostLine:
        """The curve fitted to the passes."""
        return CostLine.fit(self.passes)

    def of(self, drafters: Iterable[Drafter]) -> dict[object, DraftCost]:
        """Return the cost of each drafter.

        Raises:
            ValueError: naming a drafter that is not in the table.
        """
        missing = [name_of(drafter) for drafter in drafters if name_of(drafter) not in self.drafts]
        if missing:
            raise ValueError(
                f"costs: expected times of {missing[0]}, got a table of {', '.join(self.drafts) or 'none'}"
            )
        return {drafter: self.drafts[name_of(drafter)] for drafter in drafters}

    def save(self, path: Path) -> None:
        """Write the table to a file that `read_costs` reads."""
        content = {
            "machine": dict(self.machine),
            "tree": self.tree,
            "passes": [list(point) for point in self.passes],
            "drafts": {name: cost._asdict() for name, cost in sorted(self.drafts.items())},
        }
        with whole_file(path) as scratch:
            scratch.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_costs(path: Path) -> Costs:
    """Read a cost table.

    Raises:
        ValueError: if the file is not a cost table.
    """
    found = read_json(path)
    try:
        passes = tuple((_number(nodes, int), _number(ms, float)) for nodes, ms in found["passes"])
        drafts = {
            str(name): DraftCost(_number(cost["fixed"], float), _number(cost["step"], float))
            for name, cost in found["drafts"].items()
        }
        if len({nodes for nodes, _ in passes}) < 2 or min(min(point) for point in passes) <= 0:
            raise ValueError(f"passes of two sizes at least, all above 0, got {passes}")
        tree = _number(found["tree"], float)
        machine = {str(name): str(value) for name, value in found["machine"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"costs: expected a cost table in {path}, got {error}") from error
    return Costs(passes, drafts, tree, machine)


def _number(value: Any, kind: type) -> Any:
    """Return a finite number that is at least 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise ValueError(f"a number from 0 on, got {value!r}")
    return kind(value)


def parts_of(drafter: Drafter) -> list[Drafter]:
    """Return the drafters of a union, or the single drafter, as a list."""
    return list(getattr(drafter, "drafters", [drafter]))


def name_of(drafter: Drafter) -> str:
    """Return a drafter's name: the one it was loaded by, or its class's."""
    return getattr(drafter, "name", "") or type(drafter).__name__


def known_costs(target: Target) -> Costs | None:
    """Return the stored cost table of a target on this machine; None if there is none, or it is damaged."""
    with suppress(OSError, ValueError):
        return read_costs(costs_file(target))
    return None


def keep(costs: Costs, target: Target) -> None:
    """Store a cost table on disk; errors are ignored, and the next run measures again."""
    path = costs_file(target)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        costs.save(path)


def costs_file(target: Target) -> Path:
    """Return the path of a target's cost table on this machine."""
    facts = machine_of(target)
    number = crc32(json.dumps(facts, sort_keys=True).encode())
    return (
        cache_folder()
        / "costs"
        / f"{facts['model'].split(',')[0]}-{facts['dtype']}-{number:08x}.json"
    )


def machine_of(target: Target) -> dict[str, str]:
    """Return the facts that times depend on."""
    device, config = target.device, target.config
    sizes = config.hidden_size, len(target.layer_types), config.vocab_size
    lean = [] if target.lean is None else [layer is not None for layer in target.lean.layers]
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "kind": f"{device.type} {torch.backends.cpu.get_cpu_capability()}",
        "threads": str(torch.get_num_threads()),
        "model": f"{config.model_type}, {'x'.join(map(str, sizes))}",
        "dtype": str(target.dtype).removeprefix("torch.") + (" exact" if target.exact else ""),
        "layers": f"{sum(lean)} in few operators{', prepacked' * target.prepacked}",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
