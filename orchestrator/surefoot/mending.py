"""What is done with runs that are there: held, ended, skipped, forked, taken back, explained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from anyio import to_thread

from .lifecycle import Lifecycle, given
from .model import Run, RunState
from .pending import Pending
from .repairing import Bulk, Repairing
from .undo import Request, Undoing, Undone
from .why import Answer, why


class Mending(Lifecycle):
    """One half of the engine's operations."""

    @property
    def _repair(self) -> Repairing:
        return Repairing(self._the_open)

    def why(self, run_id: str) -> Pending[Answer]:
        """Why a run is where it is: one sentence, the evidence, and what helps.

        Raises:
            UnknownRun: there is none.
        """

        def work() -> Answer:
            workspace = self._the_open.workspace
            return why(workspace, workspace.checkup, run_id, now=self._the_open.clock.now())

        return self._pending("why", lambda: to_thread.run_sync(work), run_id=given(run_id))

    def pause(self, run_id: str) -> Pending[Run]:
        """Nothing of the run begins any more until `unpause` or `retry`; what is being worked on is finished.

        Raises:
            UnknownRun, RunRefused: there is none, or it is over.
        """
        return self._pending("pause", lambda: self._repair.pause(run_id), run_id=given(run_id))

    def unpause(self, run_id: str) -> Pending[Run]:
        """A paused run may go on, in its queue or by whoever drives it; any other stays as it is.

        Raises:
            UnknownRun: there is none.
        """
        return self._pending("unpause", lambda: self._repair.unpause(run_id), run_id=given(run_id))

    def make_due(self, run_id: str) -> Pending[Run]:
        """What failed of a run, or waits to be tried again, is due now; `retry` also drives it on.

        Raises:
            UnknownRun, RunRefused: there is none, it is over, or another worker moves it on.
        """

        async def operation() -> Run:
            run = await self._repair.make_due(run_id)
            self._the_open.wake(run_id)
            return run

        return self._pending("make_due", operation, run_id=given(run_id))

    def cancel(self, run_id: str) -> Pending[Run]:
        """Ends a run; a step that is being worked on is stopped, and changes nothing.

        Raises:
            UnknownRun, RunRefused: there is none, or it is over.
        """
        return self._pending("cancel", lambda: self._repair.cancel(run_id), run_id=given(run_id))

    def skip(self, run_id: str, *, step: str | None = None, outcome: str | None = None) -> Pending[Run]:
        """Ends what failed, waits or is due of a run, without running it; what follows `outcome` is due.

        Args:
            run_id: the run.
            step: which one, where several are open; the one that failed, or the foremost, unless given.
            outcome: one that the step declares, or the name of the step that shall follow.

        Raises:
            UnknownRun, RunRefused, StepReturnRefused, InputError: it cannot be done like this.
        """
        return self._pending(
            "skip",
            lambda: self._repair.skip(run_id, step, outcome),
            run_id=given(run_id),
            step=step,
            outcome=outcome,
        )

    def fork(
        self,
        run_id: str,
        step: str,
        *,
        new_id: str | None = None,
        input: Any = None,  # noqa: A002 - the word that its users would look for
        queue: str = "",
    ) -> Pending[Run]:
        """A new run that begins at a step of this one, with its files as they were when it came there.

        Raises:
            UnknownRun, InputError: there is no such run or step, or the run never came to it.
            UndoRefused: an old version of a file is not kept any more.
        """
        placing = {"queue": queue}
        return self._pending(
            "fork",
            lambda: self._repair.fork(run_id, step, new_id, input, placing),
            run_id=given(run_id),
            step=given(step),
            new_id=new_id,
        )

    def bulk(
        self,
        action: Literal["retry", "cancel", "pause", "unpause", "skip"],
        *,
        states: Sequence[RunState | str] = (),
        workflow: str | None = None,
        queue: str | None = None,
        limit: int = 1_000,
        per_s: float | None = None,
        dry_run: bool = False,
    ) -> Pending[Bulk]:
        """The same for many runs, at most `per_s` a second. Retried and unpaused runs go on in their queue.

        Runs in no queue are only made due: `resume` drives them. `dry_run` says which runs it would be.

        Raises:
            InputError: an unknown action or state, or nothing that says which runs are meant.
        """
        return self._pending(
            "bulk",
            lambda: self._repair.choose_and_do(
                action, states, workflow, queue, limit, per_s, dry_run=dry_run
            ),
            workflow=workflow,
            queue=queue,
        )

    def undo(
        self, txid: str, *, force: bool = False, paths: Sequence[str] = (), dry_run: bool = False
    ) -> Pending[Undone]:
        """Undoes a committed transaction by a new one: files, run state and unsent effects, or nothing.

        The last transition of a run that stands, an undo, or a transaction that belongs to no run; a
        few characters of its id are enough. `force` also where files were changed since: what is there
        now becomes an old version. `paths` takes back only these files and leaves the run where it is.

        Raises:
            UndoRefused: something has happened since, or old contents are gone; nothing was changed.
        """
        return self._undo("undo", Request(txid, False, force, tuple(paths)), dry_run=dry_run)

    def revert(
        self, to: str, *, force: bool = False, paths: Sequence[str] = (), dry_run: bool = False
    ) -> Pending[Undone]:
        """Undoes everything that stands after a transition (or after the start) of a run, as one.

        A step that is being worked on is stopped first, and changes nothing.

        Raises:
            UndoRefused: as `undo`.
        """
        return self._undo("revert", Request(to, True, force, tuple(paths)), dry_run=dry_run)

    def _undo(self, name: str, request: Request, *, dry_run: bool) -> Pending[Undone]:
        async def operation() -> Undone:
            undoing = Undoing(self._the_open, self._settings.clock, request)
            return await (undoing.plan() if dry_run else undoing.carry_out())

        return self._pending(name, operation, txid=given(request.txid))
