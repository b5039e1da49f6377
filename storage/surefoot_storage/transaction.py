"""A transaction: what was read, and what shall be, until it is committed or forgotten.

Nothing here writes to the disk. Reads see the transaction's own pending writes; everything that was
read is kept with its stamp, so that the commit can tell whether somebody changed it meanwhile.
"""

from __future__ import annotations

import fnmatch
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from .errors import IncompatibleOperations, InputError, TransactionClosed, UnreadableFile
from .paths import CONTROL_DIR, PathLike, ancestors_of, leaf_of, normalise
from .states import Absent, Directory, File, Snapshot
from .tree import Tree


@dataclass(frozen=True, slots=True)
class Put:
    """The path shall be a file with this content."""

    data: bytes
    mode: int | None = None  # None keeps the old file's mode, or takes the umask's


@dataclass(frozen=True, slots=True)
class Gone:
    """The path shall not exist."""

    kind: Literal["file", "directory"]
    must_exist: bool


@dataclass(frozen=True, slots=True)
class MakeDir:
    """The path shall be a directory."""

    mode: int | None = None


@dataclass(frozen=True, slots=True)
class Mode:
    """The path keeps its content and gets these permission bits."""

    mode: int


Want: TypeAlias = "Put | Gone | MakeDir | Mode"


@dataclass(frozen=True, slots=True)
class Statement:
    """One change of rows. `:seq`, `:txid` and `:at` are filled in by the commit.

    `rows` is how many rows it must change: any other number is a conflict and nothing happens.
    """

    sql: str
    values: Mapping[str, Any] = field(default_factory=dict)
    rows: int | None = None


