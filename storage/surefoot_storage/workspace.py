"""A workspace: one directory tree whose files and rows change together or not at all."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from . import opening, processes
from .checkpoint import IDLE_S, Checkpointer
from .committing import Commit, Committer
from .database import Database
from .errors import CommitFailed, CommitOutcomeUnknown, WorkspacePoisoned
from .fsops import FsOps
from .layout import DAMAGED, DATABASE
from .paths import CONTROL_DIR
from .plan import Plan
from .recipes import Recipe, RecipeName, probe
from .records import Row
from .rollforward import RollForward
from .schema import STORAGE, Schema
from .staging import Stager
from .transaction import FileTransaction, Statement
from .tree import Tree

Observer = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True)
class Recovered:
    """What opening the workspace had to do."""

    completed: tuple[str, ...] = ()  # paths that a crash had left behind their log
    foreign: tuple[str, ...] = ()  # paths that somebody had changed since; left alone
    unapplied: tuple[tuple[str, str], ...] = ()  # (path, cause) that still cannot be put in place


class Workspace:
    """Open for one process at a time; any of its threads may use it.

    Args:
        root: an existing directory. `.surefoot/` is made in it on first use.
        schemas: tables of the layers above, migrated together with the log's own.
        fs: the seam to the disk.
        recipe: forces a filesystem recipe; None finds out.
        clock: seconds since 1970, for what people read.
        new_id: unique names of transactions.
        observer: is told of what happened outside any call: `foreign_edit`, `checkpoint_failed`, …
        idle_s: quiet time after which committed files are flushed in the background.

    Raises:
        WorkspaceUnusable, WorkspaceBusy: nothing was changed.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        schemas: Sequence[Schema] = (),
        fs: FsOps | None = None,
        recipe: RecipeName | None = None,
        clock: Callable[[], float] = time.time,
        new_id: Callable[[], str] = lambda: os.urandom(16).hex(),
        observer: Observer = lambda _event, _facts: None,
        idle_s: float = IDLE_S,
    ) -> None:
        self.root = os.path.abspath(os.fspath(root))
        self.fs = fs or FsOps()
        self._schemas = [STORAGE, *schemas]
        self._clock = clock
        self._new_id = new_id
        self._observe = observer
        self._mutex = threading.RLock()
        self._dead = ""
        with contextlib.ExitStack() as undo:
            self._open(undo, recipe)
            undo.pop_all()
        self._checkpointer = Checkpointer(self._background_checkpoint, idle_s=idle_s)
        self._checkpointer_started = False
        _open_workspaces.add(self)

    # --- opening and closing ---

    def _open(self, undo: contextlib.ExitStack, recipe: RecipeName | None) -> None:
        fs = self.fs
        self._root_fd = opening.open_root(fs, self.root)
        undo.callback(fs.close, self._root_fd)
        with opening.explained(self.root):
            self._layout, made = opening.enter_control(fs, self._root_fd, self.root)
            if made:
                undo.callback(opening.remove_control, fs, self._root_fd)
            undo.callback(self._layout.close)
            self.recipe: Recipe = probe(fs, self._layout.stage, forced=recipe)
            self._tree = Tree(fs, self._root_fd, self.recipe)
            self.epoch = f"{processes.boot_id()}:{fs.filesystem(self._root_fd)[1]}"
            self._database = self._open_database()
            undo.callback(self._database.close)
            self._database.prepare(self._schemas, [self._first_row()])
            self._build_machinery()
            self.recovered = self._recover()
            opening.finish_control(self._layout, self._root_fd, made=made, uuid=self.uuid, now=self._clock())

    def _open_database(self) -> Database:
        path = os.path.join(self.root, CONTROL_DIR, DATABASE)
        if self.fs.lstat(self._layout.control, DATABASE) is None:
            self.fs.close(self.fs.create(self._layout.control, DATABASE))
        if self.fs.lstat(self._layout.control, DAMAGED) is not None:
            self._move_to_new_blocks(path)
        look = Database(path, read_only=True)  # a newer format must not even see its log touched
        try:
            look.refuse_newer(self._schemas)
        finally:
            look.close()
        return Database(path)

    def _move_to_new_blocks(self, path: str) -> None:
        """After a failed flush the pages in memory may never have been written: copy them, checked."""
        fs, control = self.fs, self._layout.control
        fresh = f"{DATABASE}.fresh"
        fs.unlink(control, fresh)
        damaged = Database(path)
        try:
            damaged.copy_into(os.path.join(self.root, CONTROL_DIR, fresh))
        finally:
            damaged.close()
        fd = fs.open_file(control, fresh)
        fs.sync(fd)
        fs.close(fd)
        fs.rename_over(control, fresh, control, DATABASE)
        fs.unlink(control, f"{DATABASE}-wal")
        fs.unlink(control, f"{DATABASE}-shm")
        fs.unlink(control, DAMAGED)
        fs.sync(control)

    def _first_row(self) -> Statement:
        return Statement(
            "INSERT INTO workspace (id, uuid, created_at, epoch) VALUES (1, :uuid, :at, :epoch)",
            {"uuid": os.urandom(16).hex(), "at": self._clock(), "epoch": self.epoch},
        )

    def _build_machinery(self) -> None:
        stager = Stager(self.fs, self._layout, self.recipe)
        self._committer = Committer(
            self.fs,
            self._layout,
            self._tree,
            self._database,
            stager=stager,
            forward=RollForward(
                self.fs, self._layout, self._tree, self._database, stager, self._note_foreign
            ),
            umask=self.fs.umask(),
            report=self._note_foreign,
        )

    @property
    def uuid(self) -> str:
        """The workspace's identity."""
        return str(self._database.query("SELECT uuid FROM workspace")[0][0])

    def _recover(self) -> Recovered:
        power_cut = self._database.epoch() != self.epoch
        outcome = self._committer.recover(power_cut=power_cut, epoch=self.epoch)
        return Recovered(tuple(outcome.completed), tuple(outcome.foreign), tuple(outcome.failed))

    def close(self) -> None:
        """Flushes what is committed and gives the lock back. Closing twice is fine.

        A flush that fails is reported to the observer: the log still holds everything, and the next
        open finishes it.
        """
        if self._dead:
            return
        if self._checkpointer_started:
            self._checkpointer.stop()
        self._background_checkpoint()
        with self._mutex:
            if not self._dead:
                self._dead = "it was closed"
                self._database.close()
                self._layout.close()
                self.fs.close(self._root_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- transactions ---

    def begin(self, *, label: str = "") -> FileTransaction:
        """A new transaction; nothing happens until it is committed."""
        self._check_alive()
        return FileTransaction(self._tree, self._new_id(), label=label)

    def plan(self, tx: FileTransaction) -> Plan:
        """What a commit would do on disk, refused where the commit would refuse it. Changes nothing.

        Raises:
            PathRefused, IncompatibleOperations, UnreadableFile: it could not be committed.
        """
        self._check_alive()
        return self._committer.plan(tx)

    def commit(self, tx: FileTransaction) -> Commit:
        """All of it, files and rows, or nothing. When this returns it is durable.

        Raises:
            Conflict: somebody changed what the transaction had read; nothing was changed.
            PathRefused, IncompatibleOperations, StageFailed, CommitFailed: nothing was changed.
            WorkspaceBlocked: an earlier commit still waits for its files; nothing was changed.
            CommitOutcomeUnknown: the next open decides; this workspace object is of no use any more.
            TransactionClosed: it was fenced or committed before.
        """
        self._check_alive()
        tx.seal()
        if self._committer.backlog_is_full:
            self.checkpoint()
        with self._committer.staged(tx) as staged, self._exclusive():
            try:
                commit = self._committer.commit(tx, staged, at=self._clock())
            except CommitOutcomeUnknown as error:
                self._poison(str(error))
                raise
        self._wake_checkpointer()
        return commit

    def write_rows(self, statements: Sequence[Statement], *, durable: bool = True) -> None:
        """Rows without files. Not `durable`: survives a kill, a power cut may forget it.

        Raises:
            Conflict, CommitFailed: nothing was changed.
        """
        with self._exclusive():
            self._database.write_rows(statements, at=self._clock(), durable=durable)

    def query(self, sql: str, values: Mapping[str, Any] | Sequence[Any] = ()) -> list[Row]:
        """Rows, never newer than the files that belong to them."""
        with self._exclusive():
            return self._database.query(sql, values)

    def read_blob(self, digest: bytes) -> bytes:
        """A kept content by sha256."""
        with self._exclusive():
            data = self._database.blob(digest)
        return data if data is not None else self._layout.read_blob(digest)

    @property
    def unapplied(self) -> tuple[tuple[str, str], ...]:
        """(path, cause) of committed changes that are not in their place yet."""
        return self._committer.unapplied

    def settle(self) -> tuple[tuple[str, str], ...]:
        """Tries again to put them in place; returns what is left."""
        with self._exclusive():
            self._committer.settle()
            return self._committer.unapplied

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        with self._mutex:
            self._check_alive()
            yield

    def _check_alive(self) -> None:
        if self._dead:
            raise WorkspacePoisoned(
                "use the workspace",
                self.root,
                expected="an open workspace",
                found=self._dead,
                hint="open it again",
            )

    def _poison(self, cause: str) -> None:
        """The log cannot be trusted in this process any more; the next open looks at what is on disk."""
        self._dead = f"its database failed: {cause.splitlines()[0]}"
        with contextlib.suppress(OSError):
            self._layout.write_note(DAMAGED, {"cause": cause}, durable=True)
        self._database.close()
        self._layout.close()
        self.fs.close(self._root_fd)

    # --- durability in the background ---

    def checkpoint(self) -> None:
        """Flushes every committed file to its place and frees the versions it displaced.

        Raises:
            OSError, SurefootError: nothing is lost, the log still holds it; try again.
        """
        self._committer.checkpoint(self._exclusive, epoch=self.epoch)

    def _background_checkpoint(self) -> None:
        try:
            self.checkpoint()
        except WorkspacePoisoned:
            return
        except Exception as error:  # noqa: BLE001 - kept in the log, tried again with the next one
            self._observe("checkpoint_failed", {"error": f"{type(error).__name__}: {error}"})

    def _wake_checkpointer(self) -> None:
        with self._mutex:
            if not self._checkpointer_started and not self._dead:
                self._checkpointer.start()
                self._checkpointer_started = True
        self._checkpointer.note(urgent=self._committer.wants_checkpoint)

    def _note_foreign(self, seq: int, path: str, kept_as: str, found: str) -> None:
        with contextlib.suppress(CommitFailed):  # told below; it must not undo what is committed
            self._database.note_foreign_edit(seq, path, kept_as, found, self._clock())
        self._observe("foreign_edit", {"seq": seq, "path": path, "kept_as": kept_as, "found": found})

    def _after_fork(self) -> None:
        """In the child: not ours any more. The lock stays with the parent alone."""
        self._dead = f"it was opened by process {os.getppid()}, and this is a forked child"
        _never_closed.append(self._database)  # closing SQLite in a child would drop the parent's locks
        with contextlib.suppress(OSError):
            self.fs.close(self._layout.control)


_open_workspaces: weakref.WeakSet[Workspace] = weakref.WeakSet()
_never_closed: list[Database] = []


def _poison_children() -> None:
    for workspace in list(_open_workspaces):
        if not workspace._dead:  # noqa: SLF001 - this is the class's own business
            workspace._after_fork()  # noqa: SLF001 - this is the class's own business


os.register_at_fork(after_in_child=_poison_children)
