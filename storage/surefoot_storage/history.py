"""What was committed: which files, from which content to which, by whom and when. Looks; changes nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from . import fsops
from .errors import InputError, UnknownId, UnreadableFile
from .fsops import FsOps
from .log import Log
from .paths import CONTROL_DIR, leaf_of, parent_of
from .states import ABSENT, Absent, Directory, File, Op, State

_PREFIX_MIN = 4  # characters of a transaction's id that people have to type
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one path."""

    path: str
    before: State
    after: State

    @property
    def kind(self) -> str:
        """created, deleted, changed (content), mode, replaced (a file by a directory or the reverse)."""
        match self.before, self.after:
            case Absent(), _:
                return "created"
            case _, Absent():
                return "deleted"
            case File(old), File(new):
                return "changed" if old != new else "mode"
            case Directory(), Directory():
                return "mode"
        return "replaced"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "path": self.path,
            "kind": self.kind,
            "before": state_facts(self.before),
            "after": state_facts(self.after),
        }


def state_facts(state: State) -> dict[str, Any] | None:
    """For JSON; None for nothing."""
    if isinstance(state, File):
        return {"sha256": state.digest.hex(), "size_bytes": state.size, "mode": f"{state.mode:o}"}
    return {"mode": f"{state.mode:o}"} if isinstance(state, Directory) else None


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One committed transaction."""

    seq: int
    txid: str
    label: str
    owner: str  # whose history it belongs to: a run's id
    actor: str  # who asked for it
    at: float  # seconds since 1970
    pruned: bool  # its old contents were let go
    changes: tuple[Change, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Difference:
    """A path, or a kept content, that is not what the log says."""

    path: str
    expected: str
    found: str


def net(entries: Iterable[LogEntry]) -> list[Change]:
    """From before the first of these to after the last; what is the same again is left out."""
    first: dict[str, State] = {}
    last: dict[str, State] = {}
    for entry in entries:
        for change in entry.changes:
            first.setdefault(change.path, change.before)
            last[change.path] = change.after
    return [Change(path, first[path], last[path]) for path in first if first[path] != last[path]]


class History:
    """The log of one workspace, also of one that is only looked at."""

    def __init__(self, fs: FsOps, root: int, reading: Callable[[], AbstractContextManager[Log]]) -> None:
        self._fs = fs
        self._root = root
        self._reading = reading

    # --- transactions ---

    def find(self, txid: str) -> LogEntry:
        """The transaction of this id, or of the only one that begins like this.

        Raises:
            InputError: there is none, or more than one.
        """
        if len(txid) < _PREFIX_MIN:
            raise InputError(
                "find transaction",
                txid,
                expected=f"{_PREFIX_MIN} or more characters of its id",
                found=repr(txid),
            )
        found = self._entries("substr(txid, 1, length(:id)) = :id", {"id": txid})
        if len(found) != 1:
            raise (InputError if found else UnknownId)(
                "find transaction",
                txid,
                expected="the id of one transaction",
                found=f"{len(found)} that begin like this" if found else "none",
                hint="surefoot log shows them",
            )
        return found[0]

    def of(self, owner: str, *, after: int = 0, upto: int | None = None) -> list[LogEntry]:
        """The transactions of an owner, oldest first."""
        return self._entries(
            "owner = :owner AND seq > :after AND (:upto IS NULL OR seq <= :upto)",
            {"owner": owner, "after": after, "upto": upto},
        )

    def _entries(self, condition: str, values: dict[str, Any]) -> list[LogEntry]:
        with self._reading() as log:
            rows = log.transactions(condition, values)
            changes = dict(log.changes([row[0] for row in rows]))
        return [
            LogEntry(
                seq, txid, label, owner, actor, at, bool(pruned), tuple(map(_change, changes.get(seq, ())))
            )
            for seq, txid, label, owner, actor, at, pruned in rows
        ]

    # --- contents ---

    def state_at(self, path: str, entry: LogEntry) -> State:
        """What a path was right after a transaction.

        Raises:
            InputError: no transaction up to then had changed it.
        """
        with self._reading() as log:
            op = log.version_at(path, entry.seq)
        if op is None:
            raise UnknownId(
                "look up",
                f"{path}@{entry.txid[:12]}",
                expected="a path that had been changed by then",
                found="no change of it in the log",
            )
        return op.new

    def holds(self, state: File, path: str) -> bool:
        """Whether somebody still has this content."""
        return self._held(state) is not None or any(
            self._is_here(place, state) for place in self._places(state, path)
        )

    def chunks(self, state: File, path: str) -> Iterator[bytes]:
        """A version of a path, checked: from the log, the kept files, or the place itself.

        Raises:
            UnreadableFile: nobody has it any more.
        """
        data = self._held(state)
        if data is not None:
            yield data
            return
        for place in self._places(state, path):
            if self._is_here(place, state):
                yield from self._chunks(place)
                return
        raise UnreadableFile(
            "read an old version of",
            path,
            expected=f"the content with sha256 {state.digest.hex()[:12]}…",
            found="nobody who has it: the retention let it go, or it was forgotten",
            hint="surefoot log shows which transactions are left",
        )

    def read(self, state: File, path: str) -> bytes:
        """The same, in memory."""
        return b"".join(self.chunks(state, path))

    def _held(self, state: File) -> bytes | None:
        with self._reading() as log:
            return log.blob(state.digest)

    def _places(self, state: File, path: str) -> tuple[tuple[str, str], ...]:
        name = state.digest.hex()
        return (folder_of(name), name), (parent_of(path), leaf_of(path))

    def _is_here(self, place: tuple[str, str], state: File) -> bool:
        with contextlib.suppress(OSError), self._fs.opened_dir(self._root, place[0], cross=True) as directory:
            found = self._fs.lstat(directory, place[1])
            return (
                found is not None
                and fsops.is_regular(found)
                and found.st_size == state.size
                and self._fs.digest(directory, place[1])[0] == state.digest
            )
        return False

    def _chunks(self, place: tuple[str, str]) -> Iterator[bytes]:
        with self._fs.opened_dir(self._root, place[0], cross=True) as directory:
            fd = self._fs.open_file(directory, place[1])
        try:
            while chunk := self._fs.read_chunk(fd, _CHUNK_BYTES):
                yield chunk
        finally:
            self._fs.close(fd)

    # --- does the disk agree ---

    def verify(self) -> Iterator[Difference]:
        """Every path that was ever changed, every kept content, and the database itself."""
        with self._reading() as log:
            newest = [op for _, ops in log.newest_changes() for op in ops]
            wrong = log.damage()
            files = log.blob_files()
        for text in wrong:
            yield Difference(f"{CONTROL_DIR}/surefoot.db", "a sound database", text)
        for digest in sorted(files):
            name = digest.hex()
            with contextlib.suppress(OSError), self._fs.opened_dir(self._root, folder_of(name)) as folder:
                if self._fs.digest(folder, name)[0] == digest:
                    continue
            yield Difference(f"{folder_of(name)}/{name}", "a kept content", "a damaged one, or none")
        for op in sorted(newest, key=lambda op: op.path):
            now = self.look(op.path)
            if now != op.new and not (isinstance(now, Directory) and isinstance(op.new, Directory)):
                yield Difference(op.path, describe(op.new), describe(now))

    def look(self, path: str) -> State | None:
        """What a path is now, content and mode; None for a link or a device."""
        try:
            with self._fs.opened_dir(self._root, parent_of(path), cross=True) as directory:
                found = self._fs.lstat(directory, leaf_of(path))
                if found is None:
                    return ABSENT
                mode = found.st_mode & 0o7777
                if fsops.is_directory(found):
                    return Directory(mode)
                if not fsops.is_regular(found):
                    return None
                digest, found = self._fs.digest(directory, leaf_of(path))
                return File(digest, found.st_size, found.st_mode & 0o7777)
        except (FileNotFoundError, NotADirectoryError):
            return ABSENT


def folder_of(name: str) -> str:
    """Where a kept content of this name (its sha256) lies."""
    return f"{CONTROL_DIR}/blobs/{name[:2]}"


def describe(state: State | None) -> str:
    """For people."""
    if state is None:
        return "a link or device"
    return "nothing" if isinstance(state, Absent) else str(state)


def _change(op: Op) -> Change:
    return Change(op.path, op.old, op.new)
