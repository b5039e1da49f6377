"""What has become of a working copy: changes against what it was made of, as a value with a digest. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

Action: TypeAlias = Literal["add", "modify", "delete", "mkdir", "rmdir", "chmod"]
MODE_BITS = 0o777
FORMAT = 1


class Entry(NamedTuple):
    """How something in a directory looked; two looks that are equal saw the same.

    Only files have a size, times and an inode: a directory is the sum of what is in it.
    """

    kind: str  # file, directory, symlink, other
    mode: int
    size: int = 0  # bytes
    mtime_ns: int = 0
    ctime_ns: int = 0
    ino: int = 0
    target: str = ""  # of a symlink

    def still_has(self, other: Entry | None) -> bool:
        """The same where the file may have been exchanged or renamed: its time of change says nothing."""
        return other is not None and self._replace(ctime_ns=0) == other._replace(ctime_ns=0)


# kind, mode, size, mtime, target, ctime, inode; and of what was copied, ctime and inode of the copy
Row: TypeAlias = "Sequence[Any]"
_COPIED = 9


@dataclass
class Base:
    """What a copy was made of, as it is noted: all but the last two of a row is the same in the copy.

    Attributes:
        directory: that was copied.
        rows: by path.
    """

    directory: str
    rows: dict[str, Row]

    def seen(self, path: str) -> Entry | None:
        """How something looked in the directory."""
        row = self.rows.get(path)
        if row is None:
            return None
        kind, mode, size, mtime_ns, target, ctime_ns, ino = row[:7]
        return Entry(kind, mode, size, mtime_ns, ctime_ns, ino, target)

    def copied(self) -> dict[str, Entry]:
        """How everything looked in the copy."""
        new = tuple.__new__  # a tree has many
        return {
            path: new(Entry, (row[0], row[1], row[2], row[3], row[7], row[8], row[4]))
            for path, row in self.rows.items()
            if len(row) == _COPIED
        }


@dataclass(frozen=True)
class Version:
    """A file's or a directory's content and permission bits."""

    mode: int
    sha256: str = ""  # "" is a directory
    size: int = 0  # bytes

    @property
    def is_directory(self) -> bool:
        """Not a file."""
        return not self.sha256


@dataclass(frozen=True)
class PathChange:
    """One path of a change set; `old` or `new` is None where there is nothing."""

    path: str  # below the directory that was copied
    old: Version | None
    new: Version | None

    @property
    def action(self) -> Action:
        """The word for it."""
        if self.new is None:
            return "rmdir" if self.old is not None and self.old.is_directory else "delete"
        if self.new.is_directory:
            same = self.old is not None and self.old.is_directory
            return "chmod" if same else "mkdir"
        if self.old is None or self.old.is_directory:
            return "add"
        return "modify" if self.old.sha256 != self.new.sha256 else "chmod"


@dataclass(frozen=True)
class ChangeSet:
    """What a working copy would change, sealed: its contents are kept, and cannot change any more.

    Attributes:
        directory: that was copied, from the workspace's root; "" is the root.
        changes: in the order of their paths.
        blocked: (path, why) of what cannot be committed: symlinks, pipes, sockets, devices.
        left_out: (path, bytes) of what changed, and is not part of it by the rules of the copy.
        conflicts: paths that somebody else had changed below the directory since it was copied.
        digest: of all of it; whoever knows it knows every byte.
    """

    directory: str
    changes: tuple[PathChange, ...]
    blocked: tuple[tuple[str, str], ...] = ()
    left_out: tuple[tuple[str, int], ...] = ()
    conflicts: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """sha256 in hex."""
        facts = {"format": FORMAT, "directory": self.directory, "changes": [asdict(c) for c in self.changes]}
        facts["conflicts"] = list(self.conflicts)
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    @property
    def paths(self) -> tuple[str, ...]:
        """All that it changes."""
        return tuple(change.path for change in self.changes)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        changes = [{**asdict(change), "action": change.action} for change in self.changes]
        return {**asdict(self), "changes": changes, "digest": self.digest, "format": FORMAT}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> ChangeSet:
        """As it was kept."""

        def version(given: Mapping[str, Any] | None) -> Version | None:
            return None if given is None else Version(**given)

        changes = (PathChange(c["path"], version(c["old"]), version(c["new"])) for c in facts["changes"])
        return cls(
            facts["directory"], tuple(changes), _pairs(facts["blocked"]), _pairs(facts["left_out"]),
            tuple(facts["conflicts"]),
        )  # fmt: skip


def _pairs(given: Sequence[Sequence[Any]]) -> tuple[tuple[Any, Any], ...]:
    return tuple((one, other) for one, other in given)


def differences(
    before: Mapping[str, Entry], after: Mapping[str, Entry], leave: Callable[[str], bool]
) -> tuple[list[str], list[str]]:
    """(paths that were changed, those of them that `leave` says are no part of it), each sorted."""
    paths = [path for path, entry in after.items() if entry != before.get(path)]
    paths += [path for path in before if path not in after]
    taken = sorted(path for path in paths if not leave(path))
    return taken, sorted(path for path in paths if leave(path))


def why_blocked(before: Entry | None, after: Entry | None) -> str:
    """Why a change cannot be committed; "" where it can."""
    words = {"symlink": "a symlink", "other": "neither a file nor a directory"}
    for entry, when in ((after, "is"), (before, "was")):
        if entry is not None and entry.kind in words:
            return f"it {when} {words[entry.kind]}"
    if after is not None and after.mode & ~MODE_BITS:
        return f"its mode {after.mode:o} has more than permission bits"
    return ""
