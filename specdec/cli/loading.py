"""Loads models given by command-line options. Imports torch, so commands import it after checking their arguments."""

from __future__ import annotations

from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from ..load import load_target
from ..model.target import Target
from ..sources.models import load_weights


class ModelChoice(NamedTuple):
    """A model's name and loading options."""

    name: str
    revision: str | None
    trust_remote_code: bool
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(
        cls,
        name: str,
        revision: str | None,
        trust_remote_code: bool,
        *,
        dtype: str,
        device: str = "cpu",
        threads: int | None = None,
    ) -> ModelChoice:
        """Check the device and set the number of threads."""
        if threads is not None:
            torch.set_num_threads(threads)
        return cls(name, revision, trust_remote_code, getattr(torch, dtype), find_device(device))

    def target(self, *, exact: bool = False) -> Target:
        """Load the model as a target, with its tokenizer."""
        return load_target(
            self.name,
            dtype=self.dtype,
            device=self.device,
            exact=exact,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
        )

    def weights(self) -> PreTrainedModel:
        """Load the plain transformers model, without tokenizer and prepacking."""
        return load_weights(
            self.name,
            dtype=self.dtype,
            device=self.device,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
        )


def find_device(name: str) -> torch.device:
    """Return a device; raise ValueError if this machine does not have it."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (AssertionError, ImportError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device: expected one of this machine's, got {name!r} ({reason})"
        ) from error
    if device.type == "meta":
        raise ValueError(f"device: expected one that can compute, got {name!r}")
    return device
