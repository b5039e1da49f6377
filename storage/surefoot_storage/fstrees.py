"""The part of the seam that works on whole directories, and by ordinary paths: backups, cleaning up.

Kept apart from the single calls of `fsops`: nothing here is on the way of a commit.
"""

from __future__ import annotations

import contextlib
import os
import stat
from abc import ABC, abstractmethod


class WholeTrees(ABC):
    """Works through the single calls of the class that completes it."""

    @abstractmethod
    def opened_dir(
        self, root: int, path: str, *, cross: bool = False
    ) -> contextlib.AbstractContextManager[int]:
        """A directory beneath another one, for a block."""

    @abstractmethod
    def lstat(self, directory: int, name: str) -> os.stat_result | None:
        """What `name` is, links not followed."""

    @abstractmethod
    def open_file(self, directory: int, name: str) -> int:
        """An existing regular file."""

    @abstractmethod
    def create(self, directory: int, name: str) -> int:
        """A new empty file."""

    @abstractmethod
    def copy(self, source: int, target: int) -> None:
        """The whole content into an empty file."""

    def remove_tree(self, directory: int, name: str) -> None:
        """Removes a name and everything below it; no error where it is gone already."""
        try:
            os.unlink(name, dir_fd=directory)
        except FileNotFoundError:
            return
        except (IsADirectoryError, PermissionError):
            found = self.lstat(directory, name)
            if found is None:
                return
            if not stat.S_ISDIR(found.st_mode):
                raise
        else:
            return
        with contextlib.suppress(FileNotFoundError):  # somebody else removes it as well
            with self.opened_dir(directory, name) as fd:
                if not found.st_mode & stat.S_IWUSR:
                    os.fchmod(fd, 0o700)
                for child in os.listdir(fd):
                    self.remove_tree(fd, child)
            os.rmdir(name, dir_fd=directory)

    def tree_size(self, directory: int, name: str) -> tuple[int, int]:
        """(files, bytes on the disk) of a name and everything below it."""
        found = self.lstat(directory, name)
        if found is None:
            return 0, 0
        if not stat.S_ISDIR(found.st_mode):
            return 1, found.st_blocks * 512
        files = size = 0
        with self.opened_dir(directory, name) as fd:
            for child in os.listdir(fd):
                inner = self.tree_size(fd, child)
                files, size = files + inner[0], size + inner[1]
        return files, size

    # --- by ordinary paths, for backups only ---

    def exists(self, path: str) -> bool:
        """Whether there is anything, a dangling link included."""
        return os.path.lexists(path)

    def make_root(self, path: str) -> None:
        """A new directory."""
        os.mkdir(path, 0o700)

    def rename_root(self, path: str, new: str) -> None:
        """rename(2) of a directory."""
        os.rename(path, new)

    def copy_tree(self, from_dir: int, name: str, to_dir: int, new: str) -> int:
        """Copies a file, or a directory with what is in it; returns how many files. Flushes nothing."""
        found = self.lstat(from_dir, name)
        if found is None:
            return 0
        if not stat.S_ISDIR(found.st_mode):
            source, target = self.open_file(from_dir, name), self.create(to_dir, new)
            try:
                self.copy(source, target)
            finally:
                os.close(source)
                os.close(target)
            return 1
        os.mkdir(new, 0o700, dir_fd=to_dir)
        with self.opened_dir(from_dir, name) as old, self.opened_dir(to_dir, new) as made:
            return sum(self.copy_tree(old, child, made, child) for child in os.listdir(old))

    def is_workspace(self, path: str) -> bool:
        """Whether a directory named by an ordinary path has a control directory that was finished."""
        return os.path.lexists(os.path.join(path, ".surefoot", "workspace.json"))
