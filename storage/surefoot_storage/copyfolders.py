"""Folders of working copies, `.surefoot/copies/<name>/`, and the notes and locks in them.

base.json      how the directory, and the copy of it, looked when the copy was ready: written last
work/          the copy
sealed/<sha>   contents of what has changed in it, flushed
changes.json   the sealed change set, and how `work` looked then
…              folders of whoever works in it: process records, logs
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from typing import Any

from .changes import Base, ChangeSet
from .errors import CopyRefused, os_error_text
from .fsops import FsOps, is_regular
from .layout import opened_folder, read_note, write_note
from .paths import CONTROL_DIR

FOLDER = "copies"
BASE, CHANGES, WORK, SEALED, TRASH = "base.json", "changes.json", "work", "sealed", ".trash"


class CopyFolders:
    """Where working copies lie."""

    def __init__(self, fs: FsOps, root: str) -> None:
        self._fs = fs
        self._root = root

    def path(self, name: str, below: str = WORK) -> str:
        """The ordinary path of a copy, or of another folder beside it."""
        return os.path.join(self._root, CONTROL_DIR, FOLDER, name, below)

    def names(self) -> list[str]:
        """All of them; what is being removed is none."""
        try:
            with self._folder() as folder:
                return [name for name in self._fs.names(folder) if not name.endswith(TRASH)]
        except FileNotFoundError:
            return []

    # --- records of whoever works in it ---

    def make_folder(self, name: str, below: str) -> str:
        """A folder beside the copy, made where it is missing; returns its ordinary path."""
        with self._copy(name) as copy, contextlib.suppress(FileExistsError):
            self._fs.mkdir(copy, below, 0o700)
        return self.path(name, below)

    def note(self, name: str, below: str, note: str) -> dict[str, Any] | None:
        """A JSON file in such a folder; None where it is missing.

        Raises:
            OSError: it cannot be read. ValueError: it is no JSON object.
        """
        try:
            with self._copy(name) as copy, self._fs.opened_dir(copy, below) as folder:
                data = self._fs.read(folder, note)[0]
        except (FileNotFoundError, CopyRefused):
            return None
        return _object(data)

    def content(self, name: str, below: str, path: str, *, most: int) -> bytes | None:
        """A file in such a folder, or in the copy itself; None where there is no such plain file.

        Raises:
            OSError: it cannot be read, or is larger than `most` bytes.
        """
        above, _, leaf = path.rpartition("/")
        try:
            with (
                self._copy(name) as copy,
                self._fs.opened_dir(copy, f"{below}/{above}".rstrip("/")) as folder,
            ):
                found = self._fs.lstat(folder, leaf)
                if found is None or not is_regular(found):
                    return None
                if found.st_size > most:
                    raise OSError(errno.EFBIG, f"{found.st_size} bytes, and at most {most} are read", path)
                return self._fs.read(folder, leaf)[0]
        except (FileNotFoundError, NotADirectoryError, CopyRefused):
            return None

    def entries(self, name: str, below: str) -> list[str]:
        """The names in such a folder; none where it is missing."""
        try:
            with self._copy(name) as copy, self._fs.opened_dir(copy, below) as folder:
                return self._fs.names(folder)
        except (FileNotFoundError, CopyRefused):
            return []

    def size(self, name: str) -> int:
        """Bytes that the copy takes on the disk."""
        with self._copy(name) as copy:
            return self._fs.tree_size(copy, WORK)[1]

    def write(self, name: str, below: str, note: str, value: dict[str, Any]) -> None:
        """A JSON file in such a folder, replaced whole; not durable."""
        with self._copy(name) as copy, self._fs.opened_dir(copy, below) as folder:
            write_note(self._fs, folder, note, value, durable=False)

    def is_held(self, name: str, below: str, lock: str) -> bool:
        """Whether a process holds the lock in such a folder."""
        try:
            with self._copy(name) as copy, self._fs.opened_dir(copy, below) as folder:
                fd = self._fs.open_file(folder, lock)
        except (FileNotFoundError, CopyRefused):
            return False
        try:
            return not self._fs.try_lock(fd)
        finally:
            self._fs.close(fd)

    # --- descriptors ---

    def _folder(self, *, make: bool = False) -> contextlib.AbstractContextManager[int]:
        return opened_folder(self._fs, self._root, FOLDER, make=make)

    @contextlib.contextmanager
    def _copy(self, name: str, *, make: bool = False) -> Iterator[int]:
        with contextlib.ExitStack() as stack:
            try:
                folder = stack.enter_context(self._folder(make=make))
                if make:
                    with contextlib.suppress(FileExistsError):
                        self._fs.mkdir(folder, name, 0o700)
                copy = stack.enter_context(self._fs.opened_dir(folder, name))
            except FileNotFoundError as error:
                raise CopyRefused(
                    "look at", name, expected="a working copy", found="none of that name",
                    hint="surefoot workspace list",
                ) from error  # fmt: skip
            yield copy

    @contextlib.contextmanager
    def _live(self, directory: str, *, missing: bool = False) -> Iterator[int]:
        root = self._fs.open_root(self._root)
        try:
            try:
                fd = self._fs.open_dir(root, directory)
            except FileNotFoundError:
                if not missing:
                    raise
                fd = self._fs.open_dir(root, f"{CONTROL_DIR}/keep")  # nothing is there: an empty directory
            try:
                yield fd
            finally:
                self._fs.close(fd)
        finally:
            self._fs.close(root)

    @contextlib.contextmanager
    def _opened_work(self, copy: int, name: str) -> Iterator[int]:
        try:
            fd = self._fs.open_dir(copy, WORK)
        except FileNotFoundError as error:
            raise CopyRefused(
                "seal", name, expected="its directory", found="none: somebody has deleted it"
            ) from error
        try:
            yield fd
        finally:
            self._fs.close(fd)

    def _base(self, copy: int) -> Base:
        note = read_note(self._fs, copy, BASE)
        if note is None:
            raise CopyRefused(
                "look at", "the working copy", expected="one that was ready", found="one without base.json"
            )
        return Base(note["directory"], note["entries"])

    def _read(self, copy: int) -> ChangeSet | None:
        note = read_note(self._fs, copy, CHANGES)
        return ChangeSet.from_dict(note) if note is not None else None


def refused(operation: str, subject: str, expected: str, error: OSError) -> CopyRefused:
    """What the disk said."""
    return CopyRefused(operation, subject or ".", expected=expected, found=os_error_text(error))


def _object(data: bytes) -> dict[str, Any]:
    value = json.loads(data)
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, found {type(value).__name__}")  # noqa: TRY004 - a bad value
    return value
