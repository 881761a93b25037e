"""The newest tested release of transformers, and a warning about newer ones."""

from __future__ import annotations

import functools
import warnings

import transformers
from packaging.version import Version

NEWEST_TESTED = "5.24.0"
"""The release pinned in constraints.txt, which `make pins` writes."""


@functools.cache
def warn_of_newer_release() -> None:
    """Warn, once per process, if the installed release is newer than any tested one."""
    if Version(transformers.__version__) > Version(NEWEST_TESTED):
        warnings.warn(
            f"transformers: expected at most {NEWEST_TESTED}, the newest release tested, got "
            f"{transformers.__version__}; every model is still checked at load time",
            stacklevel=3,
        )