class FileTransaction:
    """Staged reads and writes over the files of one workspace.

    Paths are relative to the workspace. Every method raises `TransactionClosed` once the
    transaction was fenced (timed out, cancelled) or committed.
    """

    def __init__(self, tree: Tree, txid: str, *, label: str = "") -> None:
        self.txid = txid
        self.label = label
        self.statements: list[Statement] = []
        self._tree = tree
        self._base: dict[str, Snapshot] = {}
        self._listed: dict[str, tuple[str, ...] | None] = {}
        self._wants: dict[str, Want] = {}
        self._unread: set[str] = set()  # first looked at by the commit itself
        self._state: Literal["open", "sealed", "fenced"] = "open"
        self._gate = threading.Lock()

    # --- life ---

    def fence(self) -> bool:
        """Ends an open transaction for good. False where its commit has begun: await that instead."""
        with self._gate:
            if self._state == "open":
                self._state = "fenced"
            return self._state == "fenced"

    def seal(self) -> None:
        """No more reads and writes; from here on it is committed or dropped, not fenced."""
        with self._gate:
            self._check_open()
            self._state = "sealed"

    def _check_open(self) -> None:
        if self._state != "open":
            raise TransactionClosed(f"transaction {self.txid} is {self._state}: its attempt is over")

    # --- reading ---

    def known(self, path: PathLike) -> bool:
        """Whether reading the path needs no disk."""
        name = normalise(path, operation="read")
        return name in self._wants or name in self._base

    def load(self, path: PathLike) -> Snapshot:
        """The path as it is on disk, remembered from the first look on."""
        self._check_open()
        name = normalise(path, operation="read")
        if name not in self._base:
            self._base[name] = self._tree.load(name)
        return self._base[name]

    def read_bytes(self, path: PathLike) -> bytes:
        """The content, pending writes included.

        Raises:
            UnreadableFile: there is no such file, or it may not be read.
            PathRefused: the path is unsafe.
        """
        self._check_open()
        name = normalise(path, operation="read")
        want = self._wants.get(name)
        if isinstance(want, Put):
            return want.data
        if isinstance(want, Gone | MakeDir):
            raise _missing(name, f"{_want_name(want)} in this transaction")
        base = self.load(name)
        if not isinstance(base.state, File):
            raise _missing(name, str(base.state))
        return base.data

    def exists(self, path: PathLike) -> bool:
        """Whether there is a file or directory, pending changes included."""
        return not isinstance(self._kind(normalise(path, operation="look at")), Absent)

    def is_dir(self, path: PathLike) -> bool:
        """Whether there is a directory, pending changes included."""
        return isinstance(self._kind(normalise(path, operation="look at")), Directory)

    def _kind(self, name: str) -> Absent | Directory | File:
        self._check_open()
        want = self._wants.get(name)
        if isinstance(want, Gone):
            return Absent()
        if isinstance(want, MakeDir) or self._has_children(name):
            return Directory(0)
        if isinstance(want, Put):
            return File(b"", len(want.data), 0)
        return self.load(name).state

    def _has_children(self, name: str) -> bool:
        return any(
            path.startswith(f"{name}/") and not isinstance(want, Gone) for path, want in self._wants.items()
        )

    def list_dir(self, path: PathLike = "") -> list[str]:
        """The names in a directory, pending changes included, sorted.

        Raises:
            UnreadableFile: there is no such directory.
        """
        self._check_open()
        name = normalise(path, operation="list") if path not in ("", ".") else ""
        found = self._children(name)
        if found is None:
            raise UnreadableFile("list", name, expected="a directory", found="nothing")
        return found

    def _children(self, directory: str) -> list[str] | None:
        names = None if isinstance(self._wants.get(directory), Gone) else self._names_on_disk(directory)
        present = set(names or ())
        prefix = f"{directory}/" if directory else ""
        for path, want in self._wants.items():
            if not path.startswith(prefix):
                continue
            rest = path[len(prefix) :].split("/")
            if isinstance(want, Gone):
                if len(rest) == 1:
                    present.discard(rest[0])
            else:
                present.add(rest[0])
        if not present and names is None and not isinstance(self._wants.get(directory), MakeDir):
            return None
        return sorted(present)

    def _names_on_disk(self, directory: str) -> tuple[str, ...] | None:
        if directory not in self._listed:
            names = self._tree.names(directory)
            if names is not None and not directory:
                names = tuple(name for name in names if name != CONTROL_DIR)
            self._listed[directory] = names
        return self._listed[directory]

    def glob(self, pattern: PathLike) -> list[str]:
        """The files that match, sorted: `*`, `?`, `[…]` within a name, `**` for any directories.

        Names that begin with a dot match only a pattern part that does too. The listings it looked
        at are checked again by the commit: a file that appears meanwhile is a conflict.
        """
        self._check_open()
        parts = normalise(pattern, operation="match").split("/")
        return sorted(set(self._match("", parts)))

    def _match(self, directory: str, parts: list[str]) -> Iterator[str]:
        head, rest = parts[0], parts[1:]
        if head == "**":
            yield from self._match(directory, rest or ["*"])
            for path in self._subdirectories(directory):
                yield from self._match(path, parts)
            return
        for name in self._matching_names(directory, head):
            path = f"{directory}/{name}" if directory else name
            if not rest:
                if self._is_plain_file(path):
                    yield path
            elif self._is_plain_dir(path):
                yield from self._match(path, rest)

    def _matching_names(self, directory: str, pattern: str) -> list[str]:
        names = self._children(directory) or []
        if not set(pattern) & set("*?["):
            return [pattern] if pattern in names else []
        return [
            name
            for name in names
            if fnmatch.fnmatchcase(name, pattern) and (pattern.startswith(".") or not name.startswith("."))
        ]

    def _subdirectories(self, directory: str) -> list[str]:
        prefix = f"{directory}/" if directory else ""
        names = [name for name in self._children(directory) or [] if not name.startswith(".")]
        return [prefix + name for name in names if self._is_plain_dir(prefix + name)]

    def _is_plain_file(self, path: str) -> bool:
        want = self._wants.get(path)
        return isinstance(want, Put) or (want is None and self._tree.kind(path) == "file")

    def _is_plain_dir(self, path: str) -> bool:
        if isinstance(self._wants.get(path), MakeDir) or self._has_children(path):
            return True
        return self._tree.kind(path) == "directory"

    # --- writing ---

    def write_bytes(self, path: PathLike, data: bytes, *, mode: int | None = None) -> None:
        """The path shall hold `data`; directories above it are made. `mode` is the permission bits."""
        name = self._writable(path, "write")
        if isinstance(self._wants.get(name), MakeDir) or self._has_children(name):
            raise _incompatible("write", name, self._wants.get(name))
        if isinstance(before := self._wants.get(name), Gone) and before.kind == "directory":
            raise _incompatible("write", name, before)
        if not isinstance(data, bytes | bytearray | memoryview):
            raise InputError("write", name, expected="bytes", found=type(data).__name__)
        if mode is None and isinstance(before, Put | Mode):
            mode = before.mode
        self._wants[name] = Put(bytes(data), _checked_mode("write", name, mode))

    def delete(self, path: PathLike) -> None:
        """The file shall be gone. It must be there."""
        name = self._writable(path, "delete")
        before = self._wants.get(name)
        if isinstance(before, Gone):
            raise _missing(name, f"{_want_name(before)} in this transaction", "delete")
        if isinstance(before, MakeDir):
            raise _incompatible("delete", name, before)
        self._wants[name] = Gone("file", must_exist=not isinstance(before, Put))

    def mkdir(self, path: PathLike, *, mode: int | None = None) -> None:
        """The path shall be a directory; one that exists is fine. Directories above it are made."""
        name = self._writable(path, "mkdir")
        before = self._wants.get(name)
        if isinstance(before, Put) or (isinstance(before, Gone) and before.kind == "file"):
            raise _incompatible("mkdir", name, before)
        self._wants[name] = MakeDir(_checked_mode("mkdir", name, mode))

    def rmdir(self, path: PathLike) -> None:
        """The directory shall be gone. It must be there, and empty by then."""
        name = self._writable(path, "rmdir")
        before = self._wants.get(name)
        if isinstance(before, Put | Gone):
            raise _incompatible("rmdir", name, before)
        if self._has_children(name):
            raise IncompatibleOperations("rmdir", name, expected="an empty directory", found="pending writes")
        self._wants[name] = Gone("directory", must_exist=not isinstance(before, MakeDir))

    def chmod(self, path: PathLike, mode: int) -> None:
        """The file or directory shall have these permission bits."""
        name = self._writable(path, "chmod")
        checked = _checked_mode("chmod", name, mode)
        assert checked is not None
        before = self._wants.get(name)
        if isinstance(before, Gone):
            raise _incompatible("chmod", name, before)
        if isinstance(before, Put):
            self._wants[name] = Put(before.data, checked)
        else:
            self._wants[name] = MakeDir(checked) if isinstance(before, MakeDir) else Mode(checked)

    def _writable(self, path: PathLike, operation: str) -> str:
        self._check_open()
        name = normalise(path, operation=operation)
        for above in ancestors_of(name):
            want = self._wants.get(above)
            if isinstance(want, Put | Gone):
                raise _incompatible(operation, name, want, above)
        return name

    def rows(self, sql: str, *, expect: int | None = None, **values: Any) -> None:
        """A change of rows in the same commit; `expect` is how many rows it must change."""
        self._check_open()
        self.statements.append(Statement(sql, values, expect))

    # --- what the commit needs ---

    @property
    def wants(self) -> Mapping[str, Want]:
        """What shall be, by path."""
        return self._wants

    @property
    def listings(self) -> Mapping[str, tuple[str, ...] | None]:
        """The directory listings that were looked at."""
        return self._listed

    @property
    def snapshots(self) -> Mapping[str, Snapshot]:
        """The paths that were read."""
        return self._base

    def base(self, path: str) -> Snapshot:
        """The path's snapshot, for the commit of a sealed transaction: taken now where it was never read."""
        if path not in self._base:
            self._base[path] = self._tree.load(path, operation="write")
            self._unread.add(path)
        return self._base[path]

    def may_be_made_by_others(self, path: str) -> bool:
        """Whether a directory that appears here meanwhile is as good as our own: nobody had looked."""
        return path in self._unread and isinstance(self._wants.get(path, MakeDir()), MakeDir)


def _checked_mode(operation: str, path: str, mode: int | None) -> int | None:
    if mode is not None and mode & ~0o777:
        raise InputError(operation, path, expected="permission bits from 0 to 0o777", found=oct(mode))
    return mode


def _want_name(want: Want) -> str:
    names = {Put: "a file", Gone: "deleted", MakeDir: "a directory", Mode: "a new mode"}
    return names[type(want)]


def _missing(path: str, found: str, operation: str = "read") -> UnreadableFile:
    hint = "give a default, or test exists() first" if operation == "read" else ""
    return UnreadableFile(operation, path, expected="a file", found=found, hint=hint)


def _incompatible(operation: str, path: str, before: Want | None, above: str = "") -> IncompatibleOperations:
    what = _want_name(before) if before is not None else "pending writes below it"
    return IncompatibleOperations(
        operation,
        path,
        expected="operations that fit together",
        found=f"{above or leaf_of(path)} is {what} in the same transaction",
        hint="a path is either a file or a directory within one transaction; use two transitions",
    )
