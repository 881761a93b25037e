"""The library's own reading and writing of models, quiet, and with errors in our words."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager

from ..host.quiet import quiet
from ..host.reasons import foreign
from .embedded import EMBEDDED


@contextmanager
def reading_model(name: str) -> Iterator[None]:
    """Run the library's loading quietly; a model that it cannot load is one ValueError that says why."""
    known = ", ".join(EMBEDDED)
    with foreign(f"model: expected {known}, a hub id or a local folder, got {name!r}"), quiet():
        try:
            yield
        except pickle.UnpicklingError as error:
            # Torch's own message explains how to run the file's code after all.
            raise ValueError(
                "weights that want code to be run, or are damaged; nothing was run"
            ) from error
