"""Files are written whole or not at all, and only in the place of regular ones."""

import errno
import os
import socket
import stat
from pathlib import Path

import pytest

from specdec.host.whole_file import (
    appended_file,
    check_file,
    check_folder,
    check_new_folder,
    whole_file,
)


def write(path):
    with whole_file(path) as scratch:
        scratch.write_text("new")


def append(path):
    with appended_file(path) as file:
        file.write(b"new")


def make(kind, path):
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(str(path))
    elif kind == "circle":
        path.symlink_to(path)
    else:
        path.symlink_to(f"/dev/{kind}")


@pytest.mark.parametrize("kind", ["folder", "fifo", "socket", "circle", "null", "full"])
def test_special_files_are_never_replaced(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    path = Path("x")
    make(kind, path)
    before = path.lstat()
    with pytest.raises(ValueError, match="^out: expected a file in an existing folder, got x "):
        check_file(path, "out")
    for change in (write, append):
        with pytest.raises(OSError) as refusal:
            change(path)
        assert refusal.value.filename == "x"
    assert path.lstat() == before
    assert list(Path().iterdir()) == [path]


def test_symbolic_links_are_followed(tmp_path):
    (tmp_path / "there").mkdir()
    for name in ("there/old", "there/new"):
        link, target = tmp_path / Path(name).name, tmp_path / name
        link.symlink_to(target)
        if name == "there/old":
            target.write_text("old")
        check_file(link, "out")
        write(link)
        append(link)
        assert link.is_symlink()
        assert target.read_text() == "newnew"
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["new", "old"]


def test_replaced_file_keeps_its_permissions(tmp_path):
    path = tmp_path / "x"
    write(path)
    path.chmod(0o640)
    write(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("step", ["write_text", "replace"])
def test_failed_write_names_the_file_and_keeps_the_old_content(tmp_path, monkeypatch, code, step):
    path = tmp_path / "x"
    path.write_text("old")

    def fail(self, *_):
        self.write_bytes(b"half")
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as broken, pytest.raises(OSError) as failure:
        broken.setattr(Path, step, fail)
        write(path)
    assert (failure.value.errno, failure.value.filename) == (code, str(path))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "place", ["/proc/x", "no/where/x", "file/x", "n" * 300, "/sys/x", "/dev/full/x"]
)
def test_unwritable_paths_are_rejected_in_advance(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    with pytest.raises(ValueError, match="^out: expected a file in an existing folder, got "):
        check_file(Path(place), "out")
    with pytest.raises(OSError) as refusal:
        write(Path(place))
    assert refusal.value.filename == place
    if place != "no/where/x":  # whose folders can be made
        with pytest.raises(ValueError, match="^run: expected a folder with write access, got "):
            check_folder(Path(place), "run")
    assert list(Path().iterdir()) == [Path("file")]


def test_full_disk_is_detected_in_advance(tmp_path, monkeypatch):
    def full(**_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("specdec.host.whole_file.tempfile.TemporaryFile", full)
    for check in (check_file, check_folder, check_new_folder):
        with pytest.raises(ValueError, match=r"No space left on device\)$"):
            check(tmp_path / "x", "out")


@pytest.mark.parametrize("kind", ["full folder", "file", "fifo", "circle", "null"])
def test_new_folder_must_not_exist_or_be_empty(tmp_path, kind):
    path = tmp_path / "x"
    check_new_folder(path, "out")
    path.mkdir()
    check_new_folder(path, "out")
    if kind == "full folder":
        (path / "y").touch()
    else:
        path.rmdir()
        path.touch() if kind == "file" else make(kind, path)
    with pytest.raises(ValueError, match="^out: expected a new or an empty folder, got "):
        check_new_folder(path, "out")
