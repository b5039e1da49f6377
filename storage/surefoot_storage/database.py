"""The database: one connection, its commit point, and the only module that calls SQLite.

apsw, because it brings its own SQLite: versions 3.7.0 to 3.51.2 can lose committed pages when one
connection checkpoints while another writes (https://sqlite.org/wal.html#walresetbug), and that is what
nearly every Python links to. WAL with synchronous=FULL: COMMIT is one fdatasync of the log.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import apsw

from .errors import CommitFailed, CommitOutcomeUnknown, Conflict, SurefootError, WorkspaceUnusable
from .records import INSERT_OP, Member, Row, op_row
from .schema import APPLICATION_ID, Migrating, Schema
from .sqlite import check_whole, commit_failed, sqlite_is_safe, unusable
from .wants import Statement

WAL_PAGES_MAX = 2000  # about 8 MiB: past it the log is copied into the database and started over
_WAL_RESERVE_BYTES = 2 << 20  # written once, so that commits overwrite blocks instead of allocating them
_BUSY_MS = 5_000
COMMITTED, BLOCKED, VOID = 1, 4, 9  # the status of a transaction


class Database:
    """One connection that writes and checkpoints. Its owner lets one thread in at a time."""

    def __init__(self, path: str, *, read_only: bool = False) -> None:
        if not sqlite_is_safe(apsw.sqlite_lib_version()):
            raise WorkspaceUnusable(
                "open the database",
                path,
                expected="SQLite 3.51.3 or later",
                found=apsw.sqlite_lib_version(),
                hint="pip install --upgrade apsw",
            )
        self.path, self.library_version = path, apsw.sqlite_lib_version()
        self._log_pages = 0
        self._durable = True
        self.flush_s = 0.0  # what a durable commit costs here, lately
        name, flags = path, apsw.SQLITE_OPEN_READWRITE
        if read_only:
            flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
            # Without a log SQLite would make one, even to read: then there is nothing in it to miss.
            alone = "" if os.path.exists(f"{path}-wal") else "?immutable=1"
            name = f"file:{urllib.parse.quote(path)}{alone}"
        try:
            self._db = apsw.Connection(name, flags=flags | apsw.SQLITE_OPEN_NOFOLLOW)
            self._db.set_busy_timeout(_BUSY_MS)
            self._found = self._versions()
        except apsw.Error as error:
            raise unusable(path, error) from error

    # --- opening ---

    def _versions(self) -> dict[str, int]:
        """The format versions in the file; empty for a new one."""
        tables = {name for (name,) in self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        mark = self._db.execute("PRAGMA application_id").fetchall()[0][0]
        if tables and mark != APPLICATION_ID:
            raise WorkspaceUnusable(
                "open the database", self.path, expected="Surefoot's database", found="another program's"
            )
        if "component" not in tables:
            return {}
        rows = self._db.execute("SELECT name, version FROM component").fetchall()
        return {str(name): int(str(version)) for name, version in rows}

    def refuse_newer(self, schemas: Iterable[Schema]) -> None:
        """Before anything is written.

        Raises:
            WorkspaceUnusable: a newer Surefoot has been here.
        """
        for schema in schemas:
            if (found := self._found.get(schema.component, 0)) > schema.version:
                raise WorkspaceUnusable(
                    "open the workspace",
                    os.path.dirname(self.path),
                    expected=f"{schema.component} format {schema.version} or older",
                    found=f"format {found}, made by a newer version; it was left untouched",
                    hint="pip install --upgrade surefoot",
                )

    def prepare(
        self, schemas: Sequence[Schema], first_rows: Iterable[Statement], migration: Migrating | None = None
    ) -> None:
        """Sets the connection up and brings the tables to this code's version.

        Raises:
            WorkspaceUnusable: the disk is full or read-only, or a newer version has been here.
        """
        self.refuse_newer(schemas)
        try:
            self._prepare(schemas, first_rows, migration)
        except apsw.Error as error:
            raise unusable(self.path, error) from error

    def _prepare(
        self, schemas: Sequence[Schema], first_rows: Iterable[Statement], migration: Migrating | None
    ) -> None:
        self._db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        self._db.execute("PRAGMA journal_mode = WAL").fetchall()
        self._db.execute("PRAGMA wal_autocheckpoint = 0; PRAGMA journal_size_limit = -1;").fetchall()
        self._db.execute("PRAGMA synchronous = FULL; PRAGMA temp_store = MEMORY;").fetchall()
        self._db.set_wal_hook(self._note_log_pages)
        keep = ctypes.c_int(1)  # the log file stays when the last connection closes: its blocks are reused
        self._db.file_control("main", apsw.SQLITE_FCNTL_PERSIST_WAL, ctypes.addressof(keep))
        if not self._found:
            self._create(first_rows, schemas[0])
        behind = {s.component: v for s in schemas if 0 < (v := self._found.get(s.component, 0)) < s.version}
        if behind and migration is not None:
            migration.prepare(self, behind)
        for schema in schemas:
            self._migrate(schema, migration if schema.component in behind else None)
        self._try_a_write()

    def _try_a_write(self) -> None:
        """SQLite quietly falls back to read-only where it cannot open its log for writing: find out now.

        Raises:
            WorkspaceUnusable: every later write would fail.
        """
        try:
            self.write_rows(
                [Statement("UPDATE workspace SET hardened = hardened + 1")], at=0.0, durable=False
            )
        except CommitFailed as error:
            raise WorkspaceUnusable(
                "open the database",
                self.path,
                expected="one that can be written",
                found=error.found,
                hint=error.hint,
            ) from error

    def _create(self, first_rows: Iterable[Statement], storage: Schema) -> None:
        with self._transaction():
            self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            self._db.execute("CREATE TABLE component (name TEXT PRIMARY KEY, version INTEGER NOT NULL)")
            self._step(storage, 0)
            self._run(first_rows, {})
        with self._transaction():
            self._db.execute("CREATE TABLE reserve (filler BLOB)")
            self._db.execute("INSERT INTO reserve VALUES (zeroblob(?))", (_WAL_RESERVE_BYTES,))
        self._db.execute("DROP TABLE reserve")
        self.checkpoint_log()

    def _migrate(self, schema: Schema, migration: Migrating | None) -> None:
        current = self._versions().get(schema.component, 0)
        for number in range(current, schema.version):
            if migration is not None:
                step = {"component": schema.component, "version": number + 1, "of": schema.version}
                migration.tell("migrating", step)
            with self._transaction():
                self._step(schema, number)

    def _step(self, schema: Schema, number: int) -> None:
        self._db.execute(schema.migrations[number])
        self._db.execute("INSERT OR REPLACE INTO component VALUES (?, ?)", (schema.component, number + 1))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        if self._db.in_transaction:
            with contextlib.suppress(apsw.Error):
                self._db.execute("ROLLBACK")

    def close(self) -> None:
        """Without a checkpoint: the log is kept and reused."""
        self._db.close()

    # --- the commit point ---

    def commit(
        self,
        members: Sequence[Member],
        *,
        at: float,
        durable: bool = True,
        waiting: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> list[int | SurefootError]:
        """One barrier for all; for each member its sequence number (0: rows alone), or why it is not in.

        A member that does not fit is rolled back alone. Not `durable`: survives a kill, a power cut may
        forget it. `waiting` is entered for the length of the flush.

        Raises:
            CommitFailed: the log holds none of them and never will.
            CommitOutcomeUnknown: the next open decides. Nothing may use this connection again.
        """
        results: list[int | SurefootError] = []
        try:
            self._be_durable(durable)
            self._db.execute("BEGIN IMMEDIATE")
            batch = self.query("SELECT coalesce(max(seq), 0) + 1 FROM txn")[0][0]
            results += [self._add(member, batch, at) for member in members]
        except apsw.Error as error:
            self._roll_back()
            raise commit_failed(_names(members), error) from error
        except BaseException:
            self._roll_back()
            raise
        if all(isinstance(result, SurefootError) for result in results):
            self._roll_back()
            return results
        try:
            with waiting():
                started = time.monotonic()
                self._db.execute("COMMIT")
            if durable:
                self.flush_s += (time.monotonic() - started - self.flush_s) / 8
        except BaseException as error:
            self._settle(members, error)
            raise commit_failed(_names(members), error) from error
        return results

    def _be_durable(self, durable: bool) -> None:
        if durable != self._durable:
            self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._durable = durable

    def _add(self, member: Member, batch: int, at: float) -> int | SurefootError:
        """One member inside the batch's transaction.

        Raises:
            apsw.Error: the whole batch is rolled back.
        """
        self._db.execute("SAVEPOINT member")
        try:
            seq = self._insert(member, batch, at) if member.txid else 0
            self._run(member.statements, {"seq": seq, "txid": member.txid, "at": at})
        except (Conflict, apsw.Error) as error:
            if not self._db.in_transaction:
                raise  # a full disk or an I/O error has ended all of it
            self._db.execute("ROLLBACK TO member; RELEASE member")
            return error if isinstance(error, Conflict) else commit_failed(member.txid or "rows", error)
        self._db.execute("RELEASE member")
        return seq

    def _insert(self, member: Member, batch: int, at: float) -> int:
        self._db.execute(
            "INSERT INTO txn (txid, batch, status, label, owner, level, actor, at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (member.txid, batch, COMMITTED, member.label, member.owner, member.level, member.actor, at),
        )
        seq = self._db.last_insert_rowid()
        self._db.executemany(
            "INSERT INTO blob VALUES (?, ?, ?) ON CONFLICT (digest) DO UPDATE SET data = excluded.data"
            " WHERE blob.data IS NULL AND excluded.data IS NOT NULL",
            [(digest, size, data) for digest, (size, data) in member.blobs.items()],
        )
        for mount in {op.mount for op in member.ops if op.mount}:
            self._db.execute("INSERT OR IGNORE INTO mount VALUES (?)", (os.fsencode(mount),))
        self._db.executemany(INSERT_OP, [op_row(seq, idx, op) for idx, op in enumerate(member.ops)])
        return seq

    def _run(self, statements: Iterable[Statement], given: Mapping[str, Any]) -> None:
        for statement in statements:
            self._db.execute(statement.sql, {**given, **statement.values})
            changed = self._db.changes()
            if statement.rows is not None and changed != statement.rows:
                raise Conflict(
                    "commit",
                    "rows",
                    expected=f"{statement.rows} row(s) as they were read",
                    found=f"{changed}: somebody else changed them",
                )

    def _settle(self, members: Sequence[Member], cause: BaseException) -> None:
        """A failed COMMIT is not an abort: after a failed flush the record may still be found later.

        A full disk is clean (the commit frame was never written whole). Otherwise a void record on the
        same connection overwrites the same frames; only its success proves that they are gone.
        """
        self._roll_back()
        if isinstance(cause, apsw.FullError):
            return
        self._be_durable(True)
        try:
            with self._transaction():
                self._db.executemany(
                    "INSERT INTO txn (txid, batch, status, label, at) VALUES (?, 0, ?, 'void', 0)",
                    [(member.txid or f"rows.{os.urandom(8).hex()}", VOID) for member in members],
                )
        except BaseException as error:  # noqa: BLE001 - whatever it was, nobody knows what the log holds
            raise CommitOutcomeUnknown(
                "commit",
                _names(members),
                expected="the log on disk",
                found=f"{cause}; then {error}",
                hint="open the workspace again: it finds out whether the transaction happened",
            ) from cause

    def write_rows(self, statements: Sequence[Statement], *, at: float, durable: bool) -> None:
        """Rows without files, alone.

        Raises:
            Conflict, CommitFailed: nothing was changed.
        """
        (result,) = self.commit([Member(statements=statements)], at=at, durable=durable)
        if isinstance(result, SurefootError):
            raise result

    # --- reading ---

    def query(self, sql: str, values: Mapping[str, Any] | Sequence[Any] = ()) -> list[Row]:
        """Rows of a SELECT."""
        try:
            return self._db.execute(sql, values).fetchall()
        except apsw.Error as error:
            raise unusable(self.path, error) from error

    def begin_reading(self) -> None:
        """One snapshot for what follows."""
        self.query("BEGIN")

    def end_reading(self) -> None:
        """Of the snapshot."""
        self._roll_back()

    def fill_scratch(self, seqs: Iterable[int]) -> None:
        """A temporary table of sequence numbers, for questions that compare with many."""
        self.query("CREATE TEMP TABLE IF NOT EXISTS scratch (seq INTEGER PRIMARY KEY)")
        self.query("DELETE FROM temp.scratch")
        for seq in seqs:
            self.query("INSERT INTO temp.scratch VALUES (?)", (seq,))

    def wipe_log(self) -> None:
        """Copies the whole log into the database and cuts it off, so that deleted contents are in neither.

        Raises:
            WorkspaceUnusable: somebody is still reading an older snapshot.
        """
        self._db.execute("PRAGMA secure_delete = ON").fetchall()
        try:
            self._db.execute("VACUUM")
            busy, _, _ = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()[0]
        except apsw.Error as error:
            raise unusable(self.path, error) from error
        if busy:
            raise WorkspaceUnusable(
                "wipe the log", self.path, expected="nobody to be reading", found="another process that is",
                hint="try again in a moment",
            )  # fmt: skip

    def data_version(self) -> int:
        """Changes when another connection has committed (sqlite.org/pragma.html#pragma_data_version)."""
        return int(self.query("PRAGMA data_version")[0][0])

    @property
    def is_made(self) -> bool:
        """Whether the tables existed when it was opened."""
        return bool(self._found)

    # --- the write-ahead log ---

    @property
    def log_is_long(self) -> bool:
        """Whether it is time for `checkpoint_log`."""
        return self._log_pages > WAL_PAGES_MAX

    def _note_log_pages(self, _db: apsw.Connection, _name: str, pages: int) -> int:
        self._log_pages = pages
        return apsw.SQLITE_OK

    def checkpoint_log(self) -> None:
        """Copies the log into the database, so that the next commit starts it over."""
        try:
            self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            self._log_pages = 0
        except apsw.BusyError:
            return  # somebody reads an old snapshot: the next commit tries again
        except apsw.Error as error:
            raise unusable(self.path, error) from error

    def copy_into(self, path: str) -> None:
        """A fresh copy on new blocks, checked whole."""
        self.query("VACUUM INTO ?", (path,))
        check_whole(path, self.path)


def _names(members: Sequence[Member]) -> str:
    return ", ".join(member.txid or "rows" for member in members)
