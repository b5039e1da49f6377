"""Landlock (Linux 5.13+): this process and its children cannot write any more but to what is named.

An allow-list: <https://docs.kernel.org/userspace-api/landlock.html>. Reading stays free.
To protect one directory and leave the rest alone, everything beside the way to it is named: `beside`.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # system calls; the same numbers everywhere
_VERSION = 1
_BENEATH = 1
_NO_NEW_PRIVS = 38
_WRITE_FILE = 1 << 1
# removing directories and files; making devices, directories, files, sockets, pipes, symlinks
_WRITES = _WRITE_FILE | sum(1 << bit for bit in range(4, 13))
_REFER, _TRUNCATE = 1 << 13, 1 << 14  # ABI 2, ABI 3
_FILES_ONLY = _WRITE_FILE | _TRUNCATE


def abi() -> int:
    """Which version the kernel has; 0 where it has none."""
    return max(0, int(_libc().syscall(_CREATE, None, 0, _VERSION)))


def restrict(writable: Iterable[str]) -> int:
    """Only below these paths may be written from now on; returns the version of the rules that hold.

    Raises:
        OSError: the kernel does not have it, or refuses.
    """
    libc, version = _libc(), abi()
    if version == 0:
        raise OSError("this kernel has no Landlock")
    handled = _WRITES | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)  # noqa: PLR2004
    ruleset = _checked(libc.syscall(_CREATE, struct.pack("Q", handled), 8, 0), "landlock_create_ruleset")
    try:
        for path in writable:
            _allow(libc, ruleset, path, handled)
        if libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")
        _checked(libc.syscall(_RESTRICT, ruleset, 0), "landlock_restrict_self")
    finally:
        os.close(ruleset)
    return version


def beside(protected: str, open_again: Iterable[str]) -> list[str]:
    """Everything but one directory: all that lies beside the way to it; and what is open inside it."""
    paths: list[str] = []
    way = os.path.realpath(protected)
    while way != "/":
        above, leaf = os.path.split(way)
        paths += [os.path.join(above, name) for name in os.listdir(above) if name != leaf]
        way = above
    return [*paths, *open_again]


def _allow(libc: ctypes.CDLL, ruleset: int, path: str, handled: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # it is gone, or a name that this user cannot reach
        return
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISLNK(mode):  # it may lead to what is protected; what it leads to has a name of its own
            return
        allowed = handled if stat.S_ISDIR(mode) else handled & _FILES_ONLY
        rule = struct.pack("=Qi", allowed, fd)
        libc.syscall(_ADD, ruleset, _BENEATH, rule, 0)  # what cannot be named (a pipe, say) stays closed
    finally:
        os.close(fd)


def _checked(result: int, call: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
