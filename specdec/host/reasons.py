"""What libraries say when someone else's files are wrong, in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

MAX_LETTERS = 600


def reason(error: BaseException) -> str:
    """Say in one line what went wrong."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    line = " ".join(str(error).split())[:MAX_LETTERS] or "no reason given"
    speaks = isinstance(error, OSError | ValueError)
    return line if speaks else f"{type(error).__name__}: {line}"


@contextmanager
def foreign(message: str) -> Iterator[None]:
    """Run a library on someone else's files, which can make it fail in any way; nothing of ours belongs in here.

    Raises:
        ValueError: with the message and the library's reason.
    """
    try:
        yield
    except MemoryError:
        raise  # no fault of the files
    except Exception as error:
        raise ValueError(f"{message} ({reason(error)})") from error
