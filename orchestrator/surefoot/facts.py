"""What people and programs are shown, in whichever way they ask: one function for each question.

The functions take anything that can be asked (an open workspace, a read-only view); `engine.facts` asks them
of an engine's own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, Protocol

from anyio import to_thread

from surefoot_storage import Change, Checkup, File, Finding, History, LogEntry, Workspace, net
from surefoot_storage.history import describe
from surefoot_storage.states import State

from . import rows
from .agentlooks import diff_of as diff_of_work
from .approvals import Approval
from .declare import Workflow
from .diffs import FileChange, file_change
from .doctor import bundle, findings
from .errors import InputRefused
from .figures import Figure, figures
from .model import Run
from .opened import OpenEngine
from .patterns import matches
from .pending import Pender, Pending
from .tending import copy_name
from .undo import standing_of

SHOWN_BYTES_MAX = 1 << 20
"""Contents that are larger are not compared line by line."""


class Looked(rows.Source, Protocol):
    """An open workspace, or a read-only view of one."""

    @property
    def history(self) -> History:
        """What was committed."""

    @property
    def checkup(self) -> Checkup:
        """What can be seen without a lock."""


def run_facts(source: rows.Source, run_id: str) -> dict[str, Any]:
    """A run's status, and what has become of its messages and files.

    Raises:
        UnknownRun: there is none.
    """
    run = rows.get_run(source, run_id)
    return {
        **json.loads(run.status),
        "directory": run.directory,
        "effects_pending": rows.count_effects(source, "pending", run_id),
        "effects_dead": rows.count_effects(source, "dead", run_id),
        "unapplied_transactions": rows.blocked_transactions(source),
    }


def line_of(run: Run) -> dict[str, Any]:
    """A run in a list."""
    return {
        "run_id": run.id,
        "workflow": run.workflow,
        "state": run.state.value,
        "step": run.step,
        "queue": run.queue,
        "updated_at": run.updated_at,
        "transition_error": run.failure is not None,
    }


def history_facts(source: rows.Source, run_id: str | None) -> list[dict[str, Any]]:
    """Every change of status, oldest first, with the files that it changed and edits that it met.

    Raises:
        UnknownRun: there is none.
    """
    if run_id is not None:
        rows.get_run(source, run_id)
    entries = rows.audit_log(source, run_id)
    files: dict[int, list[str]] = {}
    for known in {entry["run_id"] for entry in entries}:
        files.update(rows.changed_files(source, known))
    edits = rows.foreign_edits(source)
    for entry in entries:
        entry["files"] = files.get(entry["seq"], [])
        entry["foreign_edits"] = [edit for edit in edits if edit["seq"] == entry["seq"]]
    return entries


def transaction_facts(source: Looked, txid: str) -> dict[str, Any]:
    """One transaction: who, when, which step, each file before and after, its messages, whether it stands.

    Raises:
        InputError: there is none of that id.
    """
    entry = source.history.find(txid)
    standing = standing_of(source, entry.owner)
    mine = next((event for event in standing.events if event.txid == entry.txid), None)
    return {
        "txid": entry.txid,
        "sequence": entry.seq,
        "run_id": entry.owner,
        "label": entry.label,
        "actor": entry.actor,
        "at": entry.at,
        "event": mine.event if mine else "",
        "step": mine.step if mine else None,
        "undoes": list(mine.undoes) if mine else [],
        "undone_by": standing.undone_by(entry.txid) if mine else None,
        "contents_kept": not entry.pruned,
        "changes": [change.as_dict() for change in entry.changes],
        "effects": rows.effects_of(source, [entry.txid]),
    }


def diff_of(history: History, txid: str, other: str | None = None) -> list[FileChange]:
    """What a transaction changed; with `other`, what its run changed from after it until after the other.

    Raises:
        InputError: there is none of that id, or they are not of one run and in their order.
    """
    first = history.find(txid)
    entries = [first]
    if other is not None:
        last = history.find(other)
        _refuse_apart(first, last)
        entries = history.of(first.owner, after=first.seq, upto=last.seq)
    return [_file_change(history, change) for change in net(entries)]


def content_at(history: History, path: str, txid: str) -> tuple[File, Iterator[bytes]]:
    """The content that a file had right after a transaction, in pieces.

    Raises:
        InputError: there was no such file, or no such transaction.
    """
    state = history.state_at(path, history.find(txid))
    if not isinstance(state, File):
        raise InputRefused("cat", f"{path}@{txid}", expected="a file", found=describe(state))
    return state, history.chunks(state, path)


def workflow_facts(workflow: Workflow) -> dict[str, Any]:
    """The shape of a workflow: its steps in order, what can follow each, and what it takes as input."""
    graph = workflow.graph
    return {
        "name": workflow.name,
        "version": workflow.version,
        "directory": workflow.directory,
        "steps": [
            {
                "name": name,
                "follows": list(graph.edges[name]),
                "outcomes": {outcome: list(names) for outcome, names in node.outcomes.items()},
                "fans_out": node.fans_out,
                "effects": [effect.name for effect in workflow.steps[name].effects],
            }
            for name, node in graph.nodes.items()
        ],
        "begins_at": list(graph.roots),
        "signals": sorted(workflow.signals),
        "input_schema": workflow.input.model_json_schema(),
    }


def visit_facts(run: Run) -> list[dict[str, Any]]:
    """What is open of a run: where it stands, branch by branch."""
    left_out = {"failure", "payload", "wait"}
    return [{k: v for k, v in asdict(visit).items() if k not in left_out} for visit in run.open]


class Facts:
    """`engine.facts`: the same questions, asked of one engine's workspace."""

    def __init__(self, engine: Callable[[], OpenEngine], pender: Pender) -> None:
        self._engine = engine
        self._pending = pender

    def run(self, run_id: str) -> Pending[dict[str, Any]]:
        """As `run_facts`, with what is open of it and every attempt.

        Raises:
            UnknownRun: there is none.
        """

        def work() -> dict[str, Any]:
            workspace = self._engine().workspace
            run = rows.get_run(workspace, run_id)
            return {
                **run_facts(workspace, run_id),
                "workflow": run.workflow,
                "revision": run.revision,
                "input": json.loads(run.input),
                "queue": run.queue,
                "created_at": run.created_at,
                "updated_at": run.updated_at,
                "open": visit_facts(run),
                "attempts": rows.attempts_of(workspace, run_id),
            }

        return self._ask("run", work, run_id=run_id)

    def history(self, run_id: str | None = None) -> Pending[list[dict[str, Any]]]:
        """As `history_facts`.

        Raises:
            UnknownRun: there is none.
        """
        return self._ask("history", lambda: history_facts(self._engine().workspace, run_id), run_id=run_id)

    def transaction(self, txid: str) -> Pending[dict[str, Any]]:
        """As `transaction_facts`.

        Raises:
            InputError: there is none of that id.
        """
        return self._ask("transaction", lambda: transaction_facts(self._engine().workspace, txid), txid=txid)

    def diff(self, txid: str, other: str | None = None) -> Pending[list[FileChange]]:
        """As `diff_of`.

        Raises:
            InputError: there is none of that id, or they are not of one run and in their order.
        """
        return self._ask("diff", lambda: diff_of(self._engine().workspace.history, txid, other), txid=txid)

    def content(self, path: str, txid: str) -> Pending[tuple[File, Iterator[bytes]]]:
        """As `content_at`; the pieces are read in a thread.

        Raises:
            InputError: there was no such file, or no such transaction.
        """
        return self._ask("content", lambda: content_at(self._engine().workspace.history, path, txid))

    def approved_changes(self, approval: Approval) -> Pending[list[FileChange]]:
        """What a request is about: what its run has made of those files, or the work of its agent."""

        def work() -> list[FileChange]:
            workspace = self._engine().workspace
            run, ask = rows.get_run(workspace, approval.run_id), approval.ask
            patterns = [p.removeprefix("/") if p.startswith("/") else f"{run.directory}/{p}" for p in ask.of]
            entries = net(workspace.history.of(run.id))
            found = [c for c in entries if any(matches(pattern, c.path) for pattern in patterns)]
            changes = [_file_change(workspace.history, change) for change in found]
            return [*changes, *_agents_work(workspace, run.id, ask.changes)]

        return self._ask("approved_changes", work)

    def activity(self, *, hours: float, pieces: int) -> Pending[list[dict[str, Any]]]:
        """Changes of status over the last hours, in so many equal pieces; empty ones are left out."""

        def work() -> list[dict[str, Any]]:
            engine = self._engine()
            length = hours * 3_600
            since = engine.clock.now() - length
            return rows.activity(engine.workspace, since=since, bucket_s=length / pieces)

        return self._ask("activity", work)

    def workflows(self) -> dict[str, dict[str, Any]]:
        """Those that this engine knows, by name: as `workflow_facts`."""
        known: Mapping[str, Workflow] = self._engine().workflows
        return {name: workflow_facts(workflow) for name, workflow in sorted(known.items())}

    def findings(self, *, deep: bool = False) -> Pending[list[Finding]]:
        """What is wrong, problems first; `deep` also compares every committed file with the store."""

        def work() -> list[Finding]:
            engine = self._engine()
            return findings(engine.workspace, engine.workspace.checkup, now=engine.clock.now(), deep=deep)

        return self._ask("findings", work)

    def diagnosis(self, version: str) -> Pending[dict[str, Any]]:
        """Facts without secrets for somebody who helps."""

        def work() -> dict[str, Any]:
            engine = self._engine()
            now = engine.clock.now()
            return bundle(engine.workspace, engine.workspace.checkup, version=version, now=now)

        return self._ask("diagnosis", work)

    def configurations(self) -> Pending[list[tuple[str, int]]]:
        """(name, revision) of each that was ever saved."""
        return self._ask("configurations", lambda: rows.config_names(self._engine().workspace))

    def last_line(self) -> Pending[int]:
        """The cursor behind the last line of the audit log."""
        return self._ask("last_line", lambda: rows.last_line(self._engine().workspace))

    def figures(self) -> Pending[list[Figure]]:
        """What is worth watching: see `figures`."""

        def work() -> list[Figure]:
            engine = self._engine()
            dumps = engine.workspace.checkup.dumps()
            return figures(engine.workspace, dumps=dumps, now=engine.clock.now())

        return self._ask("figures", work)

    def cached(self) -> Pending[list[dict[str, Any]]]:
        """What is kept of slow sources."""
        return self._ask(
            "cached", lambda: rows.list_cached(self._engine().workspace, self._engine().clock.now())
        )

    def _ask(self, name: str, work: Callable[[], Any], **texts: str | None) -> Pending[Any]:
        return self._pending(f"facts.{name}", lambda: to_thread.run_sync(work), **texts)


def _agents_work(workspace: Workspace, run_id: str, digest: str) -> list[FileChange]:
    for row in rows.agents(workspace, run_id=run_id) if digest else ():
        changes = workspace.copies.sealed(copy_name(row.id)) if row.digest == digest else None
        if changes is not None:
            return [
                FileChange(f"agent {row.id}", "work", diff_of_work(workspace, copy_name(row.id), changes))
            ]
    return []


def _refuse_apart(first: LogEntry, last: LogEntry) -> None:
    if first.owner != last.owner or first.seq > last.seq:
        raise InputRefused(
            "diff",
            f"{first.txid[:12]} {last.txid[:12]}",
            expected="two transactions of one run, the earlier one first",
            found="the later one first" if first.owner == last.owner else "two runs",
        )


def _file_change(history: History, change: Change) -> FileChange:
    return file_change(
        change.path,
        change.before,
        change.after,
        _content(history, change.before, change.path),
        _content(history, change.after, change.path),
    )


def _content(history: History, state: State, path: str) -> bytes | None:
    if not isinstance(state, File):
        return b""
    if state.size > SHOWN_BYTES_MAX or not history.holds(state, path):
        return None
    return history.read(state, path)
