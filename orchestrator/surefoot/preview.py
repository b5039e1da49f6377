"""What a transition would do: its changes, shown before they are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from surefoot_storage import Absent, File, FileTransaction, Op
from surefoot_storage.plan import Plan

from .diffs import FileChange, file_change


@dataclass(frozen=True)
class Preview:
    """The exact changes of a transition that did not happen."""

    run_id: str
    step: str
    next_step: str | None
    changes: tuple[FileChange, ...]
    effects: tuple[str, ...]  # would be told afterwards
    digest: str = ""  # of all of it, contents included
    not_kept: str = ""  # why it cannot be committed by its digest, where it cannot
    starts: tuple[str, ...] = ()  # runs
    guards: tuple[Mapping[str, Any], ...] = ()  # what guards have changed

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
            "digest": self.digest,
            "not_kept": self.not_kept,
            "starts": list(self.starts),
            "guards": [dict(note) for note in self.guards],
        }


def changes_of(files: FileTransaction, planned: Plan) -> tuple[FileChange, ...]:
    """The planned changes, in the order in which they would be made."""
    return tuple(_change(files, planned, op) for op in planned.ops)


def _change(files: FileTransaction, planned: Plan, op: Op) -> FileChange:
    before = files.base(op.path).data if isinstance(op.old, File) else b""
    after: object = before
    if isinstance(op.new, File):
        after = planned.contents.get(op.new.digest, before)
    elif isinstance(op.new, Absent):
        after = b""
    return file_change(op.path, op.old, op.new, before, after if isinstance(after, bytes) else None)
