"""Phase 1 of transitions: attempts are recorded, templates and declared files loaded. For worker threads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from surefoot_storage import FileTransaction, InputError, PathRefused, Statement, Workspace
from surefoot_storage.wants import MakeDir

from . import rows, templates
from .declare import Workflow
from .model import Run, Visit
from .patterns import matches, may_meet
from .pump import each
from .steps import Step
from .transaction import Transaction


@dataclass(frozen=True)
class Read:
    """Phase 1 of one attempt."""

    run: Run
    visit: Visit
    workflow: Workflow
    step: Step[..., Any]
    tx: Transaction
    given: BaseModel
    started_at: float | None  # None: the attempt is on record already

    @property
    def item(self) -> str | None:
        """JSON; None where the step has none."""
        return self.visit.item

    @property
    def item_value(self) -> Any:
        """Of a fan-out."""
        return json.loads(self.visit.item or "null")

    @property
    def fans_out(self) -> bool:
        """This visit makes those of the items."""
        return self.step.each is not None and self.visit.item is None

    def place(self, pattern: str) -> str:
        """A declared pattern with its fields filled in."""
        more = {} if self.item is None else {"item": self.item_value, "index": self.visit.index}
        return self.workflow.place(pattern, self.given, self.run.id, **more)

    def record(self) -> list[Statement]:
        """That the attempt has begun."""
        assert self.started_at is not None
        return [rows.start_attempt(self.run, self.visit, self.started_at)]

    def refuse_other_writes(self, files: FileTransaction) -> None:
        """A step that declares what it writes writes nothing else.

        Raises:
            PathRefused: it did.
        """
        if self.step.writes is None or self.fans_out:
            return
        below = self.run.directory
        allowed = [
            self.place(p[1:]) if p.startswith("/") else f"{below}/{self.place(p)}" for p in self.step.writes
        ]
        for path, want in files.wants.items():
            if isinstance(want, MakeDir) and any(may_meet(f"{path}/**", pattern) for pattern in allowed):
                continue
            if not any(matches(pattern, path) for pattern in allowed):
                raise PathRefused(
                    "write", path, expected=f"one of writes=: {', '.join(self.step.writes) or 'nothing'}",
                    found=f"step {self.step.name}, which did not declare it", hint="name it in writes=",
                )  # fmt: skip

    def patterns(self) -> tuple[list[str], list[str]]:
        """What to load, in the run's directory and in the workspace."""
        if self.fans_out:
            each = self.step.each
            own = [self.place(each)] if isinstance(each, str) else []
            plain = [p for p in self.step.reads if "{item" not in p and "{index" not in p]
            return [*own, *(self.place(p) for p in plain)], []
        reads = [*self.step.reads, *(p for part in self.step.parts for p in part.reads)]
        return [self.place(p) for p in dict.fromkeys(reads)], [
            self.place(p) for p in self.step.workspace_reads
        ]


def read_all(workspace: Workspace, reads: list[Read]) -> list[BaseException | None]:
    """In a thread: phase 1 of everything that waits for it. The attempts are recorded first."""
    recorded = [read for read in reads if read.started_at is not None]
    errors = workspace.write_all([read.record() for read in recorded]) if recorded else []
    refused = {id(read): error for read, error in zip(recorded, errors, strict=True) if error is not None}
    results = each(_read)([read for read in reads if id(read) not in refused])
    rest = iter(results)
    return [refused[id(read)] if id(read) in refused else next(rest) for read in reads]


def _read(read: Read) -> None:
    if not read.fans_out:
        for name in read.step.templates:
            templates.check(read.workflow.templates, name)
    own, shared = read.patterns()
    for view, patterns in ((read.tx, own), (read.tx.workspace, shared)):
        plain = [p for p in patterns if not set(p) & set("*?[")]
        if len(plain) > 1:  # one look at each directory for all of them
            view._load_together(plain)  # noqa: SLF001 - the engine's half of the class
    total = 0
    for view, patterns in ((read.tx, own), (read.tx.workspace, shared)):
        for pattern in patterns:
            total += view._load_now(pattern)  # noqa: SLF001 - the engine's half of the class
            if total > read.step.reads_bytes_max:
                raise InputError(
                    "read",
                    f"{read.step.name}/{pattern}",
                    expected=f"at most {read.step.reads_bytes_max} bytes of declared reads",
                    found=f"{total} and more",
                    hint="narrow the pattern, or raise reads_bytes_max",
                )
