"""The part of the seam that makes working copies of directories, and sees what has become of them.

Kept apart like `fstrees`: nothing here is on the way of a commit. A tree is seen without following anything
and without leaving its filesystem; what is neither a file, a directory nor a symlink is seen as `other`.
"""

from __future__ import annotations

import contextlib
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TypeAlias

from .changes import Entry

Leave: TypeAlias = "Callable[[str], bool]"
_SMALL_BYTES = 64 << 10
_NEW = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}


class Clones(ABC):
    """Works through the single calls of the class that completes it."""

    @abstractmethod
    def open_file(self, directory: int, name: str) -> int:
        """An existing regular file."""

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
                if entry.kind == "directory":
                    directories.append(name.name)
        for directory in directories:
            with contextlib.suppress(FileNotFoundError), _opened(fd, directory) as inner:
                self._look(inner, f"{above}{directory}/", leave, device, found)

    def clone_tree(
        self, source: int, target: int, leave: Leave, above: str = "", device: int = 0
    ) -> tuple[dict[str, Entry], dict[str, Entry]]:
        """Makes what is in `source` in `target`, an empty directory: in one pass, file by file.

        Returns (how it looked, how the copy looks), by path. `other` entries are seen and not made; what
        goes away meanwhile is left out: whoever looks again sees that.
        """
        looks: tuple[dict[str, Entry], dict[str, Entry]] = ({}, {})
        device = device or os.fstat(source).st_dev
        with os.scandir(source) as names:
            found = [(name.name, name) for name in names]
        where = (leave, above, device)
        for name, at in found:
            if leave(above + name):
                continue
            try:
                seen = _as_entry(source, name, at.stat(follow_symlinks=False), device)
                self._clone(source, target, name, where, seen, looks)
            except FileNotFoundError:
                continue
        return looks

    def clone_name(
        self, source: int, target: int, name: str, leave: Leave, above: str
    ) -> tuple[dict[str, Entry], dict[str, Entry]]:
        """The same for one name of a directory, which is free in the other."""
        looks: tuple[dict[str, Entry], dict[str, Entry]] = ({}, {})
        seen = self.look_at(source, name)
        if seen is not None:
            with contextlib.suppress(FileNotFoundError):
                self._clone(source, target, name, (leave, above, os.fstat(source).st_dev), seen, looks)
        return looks

    def _clone(
        self, source: int, target: int, name: str, where: tuple[Leave, str, int], seen: Entry,
        looks: tuple[dict[str, Entry], dict[str, Entry]],
    ) -> None:  # fmt: skip
        leave, above, device = where
        path, made = above + name, seen
        if seen.kind == "file":
            made = self._clone_file(source, target, name, seen)
        elif seen.kind == "symlink":
            os.symlink(seen.target, name, dir_fd=target)
        elif seen.kind == "directory":
            os.mkdir(name, 0o700, dir_fd=target)
            with _opened(source, name) as inner, _opened(target, name) as copy:
                for mine, theirs in zip(
                    looks, self.clone_tree(inner, copy, leave, f"{path}/", device), strict=True
                ):
                    mine.update(theirs)
                os.fchmod(copy, seen.mode)  # a read-only one was filled first
        looks[0][path] = seen
        if seen.kind != "other":
            looks[1][path] = made

    def _clone_file(self, source: int, target: int, name: str, entry: Entry) -> Entry:
        old = self.open_file(source, name)
        try:
            new = os.open(name, _NEW, entry.mode, dir_fd=target)
            try:
                if entry.size <= _SMALL_BYTES:  # cheaper than sharing blocks
                    while data := os.read(old, _SMALL_BYTES + 1):
                        os.write(new, data)
                        if len(data) <= entry.size:
                            break
                else:
                    self.copy(old, new)
                os.utime(new, ns=(entry.mtime_ns, entry.mtime_ns))
                found = os.fstat(new)
                if found.st_mode & 0o7777 != entry.mode:  # the umask has taken something away
                    os.fchmod(new, entry.mode)
                    found = os.fstat(new)
            finally:
                os.close(new)
        finally:
            os.close(old)
        return Entry(
            "file", found.st_mode & 0o7777, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
        )


@contextlib.contextmanager
def _opened(directory: int, name: str) -> Iterator[int]:
    fd = os.open(name, _DIRECTORY, dir_fd=directory)
    try:
        yield fd
    finally:
        os.close(fd)


def _as_entry(directory: int, name: str, found: os.stat_result, device: int) -> Entry:
    mode = found.st_mode
    kind = _KINDS.get(mode & 0o170000, "other")
    if found.st_dev != device:
        kind = "other"  # something is mounted there
    if kind == "file":
        return Entry(kind, mode & 0o7777, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
    if kind == "symlink":
        return Entry(kind, 0o777, target=os.readlink(name, dir_fd=directory))
    return Entry(kind, mode & 0o7777)
