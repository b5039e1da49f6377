"""The part of the seam that makes working copies of directories, and sees what has become of them.

Kept apart like `fstrees`: nothing here is on the way of a commit. A tree is seen without following anything
and without leaving its filesystem; what is neither a file, a directory nor a symlink is seen as `other`.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from .changes import Entry, Row

Leave: TypeAlias = "Callable[[str], bool]"
_SMALL_BYTES = 64 << 10
_PIECE_BYTES = 4 << 10
_SETTLED_NS = 2_000_000_000  # some filesystems count time of change in seconds
_OLD = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}


@dataclass
class Cloned:
    """What a clone was made of.

    Attributes:
        rows: how it looked and how the clone does, by path.
        changed_ns: when the last change of anything that was seen happened, by the filesystem's clock.
        settled: nothing has changed since the clone was begun, nor for a while before: it is of one moment.
    """

    rows: dict[str, Row] = field(default_factory=dict)
    changed_ns: int = 0
    settled: bool = False


class Clones(ABC):
    """Works through the single calls of the class that completes it."""

    @abstractmethod
    def now_ns(self) -> int:
        """The clock that file stamps are taken from."""

    @abstractmethod
    def copy(self, source: int, target: int) -> None:
        """The whole content into an empty file."""

    @abstractmethod
    def write(self, fd: int, data: bytes | memoryview) -> None:
        """All of `data`."""

    def look_through(self, directory: int, leave: Leave) -> dict[str, Entry]:
        """Everything below a directory, by its path; what `leave` says is not looked at."""
        found: dict[str, Entry] = {}
        self._look(directory, "", leave, os.fstat(directory).st_dev, found)
        return found

    def look_at(self, directory: int, name: str) -> Entry | None:
        """One name of a directory; None where there is nothing."""
        try:
            found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return _as_entry(directory, name, found, os.fstat(directory).st_dev)

    def _look(self, fd: int, above: str, leave: Leave, device: int, found: dict[str, Entry]) -> None:
        directories = []
        with os.scandir(fd) as names:
            for name in names:
                path = above + name.name
                if leave(path):
                    continue
                try:
                    entry = _as_entry(fd, name.name, name.stat(follow_symlinks=False), device)
                except FileNotFoundError:  # it went away meanwhile
                    continue
                found[path] = entry
                if entry[0] == "directory":
                    directories.append(name.name)
        for directory in directories:
            with contextlib.suppress(FileNotFoundError), _opened(fd, directory) as inner:
                self._look(inner, f"{above}{directory}/", leave, device, found)

    def clone_tree(self, source: int, target: int, leave: Leave) -> Cloned:
        """Makes what is in `source` in `target`, an empty directory: in one pass, file by file.

        `other` entries are seen and not made; what goes away meanwhile is left out: whoever looks again sees
        that.
        """
        started, offset = self.now_ns(), time.time_ns() - time.monotonic_ns()
        cloned = Cloned()
        self.clone_names(source, target, (leave, "", os.fstat(source).st_dev), cloned)
        stepped = abs(time.time_ns() - time.monotonic_ns() - offset) > _SETTLED_NS // 2
        cloned.settled = not stepped and cloned.changed_ns < started - _SETTLED_NS
        return cloned

    def clone_names(self, source: int, target: int, where: tuple[Leave, str, int], cloned: Cloned) -> None:
        """One directory of it, and all below."""
        leave, above, device = where
        with os.scandir(source) as found:
            names = list(found)
        for at in names:
            name = at.name
            path = above + name
            if leave(path):
                continue
            try:
                if at.is_file(follow_symlinks=False):
                    self._clone_file(source, target, name, path, device, cloned)
                else:
                    self._clone(source, target, name, where, cloned)
            except FileNotFoundError:  # it went away meanwhile
                continue
        changed_ns = os.fstat(source).st_ctime_ns  # at its end: no name came or went
        cloned.changed_ns = max(cloned.changed_ns, changed_ns)

    def clone_name(self, source: int, target: int, name: str, leave: Leave, above: str) -> Cloned:
        """The same for one name of a directory, which is free in the other."""
        cloned = Cloned()
        with contextlib.suppress(FileNotFoundError):
            self._clone(source, target, name, (leave, above, os.fstat(source).st_dev), cloned)
        return cloned

    def _clone(
        self, source: int, target: int, name: str, where: tuple[Leave, str, int], cloned: Cloned
    ) -> None:
        leave, above, device = where
        path = above + name
        seen = self.look_at(source, name)
        if seen is None:
            return
        if seen.kind == "file":
            self._clone_file(source, target, name, path, device, cloned)
            return
        if seen.kind == "symlink":
            os.symlink(seen.target, name, dir_fd=target)
        elif seen.kind == "directory":
            os.mkdir(name, 0o700, dir_fd=target)
            with _opened(source, name) as inner, _opened(target, name) as copy:
                self.clone_names(inner, copy, (leave, f"{path}/", device), cloned)
                os.fchmod(copy, seen.mode)  # a read-only one was filled first
        row = (seen.kind, seen.mode, 0, 0, seen.target, 0, 0)
        cloned.rows[path] = row if seen.kind == "other" else (*row, 0, 0)

    def _clone_file(
        self, source: int, target: int, name: str, path: str, device: int, cloned: Cloned
    ) -> None:
        old = os.open(name, _OLD, dir_fd=source)
        try:
            found = os.fstat(old)
            mode, size, mtime_ns = found.st_mode & 0o7777, found.st_size, found.st_mtime_ns
            if found.st_dev != device or not stat.S_ISREG(found.st_mode):
                cloned.rows[path] = ("other", mode, 0, 0, "", 0, 0)
                return
            new = os.open(name, _NEW, mode, dir_fd=target)
            try:
                if size > _SMALL_BYTES:
                    self.copy(old, new)
                else:  # cheaper than sharing blocks
                    piece = max(size + 1, _PIECE_BYTES)
                    while data := os.read(old, piece):
                        os.write(new, data)
                        if len(data) < piece:
                            break
                os.utime(new, ns=(mtime_ns, mtime_ns))
                made = os.fstat(new)
                if made.st_mode & 0o7777 != mode:  # the umask has taken something away
                    os.fchmod(new, mode)
                    made = os.fstat(new)
            finally:
                os.close(new)
            stamps = (found.st_ctime_ns, found.st_ino, made.st_ctime_ns, made.st_ino)
            cloned.rows[path] = ("file", mode, size, mtime_ns, "", *stamps)
            cloned.changed_ns = max(cloned.changed_ns, os.fstat(old).st_ctime_ns)  # after it was read
        finally:
            os.close(old)


@contextlib.contextmanager
def _opened(directory: int, name: str) -> Iterator[int]:
    fd = os.open(name, _DIRECTORY, dir_fd=directory)
    try:
        yield fd
    finally:
        os.close(fd)


def _as_entry(directory: int, name: str, found: os.stat_result, device: int) -> Entry:
    mode = found.st_mode
    if found.st_dev != device:
        return Entry("other", mode & 0o7777)  # something is mounted there
    kind = _KINDS.get(mode & 0o170000, "other")
    if kind == "file":
        # Not by its own constructor: there are many of these.
        return tuple.__new__(
            Entry,
            ("file", mode & 0o7777, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, ""),
        )
    if kind == "symlink":
        return Entry(kind, 0o777, target=os.readlink(name, dir_fd=directory))
    return Entry(kind, mode & 0o7777)
