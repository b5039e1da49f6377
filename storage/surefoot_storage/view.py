"""What a transaction sees: the files as they were first looked at, with its own pending changes on top."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from .errors import Conflict, IncompatibleOperations, TransactionClosed, UnreadableFile
from .globbing import matches
from .paths import PathLike, ancestors_of, leaf_of, normalise
from .states import ABSENT, Absent, Directory, File, Snapshot, digest_of
from .tree import Parents, Tree
from .wants import Existing, Gone, MakeDir, Put, Want, want_name


class View:
    """The reading half of a transaction. Everything read is kept with its stamp, for the commit to check."""

    def __init__(self, tree: Tree, txid: str) -> None:
        self.txid = txid
        self._tree = tree
        self._base: dict[str, Snapshot] = {}
        self._listed: dict[str, tuple[str, ...] | None] = {}
        self._wants: dict[str, Want] = {}
        self._pending_below: dict[str, int] = {}  # directory -> paths below it that shall be there
        self._swaps: set[str] = set()
        self._replaces_files = False  # some directory takes a file's place
        self._unread: set[str] = set()  # first looked at by the commit itself
        self._state: Literal["open", "sealed", "fenced"] = "open"

    def _check_open(self) -> None:
        if self._state != "open":
            raise TransactionClosed(f"transaction {self.txid} is {self._state}: its attempt is over")

    def known(self, path: PathLike) -> bool:
        """Whether reading the path needs no disk."""
        name = normalise(path, operation="read")
        return name in self._wants or name in self._base

    def load(self, path: PathLike) -> Snapshot:
        """The path as it is on disk, remembered from the first look on."""
        self._check_open()
        name = normalise(path, operation="read")
        if self._is_below_new(name):
            return Snapshot(name, ABSENT)
        if name not in self._base:
            with self._tree.turn:
                self._base[name] = self._tree.load(name)
        return self._base[name]

    def load_all(self, paths: Iterable[PathLike]) -> list[Snapshot]:
        """Several paths, with one look at each directory."""
        with self._tree.turn, self._tree.parents() as parents:
            for name in [normalise(path, operation="read") for path in paths]:
                self._check_open()
                if name not in self._base and not self._is_below_new(name):
                    self._base[name] = self._tree.load(name, parents=parents)
        return [self.load(path) for path in paths]

    def _is_below_new(self, name: str) -> bool:
        """Below a directory that takes a file's place there is nothing on disk."""
        if not self._replaces_files:
            return False
        wants = (self._wants.get(above) for above in ancestors_of(name))
        return any(isinstance(want, MakeDir) and want.over for want in wants)

    def read_bytes(self, path: PathLike) -> bytes:
        """The content, pending writes included.

        Raises:
            UnreadableFile: there is no such file, or it may not be read.
            PathRefused: the path is unsafe.
            Conflict: somebody changed the large file between two looks at it.
        """
        base = self.file_at(path)
        if isinstance(base, bytes):
            return base
        if base.data is not None:
            return base.data
        data = self._tree.read_all(base.path)
        assert isinstance(base.state, File)
        if digest_of(data) != base.state.digest:
            raise changed_while_read(base.path)
        return data

    def digest(self, path: PathLike) -> bytes | None:
        """The sha256 of a file, pending changes included; None where there is none."""
        self._check_open()
        name = normalise(path, operation="read")
        want = self._wants.get(name)
        if isinstance(want, Put):
            return digest_of(want.content) if isinstance(want.content, bytes) else want.content.digest
        if isinstance(want, Gone | MakeDir):
            return None
        state = self.load(name).state
        return state.digest if isinstance(state, File) else None

    def file_at(self, path: PathLike) -> bytes | Snapshot:
        """Pending content, or the file on disk.

        Raises:
            UnreadableFile: there is no such file.
            IncompatibleOperations: it was streamed in this transaction.
        """
        self._check_open()
        name = normalise(path, operation="read")
        want = self._wants.get(name)
        if isinstance(want, Put):
            if isinstance(want.content, bytes):
                return want.content
            if isinstance(want.content, Existing):
                return self.load(want.content.path)
            raise IncompatibleOperations(
                "read",
                name,
                expected="content in memory",
                found="a stream of this transaction",
                hint="keep what the step needs of it while writing, or read it in the next step",
            )
        if isinstance(want, Gone | MakeDir):
            raise missing(name, f"{want_name(want)} in this transaction")
        base = self.load(name)
        if not isinstance(base.state, File):
            raise missing(name, str(base.state))
        return base

    def open_to_read(self, snapshot: Snapshot) -> int:
        """A descriptor of a file on disk, for reading it in pieces."""
        return self._tree.open_to_read(snapshot.path)

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
            return File(b"", want.size, 0)
        return self.load(name).state

    def _has_children(self, name: str) -> bool:
        return self._pending_below.get(name, 0) > 0

    def list_dir(self, path: PathLike = "") -> list[str]:
        """The names in a directory, pending changes included, sorted.

        Raises:
            UnreadableFile: there is no such directory.
        """
        self._check_open()
        name = normalise(path, operation="list") if path not in ("", ".") else ""
        found = self.children(name)
        if found is None:
            raise UnreadableFile("list", name, expected="a directory", found="nothing")
        return found

    def children(self, directory: str) -> list[str] | None:
        """The names in a directory, pending changes included; None where there is no such directory."""
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
        want = self._wants.get(directory)
        if self._is_below_new(directory) or (isinstance(want, MakeDir) and want.over):
            return None
        if directory not in self._listed:
            self._listed[directory] = self._tree.names(directory)
        return self._listed[directory]

    def walk(self, directory: str) -> Iterator[tuple[str, bool]]:
        """(path, is a directory) of everything below a directory, the innermost first."""
        for leaf in self.children(directory) or []:
            path = f"{directory}/{leaf}"
            is_dir = self.is_dir(path)
            if is_dir:
                yield from self.walk(path)
            yield path, is_dir

    def glob(self, pattern: PathLike) -> list[str]:
        """The files that match, sorted: `*`, `?`, `[…]` within a name, `**` for any directories.

        The listings it looked at are checked again by the commit: a file that appears meanwhile is a
        conflict.
        """
        self._check_open()
        return matches(self, normalise(pattern, operation="match"))

    def is_plain_file(self, path: str) -> bool:
        """Whether it is a regular file, without reading it."""
        want = self._wants.get(path)
        return isinstance(want, Put) or (want is None and self._tree.kind(path) == "file")

    def is_plain_dir(self, path: str) -> bool:
        """Whether it is a directory."""
        if isinstance(self._wants.get(path), MakeDir) or self._has_children(path):
            return True
        return self._tree.kind(path) == "directory"

    # --- what the commit needs ---

    @property
    def wants(self) -> Mapping[str, Want]:
        """What shall be, by path."""
        return self._wants

    @property
    def swaps(self) -> set[str]:
        """Directories whose changes are put in place as one."""
        return self._swaps

    @property
    def listings(self) -> Mapping[str, tuple[str, ...] | None]:
        """The directory listings that were looked at."""
        return self._listed

    @property
    def snapshots(self) -> Mapping[str, Snapshot]:
        """The paths that were read."""
        return self._base

    def base(self, path: str, parents: Parents | None = None) -> Snapshot:
        """The path's snapshot, for the commit of a sealed transaction: taken now where it was never read."""
        if self._is_below_new(path):
            return Snapshot(path, ABSENT)
        if path not in self._base:
            self._base[path] = self._tree.load(path, operation="write", parents=parents)
            self._unread.add(path)
        return self._base[path]

    def listing(self, directory: str) -> tuple[str, ...]:
        """The names in a directory, for the commit of a sealed transaction: checked again by it."""
        return self.listing_of(directory) or ()

    def listing_of(self, directory: str) -> tuple[str, ...] | None:
        """The same; None where there is no such directory."""
        return self._names_on_disk(directory)

    def may_be_made_by_others(self, path: str) -> bool:
        """Whether a directory that appears here meanwhile is as good as our own: nobody had looked."""
        return path in self._unread and isinstance(self._wants.get(path, MakeDir()), MakeDir)


def changed_while_read(path: str) -> Conflict:
    """A large file that was not read in one piece."""
    return Conflict(
        "read",
        path,
        expected="the version that was first looked at",
        found="another one: somebody changed it meanwhile",
        hint="run the transition again: it will read the new version",
    )


def missing(path: str, found: str, operation: str = "read") -> UnreadableFile:
    hint = "give a default, or test exists() first" if operation == "read" else ""
    return UnreadableFile(operation, path, expected="a file", found=found, hint=hint)


def incompatible(operation: str, path: str, before: Want | None, above: str = "") -> IncompatibleOperations:
    what = want_name(before) if before is not None else "pending writes below it"
    return IncompatibleOperations(
        operation,
        path,
        expected="operations that fit together",
        found=f"{above or leaf_of(path)} is {what} in the same transaction",
        hint="delete it first, or use two transitions",
    )
