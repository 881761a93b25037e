"""Transformers' loading and saving of models, without its messages and with errors as `ValueError`."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager

from ..host.quiet import quiet
from ..host.reasons import foreign
from .embedded import EMBEDDED


@contextmanager
def reading_model(name: str) -> Iterator[None]:
    """Load with transformers without messages; raise one ValueError with the reason if it fails."""
    known = ", ".join(EMBEDDED)
    with foreign(f"model: expected {known}, a hub id or a local folder, got {name!r}"), quiet():
        try:
            yield
        except pickle.UnpicklingError as error:
            # Torch's message would explain how to run the file's code.
            raise ValueError(
                "weights that need code to be run, or are damaged; no code was run"
            ) from error
