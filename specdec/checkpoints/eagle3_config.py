"""`config.json` of an EAGLE-3 head in a public layout: sizes, layers, and entries that change the mathematics.

Sizes come from here, as no tensor tells those of heads. Readers of these files take a missing entry for its default; an
entry that would change the layer without a tensor is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..drafters.parts.eagle3_model import AUTHORS_LAYERS, STRETCHING, Eagle3Config

Kind = Literal["authors", "speculators"]
LAYER_IDS = "eagle_aux_hidden_state_layer_ids"
# Norms of EAGLE 3.1 and of gpt-oss heads; what vLLM's and SGLang's readers know besides.
USUAL: dict[str, object] = {
    "norm_output": False,
    "fc_norm": False,
    "norm_before_fc": False,
    "input_norm": False,
    "use_aux_hidden_state": True,
    "hidden_act": "silu",
    "partial_rotary_factor": 1,
    "logit_scale": 1,
}
ROTATIONS = ("default", "llama3")


class Described(NamedTuple):
    """What a configuration says."""

    drafter: Eagle3Config
    vocab_size: int
    """Size of the target's vocabulary."""
    draft_vocab_size: int
    """Rows of the output head."""
    may_embed: bool
    """Whether an embedding among the tensors may be another than the target's."""


def read_config(
    where: Path,
    kind: Kind,
    theirs: dict[str, Any],
    *,
    target_layers: int,
    target_vocabulary: int,
    layers: tuple[int, ...] | None,
) -> Described:
    """Read a `config.json`.

    Args:
        where: it was read from, for messages.
        kind: of layout; speculators nests the sizes.
        theirs: the content.
        target_layers: number of the target's layers.
        target_vocabulary: size of its vocabulary, for a file that names none.
        layers: whose inputs are read; None for what the file says, or else the authors' choice.

    Returns:
        The drafter's configuration, without an embedding of its own, and what decides about tensors.

    Raises:
        ValueError: naming an entry that is malformed, out of range or of another mathematics.
    """
    inner = theirs if kind == "authors" else _object(where, theirs, "transformer_layer_config")
    nested = _object(where, theirs, "eagle_config")
    rope = _object(where, inner, "rope_parameters")
    for place in (theirs, inner, nested, rope):
        _check_usual(where, place)
    _check_attention(where, inner)
    scaling, stretching = _scaling(where, inner, rope)
    hidden = _count(where, inner, "hidden_size")
    between = _count(where, inner, "intermediate_size")
    heads = _count(where, inner, "num_attention_heads")
    kv_heads = _count(where, inner, "num_key_value_heads", heads)
    head_dim = _count(where, inner, "head_dim", max(hidden // heads, 1))
    wide = _count(where, theirs, "target_hidden_size", hidden)
    # Also the default of speculators' Eagle3SpeculatorConfig, which writes the entry always.
    norm_residual = theirs.get("norm_before_residual") or False
    if not isinstance(norm_residual, bool):
        raise ValueError(
            f"{where}: norm_before_residual: expected true or false, got {norm_residual!r}"
        )
    theta = _number(where, rope, "rope_theta", 10000.0)
    theta = _number(where, scaling, "rope_theta", theta)
    theta = _number(where, inner, "rope_theta", theta)
    eps = _number(where, inner, "rms_norm_eps", 1e-6)
    named = _layers(where, theirs, nested, target_layers)
    vocabulary = _count(where, inner, "vocab_size", target_vocabulary)
    try:
        drafter = Eagle3Config(
            hidden_size=hidden,
            intermediate_size=between,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            target_size=None if wide == hidden else wide,
            layers=layers or named,
            rms_norm_eps=eps,
            rope_theta=theta,
            rope_scaling=stretching,
            norm_residual=norm_residual,
        )
    except ValueError as error:
        raise ValueError(
            f"{where}: expected the configuration of a drafter, got {error}"
        ) from error
    # The authors' code reads the head's embedding exactly where the file has this entry.
    may_embed = theirs.get("target_hidden_size") is not None
    trained = kind == "speculators" and bool(theirs.get("embed_requires_grad"))
    return Described(
        drafter,
        vocabulary,
        _count(where, theirs, "draft_vocab_size", target_vocabulary),
        may_embed or trained,
    )


def _layers(
    where: Path, theirs: dict[str, Any], nested: dict[str, Any], count: int
) -> tuple[int, ...] | None:
    """Return the layers whose inputs are read; None where none are named.

    SpecForge, SGLang and ModelOpt name, in `eagle_config`, layers whose outputs are read; speculators and vLLM name, at the
    top, layers whose inputs are read. Files of either kind have the other's numbers in places, so these are looked at too.
    """
    for place in (theirs, nested):
        named = place.get(LAYER_IDS)
        if named is None or named == []:
            continue
        if not isinstance(named, list) or not all(isinstance(layer, int) for layer in named):
            raise ValueError(f"{where}: {LAYER_IDS}: expected a list of layers, got {named!r}")
        # A fourth id is the last layer's: a training label, not an input.
        layers = tuple(named[:AUTHORS_LAYERS])
        outputs = layers[0] == 1 and (place is nested or layers == outputs_of_default(count))
        return tuple(layer + outputs for layer in layers)
    return None


def outputs_of_default(count: int) -> tuple[int, ...]:
    """Return the layers, of `count`, whose outputs are the authors' choice of inputs."""
    return 1, count // 2 - 1, count - 4


def _scaling(
    where: Path, inner: dict[str, Any], rope: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, float] | None]:
    """Return the entry that scales rotations, and its numbers; None for no scaling."""
    name = "rope_scaling" if inner.get("rope_scaling") else "rope_parameters"
    scaling = _object(where, inner, "rope_scaling") or rope
    rotations = scaling.get("rope_type", scaling.get("type"))
    if rotations is None and "factor" in scaling:
        raise ValueError(f"{where}: {name}: expected a rope_type beside the factor, got none")
    if rotations not in (None, *ROTATIONS):
        raise ValueError(
            f"{where}: expected rotations of rope_type {' or '.join(ROTATIONS)} in a drafter, got {rotations!r}"
        )
    if rotations != "llama3":
        return scaling, None
    return scaling, {entry: _number(where, scaling, entry) for entry in STRETCHING}


def _check_usual(where: Path, entries: dict[str, Any]) -> None:
    for name, usual in USUAL.items():
        if (found := entries.get(name)) is not None and found != usual:
            raise ValueError(
                f"{where}: {name}: expected {usual!r}, as in EAGLE-3, got {found!r}: another mathematics"
            )


def _check_attention(where: Path, inner: dict[str, Any]) -> None:
    kinds = inner.get("layer_types")
    if kinds is None or kinds == []:
        return
    if not isinstance(kinds, list) or kinds[0] != "full_attention":
        found = kinds[0] if isinstance(kinds, list) else kinds
        raise ValueError(f"{where}: layer_types: expected full_attention, got {found!r}")


def _object(where: Path, entries: dict[str, Any], name: str) -> dict[str, Any]:
    """Return an entry that is an object; an empty one if it is missing or null."""
    found = entries.get(name)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ValueError(f"{where}: {name}: expected an object, got {found!r}")
    return found


def _count(where: Path, entries: dict[str, Any], name: str, default: int | None = None) -> int:
    """Return a positive whole number; the default, where there is one, if it is missing or null."""
    if (found := entries.get(name)) is None and default is not None:
        return default
    try:
        number = int(found)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = 0
    if number < 1:
        raise ValueError(f"{where}: {name}: expected a number from 1 on, got {found!r}")
    return number


def _number(where: Path, entries: dict[str, Any], name: str, default: float | None = None) -> float:
    """Return a number; the default, where there is one, if it is missing or null."""
    if (found := entries.get(name)) is None and default is not None:
        return default
    try:
        return float(found)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{where}: {name}: expected a number, got {found!r}") from error
