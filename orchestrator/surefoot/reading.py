"""Phase 1 of transitions: attempts are recorded, templates and declared files loaded. For worker threads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from surefoot_storage import InputError, Statement, Workspace

from . import rows, templates
from .declare import Step, Workflow
from .model import Run
from .pump import each
from .transaction import Transaction


@dataclass(frozen=True)
class Read:
    """Phase 1 of one attempt."""

    run: Run
    workflow: Workflow
    step: Step[..., Any]
    tx: Transaction
    given: BaseModel
    started_at: float | None  # None: the attempt is on record already

    def record(self, worker: str) -> list[Statement]:
        """That the attempt has begun, and whose it is."""
        assert self.started_at is not None
        started = rows.start_attempt(self.run, self.step.name, self.started_at)
        return [rows.claim_run(self.run, worker), started]


def read_all(workspace: Workspace, reads: list[Read]) -> list[BaseException | None]:
    """In a thread: phase 1 of everything that waits for it. The attempts are recorded first."""
    recorded = [read for read in reads if read.started_at is not None]
    worker = workspace.worker
    errors = workspace.write_all([read.record(worker) for read in recorded]) if recorded else []
    refused = {id(read): error for read, error in zip(recorded, errors, strict=True) if error is not None}
    results = each(_read)([read for read in reads if id(read) not in refused])
    rest = iter(results)
    return [refused[id(read)] if id(read) in refused else next(rest) for read in reads]


def _read(read: Read) -> None:
    for name in read.step.templates:
        templates.check(read.workflow.templates, name)
    _read_declared(read.run, read.workflow, read.step, read.tx, read.given)


def _read_declared(
    run: Run, workflow: Workflow, step: Step[..., Any], tx: Transaction, given: BaseModel
) -> None:
    total = 0
    for view, patterns in ((tx, step.reads), (tx.workspace, step.workspace_reads)):
        plain = [p for p in patterns if not set(p) & set("*?[")]
        if len(plain) > 1:  # one look at each directory for all of them
            view._load_together([workflow.place(p, given, run.id) for p in plain])  # noqa: SLF001 - the engine's half of the class
    for view, patterns in ((tx, step.reads), (tx.workspace, step.workspace_reads)):
        for pattern in patterns:
            total += view._load_now(workflow.place(pattern, given, run.id))  # noqa: SLF001 - the engine's half of the class
            if total > step.reads_bytes_max:
                raise InputError(
                    "read",
                    f"{step.name}/{pattern}",
                    expected=f"at most {step.reads_bytes_max} bytes of declared reads",
                    found=f"{total} and more",
                    hint="narrow the pattern, or raise reads_bytes_max",
                )
