"""The engine: what can be done with runs, from async and from sync code under one name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from anyio import to_thread

from surefoot_storage import History, Recovered, Upkeep

from . import messaging, rows
from .control import Control
from .declare import Workflow
from .lifecycle import given
from .looking import Looking
from .model import Run, RunResult, TransitionResult
from .pending import Pending
from .preview import Preview
from .previewing import Previews
from .waits import M, Signal

if TYPE_CHECKING:  # imported when they are used: `import surefoot` is fast
    from .access import Access
    from .agents import Agents
    from .caching import Cache, Load
    from .configuration import Configuration
    from .deciding import Approvals
    from .facts import Facts
    from .recording import Records
    from .webhooks import Webhooks

CACHE_FRESH_S = 300.0
CACHE_ALERT_AFTER_S = 3_600.0
CACHE_TIMEOUT_S = 30.0


class Engine(Looking):
    """Runs workflows over the files of one workspace.

    From async code: `async with Engine(root, [flow]) as engine: await engine.run(flow, {…})`.
    From sync code: `with Engine(root, [flow]) as engine: engine.run(flow, {…}).wait()`.

    Opening finishes whatever a crash had left undone in the files. Unfinished runs of the given
    workflows then go on by themselves while the engine is open (`resume=False` leaves them alone).

    Args:
        root: the workspace: an existing directory.
        workflows: the workflows whose runs this engine moves on.
        resume: be a worker: go on with unfinished runs, take queued ones, and those whose wait is over.
        queues: names of queues to serve, or `Queue`s with limits; all of them unless given.
        runs_max: runs that it takes at the same time.
        lease_s: a worker that shows no sign of life for so long loses its runs to others.
        threads_max: sync step bodies at the same time.
        agents: agents that it runs at the same time, of each kind: a number, or numbers by kind.
        records_max: records that wait to be written, in `engine.records`.
        effects_grace_s: how long closing waits for effects that are due.
        on_transition: is shown each transition's result as it happens.
        policy: choices where more than one answer is right: metadata, hard links, foreign edits.
        durability: `full`, `batched` or `none`: what an acknowledged transition survives.
        retention: how long old versions are kept.
        lock_wait_s: how long a commit waits for another process before it says whom it waited for.
        clock, random, new_id, fs, recipe: for tests: time, chance in [0, 1), names, the seam, a recipe.

    Raises:
        WorkspaceUnusable, WorkspaceBusy: from entering it; nothing was changed.
    """

    # --- operations ---

    @property
    def control(self) -> Control:
        """Queues and schedules: look at them, pause them, run dry."""
        return Control(lambda: self._the_open, lambda: self._dispatcher, self._pending)

    @property
    def approvals(self) -> Approvals:
        """What waits for people: look at it, approve, reject, delegate."""
        from .deciding import Approvals

        return Approvals(lambda: self._the_open, self._pending)

    @property
    def agents(self) -> Agents:
        """Agents and other commands in working copies: launched, watched, and what they have done."""
        from .agents import Agents

        return Agents(lambda: self._the_open, lambda: self._the_supervisor, self._pending)

    @property
    def facts(self) -> Facts:
        """What people and programs are shown: runs with all that belongs to them, transactions, diffs."""
        from .facts import Facts

        return Facts(lambda: self._the_open, self._pending)

    @property
    def access(self) -> Access:
        """Tokens for those who come in by HTTP or MCP."""
        from .access import Access

        return Access(lambda: self._the_open, self._pending)

    @property
    def webhooks(self) -> Webhooks:
        """Who is told of changes by HTTP."""
        from .webhooks import Webhooks

        return Webhooks(lambda: self._the_open, self._pending)

    def configuration(self, name: str, model: type[M]) -> Configuration[M]:
        """A configuration in the store, as a pydantic model; every use of it sees the newest revision.

        Raises:
            DeclarationError, InputError: it cannot be a name or a model.
        """
        from .configuration import Configuration

        return Configuration(name, model, lambda: self._the_open, self._pending)

    def cache(
        self,
        name: str,
        load: Load,
        *,
        fresh_s: float = CACHE_FRESH_S,
        timeout_s: float = CACHE_TIMEOUT_S,
        alert_after_s: float = CACHE_ALERT_AFTER_S,
        on_alert: Callable[[str, float], None] = lambda _key, _age_s: None,
    ) -> Cache:
        """Answers of a slow or fallible source, kept in the store: see `Cache.get`. One for each source.

        Args:
            name: of the source; kept answers are known by it, in every process.
            load: asks the source: `load(key)`, sync or async; returns what JSON can hold.
            fresh_s: an answer that is younger is given at once.
            timeout_s: a source that takes longer has failed.
            alert_after_s: an answer that had to be used and is older is told to `on_alert`.
            on_alert: called with the key and the age in seconds.

        Raises:
            DeclarationError, InputError: it cannot be a name, a function or a length.
        """
        from .caching import Cache

        return Cache(
            name, load, lambda: self._the_open, self._pending, fresh_s=fresh_s, timeout_s=timeout_s,
            alert_after_s=alert_after_s, on_alert=on_alert,
        )  # fmt: skip

    @property
    def records(self) -> Records:
        """High-volume records that are written behind: events, metrics, lines of logs."""
        from .recording import Records

        return Records(lambda: self._the_open, self._pending)

    @property
    def recovered(self) -> Recovered:
        """What opening had to finish after a crash."""
        return self._the_open.workspace.recovered

    @property
    def upkeep(self) -> Upkeep:
        """Backups, disk usage, retention, decisions about foreign edits. Synchronous: call it in a thread."""
        return self._the_open.workspace.upkeep

    def start(
        self,
        workflow: Workflow,
        input: Any = None,  # noqa: A002 - the word that its users would look for
        *,
        run_id: str | None = None,
        adopt: bool = False,
        on_exists: Literal["return", "refuse"] = "return",
        source: str = "",
        queue: str = "",
        priority: int = 0,
        lane: str | None = None,
        dedup: str | None = None,
        delay_s: float = 0.0,
        deadline_s: float | None = None,
    ) -> Pending[Run]:
        """Creates a run: its row, directory, status file and first trigger, in one commit.

        With `run_id`, starting twice is idempotent: the same workflow and input return the run that is
        there (or are refused, `on_exists="refuse"`); anything else is refused. A directory that already
        holds files is refused unless `adopt=True`.

        Args:
            workflow: what to run.
            input: with what: the model, a dict, or JSON text.
            run_id: the run's name, and by default its directory's; made up unless given.
            adopt: take the directory over with what is in it.
            on_exists: whether starting it again returns the run that is there, or is refused.
            source: FILE.py:WORKFLOW, for the command line.
            queue: any engine that serves it moves the run on, within the queue's limits. Without one it
                goes on when somebody says so (`resume`, `run`, `advance`).
            priority: lower goes first.
            lane: runs of the queue that share it go one at a time, in the order of their start; one that
                is over, paused or in error lets the next one go.
            dedup: while a run of the queue with this key is not over, it is returned instead.
            delay_s: not before so many seconds from now.
            deadline_s: seconds after which the run fails, over all its steps and waits.

        Raises:
            InputRefused, RunRefused, DeclarationError: nothing was changed.
        """
        return self._pending(
            "start",
            lambda: self._the_open.start(
                workflow, input, run_id=run_id, adopt=adopt, on_exists=on_exists, source=source, queue=queue,
                priority=priority, lane=lane, dedup=dedup, delay_s=delay_s, deadline_s=deadline_s,
            ))  # fmt: skip

    def run(
        self,
        workflow: Workflow,
        input: Any = None,  # noqa: A002 - the word that its users would look for
        *,
        run_id: str | None = None,
        adopt: bool = False,
        on_exists: Literal["return", "refuse"] = "return",
        source: str = "",
        delay_s: float = 0.0,
        deadline_s: float | None = None,
        through_waits: bool = True,
    ) -> Pending[RunResult]:
        """Starts a run (see `start`) and drives it, through all its waits, until it is over or in error."""

        async def operation() -> RunResult:
            run = await self._the_open.start(
                workflow, input, run_id=run_id, adopt=adopt, on_exists=on_exists, source=source,
                delay_s=delay_s, deadline_s=deadline_s,
            )  # fmt: skip
            return await self._the_open.drive(run.id, through_waits=through_waits)

        return self._pending("run", operation)

    def resume(self, run_id: str, *, through_waits: bool = True) -> Pending[RunResult]:
        """Drives a run on until it is over or in error. One in error or paused stays there: see `retry`.

        Without `through_waits` it returns as soon as the run waits for a time, a message or other runs.

        Raises:
            UnknownRun, RunRefused: there is none, or its workflow is not known here.
        """
        return self._pending(
            "resume",
            lambda: self._the_open.drive(run_id, through_waits=through_waits),
            run_id=given(run_id),
        )

    def send(
        self,
        run_id: str,
        signal: Signal[Any] | str,
        payload: Any = None,
        *,
        key: str | None = None,
        sender: str = "",
    ) -> Pending[bool]:
        """Sends a run a message: durable when this returns, whether a step waits for it yet or not.

        With `key`, sending it again does nothing and returns False.

        Raises:
            UnknownRun, RunRefused: there is no such run, or it is over.
            InputRefused: the signal's model does not take the payload, or the key was used for another.
            InputError: its workflow has no such signal.
        """
        return self._pending(
            "send",
            lambda: messaging.send(self._the_open, run_id, signal, payload, key=key, sender=sender),
            run_id=given(run_id),
        )

    def retry(self, run_id: str) -> Pending[RunResult]:
        """Tries the failed step of a run again, with all its attempts, and drives the run on."""

        async def operation() -> RunResult:
            await self._repair.make_due(run_id)
            return await self._the_open.drive(run_id)

        return self._pending("retry", operation, run_id=given(run_id))

    def advance(self, run_id: str) -> Pending[TransitionResult]:
        """Exactly one attempt at the due step, now: also of a run in error, or waiting for its retry.

        Raises:
            UnknownRun, RunRefused: there is none, it is over, or its workflow is not known here.
        """
        return self._pending("advance", lambda: self._repair.advance(run_id), run_id=given(run_id))

    def preview(self, run_id: str) -> Pending[Preview]:
        """Runs the due step's body, shows what it would change, and keeps that for `commit`. Sends nothing.

        Raises:
            UnknownRun, RunRefused: as `advance`; TransitionFailed: the body raised.
        """
        return self._pending(
            "preview",
            lambda: Previews(self._the_open, self._settings.clock).preview(run_id),
            run_id=given(run_id),
        )

    def commit(self, digest: str) -> Pending[TransitionResult]:
        """Commits a preview by its digest, or the beginning of it: what was seen; no step runs again.

        Raises:
            InputError, RunRefused, Conflict: none is kept, or its run or its files are not what they were.
        """
        return self._pending(
            "commit",
            lambda: Previews(self._the_open, self._settings.clock).commit(digest),
            digest=given(digest),
        )

    @property
    def history(self) -> History:
        """What was committed. Synchronous: call it in a thread."""
        return self._the_open.workspace.history

    def settle(self) -> Pending[tuple[tuple[str, str], ...]]:
        """Tries again to put committed files in place; returns (path, cause) of what is left."""
        return self._pending("settle", lambda: to_thread.run_sync(self._the_open.workspace.settle))

    def flush(self) -> Pending[None]:
        """Everything that was committed before is durable when this returns, whatever the level.

        Raises:
            CommitFailed: it could not be flushed.
        """
        return self._pending("flush", lambda: to_thread.run_sync(self._the_open.workspace.flush))

    def sync_checkpoint(self) -> Pending[int]:
        """Everything is durable in its own place when this returns: records, rows, and the files themselves.

        Returns the number of the last transaction: a new process finds all up to it, without recovery.

        Raises:
            RecordsNotDurable, CommitFailed, OSError: something could not be flushed; nothing is lost.
        """

        async def operation() -> int:
            opened = self._the_open
            await opened.records.flush()
            await to_thread.run_sync(opened.workspace.flush)
            await to_thread.run_sync(opened.workspace.checkpoint)
            await to_thread.run_sync(opened.workspace.checkpoint_rows)
            return await to_thread.run_sync(rows.checkpointed_seq, opened.workspace)

        return self._pending("sync_checkpoint", operation)

    def deliver(self, run_id: str | None = None) -> Pending[int]:
        """Delivers the effects that are due, of one run or of all; returns how many still wait."""

        async def operation() -> int:
            await self._the_open.outbox.deliver_due(run_id)
            return await to_thread.run_sync(rows.count_effects, self._the_open.workspace, "pending", run_id)

        return self._pending("deliver", operation, run_id=run_id)
