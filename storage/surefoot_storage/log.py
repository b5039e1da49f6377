"""The log's own tables: what was committed, what is in place, what is kept."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .database import BLOCKED, COMMITTED, VOID, Database
from .errors import WorkspaceUnusable
from .records import OP_COLUMNS, Head, Identity, Row, row_op
from .schema import Schema
from .states import Op
from .wants import Statement


class Log(Database):
    """Questions to the storage layer's tables, and notes into them."""

    def refuse_older(self, schemas: Iterable[Schema]) -> None:
        """Where nothing may be migrated.

        Raises:
            WorkspaceUnusable: an older Surefoot made these tables.
        """
        for schema in schemas:
            if (found := self._found.get(schema.component, 0)) < schema.version:
                raise WorkspaceUnusable(
                    "look into the workspace",
                    os.path.dirname(self.path),
                    expected=f"{schema.component} format {schema.version}",
                    found=f"format {found}, made by an older version",
                    hint="surefoot recover brings it up to date",
                )

    def become(self, uuid: str, epoch: str) -> None:
        """A new identity; what was not checkpointed is not carried out any more: files stay as they are."""
        sql = (
            "UPDATE workspace SET uuid = :uuid, epoch = :epoch,"
            " checkpointed_seq = (SELECT coalesce(max(seq), 0) FROM txn)"
        )
        calm = Statement("UPDATE txn SET status = 1, cause = '' WHERE status = 4")
        self.write_rows([Statement(sql, {"uuid": uuid, "epoch": epoch}), calm], at=0.0, durable=True)

    # --- what was committed ---

    def query_with_head(
        self, sql: str, values: Mapping[str, Any] | Sequence[Any] = ()
    ) -> tuple[list[Row], int]:
        """Rows, and the last sequence number of the same snapshot."""
        self.begin_reading()
        try:
            return self.query(sql, values), self.head().last_seq
        finally:
            self.end_reading()

    def identity(self) -> Identity:
        """Which database this is."""
        row = self.query("SELECT uuid, (SELECT coalesce(max(seq), 0) FROM txn) FROM workspace")[0]
        return Identity(*row)

    def head(self) -> Head:
        """How far the log goes."""
        row = self.query("SELECT (SELECT coalesce(max(seq), 0) FROM txn), checkpointed_seq FROM workspace")[0]
        return Head(*row)

    def last_batch(self) -> list[tuple[int, list[Op]]]:
        """The transactions that shared the last barrier: the only ones that a kill can leave unapplied."""
        return self._ops("seq >= (SELECT batch FROM txn WHERE status <> 9 ORDER BY seq DESC LIMIT 1)", ())

    def blocked_ops(self) -> list[tuple[int, list[Op]]]:
        """Transactions whose files are not all in place."""
        return self._ops("seq IN (SELECT seq FROM txn WHERE status = 4)", ())

    def unchecked_ops(self, upto: int | None = None) -> list[tuple[int, list[Op]]]:
        """Transactions whose files are not known to be durable."""
        return self._ops(
            "seq > (SELECT checkpointed_seq FROM workspace) AND (:upto IS NULL OR seq <= :upto)",
            {"upto": upto},
        )

    def blocked_rows(self) -> list[Row]:
        """(sequence, id, label, cause) of the same."""
        return self.query(f"SELECT seq, txid, label, cause FROM txn WHERE status = {BLOCKED} ORDER BY seq")  # noqa: S608 - a constant

    def count_ops(self, after: int) -> tuple[int, int]:
        """(paths, bytes of new contents) of the transactions after a sequence number."""
        row = self.query("SELECT count(*), coalesce(sum(new_size), 0) FROM file_op WHERE seq > ?", (after,))[
            0
        ]
        return row[0], row[1]

    def ops_of(self, seq: int) -> list[Op]:
        """The changes of one transaction."""
        found = self._ops("seq = ?", (seq,))
        return found[0][1] if found else []

    def mounts(self) -> list[str]:
        """Where other filesystems below the workspace began when something was committed there."""
        return [os.fsdecode(path) for (path,) in self.query("SELECT path FROM mount")]

    def op_of(self, txid: str, idx: int) -> tuple[int, Op] | None:
        """(sequence, change) that a staged file belongs to; None where its transaction never happened."""
        rows = self.query(
            f"SELECT {OP_COLUMNS} FROM file_op JOIN txn USING (seq)"  # noqa: S608 - only constants are put in
            " WHERE txid = ? AND idx = ? AND status <> ?",
            (txid, idx, VOID),
        )
        return (rows[0][0], row_op(rows[0])) if rows else None

    # --- history ---

    def transactions(self, condition: str, values: Mapping[str, Any]) -> list[Row]:
        """(sequence, id, label, owner, who, when, old contents let go) of transactions, oldest first."""
        return self.query(
            "SELECT seq, txid, label, owner, actor, at, pruned FROM txn"  # noqa: S608 - the callers' constants
            f" WHERE status <> {VOID} AND {condition} ORDER BY seq",
            values,
        )

    def changes(self, seqs: Sequence[int]) -> list[tuple[int, list[Op]]]:
        """The changes of some transactions."""
        return self._ops("seq IN (SELECT value FROM json_each(?))", (json.dumps(list(seqs)),))

    def version_at(self, path: str, seq: int) -> Op | None:
        """The last change of a path up to a transaction, None where there was none."""
        found = self._ops(
            "path = ?1 AND seq = (SELECT max(seq) FROM file_op WHERE path = ?1 AND seq <= ?2)",
            (os.fsencode(path), seq),
        )
        return found[-1][1][-1] if found else None

    def damage(self) -> list[str]:
        """What SQLite finds wrong with the database; nothing where it is sound."""
        return [text for (text,) in self.query("PRAGMA quick_check(10)") if text != "ok"]

    def newest_changes(self) -> list[tuple[int, list[Op]]]:
        """The last change of every path that was ever changed."""
        return self._ops("(path, seq) IN (SELECT path, max(seq) FROM file_op GROUP BY path)", ())

    def _ops(self, condition: str, values: Mapping[str, Any] | Sequence[Any]) -> list[tuple[int, list[Op]]]:
        rows = self.query(
            f"SELECT {OP_COLUMNS} FROM file_op WHERE {condition} ORDER BY seq, idx",  # noqa: S608 - only constants are put in
            values,
        )
        found: dict[int, list[Op]] = {}
        for row in rows:
            found.setdefault(row[0], []).append(row_op(row))
        return list(found.items())

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
        values = {"blocked": BLOCKED, "cause": cause, "seq": seq}
        self.write_rows([Statement(sql, values)], at=0.0, durable=False)

    def mark_unblocked(self, seq: int) -> None:
        """The files of this transaction are in place after all."""
        sql = "UPDATE txn SET status = :ok, cause = '' WHERE seq = :seq AND status = :blocked"
        values = {"ok": COMMITTED, "blocked": BLOCKED, "seq": seq}
        self.write_rows([Statement(sql, values)], at=0.0, durable=False)

    def note_foreign_edit(self, seq: int, path: str, kept_as: str, found: str, kept: str, at: float) -> None:
        """Somebody else's version of a path; `kept` says whose lies in `kept_as`, the other is in place."""
        values = {"seq": seq, "path": os.fsencode(path), "kept_as": kept_as, "found": found, "kept": kept}
        sql = (
            "INSERT OR IGNORE INTO foreign_edit (seq, path, kept_as, found, kept, at)"
            " VALUES (:seq, :path, :kept_as, :found, :kept, :at)"
        )
        self.write_rows([Statement(sql, values)], at=at, durable=False)

    def is_superseded(self, seq: int, path: str) -> bool:
        """Whether it was decided that somebody else's version of this path stays."""
        return bool(
            self.query(
                "SELECT 1 FROM foreign_edit WHERE seq = ? AND path = ? AND resolution = 'theirs'",
                (seq, os.fsencode(path)),
            )
        )

    def mark_checkpointed(self, seq: int, epoch: str) -> None:
        """The files of every transaction up to `seq` are in place and durable."""
        durable = "UPDATE workspace SET checkpointed_seq = max(checkpointed_seq, :upto), epoch = :epoch"
        unblocked = "UPDATE txn SET status = :ok, cause = '' WHERE status = :blocked AND seq <= :upto"
        values = {"upto": seq, "epoch": epoch, "ok": COMMITTED, "blocked": BLOCKED}
        self.write_rows([Statement(durable, values), Statement(unblocked, values)], at=0.0, durable=True)

    def harden(self) -> None:
        """Flushes everything that was committed without a barrier, by one commit that has one.

        It must change something: SQLite writes, and flushes, nothing where a row stays the same.
        """
        self.write_rows([Statement("UPDATE workspace SET hardened = hardened + 1")], at=0.0, durable=True)

    # --- letting old versions go ---

    def prunable(self, *, before: float, each_max: int, bytes_max: int) -> list[int]:
        """Transactions whose old versions are kept for longer, or for more, than asked; oldest first."""
        old = self.query(
            "SELECT seq FROM (SELECT seq, at, row_number() OVER (PARTITION BY owner ORDER BY seq DESC) AS nth"
            " FROM txn WHERE pruned = 0 AND status = ?"
            " AND seq <= (SELECT checkpointed_seq FROM workspace)) WHERE at < ? OR nth > ? ORDER BY seq",
            (COMMITTED, before, each_max),
        )
        chosen = [seq for (seq,) in old]
        total = self.query("SELECT coalesce(sum(size), 0) FROM blob")[0][0]
        if total > bytes_max:
            chosen = sorted({*chosen, *self._oldest(total - bytes_max)})
        return chosen

    def _oldest(self, excess_bytes: int) -> list[int]:
        """The oldest transactions whose old versions together are this large."""
        rows = self.query(
            "SELECT seq, coalesce(sum(old_size), 0) FROM file_op JOIN txn USING (seq) WHERE pruned = 0"
            " AND seq <= (SELECT checkpointed_seq FROM workspace) GROUP BY seq ORDER BY seq"
        )
        chosen = []
        for seq, size in rows:
            if excess_bytes <= 0:
                break
            chosen.append(seq)
            excess_bytes -= size
        return chosen

    def unneeded_blobs(self, seqs: Sequence[int]) -> list[tuple[bytes, int, bool]]:
        """(digest, bytes, in a file of its own) of contents that nothing needs once these are pruned."""
        self.fill_scratch(seqs)
        return [
            (digest, size, bool(in_file))
            for digest, size, in_file in self.query(
                "SELECT digest, size, data IS NULL FROM blob WHERE digest NOT IN ("
                " SELECT digest FROM (SELECT seq, old_digest AS digest FROM file_op"
                " UNION ALL SELECT seq, new_digest FROM file_op) JOIN txn USING (seq)"
                " WHERE digest IS NOT NULL AND pruned = 0 AND seq NOT IN (SELECT seq FROM temp.scratch))"
            )
        ]

    def prune(self, seqs: Sequence[int], digests: Iterable[bytes], *, upto: int) -> None:
        """Their old versions are gone, but for what came after `upto`; the lines of history stay."""
        gone = [Statement("UPDATE txn SET pruned = 1 WHERE seq = :s", {"s": seq}) for seq in seqs]
        still = "SELECT 1 FROM file_op WHERE seq > :upto AND (old_digest = :d OR new_digest = :d)"
        gone += [
            Statement(
                f"DELETE FROM blob WHERE digest = :d AND NOT EXISTS ({still})",  # noqa: S608 - constants
                {"d": digest, "upto": upto},
            )
            for digest in digests
        ]
        self.write_rows(gone, at=0.0, durable=True)

    def holds(self, digest: bytes) -> bool:
        """Whether a content is kept, here or in a file of its own."""
        return bool(self.query("SELECT 1 FROM blob WHERE digest = ?", (digest,)))

    def blob_files(self) -> set[bytes]:
        """Contents that are files of their own."""
        return {digest for (digest,) in self.query("SELECT digest FROM blob WHERE data IS NULL")}

    def versions_of(self, path: str) -> tuple[set[bytes], set[str]]:
        """(digests of every version of a path, other paths that had one of them)."""
        rows = self.query("SELECT old_digest, new_digest FROM file_op WHERE path = ?", (os.fsencode(path),))
        digests = {digest for row in rows for digest in row if digest is not None}
        others: set[str] = set()
        for digest in digests:
            others |= {
                os.fsdecode(other)
                for (other,) in self.query(
                    "SELECT DISTINCT path FROM file_op WHERE old_digest = ?1 OR new_digest = ?1", (digest,)
                )
            }
        return digests, others - {path}

    def forget(self, path: str, digests: Iterable[bytes]) -> None:
        """No content of the path is kept any more; that it was changed stays on record."""
        statements = [Statement("DELETE FROM blob WHERE digest = :d", {"d": digest}) for digest in digests]
        statements.append(Statement("DELETE FROM sealed"))  # previews can be made again
        statements.append(
            Statement(
                "UPDATE txn SET pruned = 1 WHERE seq IN (SELECT seq FROM file_op WHERE path = :path)",
                {"path": os.fsencode(path)},
            )
        )
        self.write_rows(statements, at=0.0, durable=True)

    # --- foreign edits ---

    def foreign_edits(self, *, unresolved_only: bool) -> list[Row]:
        """(id, seq, path, kept as, whose it is, what was found, at, resolution)."""
        return self.query(
            "SELECT id, seq, path, kept_as, kept, found, at, resolution FROM foreign_edit"
            " WHERE resolution = '' OR NOT ? ORDER BY id",
            (unresolved_only,),
        )

    def resolve_foreign(self, edit: int, resolution: str) -> Statement:
        """The note that somebody has decided."""
        return Statement(
            "UPDATE foreign_edit SET resolution = :resolution, resolved_at = :at"
            " WHERE id = :id AND resolution = ''",
            {"id": edit, "resolution": resolution},
            1,
        )
