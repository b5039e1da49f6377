"""The Linux calls that Python does not wrap. Part of the filesystem seam (`fsops`).

PEP 475 does not cover ctypes: EINTR is retried here.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

_libc = ctypes.CDLL(None, use_errno=True)
_quick = ctypes.PyDLL(None, use_errno=True)  # keeps the interpreter: for look-ups that take microseconds

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
_fallocate = _libc.fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_ZERO_RANGE_KEEP_SIZE = 0x11
_fstatfs = _quick.fstatfs
_fstatfs.argtypes = [ctypes.c_int, ctypes.c_char_p]
_syscall = _quick.syscall
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


def sync_file_range(fd: int, flags: int, offset: int = 0, size: int = 0) -> None:
    """Write-out of a part of a file (size 0: to its end) without a device flush."""
    while _sync_file_range(fd, offset, size, flags) != 0:
        if ctypes.get_errno() != errno.EINTR:
            raise _fail(None)


def syncfs(fd: int) -> None:
    """Flushes the whole filesystem."""
    while _syncfs(fd) != 0:
        if ctypes.get_errno() != errno.EINTR:
            raise _fail(None)


def zero_range(fd: int, size: int) -> None:
    """The first `size` bytes read as zeros; their pages leave the cache, their blocks stay."""
    while _fallocate(fd, _ZERO_RANGE_KEEP_SIZE, 0, size) != 0:
        if ctypes.get_errno() != errno.EINTR:
            raise _fail(None)


def filesystem_type(fd: int) -> tuple[int, str]:
    """(magic number, filesystem id as hex) from fstatfs(2)."""
    buffer = ctypes.create_string_buffer(256)
    if _fstatfs(fd, buffer) != 0:
        raise _fail(None)
    # struct statfs: f_type, f_bsize, five block and file counts, then f_fsid (two ints)
    return struct.unpack_from("l", buffer)[0], buffer.raw[56:64].hex()


_statx = _quick.statx
_statx.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p]
_AT_EMPTY_PATH, _AT_SYMLINK_NOFOLLOW = 0x1000, 0x100
_STATX_MNT_ID = 0x1000
ATTRIBUTE_IMMUTABLE = 0x10
ATTRIBUTE_APPEND = 0x20


def statx(dir_fd: int, name: str) -> tuple[int, int]:
    """(attributes that are set, id of the mount) of a name, links not followed; "" is the directory itself.

    Kernels before 5.8 do not tell the mount: then it is the device's number.
    """
    buffer = ctypes.create_string_buffer(256)
    flags = _AT_SYMLINK_NOFOLLOW | (0 if name else _AT_EMPTY_PATH)
    while _statx(dir_fd, os.fsencode(name), flags, _STATX_MNT_ID, buffer) != 0:
        if ctypes.get_errno() != errno.EINTR:
            raise _fail(name)
    mask, attributes = struct.unpack_from("I", buffer, 0)[0], struct.unpack_from("Q", buffer, 8)[0]
    attributes &= struct.unpack_from("Q", buffer, 56)[0]
    if not mask & _STATX_MNT_ID:
        major, minor = struct.unpack_from("II", buffer, 136)
        return attributes, os.makedev(major, minor)
    return attributes, struct.unpack_from("Q", buffer, 144)[0]


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
