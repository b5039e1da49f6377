"""A transaction: what was read, and what shall be, until it is committed or forgotten.

Nothing here writes to the workspace's files. Reads see the transaction's own pending writes; everything
that was read is kept with its stamp, so that the commit can tell whether somebody changed it meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, Protocol

from .errors import IncompatibleOperations, InputError, UnreadableFile
from .paths import PathLike, ancestors_of, normalise
from .states import Directory, File, Snapshot
from .tree import Tree
from .view import View, incompatible, missing
from .wants import Existing, Gone, MakeDir, Mode, Put, Spool, Statement, Want, want_name

acting: ContextVar[str] = ContextVar("acting", default="")
"""Who asks for transactions that are begun in this context, where it is not the user of this process."""


class Stream(Protocol):
    """A staged file that is being written."""

    def abort(self) -> None:
        """Ends it and removes what was written."""


class FileTransaction(View):
    """Staged reads and writes over the files of one workspace.

    Paths are relative to the workspace. Every method raises `TransactionClosed` once the
    transaction was fenced (timed out, cancelled) or committed.
    """

    def __init__(
        self,
        tree: Tree,
        txid: str,
        *,
        label: str = "",
        owner: str = "",
        actor: str = "",
        drop: Callable[[str, Spool], None] = lambda _path, _spool: None,
    ) -> None:
        super().__init__(tree, txid)
        self.label = label
        self.owner = owner
        self.actor = actor
        self.statements: list[Statement] = []
        self._streams: dict[str, Stream] = {}
        self._streamed = 0
        self._spools: list[tuple[str, Spool]] = []
        self._drop = drop
        self._gate = threading.Lock()

    # --- life ---

    def fence(self) -> bool:
        """Ends an open transaction for good. False where its commit has begun: await that instead."""
        with self._gate:
            ended = self._state == "open"
            if ended:
                self._state = "fenced"
            fenced = self._state == "fenced"
        if ended:
            for stream in list(self._streams.values()):
                stream.abort()
            self.drop_spools()
        return fenced

    def seal(self) -> None:
        """No more reads and writes; from here on it is committed or dropped, not fenced.

        Raises:
            IncompatibleOperations: a stream is still open.
        """
        with self._gate:
            self._check_open()
            if self._streams:
                raise IncompatibleOperations(
                    "commit",
                    next(iter(self._streams)),
                    expected="every stream to be closed",
                    found="one that is still open for writing",
                    hint="leave its `with` block first: what is not closed is not whole",
                )
            self._state = "sealed"

    def drop_spools(self) -> None:
        """Removes what was streamed and is not going to be committed."""
        while self._spools:
            self._drop(*self._spools.pop())

    # --- writing ---

    def write_bytes(self, path: PathLike, data: bytes, *, mode: int | None = None) -> None:
        """The path shall hold `data`; directories above it are made. `mode` is the permission bits."""
        if not isinstance(data, bytes | bytearray | memoryview):
            raise InputError("write", str(path), expected="bytes", found=type(data).__name__)
        self._put(self._writable(path, "write"), Put(bytes(data), mode))

    def _put(self, name: str, put: Put) -> None:
        before = self._wants.get(name)
        if isinstance(before, MakeDir) or self._has_children(name):
            raise incompatible("write", name, before)
        mode = _checked_mode("write", name, put.mode)
        if mode is None and isinstance(before, Put | Mode):
            mode = before.mode
        over = (isinstance(before, Gone) and before.kind == "directory") or (
            isinstance(before, Put) and before.over
        )
        self._want(name, Put(put.content, mode, over, put.like))

    def _want(self, name: str, want: Want) -> None:
        """Notes it, and how many pending paths each directory above has."""
        before = self._wants.get(name)
        change = (not isinstance(want, Gone)) - (before is not None and not isinstance(before, Gone))
        self._wants[name] = want
        if change:
            for above in ancestors_of(name):
                self._pending_below[above] = self._pending_below.get(above, 0) + change

    def expect_stream(self, path: PathLike, stream: Stream) -> str:
        """A stream for the path begins; returns its spelling."""
        name = self._writable(path, "write")
        if name in self._streams:
            raise incompatible("write", name, Put(b""))
        self._streams[name] = stream
        return name

    def count_stream(self) -> int:
        """A number for each stream of the transaction."""
        self._streamed += 1
        return self._streamed

    def end_stream(self, name: str, spool: Spool | None, *, mode: int | None = None) -> None:
        """The stream is closed: the path shall hold what was written; None: it was given up."""
        with self._gate:
            self._streams.pop(name, None)
            if spool is None:
                return
            if self._state == "open":
                self._spools.append((name, spool))
                self._put(name, Put(spool, mode))
                return
        self._drop(name, spool)
        self._check_open()

    def delete(self, path: PathLike) -> None:
        """The file shall be gone. It must be there."""
        name = self._writable(path, "delete")
        before = self._wants.get(name)
        if isinstance(before, Gone):
            raise missing(name, f"{want_name(before)} in this transaction", "delete")
        if isinstance(before, MakeDir):
            raise incompatible("delete", name, before)
        if isinstance(before, Put) and before.over:
            self._want(name, Gone("directory", must_exist=True))
        else:
            self._want(name, Gone("file", must_exist=not isinstance(before, Put)))

    def mkdir(self, path: PathLike, *, mode: int | None = None) -> None:
        """The path shall be a directory; one that exists is fine. Directories above it are made."""
        name = self._writable(path, "mkdir")
        before = self._wants.get(name)
        if isinstance(before, Put):
            raise incompatible("mkdir", name, before)
        over = isinstance(before, Gone) and before.kind == "file"
        over = over or (isinstance(before, MakeDir) and before.over)
        self._replaces_files = self._replaces_files or over
        self._want(name, MakeDir(_checked_mode("mkdir", name, mode), over))

    def rmdir(self, path: PathLike) -> None:
        """The directory shall be gone. It must be there, and empty by then."""
        name = self._writable(path, "rmdir")
        before = self._wants.get(name)
        if isinstance(before, Put | Gone):
            raise incompatible("rmdir", name, before)
        if self._has_children(name):
            raise IncompatibleOperations("rmdir", name, expected="an empty directory", found="pending writes")
        self._remove_directory(name)

    def _remove_directory(self, name: str) -> None:
        before = self._wants.get(name)
        if isinstance(before, MakeDir) and before.over:
            self._want(name, Gone("file", must_exist=True))
        else:
            self._want(name, Gone("directory", must_exist=not isinstance(before, MakeDir)))

    def rmtree(self, path: PathLike) -> None:
        """The directory and everything in it shall be gone, in one step for those who look. It must be there.

        Raises:
            UnreadableFile: there is no such directory.
            PathRefused: something in it is neither a file nor a directory.
        """
        name = self._writable(path, "rmtree")
        if not self.is_dir(name):
            raise UnreadableFile("rmtree", name, expected="a directory", found="something else or nothing")
        for below, is_dir in list(self.walk(name)):
            if is_dir:
                self._remove_directory(below)
            else:
                self._want(below, Gone("file", must_exist=not isinstance(self._wants.get(below), Put)))
        self._remove_directory(name)

    def swap(self, path: PathLike) -> None:
        """The directory's changes shall be seen as one: it is staged whole and exchanged in one operation.

        What does not change in it keeps its files; the directory must exist.
        """
        name = self._writable(path, "swap")
        if not isinstance(self.load(name).state, Directory):
            raise UnreadableFile("swap", name, expected="a directory", found=str(self.load(name).state))
        self._swaps.add(name)

    def rename(self, path: PathLike, new: PathLike) -> None:
        """The file or directory shall be found under another name, which must be free.

        Names that differ by case only are fine.
        """
        old, name = self._writable(path, "rename"), self._writable(new, "rename")
        if name == old or name.startswith(f"{old}/"):
            raise IncompatibleOperations("rename", old, expected="another place", found=name)
        if self.exists(name) and not self._is_same_entry(old, name):
            raise IncompatibleOperations(
                "rename", name, expected="a name that is free", found="one that is taken"
            )
        if self.is_dir(old):
            self._rename_tree(old, name)
        else:
            self._rename_file(old, name)
            self.delete(old)

    def _is_same_entry(self, old: str, new: str) -> bool:
        """On a disk that ignores case the new name finds the old file."""
        first, second = self.load(old).stamp, self.load(new).stamp
        return first is not None and second is not None and first.ino == second.ino and old != new

    def _rename_file(self, old: str, new: str) -> None:
        want = self._wants.get(old)
        if isinstance(want, Put):
            self._put(new, replace(want, over=False))
            return
        found = self.file_at(old)
        assert isinstance(found, Snapshot)
        assert isinstance(found.state, File)
        state = found.state
        content = found.data if found.data is not None else Existing(old, state.digest, state.size)
        mode = want.mode if isinstance(want, Mode) else state.mode
        self._put(new, Put(content, mode, like=old))

    def _rename_tree(self, old: str, new: str) -> None:
        state = self.load(old).state
        self.mkdir(new, mode=state.mode if isinstance(state, Directory) else None)
        for path, is_dir in list(self.walk(old)):
            there = new + path[len(old) :]
            if is_dir:
                below = self.load(path).state
                self.mkdir(there, mode=below.mode if isinstance(below, Directory) else None)
            else:
                self._rename_file(path, there)
        self.rmtree(old)

    def chmod(self, path: PathLike, mode: int) -> None:
        """The file or directory shall have these permission bits."""
        name = self._writable(path, "chmod")
        checked = _checked_mode("chmod", name, mode)
        assert checked is not None
        before = self._wants.get(name)
        if isinstance(before, Gone):
            raise incompatible("chmod", name, before)
        if isinstance(before, Put | MakeDir):
            self._want(name, replace(before, mode=checked))
        else:
            self._want(name, Mode(checked))

    def _writable(self, path: PathLike, operation: str) -> str:
        self._check_open()
        name = normalise(path, operation=operation)
        for above in ancestors_of(name):
            want = self._wants.get(above)
            if isinstance(want, Put):
                raise incompatible(operation, name, want, above)
            if isinstance(want, Gone):
                self.mkdir(above)
        return name

    def adopt(self, wants: Mapping[str, Want], swaps: Collection[str]) -> None:
        """What another transaction wanted, after the same things were looked at."""
        for path, want in wants.items():
            self._want(path, want)
            self._replaces_files = self._replaces_files or (isinstance(want, MakeDir) and want.over)
        self._swaps.update(swaps)

    def rows(self, sql: str, *, expect: int | None = None, **values: Any) -> None:
        """A change of rows in the same commit; `expect` is how many rows it must change."""
        self._check_open()
        self.statements.append(Statement(sql, values, expect))


def _checked_mode(operation: str, path: str, mode: int | None) -> int | None:
    if mode is not None and mode & ~0o777:
        raise InputError(operation, path, expected="permission bits from 0 to 0o777", found=oct(mode))
    return mode
