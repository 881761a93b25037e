"""Turns libraries' errors about a user's files into one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

MAX_LETTERS = 600


def reason(error: BaseException) -> str:
    """Return an error's message in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    line = " ".join(str(error).split())[:MAX_LETTERS] or "no reason given"
    speaks = isinstance(error, OSError | ValueError)
    return line if speaks else f"{type(error).__name__}: {line}"


@contextmanager
def foreign(message: str) -> Iterator[None]:
    """Turn any error of a library that reads a user's files into a ValueError; wrap library calls only.

    Raises:
        ValueError: with the message and the library's reason.
    """
    try:
        yield
    except MemoryError:
        raise  # not caused by the files
    except Exception as error:
        raise ValueError(f"{message} ({reason(error)})") from error
