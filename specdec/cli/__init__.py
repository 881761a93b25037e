"""The command line `specdec`.

Commands import torch only when they run, so that help and usage errors appear at once.
"""

from .app import app, main
from .terminal import console, messages

__all__ = ["app", "console", "main", "messages"]
