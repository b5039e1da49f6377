"""Room that is kept for the moment when the disk is full: what is decided can then still be finished.

Putting a committed file in place can need a block for its directory, and marking a run as failed needs a
row. The ballast is given up for them, and taken again when there is room.
"""

from __future__ import annotations

import contextlib
import errno

from .fsops import FsOps

SIZE_BYTES_MAX = 16 << 20
_SHARE_OF_FREE = 100  # one hundredth of what is free, on small disks
_BLOCK_BYTES = 4096
_NAME = "ballast"


class Ballast:
    """One file in the control directory."""

    def __init__(self, fs: FsOps, control: int, *, wanted: bool = True) -> None:
        self._fs = fs
        self._control = control
        self._wanted = wanted

    def take(self) -> None:
        """Takes the room where it is free; does nothing where it is not, or where it is taken already."""
        if not self._wanted or self._fs.lstat(self._control, _NAME) is not None:
            return
        size = min(SIZE_BYTES_MAX, self._fs.free_bytes(self._control) // _SHARE_OF_FREE)
        if size < _BLOCK_BYTES:
            return
        with contextlib.suppress(OSError):
            fd = self._fs.create(self._control, _NAME)
            try:
                self._fs.allocate(fd, size)
            except OSError:
                self._fs.unlink(self._control, _NAME)
            finally:
                self._fs.close(fd)

    def give_up(self) -> bool:
        """True where there was something to give up: then it is worth trying again."""
        try:
            there = self._fs.lstat(self._control, _NAME) is not None
            self._fs.unlink(self._control, _NAME)
        except OSError:
            return False
        return there


def is_full(error: BaseException | None) -> bool:
    """Whether an error means that there is no room."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if type(error).__name__ == "FullError":  # SQLite's, which only the database module knows
            return True
        error = error.__cause__
    return False
