"""The open control directory: its descriptors, its lock, its log, and who works there."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import opening, processes
from .ballast import Ballast
from .errors import WorkspaceBusy, WorkspacePoisoned
from .fsops import FsOps
from .identity import refuse_nested, refuse_wrong_store
from .layout import DAMAGED, DATABASE, Layout
from .locking import CommitLock
from .log import Log
from .mark import AppliedMark
from .migrating import Migration
from .paths import CONTROL_DIR
from .recipes import Recipe, RecipeName, probe
from .records import Row
from .schema import Schema
from .wants import Statement
from .workers import Workers

_OPENINGS_MAX = 5  # times that another process takes back the directory that it was just making


@dataclass
class Store:
    """One workspace's control directory, open. Made by `opened`."""

    fs: FsOps
    path: str
    root: int
    lock: CommitLock
    layout: Layout
    recipe: Recipe
    database: Log
    workers: Workers
    epoch: str
    uuid: str
    mark: AppliedMark
    reader: Log
    ballast: Ballast
    _identity: tuple[tuple[int, int] | None, ...] = ()
    _reading: threading.Lock = field(default_factory=threading.Lock)

    # --- opening ---

    @classmethod
    @contextlib.contextmanager
    def opened(
        cls,
        fs: FsOps,
        path: str,
        *,
        schemas: Sequence[Schema],
        recipe: RecipeName | None,
        wait_s: float,
        now: float,
        report: Callable[[str], None],
        tell: Callable[[str, dict[str, Any]], None],
        adopt: bool,
    ) -> Iterator[Store]:
        """The store inside the critical section of its opening; whatever fails there leaves no trace.

        Raises:
            WorkspaceUnusable, WorkspaceBusy: nothing was changed.
        """
        root = opening.open_root(fs, path)
        if not adopt:
            _closing_on_error(fs, root, lambda: refuse_nested(fs, path))
        with contextlib.ExitStack() as undo, opening.explained(path):
            undo.callback(fs.close, root)
            for _ in range(_OPENINGS_MAX):
                made = opening.make_control(fs, root, path)
                lock = CommitLock(
                    fs, lambda: fs.open_dir(root, CONTROL_DIR), path, wait_s=wait_s, report=report
                )
                with lock.held(), contextlib.ExitStack() as inner:
                    if not _is_current(fs, root, lock.descriptor):
                        continue
                    if made:
                        inner.callback(opening.remove_control, fs, root)
                    yield cls._fill(fs, path, root, lock, inner, schemas, recipe, now, tell, adopt)
                    inner.pop_all()
                    undo.pop_all()
                    return
        raise WorkspaceBusy("open the workspace", path, found="somebody who keeps removing .surefoot")

    @classmethod
    def _fill(
        cls,
        fs: FsOps,
        path: str,
        root: int,
        lock: CommitLock,
        undo: contextlib.ExitStack,
        schemas: Sequence[Schema],
        recipe: RecipeName | None,
        now: float,
        tell: Callable[[str, dict[str, Any]], None],
        adopt: bool,
    ) -> Store:
        opening.check_format(fs, lock.descriptor, path, adopt=adopt)
        _look_before(fs, lock.descriptor, path, schemas, adopt=adopt)
        opening.make_folders(fs, lock.descriptor)
        layout = Layout.open(fs, root)
        undo.callback(layout.close)
        found_recipe = probe(fs, layout.stage, forced=recipe)
        workers = Workers(fs, layout.workers, os.urandom(8).hex())
        undo.callback(workers.close)
        epoch = f"{processes.boot_id()}:{fs.filesystem(root)[1]}"
        database = _open_database(fs, layout, path)
        undo.callback(database.close)
        database.prepare(schemas, [_first_row(epoch, now)], Migration(fs, layout, workers, tell))
        if adopt:
            database.become(os.urandom(16).hex(), epoch)
        uuid = str(database.query("SELECT uuid FROM workspace")[0][0])
        reader = Log(database.path, read_only=True)
        undo.callback(reader.close)
        mark = AppliedMark(fs, layout.applied, epoch=epoch, workspace=uuid)
        ballast = Ballast(fs, layout.control, wanted=found_recipe.name != "memory")
        store = cls(
            fs, path, root, lock, layout, found_recipe, database, workers, epoch, uuid, mark, reader, ballast
        )  # fmt: skip
        store._identity = store._look()
        return store

    # --- is it still what was opened? ---

    def _look(self) -> tuple[tuple[int, int] | None, ...]:
        control = self.layout.control
        found = [
            self.fs.lstat(self.root, CONTROL_DIR),
            self.fs.lstat(control, DATABASE),
            self.fs.lstat(control, f"{DATABASE}-wal"),
        ]
        return tuple((f.st_dev, f.st_ino) if f is not None else None for f in found)

    def whats_wrong(self) -> str:
        """Why nothing may be committed here any more; "" where all is well. Opens nothing."""
        for name, before, now in zip(
            (CONTROL_DIR, DATABASE, f"{DATABASE}-wal"), self._identity, self._look(), strict=True
        ):
            if before != now:
                return f"{name} was {'removed' if now is None else 'replaced'} while it was open"
        if self.fs.lstat(self.layout.control, DAMAGED) is not None:
            return "another process found its database damaged"
        return ""

    # --- reading ---

    def query(self, sql: str, values: Mapping[str, Any] | Sequence[Any] = ()) -> tuple[list[Row], int]:
        """Rows of a connection that only reads, and the last commit that they may tell of."""
        with self._reading:
            return self.reader.query_with_head(sql, values)

    @contextlib.contextmanager
    def looking(self) -> Iterator[Log]:
        """The connection that only reads, for short questions."""
        with self._reading:
            yield self.reader

    @contextlib.contextmanager
    def reading(self) -> Iterator[Log]:
        """A connection of its own for long questions: nobody waits for them."""
        reader = Log(self.database.path, read_only=True)
        try:
            yield reader
        finally:
            reader.close()

    # --- closing ---

    def close(self) -> None:
        """Gives everything back."""
        self.reader.close()
        self.database.close()
        self.workers.close()
        self.layout.close()
        self.fs.close(self.root)

    def forget(self) -> None:
        """In a forked child: the databases are never closed, that would drop the parent's locks."""
        _never_closed.append((self.database, self.reader))
        self.workers.forget()


