"""The applied mark: up to which commit the files are in place. A hint that may be lost or stale.

One record, written after the apply and never flushed. Readers of rows *and* files look at it: a row that
is newer than the mark may describe files that another process has not put in place yet. What is torn,
of another boot or of another workspace counts as nothing. Recovery never depends on it.
"""

from __future__ import annotations

import contextlib
import hashlib
import struct
import zlib

from .fsops import FsOps
from .paths import CONTROL_DIR

_RECORD = struct.Struct("<4sI16s16sq")  # magic, format, epoch, workspace, sequence; then a crc32
APPLIED = "applied"
_MAGIC, _FORMAT = b"SFAM", 1
SIZE_BYTES = _RECORD.size + 4


class AppliedMark:
    """The mark in its file, open for the life of a workspace object."""

    def __init__(self, fs: FsOps, fd: int, *, epoch: str, workspace: str) -> None:
        self._fs = fs
        self._fd = fd
        self._epoch = hashlib.sha256(epoch.encode()).digest()[:16]
        self._workspace = hashlib.sha256(workspace.encode()).digest()[:16]

    def write(self, seq: int) -> None:
        """Inside the critical section. An error only costs readers time."""
        record = _RECORD.pack(_MAGIC, _FORMAT, self._epoch, self._workspace, seq)
        self._fs.write_at(self._fd, record + zlib.crc32(record).to_bytes(4, "little"), 0)

    def read(self) -> int:
        """The sequence number; -1 where there is none to be believed."""
        try:
            data = self._fs.read_at(self._fd, SIZE_BYTES, 0)
        except OSError:
            return -1
        record, crc = data[: _RECORD.size], data[_RECORD.size :]
        if len(data) != SIZE_BYTES or zlib.crc32(record).to_bytes(4, "little") != crc:
            return -1
        magic, version, epoch, workspace, seq = _RECORD.unpack(record)
        mine = (_MAGIC, _FORMAT, self._epoch, self._workspace)
        return int(seq) if (magic, version, epoch, workspace) == mine else -1


def read_mark(fs: FsOps, root: int, epoch: str, workspace: str) -> int:
    """The same for somebody who only looks; -1 where there is none."""
    with contextlib.suppress(OSError), fs.opened_dir(root, CONTROL_DIR) as control:
        fd = fs.open_file(control, APPLIED)
        try:
            return AppliedMark(fs, fd, epoch=epoch, workspace=workspace).read()
        finally:
            fs.close(fd)
    return -1
