"""The workspace's files as a transaction sees them: resolved beneath the root, refused where unsafe."""

from __future__ import annotations

import errno
import os
from types import TracebackType
from typing import Self

from . import fsops
from .areas import Areas
from .errors import PathRefused, UnreadableFile, os_error_text
from .fsops import FsOps
from .paths import leaf_of, parent_of, visible
from .states import Snapshot, Stamp, snapshot_of
from .turn import Turn

HELD_BYTES_MAX = 1 << 20  # a larger file is known by its hash: it is read when somebody asks for it


class Tree:
    """Look-ups beneath one root directory. Holds no state but descriptors."""

    def __init__(self, fs: FsOps, root: int, areas: Areas) -> None:
        self.fs = fs
        self.root = root
        self.areas = areas
        self.recipe = areas.home.recipe
        self.turn = Turn()

    def parents(self) -> Parents:
        """A cache of directory descriptors for one phase; close it at its end."""
        return Parents(self)

    def open_parent(self, path: str, *, operation: str) -> int | None:
        """Descriptor of the directory that holds `path`; None where it does not exist.

        Raises:
            PathRefused: a symlink or a file is on the way.
        """
        return self.open_directory(path, parent_of(path), operation=operation)

    def open_directory(self, path: str, directory: str, *, operation: str) -> int | None:
        """Descriptor of a directory on the way to `path`, other filesystems included."""
        try:
            try:
                return self.fs.open_dir(self.root, directory)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
            return self.fs.open_dir(self.root, directory, cross=True)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _way_refused(operation, path, error) from error

    def load(self, path: str, *, operation: str = "read", parents: Parents | None = None) -> Snapshot:
        """The path as it is now, with content where it is a file.

        Raises:
            PathRefused: it is a symlink, a pipe, socket or device, or the way to it is unsafe.
            UnreadableFile: the permissions do not allow it, or it never stops changing.
        """
        with parents or self.parents() as dirs:
            directory = dirs.get(path, operation=operation)
            if directory is None:
                return self._snapshot(path, None)
            name = leaf_of(path)
            found = self.fs.lstat(directory, name)
            if found is None:
                return self._snapshot(path, found)
            if fsops.is_directory(found):
                return self._snapshot(path, found)
            refuse_special(operation, path, found)
            try:
                return self._load_file(path, directory, name, found)
            except OSError as error:
                raise _unreadable(operation, path, error) from error

    def _load_file(self, path: str, directory: int, name: str, found: os.stat_result) -> Snapshot:
        if found.st_size > HELD_BYTES_MAX:
            xattrs = self.fs.xattrs(directory, name)
            digest, found = self.fs.digest(directory, name)
            return self._snapshot(path, found, None, digest=digest, xattrs=xattrs)
        data, found, xattrs = self.fs.read_with_attributes(directory, name)
        return self._snapshot(path, found, data, xattrs=xattrs)

    def read_all(self, path: str) -> bytes:
        """A file's content, however large.

        Raises:
            UnreadableFile: it is gone, or may not be read.
        """
        with self.parents() as dirs:
            try:
                return self.fs.read(dirs.need(path), leaf_of(path))[0]
            except OSError as error:
                raise _unreadable("read", path, error) from error

    def open_to_read(self, path: str) -> int:
        """A descriptor for reading a file in pieces.

        Raises:
            UnreadableFile: it is gone, or may not be read.
        """
        with self.parents() as dirs:
            try:
                return self.fs.open_file(dirs.need(path), leaf_of(path))
            except OSError as error:
                raise _unreadable("read", path, error) from error

    def _snapshot(
        self,
        path: str,
        found: os.stat_result | None,
        data: bytes | None = b"",
        *,
        digest: bytes | None = None,
        xattrs: dict[str, bytes] | None = None,
    ) -> Snapshot:
        now_ns = None if self.recipe.fine_stamps else self.fs.now_ns()
        return snapshot_of(path, found, data, digest=digest, xattrs=xattrs, now_ns=now_ns)

    def kind(self, path: str) -> str:
        """`file`, `directory`, `other` or `nothing`, without reading it."""
        directory = self.open_parent(path, operation="look at")
        if directory is None:
            return "nothing"
        try:
            found = self.fs.lstat(directory, leaf_of(path))
        finally:
            self.fs.close(directory)
        if found is None:
            return "nothing"
        return "file" if fsops.is_regular(found) else "directory" if fsops.is_directory(found) else "other"

    def stamp(self, path: str) -> Stamp | None:
        """How it looks to stat; None where there is nothing."""
        directory = self.open_parent(path, operation="look at")
        if directory is None:
            return None
        try:
            found = self.fs.lstat(directory, leaf_of(path))
        finally:
            self.fs.close(directory)
        return Stamp.of(found) if found is not None else None

    def names(self, path: str, *, operation: str = "list") -> tuple[str, ...] | None:
        """The names in a directory (`""` is the root), sorted; None where there is no such directory."""
        fd = self.open_directory(f"{path}/*", path, operation=operation)
        if fd is None:
            return None
        try:
            return visible(path, self.fs.names(fd))
        finally:
            self.fs.close(fd)


