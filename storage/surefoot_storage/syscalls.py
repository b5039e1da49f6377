"""The five Linux calls that Python does not wrap. Part of the filesystem seam (`fsops`).

PEP 475 does not cover ctypes: EINTR is retried here.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

_libc = ctypes.CDLL(None, use_errno=True)

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

SYNC_FILE_RANGE_WAIT_BEFORE = 1
SYNC_FILE_RANGE_WRITE = 2
SYNC_FILE_RANGE_WAIT_AFTER = 4

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08

_SYS_OPENAT2 = 437  # the same number on every architecture (Linux 5.6)

_renameat2 = _libc.renameat2
_renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
_sync_file_range = _libc.sync_file_range
_sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
_syncfs = _libc.syncfs
_syncfs.argtypes = [ctypes.c_int]
_fstatfs = _libc.fstatfs
_fstatfs.argtypes = [ctypes.c_int, ctypes.c_char_p]
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t]


def _fail(subject: str | None) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), subject)


def renameat2(from_fd: int, from_name: str, to_fd: int, to_name: str, flags: int) -> None:
    """Rename with flags."""
    source, target = os.fsencode(from_name), os.fsencode(to_name)
    while _renameat2(from_fd, source, to_fd, target, flags) != 0:
        if ctypes.get_errno() != errno.EINTR:
            raise _fail(to_name)


def sync_file_range(fd: int, flags: int) -> None:
    """Write-out of the whole file without a device flush."""
    while _sync_file_range(fd, 0, 0, flags) != 0:
        if ctypes.get_errno() != errno.EINTR:
            raise _fail(None)


def syncfs(fd: int) -> None:
    """Flushes the whole filesystem."""
    while _syncfs(fd) != 0:
        if ctypes.get_errno() != errno.EINTR:
            raise _fail(None)


def filesystem_type(fd: int) -> tuple[int, str]:
    """(magic number, filesystem id as hex) from fstatfs(2)."""
    buffer = ctypes.create_string_buffer(256)
    if _fstatfs(fd, buffer) != 0:
        raise _fail(None)
    # struct statfs: f_type, f_bsize, five block and file counts, then f_fsid (two ints)
    return struct.unpack_from("l", buffer)[0], buffer.raw[56:64].hex()


def openat2(dir_fd: int, path: str, flags: int, resolve: int) -> int:
    """Opens with a limit on where the path may lead; EAGAIN (a rename raced the walk) is tried again."""
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, 0, resolve)
    name = os.fsencode(path)
    for _ in range(100):
        fd = int(_syscall(_SYS_OPENAT2, dir_fd, name, how, len(how)))
        if fd >= 0:
            return fd
        if ctypes.get_errno() not in (errno.EAGAIN, errno.EINTR):
            break
    raise _fail(path)
