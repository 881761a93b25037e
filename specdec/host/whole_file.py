"""Where files are written: whole or not at all, and never in the place of what is no regular file.

Symbolic links are followed: what they point to is written, they stay.
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
    """Hand out a scratch path beside `path`; what is written there takes its place if all goes well.

    Raises:
        OSError: naming `path`, if it cannot be written or is no regular file; what was there stays.
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
    """Open a file to write behind what it holds; errors as in `whole_file`."""
    with _naming(path), _real(path).open("ab") as file:
        yield file


def check_file(path: Path, name: str) -> None:
    """Raise ValueError, calling the path `name`, unless a file can be written there: before the work that fills it."""
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
    """Raise ValueError, calling the path `name`, unless files can be written in a folder, which may be a new one."""
    nearest = path.absolute()
    try:
        while not nearest.exists():
            if nearest.is_symlink():
                raise FileNotFoundError(errno.ENOENT, "is a link to nothing")
            nearest = nearest.parent
        _try_out(nearest)
    except OSError as error:
        raise ValueError(
            f"{name}: expected a folder that can be written to, got {path} ({error.strerror})"
        ) from error


def check_new_folder(path: Path, name: str) -> None:
    """Raise ValueError, calling the path `name`, unless it is a new or an empty folder that can be written to."""
    taken = path.is_symlink() or path.exists()
    if taken and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{name}: expected a new or an empty folder, got {path}")
    check_folder(path, name)


def _real(path: Path) -> Path:
    """Follow links; raise OSError for what is there and no regular file."""
    real = Path(os.path.realpath(path))
    if real.is_symlink():  # of a circle, which leads nowhere
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    if real.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
    if real.exists() and not real.is_file():
        raise OSError(errno.EINVAL, "is no regular file", str(path))
    return real


def _try_out(folder: Path) -> None:
    """Raise OSError unless a file can be made in a folder and filled."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"x")
        file.flush()


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let errors name what is written, not the scratch file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
