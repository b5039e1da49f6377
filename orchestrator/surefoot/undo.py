"""Undo and revert: a new transaction that takes files, run state and unsent messages back together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from anyio import to_thread

from surefoot_storage import (
    Change,
    FileTransaction,
    LogEntry,
    Statement,
    UndoRefused,
    UnknownId,
    net,
)

from . import machine, rows
from .clock import Clock
from .diffs import FileChange
from .log import logger
from .model import Run
from .opened import OpenEngine
from .preview import changes_of
from .standing import SOME_FILES, Event, Standing, Target


@dataclass(frozen=True)
class Undone:
    """What an undo did, or would do."""

    run_id: str  # "" for a transaction that belongs to no run
    undone: tuple[str, ...]  # transactions, oldest first
    txid: str | None  # of the undo itself; None: nothing was changed, this is only what it would do
    files: tuple[str, ...]
    state: str = ""  # of the run, afterwards
    step: str | None = None  # that is due then
    overwritten: tuple[str, ...] = ()  # changed since, replaced all the same; kept as old versions
    left: tuple[str, ...] = ()  # directories that stay, because something else is in them
    sent: tuple[str, ...] = ()  # effects that nobody can take back: delivered, or on their way
    withdrawn: tuple[str, ...] = ()  # effects that will not be sent
    changes: tuple[FileChange, ...] = ()  # where nothing was changed: the diff

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "changes": [change.as_dict() for change in self.changes]}


@dataclass(frozen=True)
class Request:
    """What somebody wants undone."""

    txid: str  # the transaction; with `back_to`, everything of its run after it
    back_to: bool = False
    force: bool = False
    paths: tuple[
        str, ...
    ] = ()  # only these files, or what is below these directories; the run stays where it is


class Undoing:
    """One request, planned anew at each try."""

    def __init__(self, engine: OpenEngine, clock: Clock, request: Request) -> None:
        self._engine = engine
        self._workspace = engine.workspace
        self._clock = clock
        self._request = request
        self.found: Undone | None = None

    async def plan(self) -> Undone:
        """What it would do. Changes nothing.

        Raises:
            UndoRefused, InputError: it would be refused.
        """

        def work() -> Undone:
            files = self.prepare()
            assert self.found is not None
            try:
                return replace(self.found, changes=changes_of(files, self._workspace.plan(files)))
            finally:
                files.fence()

        return await to_thread.run_sync(work)

    async def carry_out(self) -> Undone:
        """Does it, all or nothing.

        Raises:
            UndoRefused, InputError, and whatever a commit raises: nothing was changed.
        """
        entry = await to_thread.run_sync(self._workspace.history.find, self._request.txid)
        if self._request.back_to and not self._request.paths:
            async with self._engine.interrupted(entry.owner):
                return await self._commit()
        return await self._commit()

    async def _commit(self) -> Undone:
        commit = await self._engine.executor.commits.repeat(self.prepare)
        assert self.found is not None
        done = replace(self.found, txid=commit.txid)
        self._engine.outbox.notify()  # what stands again is told
        logger(run=done.run_id, txid=commit.txid).info("run.undone", undone=done.undone, step=done.step)
        return done

    def prepare(self) -> FileTransaction:
        """In a thread: the transaction, and in `found` what it will do."""
        entry = self._workspace.history.find(self._request.txid)
        run = rows.find_run(self._workspace, entry.owner) if entry.owner else None
        if run is None:
            return self._prepare_files(entry)
        return self._prepare_run(run, entry)

    # --- a transaction that is no run's ---

    def _prepare_files(self, entry: LogEntry) -> FileTransaction:
        files = self._workspace.begin(label="undo", owner=entry.owner)
        went = self._go_back(files, [entry], skip="")
        self.found = Undone("", (entry.txid,), None, _paths(files), overwritten=went[0], left=went[1])
        return files

    # --- a run's ---

    def _prepare_run(self, run: Run, entry: LogEntry) -> FileTransaction:
        standing = standing_of(self._workspace, run.id)
        back_to, paths = self._request.back_to, self._request.paths
        find = standing.revert if back_to else standing.files_of if paths else standing.undo
        target = find(entry.txid)
        whole = not paths and target.events[0].event != SOME_FILES
        if whole:
            self._refuse_second_user(run)
        if whole and not back_to:
            self._refuse_in_flight(run, entry)
        if whole:
            self._refuse_children(run, target)
        txids = tuple(event.txid for event in target.events)
        entries = self._workspace.history.of(run.id, after=entry.seq) if back_to else [entry]
        files = self._workspace.begin(label=f"{run.id}/undo", owner=run.id)
        went = self._go_back(files, entries, skip=run.status_path)
        now = self._clock.now()
        after = self._after(run, target, now) if whole else machine.noted(run, now)
        effects = rows.effects_of(self._workspace, txids) if whole else []
        unsent = [e for e in effects if e["state"] == "pending" and not self._is_being_sent(e["owner"])]
        sent = [e["key"] for e in effects if e["state"] in ("pending", "delivered") and e not in unsent]
        self.found = Undone(
            run.id, txids, None, _paths(files), after.state.value, after.step, *went,
            sent=tuple(sent), withdrawn=tuple(e["key"] for e in unsent),
        )  # fmt: skip
        statements = [
            *_statements(run, after, target, whole=whole),
            *(rows.withdraw_effect(e["key"], e["owner"]) for e in unsent),
        ]
        self._engine.executor.commits.with_status(run, after, files, statements)
        return files

    def _after(self, run: Run, target: Target, now: float) -> Run:
        """The run as it was, as far as it goes back."""
        workflow = self._engine.workflows.get(run.workflow)
        open_then = rows.visits_at(self._workspace, run.id, target.status["revision"])
        return machine.undone(run, target.status, open_then, workflow.graph if workflow else None, now)

    def _is_being_sent(self, worker: str) -> bool:
        return worker == self._workspace.worker or (worker != "" and self._workspace.is_alive(worker))

    def _refuse_second_user(self, run: Run) -> None:
        """A run that was over comes back: its directory may be somebody else's by now."""
        others = [other for other in rows.runs_in(self._workspace, run.directory) if other != run.id]
        if others:
            raise UndoRefused(
                "undo",
                run.id,
                expected=f"{run.directory} to itself",
                found=f"run {others[0]}, which uses it by now",
                hint="finish or cancel that run first",
            )

    def _refuse_in_flight(self, run: Run, entry: LogEntry) -> None:
        """A revert does not ask: it stops what is being worked on here, and outdates it elsewhere."""
        if not self._engine.is_in_flight(run):
            return
        raise UndoRefused(
            "undo",
            entry.txid[:12],
            expected="a run that nobody is working on",
            found=f"{run.step}, which is being worked on",
            hint="wait for it, or stop it and go back: surefoot revert",
        )

    def _refuse_children(self, run: Run, target: Target) -> None:
        """Runs that it has started have a life of their own: taking their directories away would end it."""
        for event in target.events:
            children = rows.children_of(self._workspace, run.id, event.visit) if event.visit else []
            if event.event == "step" and children:
                names = ", ".join(child["id"] for child in children[:5])
                raise UndoRefused(
                    "undo",
                    str(event),
                    expected="a transition that has started no other runs",
                    found=f"{len(children)}: {names}",
                    hint="cancel those, and take back files alone: --path",
                )

    def _go_back(
        self, files: FileTransaction, entries: Sequence[LogEntry], *, skip: str
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        changes = [change for change in net(entries) if change.path != skip]
        if self._request.paths:
            changes = _only(changes, self._request.paths)
        went = self._workspace.go_back(files, changes, force=self._request.force)
        return went.overwritten, went.left


def standing_of(source: rows.Source, run_id: str) -> Standing:
    """A run's history, replayed."""
    return Standing.of([Event(**line) for line in rows.events_of(source, run_id)])


def _paths(files: FileTransaction) -> tuple[str, ...]:
    return tuple(sorted(files.wants))


def _only(changes: Sequence[Change], paths: Sequence[str]) -> list[Change]:
    wanted = [path.rstrip("/") for path in paths]
    for path in wanted:
        if not any(change.path == path or change.path.startswith(f"{path}/") for change in changes):
            raise UnknownId(
                "undo",
                path,
                expected="a path that the transaction changed, relative to the workspace",
                found="another one",
                hint="surefoot show tells which it changed",
            )
    return [
        change
        for change in changes
        if any(change.path == path or change.path.startswith(f"{path}/") for path in wanted)
    ]


def _statements(run: Run, after: Run, target: Target, *, whole: bool) -> list[Statement]:
    txids = [event.txid for event in target.events]
    if not whole:
        return [*rows.save(run, after), rows.append_audit(after, SOME_FILES, step=run.step)]
    return [
        *rows.save(run, after, "undone"),
        rows.append_audit(after, "undo", step=after.step, undoes=txids),
        rows.renew_effects(target.renewed),
        rows.release_messages(run.id, [event.visit for event in target.events if event.visit is not None]),
    ]
