"""The engine's questions: where runs are, what their history says, how long things take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anyio import to_thread

from surefoot_storage import InputError, UnknownId

from . import checks, rows
from .declare import Workflow
from .lifecycle import given
from .mending import Mending
from .model import Run, RunState
from .pending import Pending
from .statuses import Status


class Looking(Mending):
    """What every engine can be asked; nothing here changes anything."""

    def get(self, run_id: str) -> Pending[Run]:
        """The run as its row says.

        Raises:
            UnknownRun: there is none.
        """
        return self._pending("get", lambda: self._the_open.get(run_id), run_id=given(run_id))

    def workflow(self, name: str) -> Workflow:
        """One that this engine knows.

        Raises:
            UnknownId: it knows none of that name.
        """
        known = self._the_open.workflows
        if name not in known:
            raise UnknownId(
                "find workflow", checks.shown(name), found="another name",
                expected=f"one that this engine was given: {', '.join(known) or 'none'}",
            )  # fmt: skip
        return known[name]

    def status(self, run_id: str) -> Pending[Status]:
        """The run's status document, from memory where its file is the one that was read last.

        Never older than the last change that anybody was told of, in this process or another.

        Raises:
            UnknownRun: there is none.
        """
        return self._pending(
            "status",
            lambda: to_thread.run_sync(self._the_open.statuses.get, run_id),
            run_id=given(run_id),
        )

    def audit(
        self, run_id: str | None = None, *, after: int = 0, limit: int = 1_000
    ) -> Pending[list[dict[str, Any]]]:
        """Every change of status, oldest first, behind a cursor: the `id` of the last line one has.

        Raises:
            InputError: a negative cursor, or a limit below 1.
        """
        checks.count("read audit log", "", "after", after, least=0, most=1 << 62, error=InputError)
        checks.count("read audit log", "", "limit", limit, error=InputError)
        return self._pending(
            "audit",
            lambda: to_thread.run_sync(
                lambda: rows.audit_lines(self._the_open.workspace, run_id=run_id, after=after, limit=limit)
            ),
            run_id=run_id,
        )

    def analytics(self, *, since: float = 0.0, workflow: str | None = None) -> Pending[dict[str, Any]]:
        """Runs created, finished, cancelled and failed by workflow, attempts by step, and how long they took.

        Args:
            since: a moment in seconds since 1970.
            workflow: one of them; unless given, all.

        Raises:
            InputError: it is no moment.
        """
        checks.seconds("analyse", "", "since", since, error=InputError)
        return self._pending(
            "analytics",
            lambda: to_thread.run_sync(
                lambda: rows.analytics(self._the_open.workspace, since=since, workflow=workflow)
            ),
            workflow=workflow,
        )

    def runs(
        self,
        *,
        states: Sequence[RunState | str] = (),
        workflow: str | None = None,
        queue: str | None = None,
        limit: int | None = None,
    ) -> Pending[list[Run]]:
        """Runs, the latest change first: all, or those in one of the states, of a workflow, of a queue.

        Raises:
            InputError: an unknown state, or a limit below 1.
        """
        checks.choices("list runs", "", "states", states, list(RunState), error=InputError)
        if limit is not None:
            checks.count("list runs", "", "limit", limit, error=InputError)
        return self._pending(
            "runs",
            lambda: to_thread.run_sync(
                lambda: rows.list_runs(
                    self._the_open.workspace, states=states, workflow=workflow, queue=queue, limit=limit or -1
                )
            ),
            workflow=workflow,
            queue=queue,
        )