_never_closed: list[tuple[Log, Log]] = []


def _is_current(fs: FsOps, root: int, held: int) -> bool:
    """Whether the locked directory still is the workspace's."""
    now, then = fs.lstat(root, CONTROL_DIR), fs.fstat(held)
    return now is not None and (now.st_dev, now.st_ino) == (then.st_dev, then.st_ino)


def _first_row(epoch: str, now: float) -> Statement:
    return Statement(
        "INSERT INTO workspace (id, uuid, created_at, epoch) VALUES (1, :uuid, :at, :epoch)",
        {"uuid": os.urandom(16).hex(), "at": now, "epoch": epoch},
    )


def _look_before(fs: FsOps, control: int, path: str, schemas: Sequence[Schema], *, adopt: bool) -> None:
    """Before anything is touched: a newer format, or a store that belongs elsewhere, stays as it is."""
    if fs.lstat(control, DATABASE) is None:
        return
    look = Log(os.path.join(path, CONTROL_DIR, DATABASE), read_only=True)
    try:
        look.refuse_newer(schemas)
        if not adopt and fs.lstat(control, DAMAGED) is None:
            refuse_wrong_store(fs, control, path, look)
    finally:
        look.close()


def _closing_on_error(fs: FsOps, fd: int, check: Callable[[], None]) -> None:
    try:
        check()
    except BaseException:
        fs.close(fd)
        raise


def _open_database(fs: FsOps, layout: Layout, path: str) -> Log:
    name = os.path.join(path, CONTROL_DIR, DATABASE)
    if fs.lstat(layout.control, DATABASE) is None:
        fs.close(fs.create(layout.control, DATABASE))
    if fs.lstat(layout.control, DAMAGED) is not None:
        _move_to_new_blocks(fs, layout, name)
    return Log(name)


def _move_to_new_blocks(fs: FsOps, layout: Layout, path: str) -> None:
    """After a failed flush the pages in memory may never have been written: copy them, checked.

    Whatever interrupts it, it goes on from the note: the old log never meets the new database.
    """
    control, fresh = layout.control, f"{DATABASE}.fresh"
    note = layout.read_note(DAMAGED) or {}
    if not note.get("copied"):
        _copy_database(fs, control, path, fresh)
        layout.write_note(DAMAGED, {**note, "copied": True}, durable=True)
    if fs.lstat(control, fresh) is not None:
        fs.unlink(control, f"{DATABASE}-wal")
        fs.unlink(control, f"{DATABASE}-shm")
        fs.sync(control)
        fs.rename_over(control, fresh, control, DATABASE)
        fs.sync(control)
    fs.unlink(control, DAMAGED)
    fs.sync(control)


def _copy_database(fs: FsOps, control: int, path: str, fresh: str) -> None:
    fs.unlink(control, fresh)
    damaged = Log(path)
    try:
        damaged.copy_into(os.path.join(os.path.dirname(path), fresh))
    finally:
        damaged.close()
    fd = fs.open_file(control, fresh)
    fs.sync(fd)
    fs.close(fd)


def poisoned(path: str, cause: str) -> WorkspacePoisoned:
    """The error of a workspace object that is of no use any more."""
    return WorkspacePoisoned(
        "use the workspace", path, expected="an open workspace", found=cause, hint="open it again"
    )
