"""Making, locking and checking a workspace's control directory."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator

from . import fsops, processes
from .errors import SurefootError, WorkspaceBusy, WorkspaceUnusable, os_error_text
from .fsops import FsOps
from .layout import DATABASE, FOLDERS, HOLDER, MARKER, Layout, read_note, write_note
from .paths import CONTROL_DIR

FORMAT = 1  # of the control directory; the database carries its own
_OURS = (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", MARKER, HOLDER, ".gitignore")


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


def enter_control(fs: FsOps, root: int, path: str) -> tuple[Layout, bool]:
    """The control directory, made where it is missing, locked. True where this call made it.

    Raises:
        WorkspaceUnusable, WorkspaceBusy: nothing was changed.
    """
    made = _make_control(fs, root, path)
    try:
        _lock_and_check(fs, root, path)
        for folder in FOLDERS:
            with contextlib.suppress(FileExistsError), fs.opened_dir(root, CONTROL_DIR) as control:
                fs.mkdir(control, folder, 0o700)
        layout = Layout.open(fs, root)
    except BaseException:
        if made:
            remove_control(fs, root)
        raise
    if not fs.try_lock(layout.control):
        layout.close()
        raise busy(fs, root, path)
    return layout, made


def _make_control(fs: FsOps, root: int, path: str) -> bool:
    found = fs.lstat(root, CONTROL_DIR)
    if found is None:
        try:
            fs.mkdir(root, CONTROL_DIR, 0o700)
        except FileExistsError:
            return False  # somebody else is making it at this moment: the lock decides
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


def _lock_and_check(fs: FsOps, root: int, path: str) -> None:
    with fs.opened_dir(root, CONTROL_DIR) as control:
        if not fs.try_lock(control):
            raise busy(fs, root, path)
        check_format(fs, control, path)


def check_format(fs: FsOps, control: int, path: str) -> None:
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
    if fs.lstat(control, DATABASE) is None:
        raise unusable(
            path,
            f"no {CONTROL_DIR}/{DATABASE}",
            "the workspace's database",
            f"restore it from a backup; or remove {CONTROL_DIR} to start over without any history",
        )


def busy(fs: FsOps, root: int, path: str) -> WorkspaceBusy:
    """Names the process that holds the lock, by the kernel's word first and by its own note second."""
    found = "another process (not visible from here: another container?)"
    with contextlib.suppress(OSError, SurefootError), fs.opened_dir(root, CONTROL_DIR) as control:
        note = read_note(fs, control, HOLDER) or {}
        pid = processes.lock_holder(fs.fstat(control))
        if pid is None and note.get("start_time") == processes.start_time(int(note.get("pid", -1))):
            pid = note.get("pid")
        if pid is not None:
            since = note.get("since") if note.get("pid") == pid else None
            when = f", since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(since))}" if since else ""
            who = "this process itself" if pid == os.getpid() else f"process {pid}"
            found = f"{who} ({processes.command_of(pid)}){when}"
    return WorkspaceBusy(
        "open the workspace",
        path,
        expected="nobody else to have it open",
        found=found,
        hint="wait for it to end; status, list and log work meanwhile",
    )


def finish_control(layout: Layout, root: int, *, made: bool, uuid: str, now: float) -> None:
    """The last step of making a workspace, and the note about who holds it."""
    fs = layout.fs
    if made or layout.read_note(MARKER) is None:
        if fs.lstat(layout.control, ".gitignore") is None:
            fd = fs.create(layout.control, ".gitignore")
            fs.write(fd, b"*\n")
            fs.close(fd)
        layout.write_note(MARKER, {"format": FORMAT, "uuid": uuid}, durable=True)
        fs.sync(root)
    write_note(fs, layout.control, HOLDER, {**processes.myself(), "since": now}, durable=False)


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
