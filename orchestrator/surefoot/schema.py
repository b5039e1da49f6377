"""The engine's tables, as numbered migrations. A released entry never changes; a change is a new entry."""

from __future__ import annotations

from surefoot_storage import Schema

SCHEMA = Schema(
    "engine",
    (
        """
        CREATE TABLE run (
            id TEXT PRIMARY KEY,
            workflow TEXT NOT NULL,
            input TEXT NOT NULL,
            directory TEXT NOT NULL,
            state TEXT NOT NULL,
            step TEXT,
            position INTEGER NOT NULL,
            failures INTEGER NOT NULL,
            interruptions INTEGER NOT NULL,
            next_at REAL,
            revision INTEGER NOT NULL,
            created_at REAL NOT NULL,
            updated_at REAL NOT NULL,
            last_step TEXT,
            failure TEXT,
            source TEXT NOT NULL,
            status TEXT NOT NULL
        ) WITHOUT ROWID;
        CREATE INDEX run_due ON run (state) WHERE state IN ('running', 'waiting');
        -- Every try at a step; written before the body runs, without a barrier.
        CREATE TABLE attempt (
            run_id TEXT NOT NULL,
            position INTEGER NOT NULL,
            number INTEGER NOT NULL,
            step TEXT NOT NULL,
            started_at REAL NOT NULL,
            ended_at REAL,
            outcome TEXT,                 -- unrecorded: it failed, and the run does not say so yet
            failure TEXT,
            PRIMARY KEY (run_id, position, number)
        ) WITHOUT ROWID;
        CREATE INDEX attempt_open ON attempt (run_id) WHERE ended_at IS NULL;
        -- Append-only: every status that a run ever had.
        CREATE TABLE audit (
            id INTEGER PRIMARY KEY,
            run_id TEXT NOT NULL,
            revision INTEGER NOT NULL,
            at REAL NOT NULL,
            event TEXT NOT NULL,
            step TEXT,
            txid TEXT,
            seq INTEGER,
            failure TEXT,
            status TEXT NOT NULL
        );
        CREATE INDEX audit_run ON audit (run_id, id);
        CREATE TABLE outbox (
            id INTEGER PRIMARY KEY,
            key TEXT NOT NULL UNIQUE,
            run_id TEXT NOT NULL,
            step TEXT NOT NULL,
            effect TEXT NOT NULL,
            payload TEXT NOT NULL,
            state TEXT NOT NULL,          -- pending, delivered, dead
            attempts INTEGER NOT NULL,
            next_at REAL NOT NULL,
            last_error TEXT NOT NULL DEFAULT ''
        );
        CREATE INDEX outbox_pending ON outbox (run_id, id) WHERE state = 'pending';
        """,
        # 2: several processes: who moves a run on, who delivers a message
        """
        ALTER TABLE run ADD COLUMN owner TEXT NOT NULL DEFAULT '';
        ALTER TABLE outbox ADD COLUMN owner TEXT NOT NULL DEFAULT '';
        """,
        # 3: undo; a message of an undone transition that was not sent yet is `withdrawn`
        """
        ALTER TABLE audit ADD COLUMN undoes TEXT NOT NULL DEFAULT '';  -- ids, separated by blanks
        """,
        # 4: a preview is of no use any more once its run has moved
        """
        CREATE TRIGGER run_moved AFTER UPDATE OF revision ON run WHEN NEW.revision <> OLD.revision
        BEGIN
            DELETE FROM sealed WHERE owner = NEW.id;
        END;
        """,
    ),
)
