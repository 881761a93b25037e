"""The releases of transformers that the project was tested with."""

from __future__ import annotations

import functools
import warnings

import transformers
from packaging.version import Version

NEWEST_TESTED = "5.24.0"
"""The pinned one: `make pins` writes it into constraints.txt."""


@functools.cache
def warn_of_newer_release() -> None:
    """Say, once per process, that the installed release is newer than any that was tested."""
    if Version(transformers.__version__) > Version(NEWEST_TESTED):
        warnings.warn(
            f"transformers: expected at most {NEWEST_TESTED}, the newest release tested, got "
            f"{transformers.__version__}; every model is checked at load time all the same",
            stacklevel=3,
        )
