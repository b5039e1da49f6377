"""What a path is, was, and shall be. Pure values: the words that log, commit and recovery share."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Absent:
    """There is nothing at the path."""

    def __str__(self) -> str:
        return "nothing"


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory; its content is other paths' business."""

    mode: int

    def __str__(self) -> str:
        return f"a directory (mode {self.mode:o})"


@dataclass(frozen=True, slots=True)
class File:
    """A regular file, by content and mode."""

    digest: bytes  # sha256
    size: int  # bytes
    mode: int

    def __str__(self) -> str:
        return f"a file of {self.size} bytes (sha256 {self.digest.hex()[:12]}, mode {self.mode:o})"


State: TypeAlias = Absent | Directory | File
ABSENT = Absent()


@dataclass(frozen=True, slots=True)
class Stamp:
    """How a file looked to stat: cheap to compare, and different after any change.

    `ctime_ns` is only meaningful between two looks with none of our own renames in between
    (an exchange changes it on ext4, btrfs and tmpfs).
    """

    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int
    mode: int
    uid: int
    gid: int

    @classmethod
    def of(cls, found: os.stat_result) -> Stamp:
        """From a stat result."""
        return cls(
            found.st_ino,
            found.st_size,
            found.st_mtime_ns,
            found.st_ctime_ns,
            stat.S_IMODE(found.st_mode),
            found.st_uid,
            found.st_gid,
        )

    def same_content(self, other: Stamp) -> bool:
        """Whether the same inode still holds the same bytes, even if it was renamed in between."""
        return (self.ino, self.size, self.mtime_ns) == (other.ino, other.size, other.mtime_ns)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One path as it was read: what a transaction builds on and what its commit checks again."""

    path: str
    state: State
    stamp: Stamp | None = None
    data: bytes | None = b""  # None: too large to be held in memory
    xattrs: dict[str, bytes] = field(default_factory=dict)
    racy: bool = False  # changed so shortly before that an equal stamp proves nothing
    links: int = 1


@dataclass(frozen=True, slots=True)
class Op:
    """One path's change as the log records it: enough to finish it after any crash."""

    path: str
    old: State
    new: State
    old_stamp: Stamp | None = None
    stage: str = ""  # name in stage/: the new version before the swap, the old one after it
    stage_ino: int = 0
    stage_mtime_ns: int = 0
    kept: bool = False  # keep/ holds a second name of the new version (large contents)
    uid: int = -1  # owner of the new file; -1 is whoever commits
    gid: int = -1
    xattrs: dict[str, bytes] = field(default_factory=dict)
    mount: str = ""  # where the filesystem of this path begins; "" is the workspace's own
    within: str = ""  # the directory that is put in place whole, this path with it
    in_place: bool = (
        False  # written over the same inode: a hard link or a mounted file, where that is asked for
    )

    def named(self, stage: str) -> Op:
        """With the name of its staged file. Like `replace`, which is slow for each file of a commit."""
        return self._copy(stage, self.stage_ino, self.stage_mtime_ns, self.kept)

    def staged(self, ino: int, mtime_ns: int, *, kept: bool) -> Op:
        """With what its staged file looks like."""
        return self._copy(self.stage, ino, mtime_ns, kept)

    def _copy(self, stage: str, ino: int, mtime_ns: int, kept: bool) -> Op:
        return Op(
            self.path, self.old, self.new, self.old_stamp, stage, ino, mtime_ns, kept,
            self.uid, self.gid, self.xattrs, self.mount, self.within, self.in_place,
        )  # fmt: skip


def digest_of(data: bytes) -> bytes:
    """sha256."""
    return hashlib.sha256(data).digest()


def snapshot_of(
    path: str,
    found: os.stat_result | None,
    data: bytes | None = b"",
    *,
    digest: bytes | None = None,
    xattrs: dict[str, bytes] | None = None,
    now_ns: int | None,
) -> Snapshot:
    """The snapshot of a path that is missing, a directory or a regular file.

    `now_ns` is when it was looked at, None where two changes always give two stamps. Of a large file
    there is only the `digest`.
    """
    if found is None:
        return Snapshot(path, ABSENT)
    stamp = Stamp.of(found)
    if stat.S_ISDIR(found.st_mode):
        return Snapshot(path, Directory(stamp.mode), stamp, xattrs=xattrs or {})
    state = File(digest or digest_of(data or b""), stamp.size, stamp.mode)
    racy = now_ns is not None and now_ns - stamp.ctime_ns < _RACY_NS
    return Snapshot(path, state, stamp, data, xattrs or {}, racy, found.st_nlink)


# git's rule for "racily clean" index entries: within one tick of the coarsest clock in use
# (2 s, FAT) a second change can leave the stamp as it was.
_RACY_NS = 2_000_000_000
