"""Models as options name them. Imports torch: for use inside commands, after their arguments were checked."""

from __future__ import annotations

from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from ..load import load_target
from ..model.target import Target
from ..sources.models import load_weights


class ModelChoice(NamedTuple):
    """Which model, and how it is loaded."""

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
        """Check the device and set the threads, before seconds are spent on the model."""
        if threads is not None:
            torch.set_num_threads(threads)
        return cls(name, revision, trust_remote_code, getattr(torch, dtype), find_device(device))

    def target(self, *, exact: bool = False) -> Target:
        """Load it with its tokenizer, ready to verify."""
        return load_target(
            self.name,
            dtype=self.dtype,
            device=self.device,
            exact=exact,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
        )

    def weights(self) -> PreTrainedModel:
        """Load it as the library gives it, without a tokenizer and without anything prepared."""
        return load_weights(
            self.name,
            dtype=self.dtype,
            device=self.device,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
        )


def find_device(name: str) -> torch.device:
    """Return a device; raise ValueError for one that this machine does not have."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (AssertionError, ImportError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device: expected one of this machine's, got {name!r} ({reason})"
        ) from error
    if device.type == "meta":
        raise ValueError(f"device: expected one that computes, got {name!r}")
    return device
