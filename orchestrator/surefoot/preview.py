"""What the next transition would do: the body runs, its changes are shown, nothing is committed."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from surefoot_storage import Absent, Directory, File, FileTransaction, Op
from surefoot_storage.plan import Plan


@dataclass(frozen=True)
class FileChange:
    """One path's change."""

    path: str
    kind: str  # created, changed, deleted, mode
    diff: str  # unified; a sentence where the content is no text

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"path": self.path, "kind": self.kind, "diff": self.diff}


@dataclass(frozen=True)
class Preview:
    """The exact changes of a transition that did not happen."""

    run_id: str
    step: str
    next_step: str | None
    changes: tuple[FileChange, ...]
    effects: tuple[str, ...]  # would be told afterwards

    @property
    def diff(self) -> str:
        """All changes as one unified diff."""
        return "".join(change.diff for change in self.changes)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "run_id": self.run_id,
            "step": self.step,
            "next_step": self.next_step,
            "changes": [change.as_dict() for change in self.changes],
            "effects": list(self.effects),
        }


def changes_of(files: FileTransaction, planned: Plan) -> tuple[FileChange, ...]:
    """The planned changes, in the order in which they would be made."""
    return tuple(_change(files, planned, op) for op in planned.ops)


def _change(files: FileTransaction, planned: Plan, op: Op) -> FileChange:
    before: object = files.base(op.path).data if isinstance(op.old, File) else b""
    after = before
    if isinstance(op.new, File):
        after = planned.contents.get(op.new.digest, before)
    elif isinstance(op.new, Absent):
        after = b""
    head = _mode_lines(op)
    if isinstance(before, bytes) and isinstance(after, bytes):
        return FileChange(op.path, _kind(op), head + _diff(op, before, after))
    return FileChange(op.path, _kind(op), f"{head}large {op.path}: {op.old} -> {op.new}\n")


def _kind(op: Op) -> str:
    if isinstance(op.old, Absent):
        return "created"
    if isinstance(op.new, Absent):
        return "deleted"
    if isinstance(op.old, File) and isinstance(op.new, File) and op.old.digest != op.new.digest:
        return "changed"
    return "mode"


def _mode_lines(op: Op) -> str:
    if isinstance(op.old, Absent) and isinstance(op.new, Directory):
        return f"new directory {op.path} (mode {op.new.mode:o})\n"
    if isinstance(op.new, Absent) and isinstance(op.old, Directory):
        return f"removed directory {op.path}\n"
    if not isinstance(op.old, Absent) and not isinstance(op.new, Absent) and op.old.mode != op.new.mode:
        return f"mode of {op.path}: {op.old.mode:o} -> {op.new.mode:o}\n"
    return ""


def _diff(op: Op, before: bytes, after: bytes) -> str:
    if before == after and not (isinstance(op.old, Absent) or isinstance(op.new, Absent)):
        return ""
    if isinstance(op.new, Directory) or isinstance(op.old, Directory):
        return ""
    old_name = "/dev/null" if isinstance(op.old, Absent) else f"a/{op.path}"
    new_name = "/dev/null" if isinstance(op.new, Absent) else f"b/{op.path}"
    try:
        old, new = before.decode(), after.decode()
    except UnicodeDecodeError:
        return f"binary {op.path}: {len(before)} -> {len(after)} bytes\n"
    if not old and not new:
        return f"--- {old_name}\n+++ {new_name}\n"
    lines = difflib.unified_diff(_lines(old), _lines(new), old_name, new_name)
    return "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines
    )


def _lines(text: str) -> list[str]:
    """Lines as diff counts them: only a line feed ends one."""
    return [line for line in text.replace("\n", "\n\0").split("\0") if line]
