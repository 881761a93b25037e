"""The kernels' cases, and the call that a case makes taken apart, so that others can answer the same question."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from contextlib import ExitStack
from types import ModuleType
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import specdec_kernels
from specdec_kernels._ops import ops
from specdec_kernels.testing import cases
from specdec_kernels.testing.case import Case, Inputs

OPS = sorted(module.name for module in pkgutil.iter_modules(cases.__path__))
# Caches with room for more than the shortest row's prefix: in a batch, and as a graph's cache must be.
RAGGED = ("llama3-8b-B32-N16-P32768-bfloat16", [32768] + 31 * [1024])
SPARE = ("llama3-8b-B8-N16-P32768-bfloat16", 8 * [2048])
UNEVEN = {
    "llama3-8b-B32-N16-ragged-32768-and-31x1024-bfloat16": RAGGED,
    "llama3-8b-B8-N16-P2048-of-32768-slots-bfloat16": SPARE,
}
UNEVEN_DRY = {"B2-N5-ragged-40-and-7-float32": ("B2-N5-P40-float32", [40, 7])}


class Call(NamedTuple):
    """A call of a public function, with all its arguments but `impl`."""

    function: Callable[..., Any]
    arguments: dict[str, Any]

    @property
    def name(self) -> str:
        return self.function.__name__

    def run(self, impl: str = "triton", **others: Any) -> Any:
        return self.function(**{**self.arguments, **others, "impl": impl})

    def written(self) -> list[Tensor]:
        """Return the arguments that the op writes to."""
        schema = getattr(ops, self.name).default._schema
        names = [a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write]
        return [self.arguments[name] for name in names]

    def repeatable(self) -> Callable[..., list[Tensor]]:
        """Return a function that makes the call, in one way or another, each time from what is there now.

        It returns what the call returns and what it writes to.
        """
        written = self.written()
        before = [x.clone() for x in written]

        def again(way: Callable[[], Any] = self.run) -> list[Tensor]:
            for x, saved in zip(written, before, strict=True):
                x.copy_(saved)
            return [x for x in tree_leaves((way(), written)) if isinstance(x, Tensor)]

        return again


def module_of(op: str) -> ModuleType:
    return importlib.import_module(f"{cases.__name__}.{op}")


def cases_of(op: str, dry: bool, grid: bool = False) -> list[Case]:
    """Return an op's cases, what tells most first; `grid` adds those that only a GPU's memory holds."""
    module = module_of(op)
    if dry:
        return module.SMALL
    return list(dict.fromkeys([*(getattr(module, "GRID", []) if grid else []), *module.CASES]))


def uneven_cases(dry: bool) -> list[Case]:
    """Return cases of attention with shorter prefixes than their caches have room for."""
    of_shape = {case.name: case for case in cases_of("tree_attention", dry, grid=True)}
    wanted = UNEVEN_DRY if dry else UNEVEN
    return [_with_prefixes(of_shape[base], name, lens) for name, (base, lens) in wanted.items()]


def _with_prefixes(case: Case, name: str, prefixes: list[int]) -> Case:
    module = module_of("tree_attention")

    def prepare(inputs: Inputs) -> Callable[[], Any]:
        call, lens = case.prepare(inputs), torch.tensor(prefixes, device=inputs.device)

        def shorter() -> Any:
            attend = module.tree_attention

            def changed(*args: Any, **tree: Any) -> Any:
                return attend(*args, **{**tree, "prefix_lens": lens})

            with patch.object(module, "tree_attention", changed):
                return call()

        return shorter

    return Case(name, prepare)


def take_apart(op: str, case: Case, device: str) -> Call | None:
    """Return the call that a case makes; None where it calls no public function."""
    torch.manual_seed(0)
    call = case.prepare(Inputs(device))
    found: list[Call] = []

    def recorder(function: Callable[..., Any]) -> Callable[..., Any]:
        def record(*args: Any, **kwargs: Any) -> None:
            bound = inspect.signature(function).bind(*args, **kwargs).arguments
            found.append(Call(function, {k: v for k, v in bound.items() if k != "impl"}))

        return record

    module = module_of(op)
    with ExitStack() as stack:
        for name in set(specdec_kernels.__all__) & set(vars(module)):
            function = getattr(module, name)
            if inspect.isfunction(function) and "impl" in inspect.signature(function).parameters:
                stack.enter_context(patch.object(module, name, recorder(function)))
        call()
    return found[0] if found else None


def distance(found: Any, expected: Any) -> float:
    """Compare all numbers, |found - expected| / |expected|, and give the largest; where there are only ids, how many differ."""
    tensors = ([x for x in tree_leaves(y) if isinstance(x, Tensor)] for y in (found, expected))
    pairs = list(zip(*tensors, strict=True))
    for x, y in pairs:
        if x.shape != y.shape:
            raise ValueError(f"result: expected shape {list(y.shape)}, got {list(x.shape)}")
    numbers = [(x.float(), y.float()) for x, y in pairs if y.is_floating_point()]
    apart = [
        torch.where(x == y, 0.0, x - y).norm()
        / torch.where(y.isfinite(), y, 0.0).norm().clamp(min=1e-30)
        for x, y in numbers
    ] or [(x != y).float().mean() for x, y in pairs]
    return torch.stack(apart).max().item()  # NaN if any is
