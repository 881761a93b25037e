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
