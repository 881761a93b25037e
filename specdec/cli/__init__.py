"""The command line: generate, chat, bench, info, data, train, convert.

What a command needs beyond its arguments is imported when it runs: help and mistakes come without waiting for torch.
"""

from .app import app, main
from .terminal import console, messages

__all__ = ["app", "console", "main", "messages"]
