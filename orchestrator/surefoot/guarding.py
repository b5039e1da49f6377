"""Asking a step's guards about what it wants to do, before anything is committed. For worker threads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from surefoot_storage import FileTransaction, Statement, Workspace
from surefoot_storage.wants import Gone, Put

from . import rows
from .model import Run
from .steps import Step

if TYPE_CHECKING:
    from .guards import Note


@dataclass(frozen=True)
class Passed:
    """What guards have done, and what they want counted."""

    notes: tuple[Note, ...] = ()
    statements: tuple[Statement, ...] = ()

    @property
    def as_json(self) -> str | None:
        """For the audit log."""
        return json.dumps([note.as_dict() for note in self.notes]) if self.notes else None


def pass_guards(
    workspace: Workspace, run: Run, step: Step[..., object], files: FileTransaction, now: float
) -> Passed:
    """The transaction with clamped values.

    Raises:
        GuardDenied: it is not allowed.
    """
    if not step.guards:
        return Passed()
    from .guards import Pace, Proposal, judge

    subject = f"guard:{run.workflow}/{step.name}"
    sizes = {
        path: None if isinstance(want, Gone) else want.size
        for path, want in files.wants.items()
        if isinstance(want, Put | Gone)
    }

    def read(path: str) -> bytes | None:
        want = files.wants[path]
        return want.content if isinstance(want, Put) and isinstance(want.content, bytes) else None

    proposal = Proposal(
        run.workflow, step.name, run.directory, sizes, read, now, now - run.updated_at,
        lambda since: rows.count_pace(workspace, subject, since),
    )  # fmt: skip
    verdict = judge(step.guards, proposal)
    for path, data in verdict.writes.items():
        files.write_bytes(path, data)
    paces = [guard for guard in step.guards if isinstance(guard, Pace)]
    return Passed(verdict.notes, tuple(rows.note_pace(subject, paces, now)))
