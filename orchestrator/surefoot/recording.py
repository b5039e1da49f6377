"""`engine.records`: submitting records that are written behind, reading them, and replaying dumps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from anyio import to_thread

from surefoot_storage import InputError

from . import checks, dumping, rows
from .dumping import Dump, Replayed
from .opened import OpenEngine
from .pending import Pender, Pending
from .records import OnFull, RecordWriter
from .rows import Record


class Records:
    """Of one engine: for what is written often and may be lost by a kill while it is queued."""

    def __init__(self, engine: Callable[[], OpenEngine], pender: Pender) -> None:
        self._engine = engine
        self._pending = pender

    @property
    def _writer(self) -> RecordWriter:
        return self._engine().records

    def submit(self, kind: str, data: Any, *, run_id: str = "", on_full: OnFull = "wait") -> Pending[Record]:
        """Queues a record; it is stored soon, and durable once `flush` has returned.

        Args:
            kind: a name, for finding it again.
            data: what JSON can hold, up to 256 KiB.
            run_id: the run it belongs to.
            on_full: wait for room in the queue, or be refused at once.

        Raises:
            RecordsFull: there is no room, or the engine is closing. Counted.
            InputRefused, InputError, DeclarationError: it cannot be a record.
        """
        return self._pending("records.submit", lambda: self._writer.submit(kind, data, run_id, on_full))

    def flush(self) -> Pending[None]:
        """Everything that was submitted before is durable when this returns: stored, or dumped.

        Raises:
            RecordsNotDurable: neither the store nor the disk takes it; it is still queued.
        """
        return self._pending("records.flush", self._writer.flush)

    def figures(self) -> dict[str, int]:
        """Counted since this engine was opened.

        `submitted` is always the sum of `appended`, `dumped`, `rejected` and `queued`; `failed` and `retried`
        count attempts, once for each record of a batch.
        """
        writer = self._writer
        return {**{name: writer.counts[name] for name in rows.COUNTERS}, "queued": writer.queued}

    def find(
        self, *, kind: str | None = None, run_id: str | None = None, after: float = 0.0, limit: int = 1_000
    ) -> Pending[list[Record]]:
        """Those that are stored, in order, since a moment in seconds since 1970.

        Raises:
            InputError: a limit below 1.
        """
        checks.count("find records", "", "limit", limit, error=InputError)
        return self._pending(
            "records.find",
            lambda: to_thread.run_sync(
                lambda: rows.find_records(
                    self._engine().workspace, kind=kind, run_id=run_id, after=after, limit=limit
                )
            ),
        )

    def sessions(self) -> Pending[list[dict[str, Any]]]:
        """Each engine that has submitted records: when it began, how it ended, what it had counted last."""
        return self._pending(
            "records.sessions", lambda: to_thread.run_sync(rows.sessions, self._engine().workspace)
        )

    def dumps(self) -> Pending[list[str]]:
        """The names of all dumps; those that were replayed end in `.replayed`."""
        return self._pending("records.dumps", lambda: to_thread.run_sync(self._writer.dumps.names))

    def dump(self, name: str) -> Pending[Dump]:
        """What is in one.

        Raises:
            UnreadableFile, InputRefused: there is none, it is damaged, or of a later version.
        """
        return self._pending(
            "records.dump", lambda: to_thread.run_sync(dumping.read_dump, self._writer.dumps, name)
        )

    def replay(self, name: str) -> Pending[Replayed]:
        """Stores what is in a dump, durably; doing it again changes nothing.

        Raises:
            UnreadableFile, InputRefused: as `dump`. CommitFailed: the store still does not take it.
        """
        return self._pending(
            "records.replay",
            lambda: to_thread.run_sync(dumping.replay, self._engine().workspace, self._writer.dumps, name),
        )
