"""Files of last resort beside the store: what it did not take is kept in them until somebody replays it."""

from __future__ import annotations

import contextlib

from .errors import UnknownId, UnreadableFile, os_error_text
from .fsops import FsOps
from .layout import opened_folder

FOLDER = "dumps"


class Dumps:
    """`.surefoot/dumps`. Needs no database: the one that failed may be the reason why there are any."""

    def __init__(self, fs: FsOps, root: str) -> None:
        self._fs = fs
        self._root = root

    def write(self, name: str, data: bytes) -> None:
        """A new dump, whole and durable when this returns.

        Raises:
            OSError: the disk does not take it.
        """
        with self._folder(make=True) as folder:
            temporary = f"{name}.new"
            self._fs.unlink(folder, temporary)
            fd = self._fs.create(folder, temporary)
            try:
                self._fs.write(fd, data)
                self._fs.sync_data(fd)
            finally:
                self._fs.close(fd)
            self._fs.rename_over(folder, temporary, folder, name)
            self._fs.sync(folder)

    def names(self) -> list[str]:
        """All of them, sorted; those that were never finished are none."""
        try:
            with self._folder() as folder:
                return sorted(name for name in self._fs.names(folder) if not name.endswith(".new"))
        except FileNotFoundError:
            return []

    def read(self, name: str) -> bytes:
        """What is in one.

        Raises:
            UnknownId: there is none of that name. UnreadableFile: it cannot be read.
        """
        known = self.names()
        if name not in known:
            raise UnknownId(
                "read dump", name, expected=f"one of {', '.join(known) or 'none'}", found="no such dump",
                hint="surefoot dumps list",
            )  # fmt: skip
        try:
            with self._folder() as folder:
                return self._fs.read(folder, name)[0]
        except OSError as error:
            raise UnreadableFile(
                "read dump", name, expected="its content", found=os_error_text(error)
            ) from error

    def rename(self, name: str, new: str) -> None:
        """It is known by another name; durable when this returns."""
        with self._folder() as folder:
            self._fs.rename_over(folder, name, folder, new)
            self._fs.sync(folder)

    def _folder(self, *, make: bool = False) -> contextlib.AbstractContextManager[int]:
        return opened_folder(self._fs, self._root, FOLDER, make=make)
