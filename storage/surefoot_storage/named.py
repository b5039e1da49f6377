"""Locks with a name of the caller's choice, among all processes of this host: one locked file for each.

A lock is free as soon as its process dies. Files stay, empty: removing one could hand it out twice.
"""

from __future__ import annotations

import hashlib

from . import processes
from .fsops import FsOps


class NamedLock:
    """A lock that is held."""

    def __init__(self, fs: FsOps, fd: int) -> None:
        self._fs = fs
        self._fd = fd

    def release(self) -> None:
        """Free for others; a second time does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._fs.close(fd)


def try_named_lock(fs: FsOps, folder: int, name: str) -> NamedLock | None:
    """The lock, None where another holder has it: this process included."""
    fd = fs.open_record(folder, _file_name(name))
    if fs.try_lock(fd):
        return NamedLock(fs, fd)
    fs.close(fd)
    return None


def holder_of(fs: FsOps, folder: int, name: str) -> str:
    """Who has it, for people."""
    found = fs.lstat(folder, _file_name(name))
    pid = processes.lock_holder(found) if found is not None else None
    return processes.describe(pid) if pid is not None else "nobody that can be seen from here"


def _file_name(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:32]
