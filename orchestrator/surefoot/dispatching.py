"""Taking what is due: queued runs, runs whose wait is over, and runs whose worker is gone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup

from surefoot_storage import SurefootError, WorkspacePoisoned

from . import rows
from .errors import DeclarationError
from .log import logger
from .moving import Driver, wait_for
from .names import checked_name
from .opened import OpenEngine
from .queues import Queue
from .scheduling import Scheduling

RUNS_MAX = 64


@dataclass(frozen=True)
class Serving:
    """Which queues an engine serves, and how much it takes."""

    queues: Mapping[str, Queue]  # those with limits
    only: Sequence[str] | None  # None: all
    runs_max: int = RUNS_MAX

    @classmethod
    def of(cls, given: Iterable[str | Queue] | None, runs_max: int) -> Serving:
        """As it was asked for.

        Raises:
            DeclarationError: it is no list of queues, or names one twice.
        """
        if given is None:
            return cls({}, None, runs_max)
        queues: dict[str, Queue] = {}
        if isinstance(given, str):
            raise DeclarationError("open the engine", given, expected="queues=[…]", found="a text")
        for one in given:
            queue = one if isinstance(one, Queue) else Queue(one)
            checked_name("queue", queue.name, queues)
            queues[queue.name] = queue
        return cls(queues, list(queues), runs_max)


class Dispatcher:
    """One engine's worker: it looks what is due, and moves up to `runs_max` runs on at the same time."""

    def __init__(self, engine: OpenEngine, tasks: TaskGroup, serving: Serving) -> None:
        self._engine = engine
        self._tasks = tasks
        self._queues = serving.queues
        self._only = serving.only
        self._runs_max = serving.runs_max
        self._taken: dict[str, str] = {}  # by run: its queue
        self._adopted: set[str] = set()
        self._driver = Driver()  # only to be woken
        self._idle = anyio.Event()
        self._scheduling = Scheduling(engine)
        self.draining = False
        self.looks = 0  # times that it has looked for everything that is due

    async def adopt(self) -> None:
        """What was left when the engine was opened goes on as well."""
        self._adopted = set(await to_thread.run_sync(rows.unqueued_runs, self._engine.workspace))
        unknown = await to_thread.run_sync(rows.unknown_workflows, self._engine.workspace, self._known())
        for workflow, count in unknown:
            logger().warning(
                "runs.left_alone", workflow=workflow, runs=count, why="workflow is not known here"
            )

    def _known(self) -> list[tuple[str, str | None]]:
        return [(w.name, w.version if w.pinned else None) for w in self._engine.workflows.values()]

    def notify(self) -> None:
        """Something may be due."""
        self._driver.wake()

    async def serve(self) -> None:
        """Until cancelled."""
        while True:
            next_at: float | None = None
            try:
                next_at = await self._take_all()
            except WorkspacePoisoned:
                return  # everybody else is told by their own calls
            except SurefootError as error:  # a full disk, say: the runs are still there
                logger().error("worker.stopped_for_now", error=str(error))
            self.looks += 1
            await wait_for(self._driver, self._engine.clock, next_at)

    async def drain(self) -> None:
        """Takes nothing new any more; returns when what it has taken is over, in error, or waits."""
        self.draining = True
        while self._taken:
            self._idle = anyio.Event()
            await self._idle.wait()

    async def _take_all(self) -> float | None:
        """Everything that may be taken now; returns when the next run is due."""
        slot_at = None if self.draining else await self._scheduling.fire_due()
        next_at: float | None = None
        while not self.draining and len(self._taken) < self._runs_max:
            ready, next_at = await to_thread.run_sync(self._look, self._engine.clock.now())
            taken = [run_id for run_id, queue in ready if self._take(run_id, queue)]
            if not taken:
                break
        await self._wake_mine()
        return min((moment for moment in (next_at, slot_at) if moment is not None), default=None)

    def _look(self, now: float) -> tuple[list[tuple[str, str]], float | None]:
        """In a thread: what is ready and not ours yet, and when the next will be."""
        workspace = self._engine.workspace
        here = Counter(self._taken.values())
        queues = list(self._queues.values())
        gone, adopted = self._engine.leases.gone(), sorted(self._adopted)
        full = rows.at_limit(workspace, queues, now, gone)
        full += [queue.name for queue in queues if queue.here is not None and here[queue.name] >= queue.here]
        taking = rows.Taking(self._known(), self._only, full, gone, adopted)
        ready = rows.ready_runs(workspace, now, taking, self._runs_max)
        ready = [(run_id, queue) for run_id, queue in ready if not self._engine.is_driven(run_id)]
        return ready, None if ready else rows.next_ready(workspace, now, taking)

    def _take(self, run_id: str, queue: str) -> bool:
        limit = self._queues[queue].here if queue in self._queues else None
        if run_id in self._taken or len(self._taken) >= self._runs_max:
            return False
        if limit is not None and Counter(self._taken.values())[queue] >= limit:
            return False
        self._taken[run_id] = queue
        self._tasks.start_soon(self._work, run_id)
        return True

    async def _wake_mine(self) -> None:
        """Waits that have ended in runs that are being moved on here."""
        workspace = self._engine.workspace
        for run_id, _ in await to_thread.run_sync(rows.woken_visits, workspace, workspace.worker):
            self._engine.wake(run_id)

    async def _work(self, run_id: str) -> None:
        """A run, in the background: nobody waits for it, so its failure is an event."""
        left = None
        try:
            left = await self._engine.work(run_id, self._queues)
        except SurefootError as error:
            logger(run=run_id).error("run.stopped", error=str(error))
            self._adopted.discard(run_id)
        finally:
            del self._taken[run_id]
            if not self._taken:
                self._idle.set()
        if left is not None:
            again = left.queue == "" and left.state.is_due and not any(visit.wait for visit in left.open)
            (self._adopted.add if again else self._adopted.discard)(run_id)
            self.notify()
