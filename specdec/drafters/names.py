"""Loads drafters by name: training-free methods, checkpoints shipped for the default model, folders and hub ids.

Names can be checked without torch, so torch is imported only inside functions.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..sources.embedded import DEFAULT_MODEL
from ..sources.heads import fetched_head, is_hub_id
from .methods import METHODS, drafter_file

if TYPE_CHECKING:
    from ..model.target import Target
    from .protocol import Drafter


# Training-free methods, and methods whose checkpoint is shipped, in a folder of the method's name.
DRAFTERS = tuple(name for name, method in METHODS.items() if not method.trained)
SHIPPED = tuple(name for name, method in METHODS.items() if method.trained)
RENAMED = {"none": "plain"}
SHIPPED_FOLDER = Path(__file__).parent / "shipped"
UNIONS = {"mixed": "redrafter+lookup"}
# Two names for the best drafter of a target, and the best training-free union (docs/results/training_free.md).
AUTO, BEST, UNTRAINED_BEST = "auto", "best", "suffix+recycling"
KNOWN = (*DRAFTERS, *SHIPPED, *UNIONS, AUTO)
"""All names except folders and hub ids."""


def _with(argument: str) -> str:
    """Return the form of an argument: `:NAME`, in brackets if optional."""
    if argument.startswith("["):
        return f"[:{argument[1:]}"
    return f":{argument}" if argument else ""


SHOWN = tuple(
    f"{name}{_with(METHODS[name].argument)}" if name in METHODS else name for name in KNOWN
)
"""The same names with their arguments, for help and errors."""


def load_drafter(name: str | os.PathLike[str], target: Target, **settings: Any) -> Drafter:
    """Load a drafter by its name.

    Args:
        name: a training-free method, such as `lookup`, or `name:argument`, such as `rest:STORE`; a method shipped for
            the default model, such as `redrafter`; a folder or hub id with a specdec checkpoint, released Medusa heads
            or a published EAGLE-3; `a+b` for a union of drafters, of which `mixed` is redrafter+lookup; `auto` or
            `best` for the choice of `best_drafter`.
        target: the target.
        settings: settings of the method that differ from its defaults or its checkpoint; in a union, of its trained part.

    Raises:
        ValueError: if a name is unknown, a checkpoint is damaged or was made for another target, a drafter that cannot
            be part of a union is in one, or a setting is unknown or out of range.
    """
    from .mixed import MixedDrafter

    name = os.fspath(name)
    check_drafter_name(name)
    parts = _parts(chosen(name, target))
    alone = len(parts) == 1
    if settings and not alone and all(_method(part) in DRAFTERS for part in parts):
        raise ValueError(f"{next(iter(settings))}: expected no settings for {name}, got one")
    drafters = [
        _new(part, target, settings if alone else {})
        if _method(part) in DRAFTERS
        else _load(part, target, settings)
        for part in parts
    ]
    return drafters[0] if len(drafters) == 1 else MixedDrafter(drafters)


def chosen(name: str, target: Target) -> str:
    """Return the name, with `auto` and `best` replaced by the drafter that they stand for."""
    return best_drafter(target) if name in (AUTO, BEST) else name


def best_drafter(target: Target) -> str:
    """Return the fastest drafter's name for a target: `mixed` if drafters are shipped for it, else a training-free one."""
    from ..checkpoints import read_description

    folder = SHIPPED_FOLDER / "redrafter"
    if not folder.is_dir():
        return UNTRAINED_BEST
    # A damaged checkpoint raises an error here; it is not replaced by another drafter.
    made_for = read_description(folder).target
    try:
        made_for.check(target)
    except ValueError:
        return UNTRAINED_BEST
    return "mixed"


def check_drafter_name(name: str) -> None:
    """Raise ValueError for an unknown drafter name, without loading anything."""
    if name in (AUTO, BEST):
        return
    parts = _parts(name)
    for part in parts:
        folder = _folder(part)
        if (method := _method(part)) in DRAFTERS:
            _check_argument(method, part)
            continue
        if part in SHIPPED and not folder.is_dir():
            raise ValueError(f"drafter: expected {part} in {folder}, got none; {_advice(part)}")
        if not part or not (folder.is_dir() or is_hub_id(part)):
            raise ValueError(
                f"drafter: expected one of {', '.join(SHOWN)}, a checkpoint's folder or hub id, or several joined by '+', "
                f"got {name!r}"
            )
        from ..checkpoints.folders import method_in  # needs torch, unlike a name

        method = method_in(_fetched(part, weights=False))
        if METHODS[method].alone and len(parts) > 1:
            raise ValueError(
                f"drafter: expected {part} alone, as it drafts with the target's layers, got {name!r}"
            )


def _parts(name: str) -> list[str]:
    """Split a union; a folder's name may hold a `+` itself."""
    method, _, argument = name.partition(":")
    path = argument if method in METHODS else name
    if name not in KNOWN and path and Path(path).is_dir():
        return [name]
    parts = [p for part in name.split("+") for p in UNIONS.get(part, part).split("+")]
    for old in RENAMED.keys() & parts:
        warnings.warn(
            f"drafter: expected {RENAMED[old]}, got its old name {old}, which the next release drops",
            DeprecationWarning,
            stacklevel=4,
        )
    return [RENAMED.get(part, part) for part in parts]


def _method(part: str) -> str:
    """Return the method of a part that is not a folder."""
    return part.partition(":")[0]


def _check_argument(method: str, part: str) -> None:
    """Raise ValueError if a method's argument is missing, or one is given that it does not take."""
    wanted, given = METHODS[method].argument, part.partition(":")[2]
    if ":" in part and not (wanted and given):
        raise ValueError(f"drafter: expected {method}{_with(wanted)}, got {part!r}")
    if wanted and not wanted.startswith("[") and not given:
        raise ValueError(f"drafter: expected {method}{_with(wanted)}, got {part!r}")


def _folder(part: str) -> Path:
    return SHIPPED_FOLDER / part if part in SHIPPED else Path(part)


def _fetched(part: str, *, weights: bool) -> Path:
    """Return a drafter's folder; for a hub id, its cached download."""
    folder = _folder(part)
    return folder if folder.is_dir() else fetched_head(part, weights=weights)


def _new(part: str, target: Target, settings: dict[str, Any]) -> Drafter:
    method, _, argument = part.partition(":")
    if unknown := settings.keys() - METHODS[method].settings:
        known = ", ".join(METHODS[method].settings) or "none"
        raise ValueError(
            f"{min(unknown)}: expected one of the settings of {method} ({known}), got another"
        )
    # Shells do not expand a `~` after a colon.
    arguments = (os.path.expanduser(argument),) if argument else ()  # noqa: PTH111
    drafter: Drafter = drafter_file(method).new_drafter(target, *arguments, **settings)
    drafter.name = part
    return drafter


def _load(part: str, target: Target, settings: dict[str, Any]) -> Drafter:
    from ..checkpoints import read_description
    from ..checkpoints.folders import load_folder

    folder = _fetched(part, weights=True)
    if part in SHIPPED:
        made_for = read_description(folder).target
        try:
            made_for.check(target)
        except ValueError as error:
            raise ValueError(
                f"drafter: {part} is shipped for {DEFAULT_MODEL}; {_advice(part)} ({error})"
            ) from error
    drafter = load_folder(folder, target, **settings)
    drafter.name = part
    return drafter


def _advice(part: str) -> str:
    return f"train one for this model with `specdec train {part}`, or give its folder"
