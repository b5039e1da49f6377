"""The one seam to the disk: nothing else in Surefoot calls `os.*` on files.

Every call names a file by (directory descriptor, single name), so that a directory moved or
replaced by a symlink between two calls cannot redirect the second one. Tests put a recording,
failing or killing subclass in its place; the crash lab puts a simulated disk there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Iterator

from . import syscalls
from .fsclones import Clones
from .fsnames import Names
from .fsreuse import Reuse
from .fstrees import WholeTrees

_READ_CHUNK = 1 << 20
# Larger pieces make larger folios: writing a megabyte at once takes up to six times as long
# (ext4, Linux 6.18, in a virtual machine whose memory is returned to its host).
_WRITE_CHUNK = 64 << 10
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_BENEATH = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS
_CARRIED = ("system.posix_acl_access", "system.posix_acl_default", "security.selinux")
_COPY_CHUNK = 64 << 20
_FICLONE = 0x40049409
_NO_COPY = (
    errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTTY, errno.EPERM, errno.ETXTBSY
)  # fmt: skip


class FsOps(WholeTrees, Clones, Names, Reuse):
    """Linux. Each method is one system call or the shortest loop around one."""

    # --- directories and look-ups ---

    def open_root(self, path: str) -> int:
        """Descriptor of a directory named by an ordinary path (symlinks in it are followed)."""
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def open_dir(self, root: int, path: str, *, cross: bool = False) -> int:
        """Descriptor of the directory `path` beneath `root`; `cross`: also through mount points.

        Raises:
            OSError: ELOOP a symlink is on the way, EXDEV a mount point is, ENOENT, ENOTDIR.
        """
        resolve = _BENEATH | (0 if cross else syscalls.RESOLVE_NO_XDEV)
        try:
            return syscalls.openat2(root, path or ".", os.O_RDONLY | os.O_DIRECTORY, resolve)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EPERM):
                raise
        return self._walk(root, path, cross=cross)

    def _walk(self, root: int, path: str, *, cross: bool) -> int:
        """open_dir for kernels and sandboxes without openat2: one name at a time."""
        device = os.fstat(root).st_dev
        fd = os.open(".", _DIRECTORY, dir_fd=root)
        for name in [name for name in path.split("/") if name]:
            try:
                child = os.open(name, _DIRECTORY, dir_fd=fd)
            finally:
                os.close(fd)
            fd = child
            if not cross and os.fstat(fd).st_dev != device:
                os.close(fd)
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
        return fd

    def lstat(self, directory: int, name: str) -> os.stat_result | None:
        """What `name` is, links not followed; None where there is nothing."""
        try:
            return os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def fstat(self, fd: int) -> os.stat_result:
        """What an open descriptor is."""
        return os.fstat(fd)

    def names(self, directory: int) -> list[str]:
        """The names in a directory, sorted.

        Through a descriptor of its own: btrfs shows a descriptor only what was there when it was opened.
        """
        fd = os.open(".", _DIRECTORY, dir_fd=directory)
        try:
            return sorted(os.listdir(fd))
        finally:
            os.close(fd)

    def may_write_in(self, directory: int) -> bool:
        """Whether names may be created and replaced in the directory."""
        return os.access(".", os.W_OK | os.X_OK, dir_fd=directory, effective_ids=True)

    def facts(self, directory: int, name: str) -> tuple[int, int]:
        """(immutable and append-only flags, id of the mount); `""` is the directory itself."""
        attributes, mount = syscalls.statx(directory, name)
        return attributes & (syscalls.ATTRIBUTE_IMMUTABLE | syscalls.ATTRIBUTE_APPEND), mount

    def filesystem(self, fd: int) -> tuple[int, str]:
        """(magic number, filesystem id)."""
        return syscalls.filesystem_type(fd)

    def free_bytes(self, fd: int) -> int:
        """Room for this user on the filesystem."""
        found = os.fstatvfs(fd)
        return found.f_bavail * found.f_frsize

    def allocate(self, fd: int, size: int) -> None:
        """Takes room for a file without writing it."""
        os.posix_fallocate(fd, 0, size)

    # --- contents ---

    def read(self, directory: int, name: str) -> tuple[bytes, os.stat_result]:
        """The whole content of a regular file with the stat that belongs to it.

        Raises:
            OSError: ELOOP for a symlink; EBUSY when it changed three times while being read.
        """
        data, found, _ = self.read_with_attributes(directory, name)
        return data, found

    def read_with_attributes(
        self, directory: int, name: str
    ) -> tuple[bytes, os.stat_result, dict[str, bytes]]:
        """The same, and the attributes that a replacement must carry on."""
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        try:
            before = os.fstat(fd)
            for _ in range(3):
                data = self._read_all(fd, before.st_size)
                after = os.fstat(fd)
                if (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns):
                    return data, after, _carried_by(fd)
                before = after
                os.lseek(fd, 0, os.SEEK_SET)
        finally:
            os.close(fd)
        raise OSError(errno.EBUSY, "the file keeps changing while it is read", name)

    def _read_all(self, fd: int, size: int) -> bytes:
        chunks = [os.read(fd, min(size + 1, _READ_CHUNK))]
        if len(chunks[0]) == size:  # one more byte was asked for: this is the end
            return chunks[0]
        while chunk := os.read(fd, _READ_CHUNK):
            chunks.append(chunk)
        return b"".join(chunks)

    def digest(self, directory: int, name: str) -> tuple[bytes, os.stat_result]:
        """sha256 of a regular file of any size, with the stat that belongs to it.

        Raises:
            OSError: as `read`.
        """
        fd = self.open_file(directory, name)
        try:
            before = os.fstat(fd)
            for _ in range(3):
                os.lseek(fd, 0, os.SEEK_SET)
                found = hashlib.sha256()
                while chunk := os.read(fd, _READ_CHUNK):
                    found.update(chunk)
                after = os.fstat(fd)
                if (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns):
                    return found.digest(), after
                before = after
        finally:
            os.close(fd)
        raise OSError(errno.EBUSY, "the file keeps changing while it is read", name)

    def read_chunk(self, fd: int, size: int) -> bytes:
        """The next bytes of an open file; empty at its end."""
        return os.read(fd, size)

    def copy(self, source: int, target: int) -> None:
        """The whole content into an empty file: shared blocks where the filesystem can, else copied by it."""
        try:
            fcntl.ioctl(target, _FICLONE, source)
        except OSError as error:
            if error.errno not in _NO_COPY:
                raise
        else:
            return
        self._copy_range(source, target)

    def _copy_range(self, source: int, target: int) -> None:
        os.lseek(source, 0, os.SEEK_SET)
        try:
            while os.copy_file_range(source, target, _COPY_CHUNK):
                pass
        except OSError as error:
            if error.errno not in _NO_COPY:
                raise
            os.lseek(source, os.lseek(target, 0, os.SEEK_CUR), os.SEEK_SET)
            while chunk := os.read(source, _READ_CHUNK):
                self.write(target, chunk)

    def open_to_overwrite(self, directory: int, name: str) -> int:
        """An existing regular file, for writing over it."""
        return os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)

    def truncate(self, fd: int, size: int) -> None:
        """ftruncate(2)."""
        os.ftruncate(fd, size)

    def create(self, directory: int, name: str) -> int:
        """A new empty file, 0600, open for reading and writing."""
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, 0o600, dir_fd=directory)

    def write(self, fd: int, data: bytes | memoryview) -> None:
        """All of `data`; a short write goes on where it stopped."""
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view[:_WRITE_CHUNK]) :]

    def write_at(self, fd: int, data: bytes, offset: int) -> None:
        """pwrite(2) of a small record."""
        os.pwrite(fd, data, offset)

    def read_at(self, fd: int, size: int, offset: int) -> bytes:
        """pread(2) of a small record."""
        return os.pread(fd, size, offset)

    def open_record(self, directory: int, name: str) -> int:
        """A small file that is written in place, made where it is missing."""
        flags = os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, 0o600, dir_fd=directory)

    def open_file(self, directory: int, name: str) -> int:
        """An existing regular file, for syncing or changing its mode."""
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)

    def close(self, fd: int) -> None:
        """Gives a descriptor back."""
        os.close(fd)

    # --- metadata ---

    def chmod(self, fd: int, mode: int) -> None:
        """fchmod(2)."""
        os.fchmod(fd, mode)

    def chown(self, fd: int, uid: int, gid: int) -> None:
        """fchown(2)."""
        os.fchown(fd, uid, gid)

    def xattrs(self, directory: int, name: str) -> dict[str, bytes]:
        """The attributes that a replacement must carry on: the user's own and the ACL."""
        return _carried_by(directory if name == "." else f"/proc/self/fd/{directory}/{name}")

    def touch(self, directory: int, name: str) -> None:
        """Its time of change is now."""
        os.utime(name, dir_fd=directory, follow_symlinks=False)

    def set_xattr(self, fd: int, name: str, value: bytes) -> None:
        """fsetxattr(2)."""
        os.setxattr(fd, name, value)

    # --- durability ---

    def start_writeback(self, fd: int, offset: int = 0, size: int = 0) -> None:
        """Sends the file's data (or a part) on its way to the device; returns at once, flushes nothing."""
        syscalls.sync_file_range(fd, syscalls.SYNC_FILE_RANGE_WRITE, offset, size)

    def wait_writeback(self, fd: int) -> None:
        """Returns when the data has reached the device (its cache, that is: no flush)."""
        syscalls.sync_file_range(
            fd,
            syscalls.SYNC_FILE_RANGE_WAIT_BEFORE
            | syscalls.SYNC_FILE_RANGE_WRITE
            | syscalls.SYNC_FILE_RANGE_WAIT_AFTER,
        )

    def sync_data(self, fd: int) -> None:
        """fdatasync(2): a barrier."""
        os.fdatasync(fd)

    def sync(self, fd: int) -> None:
        """fsync(2) of a file or directory: a barrier."""
        os.fsync(fd)

    def sync_filesystem(self, fd: int) -> None:
        """syncfs(2): a barrier for everybody's dirty data; only in the background."""
        syscalls.syncfs(fd)

    # --- names ---

    def link(self, from_dir: int, from_name: str, to_dir: int, to_name: str) -> None:
        """A second name for the same file."""
        os.link(from_name, to_name, src_dir_fd=from_dir, dst_dir_fd=to_dir, follow_symlinks=False)

    def unlink(self, directory: int, name: str) -> None:
        """Removes a name; no error where it is gone already."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)

    def mkdir(self, directory: int, name: str, mode: int) -> None:
        """A new directory with exactly this mode."""
        os.mkdir(name, 0o700, dir_fd=directory)
        if mode != 0o700:  # noqa: PLR2004 - the value just given
            try:
                with self.opened_dir(directory, name) as fd:
                    os.fchmod(fd, mode)
            except FileExistsError as error:  # which callers take for somebody else's directory
                raise OSError(errno.EIO, "its mode cannot be set", name) from error

    def rmdir(self, directory: int, name: str) -> None:
        """Removes an empty directory."""
        os.rmdir(name, dir_fd=directory)

    # --- process-wide ---

    def try_lock(self, fd: int) -> bool:
        """An exclusive flock(2) that the kernel gives back when the process dies; False if taken."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def lock(self, fd: int) -> None:
        """The same, waiting for as long as it takes."""
        fcntl.flock(fd, fcntl.LOCK_EX)

    def umask(self) -> int:
        """The process's file mode mask, read without changing it."""
        with open("/proc/self/status", encoding="ascii") as status:
            for line in status:
                if line.startswith("Umask:"):
                    return int(line.split()[1], 8)
        return 0o022

    def now_ns(self) -> int:
        """The clock that file stamps are taken from, in nanoseconds since 1970."""
        return time.time_ns()

    @contextlib.contextmanager
    def opened_dir(self, root: int, path: str, *, cross: bool = False) -> Iterator[int]:
        """`open_dir` for a block."""
        fd = self.open_dir(root, path, cross=cross)
        try:
            yield fd
        finally:
            os.close(fd)


def _carried_by(file: int | str) -> dict[str, bytes]:
    follow = isinstance(file, int)
    try:
        names = os.listxattr(file, follow_symlinks=follow)
    except OSError:  # the filesystem has none
        return {}
    kept = [name for name in names if name.startswith("user.") or name in _CARRIED]
    return {name: os.getxattr(file, name, follow_symlinks=follow) for name in kept}


def is_regular(found: os.stat_result) -> bool:
    """A plain file, the only kind that is ever replaced."""
    return stat.S_ISREG(found.st_mode)


def is_directory(found: os.stat_result) -> bool:
    """A directory, not a link to one."""
    return stat.S_ISDIR(found.st_mode)


def kind_name(found: os.stat_result | None) -> str:
    """The word for messages."""
    if found is None:
        return "nothing"
    kinds = {
        stat.S_IFREG: "a file",
        stat.S_IFDIR: "a directory",
        stat.S_IFLNK: "a symlink",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(found.st_mode), "a device")
