"""A workspace: one directory tree whose files and rows change together or not at all."""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BufferedReader, BufferedWriter
from types import TracebackType
from typing import Any, Self

from . import opening, processes
from .background import IDLE_S, Background
from .ballast import is_full
from .errors import (
    CommitOutcomeUnknown,
    SurefootError,
    TransactionClosed,
)
from .events import Events, Observer
from .facts import Facts
from .fsops import FsOps
from .hardening import WINDOW_S, Durability
from .history import Change
from .layout import DAMAGED
from .locking import WAIT_S
from .machinery import Machinery, Recovered
from .plan import Plan
from .policy import Policy
from .queueing import Commit, CommitQueue, Request, gone
from .recipes import RecipeName
from .records import Row
from .retention import Retention
from .reverting import WentBack, go_back
from .schema import STORAGE, Schema
from .spooling import open_reader, open_writer
from .store import Store, poisoned
from .transaction import FileTransaction, acting
from .upkeep import Upkeep
from .wants import Statement

DEFAULT_POLICY = Policy()
DEFAULT_RETENTION = Retention()


class Workspace(Facts):
    """Any number of processes of one host may have it open; any thread may use it.

    Args:
        root: an existing directory. `.surefoot/` is made in it on first use.
        schemas: tables of the layers above, migrated together with the log's own.
        policy: choices where more than one answer is right.
        durability: `full`, `batched` or `none`: what an acknowledged commit survives.
        window_s: how long a `batched` commit waits for its flush.
        retention: how long old versions are kept.
        lock_wait_s: how long a call waits for another process before it says whom it waited for.
        idle_s: quiet time after which committed files are flushed in the background.
        observer: is told of what happened outside any call: `foreign_edit`, `checkpoint_failed`,
            `lock_waiting`, `rename_retried`, …; after the commit lock is given back.
        adopt: take over a store that is not what it was: a copy, an older database, or none. What it
            had not finished is not carried out; files stay as they are.
        fs, recipe, clock, new_id: for tests: the seam to the disk, a filesystem recipe instead of the
            one found by probing, seconds since 1970 for what people read, unique names.

    Raises:
        WorkspaceUnusable, WorkspaceBusy: nothing was changed.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        schemas: Sequence[Schema] = (),
        policy: Policy = DEFAULT_POLICY,
        durability: Durability = "full",
        window_s: float = WINDOW_S,
        retention: Retention = DEFAULT_RETENTION,
        lock_wait_s: float = WAIT_S,
        idle_s: float = IDLE_S,
        observer: Observer = lambda _event, _facts: None,
        adopt: bool = False,
        fs: FsOps | None = None,
        recipe: RecipeName | None = None,
        clock: Callable[[], float] = time.time,
        new_id: Callable[[], str] = lambda: os.urandom(16).hex(),
    ) -> None:
        self.root = os.path.abspath(os.fspath(root))
        self.fs = fs or FsOps()
        self.durability: Durability = durability
        self._clock, self._new_id, self._user = clock, new_id, processes.user()
        self._dead = ""
        self._closed = False
        self._events = Events(observer)
        self.fs.note_retries(self._events.note)
        with Store.opened(
            self.fs,
            self.root,
            schemas=[STORAGE, *schemas],
            recipe=recipe,
            wait_s=lock_wait_s,
            now=clock(),
            report=lambda text: self._events.tell("lock_waiting", text=text),
            tell=lambda event, facts: self._events.tell(event, **facts),
            adopt=adopt,
        ) as store:
            self._store = store
            self._parts = Machinery(
                self.fs, store, policy, durability, self._section, self._note_foreign, clock
            )
            self.recovered: Recovered = self._parts.recover()
            seq = store.database.identity().last_seq
            opening.finish_control(store.layout, store.root, uuid=store.uuid, seq=seq, afresh=adopt)
            store.ballast.take()
        self._events.tell()
        self._progress = self._parts.progress
        self._committer = self._parts.committer
        self._queue = CommitQueue(self._section, self._carry_out, store.lock.too_late, wait_s=lock_wait_s)
        self.upkeep = Upkeep(
            self.fs,
            store,
            progress=self._progress,
            forward=self._parts.forward,
            checkpoint=self._parts.checkpoint,
            section=self._section,
            begin=self.begin,
            commit=self.commit,
            clock=clock,
            retention=retention,
        )
        """Backups, disk usage, retention, decisions about foreign edits."""
        self._background = Background(
            durability, self._checkpoint, self.flush, self._events, idle_s=idle_s, window_s=window_s
        )
        _open_workspaces.add(self)

    # --- closing ---

    def close(self) -> None:
        """Flushes what is committed (by its durability) and gives everything back. Twice is fine.

        A flush that fails is reported to the observer: the log still holds everything, and the next
        open finishes it.
        """
        if self._closed:
            return
        self._background.stop(checkpoint=not self._dead)
        if not self._dead:
            self._parts.checkpoint.drop_spares()
        with self._store.lock.mutex.lock:
            if not self._closed:
                self._closed = True
                self._dead = self._dead or "it was closed"
                self._parts.areas.close()
                self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- transactions ---

    def begin(self, *, label: str = "", owner: str = "", actor: str = "") -> FileTransaction:
        """A new transaction; nothing happens until it is committed.

        `label` is for people; `owner` says whose history it belongs to; `actor` is who asked for it: who is
        `acting`, or the user of this process, unless given.
        """
        self._check_alive()
        return FileTransaction(
            self._parts.tree, self._new_id(), label=label, owner=owner,
            actor=actor or acting.get() or self._user, drop=self._drop_spool,
        )  # fmt: skip

    def create(self, tx: FileTransaction, path: str, *, mode: int | None = None) -> BufferedWriter:
        """A stream into a path of the transaction, for contents that do not fit into memory.

        Raises:
            StageFailed, PathRefused, IncompatibleOperations: as a write would.
        """
        return open_writer(self.fs, self._parts.tree, tx, path, mode, self.worker)

    def open(self, tx: FileTransaction, path: str) -> BufferedReader:
        """A stream out of a path, pending writes included.

        Raises:
            UnreadableFile, PathRefused: as a read would.
        """
        return open_reader(self.fs, tx, path)

    def go_back(self, tx: FileTransaction, changes: Sequence[Change], *, force: bool = False) -> WentBack:
        """Makes the transaction undo these changes; `history` knows which there are.

        Raises:
            UndoRefused: files were changed since (unless `force`), or old contents are gone.
        """
        return go_back(tx, self.history, changes, lambda p, m: self.create(tx, p, mode=m), force=force)

    def plan(self, tx: FileTransaction) -> Plan:
        """What a commit would do on disk, refused where the commit would refuse it. Changes nothing.

        Raises:
            PathRefused, IncompatibleOperations, UnreadableFile: it could not be committed.
        """
        self._check_alive()
        return self._committer.plan(tx)

    def commit(self, tx: FileTransaction) -> Commit:
        """All of it, files and rows, or nothing. When this returns it is durable, by the chosen level.

        Raises:
            Conflict: somebody changed what the transaction had read; nothing was changed.
            PathRefused, IncompatibleOperations, StageFailed, CommitFailed: nothing was changed.
            WorkspaceBlocked: an earlier commit still waits for its files; nothing was changed.
            WorkspaceBusy: another process holds the commit lock for too long; nothing was changed.
            CommitOutcomeUnknown: the next open decides; this workspace object is of no use any more.
            TransactionClosed: it was fenced or committed before.
        """
        (result,) = self.commit_all([tx])
        if isinstance(result, BaseException):
            raise result
        return result

    def commit_all(self, transactions: Sequence[FileTransaction]) -> list[Commit | BaseException]:
        """Each of them, all of it or nothing, with as few barriers as possible; what `commit` would raise.

        They do not depend on each other: one that fails fails alone.
        """
        if self._progress.backlog.is_full:
            self.checkpoint()
        results = [self._staged_request(tx) for tx in transactions]
        requests = [result for result in results if isinstance(result, Request)]
        try:
            self._queue.submit_all(requests)
        finally:
            for request in requests:
                if request.commit is None and request.staged is not None:
                    self._committer.drop(request.staged)
        urgent = self._progress.backlog.is_long or self._store.database.log_is_long
        self._background.note_commit(urgent=urgent)
        return [result.outcome if isinstance(result, Request) else result for result in results]

    def _staged_request(self, tx: FileTransaction) -> Request | BaseException:
        try:
            self._check_alive()
            tx.seal()
            staged = self._committer.stage(tx)
        except (Exception, TransactionClosed) as error:  # noqa: BLE001 - its own caller is told
            return error
        return Request(tx.statements, durable=self.durability == "full", tx=tx, staged=staged)

    def write_all(self, statements: Sequence[Sequence[Statement]]) -> list[BaseException | None]:
        """Rows without files, not durable, each group by itself; what `write_rows` would raise."""
        self._check_alive()
        requests = [Request(group, durable=False) for group in statements]
        self._queue.submit_all(requests)
        return [request.error for request in requests]

    def write_rows(self, statements: Sequence[Statement], *, durable: bool = True) -> None:
        """Rows without files. Not `durable`: survives a kill, a power cut may forget it.

        Raises:
            Conflict, CommitFailed, WorkspaceBusy: nothing was changed.
        """
        self._check_alive()
        durable = durable and self.durability == "full"
        try:
            self._submit(Request(statements, durable=durable))
        except SurefootError as error:
            if not is_full(error) or not self.make_room():
                raise
            self._submit(Request(statements, durable=durable))

    def _submit(self, request: Request) -> None:
        self._queue.submit_all([request])
        if request.error is not None:
            raise request.error

    def make_room(self) -> bool:
        """Gives the ballast up on a full disk; True where that may help. For what must not be lost."""
        return self._store.ballast.give_up()

    def flush(self) -> None:
        """Everything that was committed before is durable when this returns, whatever the level.

        Raises:
            CommitFailed: it could not be flushed.
        """
        with self._section():
            self._store.database.harden()

    def query(self, sql: str, values: Mapping[str, Any] | Sequence[Any] = ()) -> list[Row]:
        """Rows, never newer than the files that belong to them."""
        self._check_alive()
        rows, seq = self._store.query(sql, values)
        if self._progress.covers(seq):
            return rows
        with self._section():  # whoever is committing has finished by now, or died and is helped
            return self._store.query(sql, values)[0]

    @property
    def unapplied(self) -> tuple[tuple[str, str], ...]:
        """(path, cause) of committed changes that are not in their place yet."""
        return self._progress.unapplied

    def settle(self) -> tuple[tuple[str, str], ...]:
        """Tries again to put them in place; returns what is left."""
        with self._section():
            self._progress.settle()
            return self._progress.unapplied

    # --- the critical section ---

    @contextlib.contextmanager
    def _section(self) -> Iterator[None]:
        """Nobody else commits meanwhile, and all that was committed is in place or known not to be."""
        outermost = False
        try:
            with self._store.lock.held() as outermost:
                self._check_alive()
                if outermost:
                    self._check_store()
                    self._progress.catch_up()
                yield
        finally:
            if outermost:
                self._events.tell()

    def _carry_out(self, batch: list[Request]) -> None:
        try:
            self._committer.carry_out(batch)
        except CommitOutcomeUnknown as error:
            self._poison(str(error))
            raise
        if wrong := self._store.whats_wrong():  # between the check and the commit: where did it go to?
            self._dead = wrong
            for request in batch:
                if request.done and request.error is None:
                    request.error = gone(request, wrong)

    def _check_alive(self) -> None:
        if self._dead:
            raise poisoned(self.root, self._dead)

    def _check_store(self) -> None:
        if wrong := self._store.whats_wrong():
            self._dead = wrong  # descriptors stay until `close`: other threads may be using them
            self._check_alive()

    def _poison(self, cause: str) -> None:
        """The log cannot be trusted in this process any more; the next open looks at what is on disk."""
        self._dead = f"its database failed: {cause.splitlines()[0]}"
        with contextlib.suppress(OSError):
            self._store.layout.write_note(DAMAGED, {"cause": cause}, durable=True)

    # --- in the background ---

    def checkpoint(self) -> None:
        """Flushes every committed file to its place and frees the versions it displaced.

        Raises:
            OSError, SurefootError: nothing is lost, the log still holds it; try again.
        """
        self._check_alive()
        self._checkpoint(wait=True)

    def _checkpoint(self, *, wait: bool) -> None:
        before = self._progress.checkpointed_seq
        self._parts.checkpoint.run(epoch=self.epoch, wait=wait)
        self._store.ballast.take()
        self.upkeep.prune_if_due(before, self._progress.checkpointed_seq)

    def _note_foreign(self, seq: int, path: str, kept_as: str, found: str, *, kept: str = "theirs") -> None:
        with contextlib.suppress(SurefootError):  # told below; it must not undo what is committed
            self._store.database.note_foreign_edit(seq, path, kept_as, found, kept, self._clock())
        self._events.note("foreign_edit", seq=seq, path=path, kept_as=kept_as, found=found, kept=kept)

    def _after_fork(self) -> None:
        """In the child: not ours any more. The lock stays with the parent alone."""
        self._dead = f"it was opened by process {os.getppid()}, and this is a forked child"
        self._closed = True
        self._store.forget()


_open_workspaces: weakref.WeakSet[Workspace] = weakref.WeakSet()


def _poison_children() -> None:
    for workspace in list(_open_workspaces):
        if not workspace._closed:  # noqa: SLF001 - this is the class's own business
            workspace._after_fork()  # noqa: SLF001 - this is the class's own business


os.register_at_fork(after_in_child=_poison_children)
