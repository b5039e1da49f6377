"""The part of the seam that takes a file of ours into use again: see `spares` for when that is safe."""

from __future__ import annotations

import errno
import fcntl
import os
import signal

from . import syscalls

_TAKEN = (errno.EAGAIN, errno.EACCES, errno.EINVAL)  # EINVAL: no leases here


class Reuse:
    """Linux. Each method is one system call or two."""

    def open_again(self, directory: int, name: str) -> int:
        """An existing file for overwriting; EAGAIN, instead of waiting, where somebody has a lease on it."""
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return os.open(name, flags, dir_fd=directory)

    def take_lease(self, fd: int) -> bool:
        """Whether nobody else has the file open or mapped. Whoever opens it from now on has to wait."""
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)  # the default, SIGIO, would end the process
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            return False
        return True

    def has_writer(self, directory: int, name: str) -> bool:
        """Whether anybody has the file open, or mapped, for writing.

        False, too, where nobody can tell: no leases here, or a file of somebody else's.
        """
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        except BlockingIOError:  # somebody else has a lease on it
            return True
        try:
            fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno not in (*_TAKEN, errno.EOPNOTSUPP, errno.ENOLCK):
                raise
            return False
        else:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            return False
        finally:
            os.close(fd)

    def end_lease(self, fd: int) -> bool:
        """Gives the lease back; False where somebody has been waiting for that."""
        whole = fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_WRLCK
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return whole

    def forget_pages(self, fd: int, size: int) -> None:
        """Zeros instead of its blocks' content: what lies in a pipe by splice(2) keeps the old pages."""
        syscalls.zero_range(fd, size)

    def attributes(self, fd: int) -> dict[str, bytes]:
        """All extended attributes of an open file."""
        return {name: os.getxattr(fd, name) for name in os.listxattr(fd)}
