"""Records that may be written behind: a bounded queue, one writer, and dumps for what the store refuses.

Submitted = stored + dumped + rejected + still queued, at any moment.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeAlias

import anyio
from anyio import to_thread

from surefoot_storage import Dumps, InputError, Statement, SurefootError, Workspace

from . import checks, rows
from .clock import Clock
from .dumping import write_dump
from .errors import InputRefused, RecordsFull, RecordsNotDurable
from .log import logger
from .names import checked_name
from .rows import Record

QUEUE_MAX = 50
RETRIES = 3
RETRY_PAUSE_S = 0.1  # times the number of the attempt
REJECTIONS_MAX = 100  # more are warned of
RETRIED_MAX = 0.1  # of what was appended: more is warned of
DATA_BYTES_MAX = 256 << 10
OnFull: TypeAlias = Literal["wait", "refuse"]


class RecordWriter:
    """Of one open engine."""

    def __init__(
        self, workspace: Workspace, clock: Clock, session: str, *, queue_max: int,
        pause: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:  # fmt: skip
        self._workspace = workspace
        self._clock = clock
        self.session = session
        self._queue_max = queue_max
        self.pause = pause
        self.dumps = Dumps(workspace.fs, workspace.root)
        self.counts: Counter[str] = Counter()
        self._queue: deque[Record] = deque()  # the first ones are being written
        self._numbers = 0
        self._settled = 0  # every record up to this number is stored or dumped
        self._begun = False
        self._closing = False
        self._stuck: Exception | None = None  # neither the store nor the disk took it
        self._warned: set[str] = set()
        self._more, self._less = anyio.Event(), anyio.Event()

    @property
    def queued(self) -> int:
        """How many wait, those included that are being written or retried."""
        return len(self._queue)

    async def submit(self, kind: str, data: Any, run_id: str, on_full: OnFull) -> Record:
        """Queues one; see `Records.submit`."""
        checked_name("record kind", kind)
        checks.choice("submit record", kind, "on_full", on_full, ("wait", "refuse"), error=InputError)
        checks.text("submit record", kind, "run_id", run_id, empty=True, error=InputError)
        kept = _copied(kind, data)
        await self._begin()
        self.counts["submitted"] += 1
        while len(self._queue) >= self._queue_max or self._closing:
            if on_full == "refuse" or self._closing:
                raise self._rejected(kind)
            self._less = anyio.Event() if self._less.is_set() else self._less
            try:
                await self._less.wait()
            except BaseException:
                self.counts["submitted"] -= 1  # it was given up, and never in the queue
                raise
        self._numbers += 1
        record = Record(self.session, self._numbers, kind, run_id, self._clock.now(), kept)
        self._queue.append(record)
        self._more.set()
        return record

    async def serve(self) -> None:
        """Until everything is written after `stop`."""
        while True:
            if not self._queue:
                if self._closing:
                    return
                self._more = anyio.Event()
                await self._more.wait()
                continue
            batch = list(self._queue)
            with anyio.CancelScope(shield=True):
                settled = await self._settle(batch)
            if settled:
                for _ in batch:
                    self._queue.popleft()
                self._settled = batch[-1].number
            self._less.set()
            if not settled:
                if self._closing:
                    return
                await self.pause(1.0)

    async def flush(self) -> None:
        """Everything that was submitted before is stored or dumped, durably."""
        last = self._numbers
        self._stuck = None
        while self._settled < last:
            self._less = anyio.Event() if self._less.is_set() else self._less
            await self._less.wait()
            if self._stuck is not None:
                raise RecordsNotDurable(
                    "flush records", self.session, expected="the store or the disk to take them",
                    found=str(self._stuck), hint=f"free some disk space: {self.queued} wait in memory",
                ) from self._stuck  # fmt: skip
        await to_thread.run_sync(self._workspace.flush)
        await to_thread.run_sync(self._workspace.checkpoint_rows)

    async def stop(self) -> None:
        """Takes nothing new, writes what waits, and notes a clean end."""
        self._closing = True
        self._more.set()
        self._less.set()
        while self._queue and self._stuck is None:
            self._less = anyio.Event() if self._less.is_set() else self._less
            await self._less.wait()
        if self._begun:
            how = "clean" if not self._queue else "unclean"
            with contextlib.suppress(SurefootError):
                ends = [self._session_row(), rows.end_session(self.session, self._clock.now(), how)]
                await to_thread.run_sync(lambda: self._workspace.write_rows(ends))
        if self._queue:
            logger(session=self.session).error("records.lost", count=len(self._queue))

    # --- how ---

    async def _begin(self) -> None:
        """The session is known before its first record: an end without warning can be told by that."""
        if self._begun:
            return
        self._begun = True
        with contextlib.suppress(SurefootError):  # a store that is locked: its first batch says it, too
            row = self._session_row()
            await to_thread.run_sync(lambda: self._workspace.write_rows([row], durable=False))

    def _session_row(self, appended: int = 0) -> Statement:
        counts = {name: self.counts[name] for name in rows.COUNTERS}
        counts["appended"] += appended
        return rows.save_session(self.session, self._workspace.worker, self._clock.now(), counts)

    async def _settle(self, batch: list[Record]) -> bool:
        """Stored after at most `RETRIES` more attempts, or dumped; False where not even that works."""
        error: SurefootError | None = None
        for attempt in range(1 + RETRIES):
            if attempt:
                self._count("retried", len(batch))
                await self.pause(RETRY_PAUSE_S * attempt)
            try:
                await to_thread.run_sync(self._store, batch)
            except SurefootError as failed:
                error = failed
                self._count("failed", len(batch))
            else:
                self._count("appended", len(batch))
                return True
        assert error is not None
        return await self._dump(batch, error)

    def _store(self, batch: list[Record]) -> None:
        self._workspace.write_rows([rows.insert_records(batch), self._session_row(len(batch))], durable=False)

    async def _dump(self, batch: list[Record], error: SurefootError) -> bool:
        log = logger(session=self.session)
        try:
            name = await to_thread.run_sync(write_dump, self.dumps, batch, str(error), self._clock.now())
        except (OSError, SurefootError) as refused:
            self._stuck = refused
            log.error("records.dump_failed", count=len(batch), error=str(refused))  # noqa: TRY400 - structlog, not logging
            return False
        self._count("dumped", len(batch))
        log.warning("records.dumped", dump=name, count=len(batch), error=str(error))
        return True

    def _rejected(self, kind: str) -> RecordsFull:
        self._count("rejected", 1)
        found = "an engine that is closing" if self._closing else f"{len(self._queue)} that wait already"
        return RecordsFull(
            "submit record", kind, expected=f"room in a queue of {self._queue_max}", found=found,
            hint="on_full='wait' waits for room",
        )  # fmt: skip

    def _count(self, name: str, by: int) -> None:
        self.counts[name] += by
        worrying = {
            "retries": self.counts["retried"] > RETRIED_MAX * self.counts["appended"],
            "rejections": self.counts["rejected"] > REJECTIONS_MAX,
        }
        for what, is_worrying in worrying.items():
            if is_worrying and what not in self._warned:
                self._warned.add(what)
                logger(session=self.session).warning(f"records.many_{what}", **self.counts)


def _copied(kind: str, data: Any) -> Any:
    """As JSON keeps it; what the caller does with its own afterwards is its own business."""
    try:
        text = json.dumps(data, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputRefused(
            "submit record", kind, expected="data that JSON can hold", found=str(error)
        ) from error
    if len(text.encode()) > DATA_BYTES_MAX:
        raise InputRefused(
            "submit record", kind, expected=f"at most {DATA_BYTES_MAX} bytes", found=str(len(text.encode()))
        )
    return json.loads(text)
