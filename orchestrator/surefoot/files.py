"""Reading and staging files below one directory, as a step sees them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from io import BufferedReader, BufferedWriter
from typing import Any

from pydantic import BaseModel

from surefoot_storage import File, FileTransaction, InputError, PathRefused, UnreadableFile, Workspace
from surefoot_storage.paths import PathLike, normalise

from .approvals import digest_of
from .errors import UndeclaredRead
from .streams import Stream

_REQUIRED: Any = object()


class Files:
    """Reading and staging below one directory of the workspace.

    Nothing reaches the disk before the step's commit; reads see the step's own writes.
    """

    def __init__(
        self, workspace: Workspace, files: FileTransaction, prefix: str, *, is_async: bool, status_path: str
    ) -> None:
        self._storage = workspace
        self._files = files
        self._prefix = f"{prefix}/" if prefix else ""
        self._is_async = is_async
        self._status_path = status_path
        self._loaded: set[str] = set()

    def _path(self, path: PathLike, operation: str) -> str:
        return self._prefix + normalise(path, operation=operation)

    def _readable(self, path: PathLike) -> str:
        name = self._path(path, "read")
        if self._is_async and not self._files.known(name) and name not in self._loaded:
            raise UndeclaredRead(
                "read",
                name,
                expected="a file that is in memory: an async step must not wait for the disk",
                found="one that was neither declared nor loaded",
                hint=f"declare it: reads=[{str(path)!r}]; or load it first: await tx.load({str(path)!r})",
            )
        return name

    def _writable(self, path: PathLike, operation: str) -> str:
        name = self._path(path, operation)
        if name == self._status_path:
            raise PathRefused(
                operation,
                name,
                expected="the step's own files",
                found="the status file, which the engine writes",
            )
        return name

    # --- reading ---

    def read_bytes(self, path: PathLike) -> bytes:
        """The content.

        Raises:
            UnreadableFile: there is none, or it may not be read.
            PathRefused: the path leads outside or is no plain file.
            UndeclaredRead: an async step that has not loaded it.
        """
        return self._files.read_bytes(self._readable(path))

    def read_text(self, path: PathLike, *, default: str = _REQUIRED) -> str:
        """The content as UTF-8 text; `default` where there is no such file.

        Raises:
            UnreadableFile: it is not UTF-8; and as `read_bytes`.
        """
        if default is not _REQUIRED and not self.exists(path):
            return default
        data = self.read_bytes(path)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UnreadableFile(
                "read",
                self._path(path, "read"),
                expected="UTF-8 text",
                found=f"byte 0x{data[error.start]:02x} at offset {error.start}",
                hint="read_bytes takes any content",
            ) from error

    def read_json(self, path: PathLike, *, default: Any = _REQUIRED) -> Any:
        """The content as JSON; `default` where there is no such file.

        Raises:
            UnreadableFile: it is not JSON; and as `read_text`.
        """
        if default is not _REQUIRED and not self.exists(path):
            return default
        text = self.read_text(path)
        try:
            return json.loads(text)
        except ValueError as error:
            raise UnreadableFile(
                "read",
                self._path(path, "read"),
                expected="JSON",
                found=str(error),
                hint="mend the file, then retry",
            ) from error

    def exists(self, path: PathLike) -> bool:
        """Whether there is a file or directory."""
        return self._files.exists(self._readable(path))

    def is_dir(self, path: PathLike) -> bool:
        """Whether there is a directory."""
        return self._files.is_dir(self._readable(path))

    def list_dir(self, path: PathLike = ".") -> list[str]:
        """The names in a directory, sorted. A name that appears before the commit is a conflict."""
        inner = self._prefix.rstrip("/") if str(path) in (".", "") else self._path(path, "list")
        if self._is_async and inner not in self._files.listings:
            self._readable(path if str(path) not in (".", "") else "*")
        return self._files.list_dir(inner)

    def glob(self, pattern: PathLike) -> list[str]:
        """The files that match, sorted, relative to this directory. A new match is a conflict."""
        name = self._path(pattern, "match")
        if self._is_async and name not in self._loaded:
            self._readable(pattern)
        return [path[len(self._prefix) :] for path in self._files.glob(name)]

    async def load(self, pattern: PathLike) -> None:
        """Reads a file or all matches of a glob, so that an async step can use them.

        Raises:
            UnreadableFile, PathRefused: as reading does.
        """
        from anyio import to_thread

        await to_thread.run_sync(self._load_now, str(pattern))

    def _load_together(self, paths: list[str]) -> None:
        """Loads several files at once; their sizes are counted by `_load_now`."""
        self._files.load_all([self._path(path, "read") for path in paths])

    def _load_now(self, pattern: str) -> int:
        """Loads what a pattern names; returns its size in bytes. For worker threads."""
        name = self._path(pattern, "read")
        paths = self._files.glob(name) if set(pattern) & set("*?[") else [name]
        self._loaded.add(name)
        states = [snapshot.state for snapshot in self._files.load_all(paths)]
        return sum(state.size for state in states if isinstance(state, File))

    # --- writing ---

    def write_bytes(self, path: PathLike, data: bytes, *, mode: int | None = None) -> None:
        """The file shall hold `data`; directories above it are made. `mode` is its permission bits."""
        self._files.write_bytes(self._writable(path, "write"), data, mode=mode)

    def write_text(self, path: PathLike, text: str, *, mode: int | None = None) -> None:
        """The file shall hold `text`, in UTF-8."""
        if not isinstance(text, str):
            raise InputError("write", self._path(path, "write"), expected="text", found=type(text).__name__)
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                "write", self._path(path, "write"), expected="text that UTF-8 can hold", found=str(error)
            ) from error
        self.write_bytes(path, data, mode=mode)

    def write_json(self, path: PathLike, value: Any, *, mode: int | None = None) -> None:
        """The file shall hold `value` as indented JSON; pydantic models are taken as they are."""
        try:
            text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
        except (TypeError, ValueError) as error:
            raise InputError(
                "write", self._path(path, "write"), expected="a value that JSON can hold", found=str(error)
            ) from error
        self.write_text(path, text + "\n", mode=mode)

    def create(self, path: PathLike, *, mode: int | None = None) -> Stream[BufferedWriter]:
        """A stream into the file, for contents that do not fit into memory; one block, sync or async.

        Raises:
            StageFailed: the disk does not take it.
            IncompatibleOperations: at the commit, where the block was not left.
        """
        name = self._writable(path, "write")
        return Stream(lambda: self._storage.create(self._files, name, mode=mode))

    def open(self, path: PathLike) -> Stream[BufferedReader]:
        """A stream out of the file; one block, sync or async. It need not be declared or loaded.

        Raises:
            UnreadableFile: there is none, or it may not be read.
            Conflict: somebody changed it while it was read; the attempt is repeated.
        """
        name = self._path(path, "read")
        return Stream(lambda: self._storage.open(self._files, name))

    def delete(self, path: PathLike) -> None:
        """The file shall be gone; it must be there."""
        self._files.delete(self._writable(path, "delete"))

    def mkdir(self, path: PathLike, *, mode: int | None = None) -> None:
        """The directory shall be there; it may be already."""
        self._files.mkdir(self._writable(path, "mkdir"), mode=mode)

    def rmdir(self, path: PathLike) -> None:
        """The directory shall be gone; it must be there, and empty by then."""
        self._files.rmdir(self._writable(path, "rmdir"))

    def rmtree(self, path: PathLike) -> None:
        """The directory and all in it shall be gone, in one step for those who look; it must be there."""
        name = self._writable(path, "rmtree")
        self._refuse_status("rmtree", name)
        self._files.rmtree(name)

    def swap(self, path: PathLike) -> None:
        """The changes in an existing directory shall be seen as one: it is exchanged whole."""
        name = self._writable(path, "swap")
        self._refuse_status("swap", name)
        self._files.swap(name)

    def rename(self, path: PathLike, new: PathLike) -> None:
        """The file or directory shall be found under another name, which must be free."""
        name = self._writable(path, "rename")
        self._refuse_status("rename", name)
        self._files.rename(name, self._writable(new, "rename"))

    def _refuse_status(self, operation: str, directory: str) -> None:
        if self._status_path.startswith(f"{directory}/"):
            raise PathRefused(
                operation,
                directory,
                expected="a directory without the run's status file",
                found=self._status_path,
                hint="name the directories below it",
            )

    def chmod(self, path: PathLike, mode: int) -> None:
        """The file or directory shall have these permission bits."""
        self._files.chmod(self._writable(path, "chmod"), mode)


def _plain(value: object) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} {str(value)[:60]!r} is not JSON")


def contents(files: FileTransaction, directory: str, of: Sequence[str], status_path: str) -> str:
    """The digest of what is to be approved, pending changes included. The commit checks what was read."""
    found: dict[str, str] = {}
    for pattern in of:
        name = f"{directory}/{pattern}" if directory else pattern
        if files.is_dir(name):
            paths = [path for path, is_dir in files.walk(name) if not is_dir]
        else:
            paths = files.glob(name) if set(pattern) & set("*?[") else [name]
        for path in paths:
            digest = files.digest(path)
            found[path[len(directory) + 1 if directory else 0 :]] = digest.hex() if digest else "absent"
    found.pop(status_path[len(directory) + 1 if directory else 0 :], None)
    return digest_of(found.items())
