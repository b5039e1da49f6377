"""How files are put in place on the filesystem at hand, found out by trying it.

| recipe     | filesystems                        | data before the swap          | swap               |
|------------|------------------------------------|-------------------------------|--------------------|
| `journal`  | ext4, xfs                          | write-out without a flush     | exchange           |
| `memory`   | tmpfs                              | nothing: nothing to lose      | exchange           |
| `flush`    | btrfs, overlayfs, others           | fdatasync of each staged file | exchange           |
| `portable` | what has no exchange               | fdatasync of each staged file | link, then rename  |

The data always reaches the device before its name is swapped in: after a power cut ext4 and xfs
otherwise show empty files under the real names until recovery has run. On these two, write-out is
enough because the journal commit that makes the new name durable flushes the device first. btrfs can
lose a name that was exchanged before its data was flushed, and on overlayfs write-out does nothing:
they, and everything that was not tried, get the full fdatasync.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from .errors import WorkspaceUnusable
from .fsops import FsOps

RecipeName: TypeAlias = Literal["journal", "flush", "memory", "portable"]

_JOURNAL = {0xEF53: "ext4", 0x58465342: "xfs"}
_MEMORY = {0x01021994: "tmpfs"}
_OTHER = {
    0x9123683E: "btrfs",
    0x794C7630: "overlayfs",
    0x65735546: "FUSE",
    0x2FC12FC1: "ZFS",
    0xF2F52010: "f2fs",
}
_NETWORK = {
    0x6969: "NFS",
    0xFF534D42: "CIFS",
    0xFE534D42: "SMB2",
    0x517B: "SMB",
    0x01021997: "9p",
    0x00C36400: "Ceph",
}
_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass(frozen=True)
class Recipe:
    """What this filesystem can do."""

    name: RecipeName
    filesystem: str
    fine_stamps: bool  # two writes in a row are told apart by mtime and ctime

    @property
    def exchanges(self) -> bool:
        """Whether files are put in place by an atomic exchange."""
        return self.name != "portable"

    @property
    def syncfs_is_safe(self) -> bool:
        """Whether one syncfs flushes everything: on overlayfs it may not reach what lies below."""
        return self.name == "journal" or self.filesystem == "btrfs"


def probe(fs: FsOps, stage: int, *, forced: RecipeName | None = None) -> Recipe:
    """Tries the calls in the stage directory, whatever the filesystem calls itself.

    Raises:
        WorkspaceUnusable: a network filesystem, whose locks cannot be trusted.
    """
    magic, _ = fs.filesystem(stage)
    magic &= 0xFFFFFFFF
    if magic in _NETWORK:
        raise WorkspaceUnusable(
            "open the workspace",
            "",
            expected="a local filesystem",
            found=f"{_NETWORK[magic]}, where locks and the log of the database cannot be trusted",
            hint="keep the workspace on a local disk",
        )
    label = {**_JOURNAL, **_MEMORY, **_OTHER}.get(magic, f"filesystem 0x{magic:x}")
    name: RecipeName = "journal" if magic in _JOURNAL else "memory" if magic in _MEMORY else "flush"
    if forced is not None:
        name = forced
    if name != "portable" and not _can_exchange(fs, stage):
        name = "portable"
    return Recipe(name, label, _stamps_are_fine(fs, stage))


def keeps_inode_numbers(fs: FsOps, fd: int) -> bool:
    """Whether a directory keeps its number for life here: overlayfs and FUSE may change it."""
    magic = fs.filesystem(fd)[0] & 0xFFFFFFFF
    return magic in _JOURNAL or magic in _MEMORY or _OTHER.get(magic) == "btrfs"


def _can_exchange(fs: FsOps, stage: int) -> bool:
    with _probe_files(fs, stage) as (first, second):
        try:
            fs.exchange(stage, first, stage, second)
            fs.rename_new(stage, first, stage, f"{first}.moved")
            fs.rename_new(stage, f"{first}.moved", stage, first)
        except OSError as error:
            if error.errno in _NO_EXCHANGE:
                return False
            raise
    return True


def _stamps_are_fine(fs: FsOps, stage: int) -> bool:
    """Since Linux 6.13 each look is followed by a fresh stamp (filesystems/multigrain-ts.rst)."""
    name = f"probe.{os.getpid()}.t"
    fs.unlink(stage, name)
    fd = fs.create(stage, name)
    try:
        seen = set()
        for byte in b"abc":
            fs.write(fd, bytes([byte]))
            seen.add(fs.fstat(fd).st_ctime_ns)
        return len(seen) == 3  # noqa: PLR2004 - one for each write
    finally:
        fs.close(fd)
        fs.unlink(stage, name)


@contextlib.contextmanager
def _probe_files(fs: FsOps, stage: int) -> Iterator[tuple[str, str]]:
    names = (f"probe.{os.getpid()}.a", f"probe.{os.getpid()}.b")
    try:
        for name in names:
            fs.unlink(stage, name)
            fs.close(fs.create(stage, name))
        yield names
    finally:
        for name in names:
            fs.unlink(stage, name)
