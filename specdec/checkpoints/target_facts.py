"""Identity of the target that a drafter was trained for."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass

import torch

from specdec_kernels.dispatch import is_plain

from ..model.target import Target

# Evenly spaced rows of every matrix that the fingerprint reads: a few hundred kilobytes of a 7B model.
FINGERPRINT_ROWS = 8


@dataclass(frozen=True, slots=True)
class TargetFacts:
    """Identity of a target, independent of the dtype it is loaded in."""

    model_type: str
    hidden_size: int
    vocab_size: int
    layers: int
    fingerprint: str | None
    """Digest of sampled weights; None in float16, whose rounding differs: only the shape is compared."""

    @classmethod
    def of(cls, target: Target) -> TargetFacts:
        """Describe a target."""
        config = target.config
        return cls(
            model_type=config.model_type,
            hidden_size=config.hidden_size,
            vocab_size=config.vocab_size,
            layers=len(target.layer_types),
            fingerprint=fingerprint(target),
        )

    def check(self, target: Target) -> None:
        """Raise ValueError, naming the differences, unless a target matches."""
        expected, found = asdict(self), asdict(TargetFacts.of(target))
        differing = [
            name
            for name, value in found.items()
            if value != expected[name] and not (name == "fingerprint" and value is None)
        ]
        if not differing:
            return
        raise ValueError(
            "target: expected the model that the drafter was made for, with "
            f"{_listed(expected, differing)}, got {_listed(found, differing)}"
        )


def _listed(facts: dict[str, object], names: list[str]) -> str:
    return ", ".join(f"{name} {str(facts[name])[:16]}" for name in names)


def fingerprint(target: Target) -> str | None:
    """Hash sampled rows of the embedding, the middle layer, the final norm and the head.

    They are rounded to bfloat16 first: a model loaded in float64, float32 and bfloat16 is one model.

    Returns:
        A SHA-256 in hexadecimal, or None in float16.
    """
    if target.dtype == torch.float16:
        return None
    parts, layers = target.parts, target.parts.layers
    middle = sorted(layers[len(layers) // 2].named_parameters())
    read = [
        target.embedding,
        *(weight for _, weight in middle),
        *(() if parts.norm is None else parts.norm.parameters()),
        *parts.head.parameters(),
    ]
    digest = hashlib.sha256()
    for weight in read:
        if not is_plain(weight):  # quantised: not the same model
            digest.update(type(weight).__name__.encode())
            continue
        rows = torch.linspace(0, len(weight) - 1, FINGERPRINT_ROWS, dtype=torch.float64).long()
        some = weight.detach()
        some = some if some.ndim == 1 else some[rows.to(some.device)]
        digest.update(f"{list(weight.shape)}".encode())
        digest.update(
            some.cpu().to(torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()
