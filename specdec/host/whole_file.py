"""Atomic writing of files: complete or not at all, and never over something that is not a regular file.

Symbolic links are followed: their target is written, and the links stay.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a scratch path beside `path`; the file written there replaces `path` if the block succeeds.

    Raises:
        OSError: naming `path`, if it cannot be written or is not a regular file; the old file stays.
    """
    with _naming(path):
        real = _real(path)
        scratch = real.with_name(f".specdec-{uuid.uuid4().hex}")
        try:
            yield scratch
            if real.exists():
                shutil.copymode(real, scratch)
            scratch.replace(real)
        finally:
            with suppress(OSError):
                scratch.unlink()


@contextmanager
def appended_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for appending; errors as in `whole_file`."""
    with _naming(path), _real(path).open("ab") as file:
        yield file


def check_file(path: Path, name: str) -> None:
    """Raise ValueError, naming the argument `name`, unless a file can be written at `path`."""
    try:
        real = _real(path)
        _try_out(real.parent)
        if real.exists() and not os.access(real, os.W_OK):
            raise PermissionError(errno.EACCES, "is write-protected")
    except OSError as error:
        raise ValueError(
            f"{name}: expected a file in an existing folder, got {path} ({error.strerror})"
        ) from error


def check_folder(path: Path, name: str) -> None:
    """Raise ValueError, naming the argument `name`, unless `path` is, or can become, a folder with write access."""
    nearest = path.absolute()
    try:
        while not nearest.exists():
            if nearest.is_symlink():
                raise FileNotFoundError(errno.ENOENT, "is a link to nothing")
            nearest = nearest.parent
        _try_out(nearest)
    except OSError as error:
        raise ValueError(
            f"{name}: expected a folder with write access, got {path} ({error.strerror})"
        ) from error


def check_new_folder(path: Path, name: str) -> None:
    """Raise ValueError, naming the argument `name`, unless `path` is a new or empty folder with write access."""
    taken = path.is_symlink() or path.exists()
    if taken and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{name}: expected a new or an empty folder, got {path}")
    check_folder(path, name)


def _real(path: Path) -> Path:
    """Follow links; raise OSError if the result exists and is not a regular file."""
    real = Path(os.path.realpath(path))
    if real.is_symlink():  # a cycle of links
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    if real.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
    if real.exists() and not real.is_file():
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return real


def _try_out(folder: Path) -> None:
    """Raise OSError unless a file can be created and written in a folder."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"x")
        file.flush()


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Make errors name the written file instead of the scratch file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
