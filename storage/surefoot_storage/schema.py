"""The log's tables, as numbered migrations. A released entry never changes; a change is a new entry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

APPLICATION_ID = 0x53464F54  # "SFOT", shown by file(1)


@dataclass(frozen=True, slots=True)
class Schema:
    """One component's tables: migration N brings version N to N + 1."""

    component: str
    migrations: tuple[str, ...]

    @property
    def version(self) -> int:
        """What this code reads and writes."""
        return len(self.migrations)


class Migrating(Protocol):
    """Who is asked before an older store is changed, and told of each step."""

    def prepare(self, database: Any, versions: Mapping[str, int]) -> None:
        """The components that are older, with the versions they have."""

    def tell(self, event: str, facts: dict[str, Any]) -> None:
        """How far it is."""


STORAGE = Schema(
    "storage",
    (
        """
        CREATE TABLE workspace (
            id INTEGER PRIMARY KEY CHECK (id = 1),
            uuid TEXT NOT NULL,
            created_at REAL NOT NULL,
            epoch TEXT NOT NULL,           -- boot and filesystem: equal means that the page cache survived
            checkpointed_seq INTEGER NOT NULL DEFAULT 0  -- files of transactions up to here are durable
        );
        -- One row for each commit. status: 1 committed, 4 blocked (files not all in place), 9 void.
        CREATE TABLE txn (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            txid TEXT NOT NULL UNIQUE,
            batch INTEGER NOT NULL,        -- transactions that shared one barrier
            status INTEGER NOT NULL,
            label TEXT NOT NULL,
            at REAL NOT NULL,              -- seconds since 1970; for people, never for decisions
            cause TEXT NOT NULL DEFAULT ''
        );
        CREATE TABLE file_op (
            seq INTEGER NOT NULL REFERENCES txn (seq),
            idx INTEGER NOT NULL,
            path BLOB NOT NULL,
            old_kind TEXT NOT NULL, old_mode INTEGER, old_size INTEGER, old_digest BLOB,
            old_ino INTEGER, old_mtime_ns INTEGER,
            new_kind TEXT NOT NULL, new_mode INTEGER, new_size INTEGER, new_digest BLOB,
            stage TEXT NOT NULL, stage_ino INTEGER NOT NULL, stage_mtime_ns INTEGER NOT NULL,
            kept INTEGER NOT NULL,
            uid INTEGER NOT NULL, gid INTEGER NOT NULL, xattrs TEXT NOT NULL,
            PRIMARY KEY (seq, idx)
        ) WITHOUT ROWID;
        CREATE TABLE blob (
            digest BLOB PRIMARY KEY,       -- sha256
            size INTEGER NOT NULL,
            data BLOB                      -- NULL: the content is a file in blobs/
        );
        -- What somebody else had written where a commit put its own version: kept, never dropped.
        CREATE TABLE foreign_edit (
            id INTEGER PRIMARY KEY,
            seq INTEGER NOT NULL,
            path BLOB NOT NULL,
            kept_as TEXT NOT NULL,         -- below .surefoot/conflicts; '' where the path itself kept it
            found TEXT NOT NULL,
            at REAL NOT NULL,
            UNIQUE (seq, path, kept_as)
        );
        """,
        # 2: several processes, kinds of transactions, and what people decide about foreign edits
        """
        ALTER TABLE workspace ADD COLUMN hardened INTEGER NOT NULL DEFAULT 0;  -- grows with each flush
        ALTER TABLE txn ADD COLUMN owner TEXT NOT NULL DEFAULT '';  -- whose history it is: a run's id
        ALTER TABLE txn ADD COLUMN pruned INTEGER NOT NULL DEFAULT 0;  -- 1: its old contents are gone
        ALTER TABLE txn ADD COLUMN level TEXT NOT NULL DEFAULT 'full';  -- durability that was asked for
        CREATE INDEX txn_blocked ON txn (seq) WHERE status = 4;
        ALTER TABLE file_op ADD COLUMN mount BLOB NOT NULL DEFAULT x'';    -- where its filesystem begins
        ALTER TABLE file_op ADD COLUMN within BLOB NOT NULL DEFAULT x'';   -- the directory swapped in whole
        ALTER TABLE file_op ADD COLUMN in_place INTEGER NOT NULL DEFAULT 0;
        -- Other filesystems below the workspace, each with a stage of its own.
        CREATE TABLE mount (path BLOB PRIMARY KEY) WITHOUT ROWID;
        ALTER TABLE foreign_edit ADD COLUMN kept TEXT NOT NULL DEFAULT 'theirs';  -- whose version kept_as is
        ALTER TABLE foreign_edit ADD COLUMN resolved_at REAL;
        ALTER TABLE foreign_edit ADD COLUMN resolution TEXT NOT NULL DEFAULT '';
        """,
        # 3: history tells who
        """
        ALTER TABLE txn ADD COLUMN actor TEXT NOT NULL DEFAULT '';  -- who asked for it, user@host by default
        """,
        # 4: prepared transactions that can be committed later, exactly as they were shown
        """
        CREATE TABLE sealed (
            digest TEXT PRIMARY KEY,       -- sha256 of `document`, which names the contents by theirs
            owner TEXT NOT NULL,
            made_at REAL NOT NULL,
            actor TEXT NOT NULL,
            document TEXT NOT NULL,
            contents BLOB NOT NULL         -- the new contents, one after the other
        );
        CREATE INDEX sealed_owner ON sealed (owner);
        """,
    ),
)
