"""The one seam to the disk: nothing else in Surefoot calls `os.*` on files.

Every call names a file by (directory descriptor, single name), so that a directory moved or
replaced by a symlink between two calls cannot redirect the second one. Tests put a recording,
failing or killing subclass in its place; the crash lab puts a simulated disk there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator

from . import syscalls

_READ_CHUNK = 1 << 20
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_BENEATH = (
    syscalls.RESOLVE_BENEATH
    | syscalls.RESOLVE_NO_SYMLINKS
    | syscalls.RESOLVE_NO_MAGICLINKS
    | syscalls.RESOLVE_NO_XDEV
)


class FsOps:
    """Linux. Each method is one system call or the shortest loop around one."""

    # --- directories and look-ups ---

    def open_root(self, path: str) -> int:
        """Descriptor of a directory named by an ordinary path (symlinks in it are followed)."""
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def open_dir(self, root: int, path: str) -> int:
        """Descriptor of the directory `path` beneath `root`.

        Raises:
            OSError: ELOOP a symlink is on the way, EXDEV a mount point is, ENOENT, ENOTDIR.
        """
        try:
            return syscalls.openat2(root, path or ".", os.O_RDONLY | os.O_DIRECTORY, _BENEATH)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EPERM):
                raise
        return self._walk(root, path)

    def _walk(self, root: int, path: str) -> int:
        """open_dir for kernels and sandboxes without openat2: one name at a time."""
        device = os.fstat(root).st_dev
        fd = os.open(".", _DIRECTORY, dir_fd=root)
        for name in [name for name in path.split("/") if name]:
            try:
                child = os.open(name, _DIRECTORY, dir_fd=fd)
            finally:
                os.close(fd)
            fd = child
            if os.fstat(fd).st_dev != device:
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
        """The names in a directory, sorted."""
        return sorted(os.listdir(directory))

    def may_write_in(self, directory: int) -> bool:
        """Whether names may be created and replaced in the directory."""
        return os.access(".", os.W_OK | os.X_OK, dir_fd=directory, effective_ids=True)

    def is_mount_point(self, directory: int, name: str) -> bool:
        """Whether something is mounted over this very file (a container's single-file bind mount)."""
        try:
            os.close(syscalls.openat2(directory, name, os.O_PATH | os.O_NOFOLLOW, syscalls.RESOLVE_NO_XDEV))
        except OSError as error:
            return error.errno == errno.EXDEV
        return False

    def filesystem(self, fd: int) -> tuple[int, str]:
        """(magic number, filesystem id)."""
        return syscalls.filesystem_type(fd)

    # --- contents ---

    def read(self, directory: int, name: str) -> tuple[bytes, os.stat_result]:
        """The whole content of a regular file with the stat that belongs to it.

        Raises:
            OSError: ELOOP for a symlink; EBUSY when it changed three times while being read.
        """
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        try:
            before = os.fstat(fd)
            for _ in range(3):
                data = self._read_all(fd)
                after = os.fstat(fd)
                if (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns):
                    return data, after
                before = after
                os.lseek(fd, 0, os.SEEK_SET)
        finally:
            os.close(fd)
        raise OSError(errno.EBUSY, "the file keeps changing while it is read", name)

    def _read_all(self, fd: int) -> bytes:
        chunks = []
        while chunk := os.read(fd, _READ_CHUNK):
            chunks.append(chunk)
        return b"".join(chunks)

    def create(self, directory: int, name: str) -> int:
        """A new empty file, 0600, open for reading and writing."""
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, 0o600, dir_fd=directory)

    def write(self, fd: int, data: bytes) -> None:
        """All of `data`; a short write goes on where it stopped."""
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    def open_file(self, directory: int, name: str) -> int:
        """An existing regular file, for syncing or changing its mode."""
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)

    def dup(self, fd: int) -> int:
        """A second descriptor of the same open file."""
        return os.dup(fd)

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
        path = f"/proc/self/fd/{directory}/{name}"
        try:
            names = os.listxattr(path, follow_symlinks=False)
        except OSError:  # the filesystem has none
            return {}
        kept = [n for n in names if n.startswith("user.") or n == "system.posix_acl_access"]
        return {n: os.getxattr(path, n, follow_symlinks=False) for n in kept}

    def set_xattr(self, fd: int, name: str, value: bytes) -> None:
        """fsetxattr(2)."""
        os.setxattr(fd, name, value)

    # --- durability ---

    def start_writeback(self, fd: int) -> None:
        """Sends the file's data on its way to the device; returns at once, flushes nothing."""
        syscalls.sync_file_range(fd, syscalls.SYNC_FILE_RANGE_WRITE)

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

    def exchange(self, from_dir: int, from_name: str, to_dir: int, to_name: str) -> None:
        """Swaps two names in one atomic operation."""
        syscalls.renameat2(from_dir, from_name, to_dir, to_name, syscalls.RENAME_EXCHANGE)

    def rename_new(self, from_dir: int, from_name: str, to_dir: int, to_name: str) -> None:
        """Renames; EEXIST where the new name is taken."""
        syscalls.renameat2(from_dir, from_name, to_dir, to_name, syscalls.RENAME_NOREPLACE)

    def rename_over(self, from_dir: int, from_name: str, to_dir: int, to_name: str) -> None:
        """Plain rename(2): replaces what is there."""
        os.rename(from_name, to_name, src_dir_fd=from_dir, dst_dir_fd=to_dir)

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
            with self.opened_dir(directory, name) as fd:
                os.fchmod(fd, mode)

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
    def opened_dir(self, root: int, path: str) -> Iterator[int]:
        """`open_dir` for a block."""
        fd = self.open_dir(root, path)
        try:
            yield fd
        finally:
            os.close(fd)


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
