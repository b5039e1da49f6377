"""Making and checking a workspace's control directory."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from . import fsops
from .errors import WorkspaceUnusable, os_error_text
from .fsops import FsOps
from .identity import note_of
from .layout import DATABASE, FOLDERS, MARKER, Layout, read_note
from .mark import APPLIED
from .paths import CONTROL_DIR

FORMAT = 2  # of the control directory; the database carries its own
_OURS = (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", MARKER, APPLIED, ".gitignore")


def open_root(fs: FsOps, path: str) -> int:
    """Descriptor of the workspace's directory.

    Raises:
        WorkspaceUnusable: it is missing, or something else.
    """
    try:
        return fs.open_root(path)
    except OSError as error:
        found = "a file" if error.errno == errno.ENOTDIR else os_error_text(error)
        hint = "create the directory first" if error.errno == errno.ENOENT else ""
        raise unusable(path, found, "a directory", hint) from error


def unusable(path: str, found: str, expected: str = "a workspace", hint: str = "") -> WorkspaceUnusable:
    """The error about the workspace as a whole."""
    return WorkspaceUnusable("open the workspace", path, expected=expected, found=found, hint=hint)


@contextlib.contextmanager
def explained(path: str) -> Iterator[None]:
    """System errors while opening, in words."""
    try:
        yield
    except OSError as error:
        hints = {
            errno.EROFS: "it can be inspected read-only: surefoot status, list, log",
            errno.ENOSPC: "free some disk space",
            errno.EDQUOT: "free some disk space",
            errno.EACCES: "check its owner and permissions",
            errno.EPERM: "check its owner and permissions",
        }
        raise unusable(
            path, os_error_text(error), "a writable workspace", hints.get(error.errno or 0, "")
        ) from error


def make_control(fs: FsOps, root: int, path: str) -> bool:
    """The control directory; True where this call made it.

    Raises:
        WorkspaceUnusable: something else is in its place, or it is another user's.
    """
    found = fs.lstat(root, CONTROL_DIR)
    if found is None:
        try:
            fs.mkdir(root, CONTROL_DIR, 0o700)
        except FileExistsError:
            return False  # somebody else is making it at this moment: the lock decides who fills it
        return True
    if not fsops.is_directory(found):
        raise unusable(
            path, f"{fsops.kind_name(found)} named {CONTROL_DIR}", f"{CONTROL_DIR} to be a directory"
        )
    check_owner(path, found)
    return False


def check_owner(path: str, found: os.stat_result) -> None:
    """A workspace belongs to one user: files made by another one would lock the first one out."""
    if found.st_uid != os.geteuid():
        raise unusable(
            path,
            f"one that belongs to user {found.st_uid}",
            f"a workspace of user {os.geteuid()}",
            f"run as user {found.st_uid}, or use a workspace of your own",
        )


def check_format(fs: FsOps, control: int, path: str, *, adopt: bool = False) -> None:
    """Refuses a newer control directory, and one whose database has gone.

    Raises:
        WorkspaceUnusable: nothing was touched.
    """
    marker = read_note(fs, control, MARKER)
    if marker is None:
        return
    version = marker.get("format")
    if not isinstance(version, int) or version > FORMAT:
        raise unusable(
            path,
            f"format {version!r}, made by a newer version; it was left untouched",
            f"format {FORMAT} or older",
            "pip install --upgrade surefoot",
        )
    if fs.lstat(control, DATABASE) is None and not adopt:
        raise unusable(
            path,
            f"no {CONTROL_DIR}/{DATABASE}: its history is gone",
            "the workspace's database",
            "surefoot restore puts a backup in its place; surefoot adopt starts over without any history",
        )


def make_folders(fs: FsOps, control: int) -> None:
    """What a control directory has to hold; those of older versions are completed."""
    for folder in FOLDERS:
        with contextlib.suppress(FileExistsError):
            fs.mkdir(control, folder, 0o700)


def finish_control(layout: Layout, root: int, *, uuid: str, seq: int, afresh: bool) -> None:
    """The last step of making a workspace, or of bringing its format up to date."""
    fs = layout.fs
    marker = layout.read_note(MARKER)
    if marker is not None and marker.get("format") == FORMAT and not afresh:
        return
    if fs.lstat(layout.control, ".gitignore") is None:
        fd = fs.create(layout.control, ".gitignore")
        fs.write(fd, b"*\n")
        fs.close(fd)
    layout.write_note(MARKER, note_of(fs, layout, version=FORMAT, uuid=uuid, seq=seq), durable=True)
    fs.sync(root)


def remove_control(fs: FsOps, root: int) -> None:
    """Takes back a control directory that could not be made whole."""
    with contextlib.suppress(OSError):
        with fs.opened_dir(root, CONTROL_DIR) as control:
            for name in fs.names(control):
                if name in FOLDERS:
                    with contextlib.suppress(OSError):
                        _empty(fs, control, name)
                        fs.rmdir(control, name)
                elif name.removesuffix(".new") in _OURS:
                    fs.unlink(control, name)
        fs.rmdir(root, CONTROL_DIR)


def _empty(fs: FsOps, control: int, folder: str) -> None:
    with fs.opened_dir(control, folder) as fd:
        for name in fs.names(fd):
            fs.unlink(fd, name)
