"""Opening and closing an engine, and calling it from async and from sync code."""

from __future__ import annotations

import contextlib
import os
import random as randoms
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup

from surefoot_storage import FsOps, InputError, Policy, Retention, SurefootError, Workspace, WorkspacePoisoned
from surefoot_storage.hardening import Durability
from surefoot_storage.locking import WAIT_S
from surefoot_storage.recipes import RecipeName
from surefoot_storage.workspace import DEFAULT_POLICY, DEFAULT_RETENTION

from . import checks, rows
from .clock import Clock, SystemClock
from .declare import Workflow, checked_workflow
from .dispatching import RUNS_MAX, Dispatcher, Serving
from .leases import LEASE_S
from .log import logger
from .model import TransitionResult
from .opened import OpenEngine, Settings
from .pending import Pending
from .queues import Queue
from .records import QUEUE_MAX
from .recovering import Recovering, clean_approvals, drop_scratch, report_unclean_ends
from .schema import SCHEMA
from .supervising import AT_ONCE, Supervisor

T = TypeVar("T")

EFFECTS_GRACE_S = 10.0
TEXT_CHARS_MAX = 1_000


class Lifecycle:
    """What every engine has before it does anything."""

    def __init__(
        self,
        root: str | os.PathLike[str] = ".",
        workflows: Iterable[Workflow] = (),
        *,
        resume: bool = True,
        queues: Iterable[str | Queue] | None = None,
        runs_max: int = RUNS_MAX,
        lease_s: float = LEASE_S,
        threads_max: int = 32,
        records_max: int = QUEUE_MAX,
        agents: int | Mapping[str, int] = AT_ONCE,
        effects_grace_s: float = EFFECTS_GRACE_S,
        on_transition: Callable[[TransitionResult], None] = lambda _result: None,
        policy: Policy = DEFAULT_POLICY,
        durability: Durability = "full",
        retention: Retention = DEFAULT_RETENTION,
        lock_wait_s: float = WAIT_S,
        clock: Clock | None = None,
        random: Callable[[], float] = randoms.random,
        new_id: Callable[[], str] = lambda: os.urandom(16).hex(),
        fs: FsOps | None = None,
        recipe: RecipeName | None = None,
    ) -> None:
        self._root = os.fspath(root)
        what = "open the engine"
        checks.count(what, self._root, "threads_max", threads_max, most=10_000)
        checks.seconds(what, self._root, "lease_s", lease_s, least=1.0)
        self._settings = Settings(
            clock or SystemClock(), random, new_id, threads_max, lease_s, on_transition,
            checks.count(what, self._root, "records_max", records_max, most=100_000),
        )  # fmt: skip
        for workflow in workflows:
            self._settings.add(checked_workflow(workflow))
        self._resume = resume
        self._serving = Serving.of(queues, checks.count(what, self._root, "runs_max", runs_max, most=10_000))
        self._agents = _checked_agents(self._root, agents)
        self._effects_grace_s = checks.seconds(what, self._root, "effects_grace_s", effects_grace_s)
        self._storage: dict[str, Any] = {
            "policy": policy,
            "durability": durability,
            "retention": retention,
            "lock_wait_s": lock_wait_s,
            "fs": fs,
            "recipe": recipe,
        }
        self._opened: OpenEngine | None = None
        self._dispatcher: Dispatcher | None = None
        self._supervisor: Supervisor | None = None
        self._stack = contextlib.AsyncExitStack()
        self._blocking = contextlib.ExitStack()
        self._portal: Any = None

    # --- opening and closing ---

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            workspace = await to_thread.run_sync(self._open_workspace)
            stack.push_async_callback(_shielded, workspace.close)
            tasks = await stack.enter_async_context(anyio.create_task_group())
            self._opened = OpenEngine(self._settings, workspace, tasks)
            stack.push_async_callback(self._wind_down, tasks)
            await Recovering(self._opened).catch_up()
            await to_thread.run_sync(_declare_views, workspace, list(self._settings.workflows.values()))
            await clean_approvals(self._opened)
            await to_thread.run_sync(report_unclean_ends, self._opened)
            await to_thread.run_sync(drop_scratch, self._opened)
            tasks.start_soon(self._opened.outbox.serve)
            tasks.start_soon(self._opened.beat)
            tasks.start_soon(self._opened.records.serve)
            self._supervisor = Supervisor(self._opened, tasks, self._agents, everything=self._resume)
            self._opened.on_agent = self._supervisor.notify
            tasks.start_soon(self._supervisor.serve)
            if self._resume:
                self._dispatcher = Dispatcher(self._opened, tasks, self._serving)
                self._opened.on_due = self._dispatcher.notify
                await self._dispatcher.adopt()
                tasks.start_soon(self._dispatcher.serve)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(None, None, None)

    def __enter__(self) -> Self:
        from anyio.from_thread import start_blocking_portal

        with contextlib.ExitStack() as stack:
            self._portal = stack.enter_context(start_blocking_portal())
            stack.enter_context(self._portal.wrap_async_context_manager(self))
            self._blocking = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._blocking.close()
        finally:
            self._portal = None

    def _open_workspace(self) -> Workspace:
        return Workspace(
            self._root,
            schemas=[SCHEMA],
            **self._storage,
            clock=self._settings.clock.now,
            new_id=self._settings.new_id,
            observer=_tell,
        )

    async def _wind_down(self, tasks: TaskGroup) -> None:
        opened, self._opened = self._the_open, None
        opened.executor.closing = True
        with anyio.CancelScope(shield=True):
            await opened.records.stop()
            with contextlib.suppress(SurefootError), anyio.move_on_after(self._effects_grace_s):
                await opened.outbox.deliver_due()
            with contextlib.suppress(SurefootError):
                left = await to_thread.run_sync(rows.count_effects, opened.workspace, "pending")
                if left:
                    logger().warning("effects.undelivered", count=left)
        tasks.cancel_scope.cancel()

    @property
    def _the_open(self) -> OpenEngine:
        if self._opened is None:
            raise WorkspacePoisoned(
                "use the engine",
                self._root,
                expected="an open engine",
                found="one that is closed or was never opened",
                hint="async with Engine(…) as engine, or with Engine(…) as engine",
            )
        return self._opened

    @property
    def _the_supervisor(self) -> Supervisor:
        assert self._supervisor is not None
        return self._supervisor

    def _pending(self, name: str, operation: Callable[[], Awaitable[T]], **texts: str | None) -> Pending[T]:
        """An operation; of `texts`, those that are given must be one line each."""
        for what, value in texts.items():
            if value is not None:
                checks.text(name, self._root, what, value, most=TEXT_CHARS_MAX, error=InputError)
        return Pending(f"engine.{name}()", operation, self._wait)

    def _wait(self, operation: Callable[[], Awaitable[Any]]) -> Any:
        if self._portal is None:
            raise RuntimeError("wait() works inside `with Engine(…) as engine`; in async code, await instead")
        future = self._portal.start_task_soon(operation)
        try:
            return future.result()
        except BaseException:
            if not future.done():  # Ctrl-C: like a shutdown, the run goes on where it was when opened again
                if self._opened is not None:
                    self._opened.executor.closing = True
                future.cancel()
            raise


def _checked_agents(root: str, agents: object) -> int | Mapping[str, int]:
    """How many agents of each kind may run at once: one number for all, or one by kind."""
    if isinstance(agents, Mapping):
        return {
            str(kind): checks.count("open the engine", root, f"agents[{kind!r}]", limit, most=10_000)
            for kind, limit in agents.items()
        }
    return checks.count("open the engine", root, "agents", agents, most=10_000)


async def _shielded(work: Callable[[], None]) -> None:
    with anyio.CancelScope(shield=True):
        await to_thread.run_sync(work)


def _declare_views(workspace: Workspace, workflows: list[Workflow]) -> None:
    for workflow in workflows:
        if sorted(workflow.views) != rows.declared_views(workspace, workflow.name):
            workspace.write_rows(rows.declare_views(workflow.name, list(workflow.views)))


def _tell(event: str, facts: dict[str, Any]) -> None:
    """What storage has to say: a retry is of interest to those who look for it, the rest to everybody."""
    level = "debug" if event == "rename_retried" else "warning"
    getattr(logger(), level)(f"storage.{event}", **facts)


def given(value: str | None) -> str:
    """What must be there: None is refused as an empty text is."""
    return "" if value is None else value
