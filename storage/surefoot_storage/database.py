"""The log: the only module of the storage layer that speaks SQL.

apsw, because it brings its own SQLite: versions 3.7.0 to 3.51.2 can lose committed pages when one
connection checkpoints while another writes (https://sqlite.org/wal.html#walresetbug), and that is what
nearly every Python links to. WAL with synchronous=FULL: COMMIT is one fdatasync of the log.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apsw

from .errors import CommitFailed, CommitOutcomeUnknown, Conflict, WorkspaceUnusable
from .records import Row, op_row, row_op
from .schema import APPLICATION_ID, Schema
from .sqlite import commit_failed, sqlite_is_safe, unusable
from .states import Op
from .transaction import Statement

WAL_PAGES_MAX = 2000  # about 8 MiB: past it the log is copied into the database and started over
_WAL_RESERVE_BYTES = 2 << 20  # written once, so that commits overwrite blocks instead of allocating them
_BUSY_MS = 5_000
_COMMITTED, _BLOCKED, _VOID = 1, 4, 9


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
        self.path = path
        self._log_pages = 0
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

    def prepare(self, schemas: Sequence[Schema], first_rows: Iterable[Statement]) -> None:
        """Sets the connection up and brings the tables to this code's version.

        Raises:
            WorkspaceUnusable: the disk is full or read-only, or a newer version has been here.
        """
        self.refuse_newer(schemas)
        try:
            self._prepare(schemas, first_rows)
        except apsw.Error as error:
            raise unusable(self.path, error) from error

    def _prepare(self, schemas: Sequence[Schema], first_rows: Iterable[Statement]) -> None:
        self._db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        self._db.execute("PRAGMA journal_mode = WAL").fetchall()
        self._db.execute("PRAGMA wal_autocheckpoint = 0; PRAGMA journal_size_limit = -1;").fetchall()
        self._db.execute("PRAGMA synchronous = FULL; PRAGMA temp_store = MEMORY;").fetchall()
        self._db.set_wal_hook(self._note_log_pages)
        keep = ctypes.c_int(1)  # the log file stays when the last connection closes: its blocks are reused
        self._db.file_control("main", apsw.SQLITE_FCNTL_PERSIST_WAL, ctypes.addressof(keep))
        if not self._found:
            self._create(first_rows, schemas[0])
        for schema in schemas:
            self._migrate(schema)
        self._try_a_write()

    def _try_a_write(self) -> None:
        """SQLite quietly falls back to read-only where it cannot open its log for writing: find out now.

        Raises:
            WorkspaceUnusable: every later write would fail.
        """
        try:
            self.write_rows([Statement("UPDATE workspace SET epoch = epoch")], at=0.0, durable=False)
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

    def _migrate(self, schema: Schema) -> None:
        current = self._versions().get(schema.component, 0)
        for number in range(current, schema.version):
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
        txid: str,
        *,
        label: str,
        at: float,
        ops: Sequence[Op],
        blobs: Mapping[bytes, tuple[int, bytes | None]],
        statements: Sequence[Statement],
    ) -> int:
        """One barrier; returns the transaction's sequence number.

        Raises:
            Conflict: a statement changed another number of rows than it expects.
            CommitFailed: the log does not hold it and never will.
            CommitOutcomeUnknown: the next open decides. Nothing may use this connection again.
        """
        try:
            self._db.execute("BEGIN IMMEDIATE")
            seq = self._insert(txid, label, at, ops, blobs)
            self._run(statements, {"seq": seq, "txid": txid, "at": at})
        except apsw.Error as error:
            self._roll_back()
            raise commit_failed(txid, error) from error
        except BaseException:
            self._roll_back()
            raise
        try:
            self._db.execute("COMMIT")
        except BaseException as error:
            self._settle(txid, error)
            raise commit_failed(txid, error) from error
        return seq

    def _insert(
        self,
        txid: str,
        label: str,
        at: float,
        ops: Sequence[Op],
        blobs: Mapping[bytes, tuple[int, bytes | None]],
    ) -> int:
        self._db.execute(
            "INSERT INTO txn (txid, batch, status, label, at)"
            " VALUES (?, (SELECT coalesce(max(seq), 0) + 1 FROM txn), ?, ?, ?)",
            (txid, _COMMITTED, label, at),
        )
        seq = self._db.last_insert_rowid()
        self._db.executemany(
            "INSERT OR IGNORE INTO blob VALUES (?, ?, ?)",
            [(digest, size, data) for digest, (size, data) in blobs.items()],
        )
        marks = ", ".join("?" * 20)
        self._db.executemany(
            f"INSERT INTO file_op VALUES ({marks})",  # noqa: S608 - only constants are put in
            [op_row(seq, idx, op) for idx, op in enumerate(ops)],
        )
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

    def _settle(self, txid: str, cause: BaseException) -> None:
        """A failed COMMIT is not an abort: after a failed flush the record may still be found later.

        A full disk is clean (the commit frame was never written whole). Otherwise a void record on the
        same connection overwrites the same frames; only its success proves that they are gone.
        """
        self._roll_back()
        if isinstance(cause, apsw.FullError):
            return
        try:
            with self._transaction():
                self._db.execute(
                    "INSERT INTO txn (txid, batch, status, label, at) VALUES (?, 0, ?, 'void', 0)",
                    (txid, _VOID),
                )
        except BaseException as error:  # whatever it was: nobody knows what the log holds  # noqa: BLE001 - whatever it was, nobody knows what the log holds
            raise CommitOutcomeUnknown(
                "commit",
                txid,
                expected="the log on disk",
                found=f"{cause}; then {error}",
                hint="open the workspace again: it finds out whether the transaction happened",
            ) from cause

    def write_rows(self, statements: Sequence[Statement], *, at: float, durable: bool) -> None:
        """Rows without files. Not `durable`: survives a kill, may be forgotten by a power cut.

        Raises:
            Conflict, CommitFailed: nothing was changed.
        """
        if not durable:
            self._db.execute("PRAGMA synchronous = NORMAL")
        try:
            with self._transaction():
                self._run(statements, {"at": at})
        except apsw.Error as error:
            raise commit_failed("rows", error) from error
        finally:
            if not durable:
                self._db.execute("PRAGMA synchronous = FULL")

    # --- reading ---

    def query(self, sql: str, values: Mapping[str, Any] | Sequence[Any] = ()) -> list[Row]:
        """Rows of a SELECT."""
        try:
            return self._db.execute(sql, values).fetchall()
        except apsw.Error as error:
            raise unusable(self.path, error) from error

    def unchecked_ops(self) -> list[tuple[int, bool, list[Op]]]:
        """(sequence, blocked, changes) of each transaction whose files are not known to be durable."""
        rows = self.query(
            "SELECT file_op.*, txn.status FROM file_op JOIN txn USING (seq)"
            " WHERE seq > (SELECT checkpointed_seq FROM workspace) AND status <> ? ORDER BY seq, idx",
            (_VOID,),
        )
        found: dict[int, tuple[bool, list[Op]]] = {}
        for row in rows:
            found.setdefault(row[0], (row[-1] == _BLOCKED, []))[1].append(row_op(row))
        return [(seq, blocked, ops) for seq, (blocked, ops) in found.items()]

    def blob(self, digest: bytes) -> bytes | None:
        """Content by sha256; None where the database does not hold it itself."""
        rows = self.query("SELECT data FROM blob WHERE digest = ?", (digest,))
        return rows[0][0] if rows else None

    def epoch(self) -> str:
        """The boot and filesystem that the workspace was last used on."""
        return str(self.query("SELECT epoch FROM workspace")[0][0])

    # --- after the commit ---

    def mark_blocked(self, seq: int, cause: str) -> None:
        """The files of this transaction are not all in place."""
        sql = "UPDATE txn SET status = :blocked, cause = :cause WHERE seq = :seq"
        values = {"blocked": _BLOCKED, "cause": cause, "seq": seq}
        self.write_rows([Statement(sql, values)], at=0.0, durable=False)

    def note_foreign_edit(self, seq: int, path: str, kept_as: str, found: str, at: float) -> None:
        """Somebody else's version of a path, and where it is kept."""
        values = {"seq": seq, "path": os.fsencode(path), "kept_as": kept_as, "found": found}
        sql = (
            "INSERT OR IGNORE INTO foreign_edit (seq, path, kept_as, found, at)"
            " VALUES (:seq, :path, :kept_as, :found, :at)"
        )
        self.write_rows([Statement(sql, values)], at=at, durable=False)

    def mark_checkpointed(self, seq: int, epoch: str) -> None:
        """The files of every transaction up to `seq` are in place and durable."""
        durable = "UPDATE workspace SET checkpointed_seq = max(checkpointed_seq, :upto), epoch = :epoch"
        unblocked = "UPDATE txn SET status = :ok, cause = '' WHERE status = :blocked AND seq <= :upto"
        values = {"upto": seq, "epoch": epoch, "ok": _COMMITTED, "blocked": _BLOCKED}
        self.write_rows([Statement(durable, values), Statement(unblocked, values)], at=0.0, durable=True)

    @property
    def log_is_long(self) -> bool:
        """Whether it is time for `checkpoint_log`."""
        return self._log_pages > WAL_PAGES_MAX

    def _note_log_pages(self, _db: apsw.Connection, _name: str, pages: int) -> int:
        self._log_pages = pages
        return apsw.SQLITE_OK

    def checkpoint_log(self) -> None:
        """Copies the log into the database, so that the next commit starts it over."""
        with contextlib.suppress(apsw.BusyError):
            self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            self._log_pages = 0

    def copy_into(self, path: str) -> None:
        """A fresh copy on new blocks, checked whole."""
        self._db.execute("VACUUM INTO ?", (path,))
        copy = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
        verdict = copy.execute("PRAGMA integrity_check").fetchall()
        copy.close()
        if verdict != [("ok",)]:
            raise WorkspaceUnusable(
                "repair the database", self.path, expected="a sound database", found=str(verdict[:3])
            )