class Parents:
    """Open parent directories, by path, for the length of one phase."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._fds: dict[str, int | None] = {}
        self._mounts: dict[str, str] = {}
        self._depth = 0

    def get(self, path: str, *, operation: str = "read") -> int | None:
        """The directory that holds `path`, None where it does not exist."""
        key = parent_of(path)
        if key not in self._fds:
            self._fds[key] = self._tree.open_parent(path, operation=operation)
        return self._fds[key]

    def mount(self, path: str) -> str:
        """Where the filesystem of the directory that holds `path` begins; of the nearest one that exists."""
        key = parent_of(path)
        if key not in self._mounts:
            fd = self.get(path)
            if fd is not None:
                self._mounts[key] = self._tree.areas.mount_of(key, fd)
            else:
                self._mounts[key] = self.mount(key)
        return self._mounts[key]

    def find(self, path: str) -> int | None:
        """The same for recovery: below a file there is nothing either."""
        try:
            return self.get(path, operation="recover")
        except PathRefused as error:
            if isinstance(error.__cause__, NotADirectoryError):
                return None
            raise

    def need(self, path: str) -> int:
        """The same, where it must exist."""
        fd = self.get(path, operation="write")
        if fd is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), parent_of(path))
        return fd

    def forget(self, directory: str) -> None:
        """After the directory was made or removed."""
        self._mounts.pop(directory, None)
        fd = self._fds.pop(directory, None)
        if fd is not None:
            self._tree.fs.close(fd)

    def forget_below(self, directory: str) -> None:
        """After the directory was put in place, exchanged or removed whole."""
        for known in [key for key in self._fds if key == directory or key.startswith(f"{directory}/")]:
            self.forget(known)

    def still_there(self, path: str) -> bool:
        """Whether the way to `path` still leads to the directory that is held open."""
        held = self.need(path)
        try:
            with self._tree.fs.opened_dir(self._tree.root, parent_of(path), cross=True) as again:
                now, then = self._tree.fs.fstat(again), self._tree.fs.fstat(held)
        except OSError:
            return False
        return (now.st_dev, now.st_ino) == (then.st_dev, then.st_ino)

    def __enter__(self) -> Self:
        self._depth += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth == 0:
            for directory in list(self._fds):
                self.forget(directory)


def refuse_special(operation: str, path: str, found: os.stat_result) -> None:
    """Only regular files are read and replaced; a link is not followed, a device not written through."""
    if not fsops.is_regular(found):
        raise PathRefused(
            operation,
            path,
            expected="a regular file",
            found=fsops.kind_name(found),
            hint="name the real file; Surefoot neither follows nor replaces links and devices",
        )


def _way_refused(operation: str, path: str, error: OSError) -> Exception:
    found = {
        errno.ELOOP: "a symlink on the way",
        errno.EXDEV: "a way out of the workspace",
        errno.ENOTDIR: "a file where a directory is needed",
        errno.ENAMETOOLONG: "a name that is too long for this filesystem",
    }.get(error.errno or 0)
    if found is None:
        return _unreadable(operation, path, error)
    return PathRefused(operation, path, expected="plain directories down from the workspace", found=found)


def _unreadable(operation: str, path: str, error: OSError) -> UnreadableFile:
    return UnreadableFile(
        operation,
        path,
        expected="a file that this user may read",
        found=os_error_text(error),
        hint="check the permissions" if error.errno in (errno.EACCES, errno.EPERM) else "",
    )
