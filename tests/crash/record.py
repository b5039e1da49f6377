"""What a simulated disk holds, and the record of what it was told."""

from __future__ import annotations

import stat
from typing import NamedTuple

TOP = 1
DEVICE = 42


class Inode:
    """A file (`entries` is None) or a directory."""

    __slots__ = ("data", "entries", "links", "mode", "stamp", "xattrs")

    def __init__(
        self, mode: int, data: bytes = b"", entries: dict[str, int] | None = None, stamp: int = 1
    ) -> None:
        self.mode, self.data, self.entries, self.stamp = mode, data, entries, stamp
        self.links = 0
        self.xattrs: dict[str, bytes] = {}

    def copy(self) -> Inode:
        entries = None if self.entries is None else dict(self.entries)
        made = Inode(self.mode, self.data, entries, self.stamp)
        made.xattrs = self.xattrs
        return made


class Change(NamedTuple):
    """One thing that the disk is told. `group` numbers the call that it is part of."""

    kind: str  # data, size, entry, mode, log
    inode: int
    group: int = 0
    name: str = ""
    other: int = 0  # entry: the inode, 0 for none; data: the offset; size, mode: the value
    data: bytes = b""


class Event(NamedTuple):
    """A flush, or a write-out that was waited for: all earlier changes of the inode (0: of every one)."""

    place: int
    kind: str  # sync, written
    inode: int


class Record:
    """What happened, in order."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.events: list[Event] = []
        self.made: dict[int, tuple[int, bool]] = {}  # inode -> (mode, is a directory)
        self.groups = 0


class Stat:
    """As much of a stat_result as the product looks at."""

    __slots__ = ("st_dev", "st_gid", "st_ino", "st_mode", "st_mtime_ns", "st_nlink", "st_size", "st_uid")

    def __init__(self, number: int, inode: Inode) -> None:
        self.st_ino, self.st_dev = number, DEVICE
        self.st_mode = inode.mode | (stat.S_IFREG if inode.entries is None else stat.S_IFDIR)
        self.st_size = len(inode.data)
        self.st_mtime_ns = inode.stamp
        self.st_uid = self.st_gid = 0
        self.st_nlink = inode.links if inode.entries is None else 2

    @property
    def st_blocks(self) -> int:
        return (self.st_size + 4095) // 4096 * 8

    @property
    def st_ctime_ns(self) -> int:
        return self.st_mtime_ns


def spliced(before: bytes, data: bytes, offset: int) -> bytes:
    """`data` over `before`, zeros where there was nothing."""
    if len(before) < offset:
        before += bytes(offset - len(before))
    return before[:offset] + data + before[offset + len(data) :]


def resized(before: bytes, size: int) -> bytes:
    return before[:size] + bytes(max(0, size - len(before)))


def count_links(inodes: dict[int, Inode]) -> None:
    for inode in inodes.values():
        inode.links = 0
    for inode in list(inodes.values()):
        for number in (inode.entries or {}).values():
            inodes[number].links += 1
