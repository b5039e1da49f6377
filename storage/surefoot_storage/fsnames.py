"""The part of the seam that moves names: a rename that meets contention is tried again, and says so.

The kernel refuses a rename while something holds one of the names for a moment: a mount, a scanner on FUSE,
a program that is being started. That passes by itself more often than not.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from typing import Any

from . import syscalls

RENAME_ATTEMPTS = 5
RENAME_PAUSE_S = 0.05  # doubled after each attempt
_CONTENTION = (errno.EBUSY, errno.EAGAIN, errno.ETXTBSY)


def _tell_nobody(_event: str, **_facts: Any) -> None:
    pass


class Names:
    """Each is one system call where nothing is in the way."""

    _note: Callable[..., None] = staticmethod(_tell_nobody)

    def exchange(self, from_dir: int, from_name: str, to_dir: int, to_name: str) -> None:
        """Swaps two names in one atomic operation."""
        self._rename(_exchange, from_dir, from_name, to_dir, to_name)

    def rename_new(self, from_dir: int, from_name: str, to_dir: int, to_name: str) -> None:
        """Renames; EEXIST where the new name is taken."""
        self._rename(_rename_new, from_dir, from_name, to_dir, to_name)

    def rename_over(self, from_dir: int, from_name: str, to_dir: int, to_name: str) -> None:
        """Plain rename(2): replaces what is there."""
        self._rename(_rename_over, from_dir, from_name, to_dir, to_name)

    def note_retries(self, note: Callable[..., None]) -> None:
        """Who is told of each retry: `note(event, **facts)`."""
        self._note = note

    def pause(self, seconds: float) -> None:
        """Between two attempts."""
        time.sleep(seconds)

    def _rename(
        self,
        call: Callable[[int, str, int, str], None],
        from_dir: int,
        from_name: str,
        to_dir: int,
        to_name: str,
    ) -> None:
        for attempt in range(1, RENAME_ATTEMPTS + 1):
            try:
                call(from_dir, from_name, to_dir, to_name)
            except OSError as error:
                if error.errno == errno.EXDEV:
                    raise OSError(errno.EXDEV, _devices(from_dir, to_dir), to_name) from error
                if error.errno not in _CONTENTION:
                    raise
                if attempt == RENAME_ATTEMPTS:
                    raise OSError(error.errno, _in_the_end(error.errno), to_name) from error
                pause_s = RENAME_PAUSE_S * 2 ** (attempt - 1)
                name = errno.errorcode[error.errno]
                self._note("rename_retried", name=to_name, error=name, attempt=attempt, retry_in_s=pause_s)
                self.pause(pause_s)
            else:
                return


def _exchange(from_dir: int, from_name: str, to_dir: int, to_name: str) -> None:
    syscalls.renameat2(from_dir, from_name, to_dir, to_name, syscalls.RENAME_EXCHANGE)


def _rename_new(from_dir: int, from_name: str, to_dir: int, to_name: str) -> None:
    syscalls.renameat2(from_dir, from_name, to_dir, to_name, syscalls.RENAME_NOREPLACE)


def _rename_over(from_dir: int, from_name: str, to_dir: int, to_name: str) -> None:
    os.rename(from_name, to_name, src_dir_fd=from_dir, dst_dir_fd=to_dir)


def _devices(from_dir: int, to_dir: int) -> str:
    one, other = os.fstat(from_dir).st_dev, os.fstat(to_dir).st_dev
    return f"{os.strerror(errno.EXDEV)}: from device {one} to device {other}"


def _in_the_end(number: int) -> str:
    return (
        f"{os.strerror(number)}, in each of {RENAME_ATTEMPTS} attempts: something is mounted there or holds "
        "the name; `findmnt` and `fuser` show what"
    )
