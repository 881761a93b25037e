"""Silences libraries' messages; problems are raised as errors."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.utils import logging as hub_logging
from transformers import logging as transformers_logging


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress messages, user warnings and progress bars, except those of downloads."""
    libraries = (transformers_logging, hub_logging)
    before = [library.get_verbosity() for library in libraries]
    progress = transformers_logging.is_progress_bar_enabled()
    try:
        for library in libraries:
            library.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            yield
    finally:
        for library, verbosity in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
        if progress:
            transformers_logging.enable_progress_bar()
