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
        # 5: branches, waits, queues. A run is a set of open visits; what is in `run` sums them up.
        """
        ALTER TABLE run ADD COLUMN epoch INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE run ADD COLUMN visits INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE run ADD COLUMN due_at REAL;
        ALTER TABLE run ADD COLUMN paused INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE run ADD COLUMN laps TEXT NOT NULL DEFAULT '{}';
        ALTER TABLE run ADD COLUMN version TEXT NOT NULL DEFAULT '';
        ALTER TABLE run ADD COLUMN queue TEXT NOT NULL DEFAULT '';
        ALTER TABLE run ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE run ADD COLUMN lane TEXT;
        ALTER TABLE run ADD COLUMN dedup TEXT;
        ALTER TABLE run ADD COLUMN deadline_at REAL;
        ALTER TABLE run ADD COLUMN parent TEXT;
        ALTER TABLE run ADD COLUMN parent_visit INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE run ADD COLUMN ordinal INTEGER NOT NULL DEFAULT 0;  -- in the order of their starts
        CREATE TABLE visit (
            run_id TEXT NOT NULL,
            number INTEGER NOT NULL,
            step TEXT NOT NULL,
            state TEXT NOT NULL,          -- due, parked, joining, error: as it was last
            due_at REAL,
            failures INTEGER NOT NULL,
            interruptions INTEGER NOT NULL,
            failure TEXT,
            wait TEXT,
            topic TEXT,
            payload TEXT,
            item TEXT,
            idx INTEGER,
            grp INTEGER,
            deadline_at REAL,
            joins INTEGER NOT NULL,
            opened INTEGER NOT NULL,      -- the run's revision that brought it
            closed INTEGER,               -- and the one that ended it: so that undo knows what was open when
            outcome TEXT,
            PRIMARY KEY (run_id, number)
        ) WITHOUT ROWID;
        CREATE INDEX visit_open ON visit (run_id, number) WHERE closed IS NULL;
        INSERT INTO visit SELECT id, position + 1, step, CASE state WHEN 'error' THEN 'error' ELSE 'due' END,
            CASE state WHEN 'error' THEN NULL WHEN 'waiting' THEN next_at ELSE 0 END, failures, interruptions,
            failure, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0, revision, NULL, NULL
            FROM run WHERE step IS NOT NULL AND state NOT IN ('completed', 'cancelled');
        UPDATE run SET visits = position + (state NOT IN ('completed', 'cancelled')),
            paused = state = 'paused',
            due_at = CASE state WHEN 'running' THEN 0 WHEN 'waiting' THEN next_at END;
        UPDATE run SET ordinal = o.n FROM
            (SELECT id, row_number() OVER (ORDER BY created_at, id) AS n FROM run) AS o WHERE o.id = run.id;
        CREATE UNIQUE INDEX run_ordinal ON run (ordinal);
        DROP INDEX run_due;
        CREATE INDEX run_due ON run (priority, due_at, ordinal) WHERE due_at IS NOT NULL;
        CREATE INDEX run_owned ON run (owner) WHERE owner <> '';
        CREATE INDEX run_parent ON run (parent, parent_visit) WHERE parent IS NOT NULL;
        CREATE INDEX run_lane ON run (queue, lane, state, ordinal) WHERE lane IS NOT NULL;
        CREATE UNIQUE INDEX run_dedup ON run (queue, dedup)
            WHERE dedup IS NOT NULL AND state NOT IN ('completed', 'cancelled');
        CREATE INDEX run_directory ON run (directory);  -- not by state: each commit sets it
        CREATE INDEX run_state ON run (state, updated_at DESC, id);
        ALTER TABLE attempt RENAME COLUMN position TO visit;
        CREATE INDEX attempt_unrecorded ON attempt (run_id) WHERE outcome = 'unrecorded';
        ALTER TABLE audit ADD COLUMN visit INTEGER;
        ALTER TABLE audit ADD COLUMN outcome TEXT;
        ALTER TABLE audit ADD COLUMN notes TEXT;  -- JSON: what guards have done
        -- What was sent to runs; it stays as history.
        CREATE TABLE message (
            id INTEGER PRIMARY KEY,
            run_id TEXT NOT NULL,
            topic TEXT NOT NULL,
            key TEXT,                     -- sent twice with one key, it is one message
            payload TEXT NOT NULL,
            at REAL NOT NULL,
            sender TEXT NOT NULL,
            visit INTEGER,                -- that received it
            refused TEXT                  -- why its payload was not taken
        );
        CREATE INDEX message_waiting ON message (run_id, topic, id) WHERE visit IS NULL AND refused IS NULL;
        CREATE UNIQUE INDEX message_key ON message (run_id, topic, key) WHERE key IS NOT NULL;
        CREATE TABLE queue (
            name TEXT PRIMARY KEY,
            paused INTEGER NOT NULL,
            reason TEXT NOT NULL,
            at REAL NOT NULL
        ) WITHOUT ROWID;
        -- When runs were taken from queues that have a rate; old ones are removed by the next.
        CREATE TABLE pace (
            queue TEXT NOT NULL,
            at REAL NOT NULL
        );
        CREATE INDEX pace_at ON pace (queue, at);
        CREATE TABLE schedule (
            name TEXT PRIMARY KEY,
            workflow TEXT NOT NULL,
            cron TEXT NOT NULL,
            zone TEXT NOT NULL,
            last_slot REAL NOT NULL,      -- everything up to it is dealt with
            paused INTEGER NOT NULL
        ) WITHOUT ROWID;
        -- A number that living workers count up: one that stands still is frozen.
        CREATE TABLE worker (
            id TEXT PRIMARY KEY,
            beat INTEGER NOT NULL
        ) WITHOUT ROWID;
        """,
        # 6: figures that are added up
        """
        CREATE TABLE meter (
            subject TEXT NOT NULL,
            name TEXT NOT NULL,
            count INTEGER NOT NULL,
            total REAL NOT NULL,
            most REAL NOT NULL,
            PRIMARY KEY (subject, name)
        ) WITHOUT ROWID;
        -- What people are asked; `consumed` once its outcome has moved the run on.
        CREATE TABLE approval (
            id TEXT NOT NULL UNIQUE,
            run_id TEXT NOT NULL,
            visit INTEGER NOT NULL,       -- the parked one
            step TEXT NOT NULL,
            ask TEXT NOT NULL,            -- JSON: the question, of what, whom, how long
            digest TEXT NOT NULL,         -- of what is approved
            asked_at REAL NOT NULL,
            expires_at REAL NOT NULL,
            state TEXT NOT NULL,
            ended_at REAL,
            consumed INTEGER NOT NULL DEFAULT 0,
            problem TEXT                  -- of a damaged one
        );
        CREATE INDEX approval_visit ON approval (run_id, visit);
        CREATE INDEX approval_open ON approval (asked_at) WHERE state = 'open';
        CREATE TABLE approval_seat (
            approval_id TEXT NOT NULL,
            person TEXT NOT NULL,         -- '': whoever has the token
            state TEXT NOT NULL,          -- open, voted, delegated
            token_hash TEXT NOT NULL UNIQUE,
            since REAL NOT NULL,
            via TEXT NOT NULL,
            UNIQUE (approval_id, person)
        );
        CREATE TABLE approval_event (
            id INTEGER PRIMARY KEY,
            approval_id TEXT NOT NULL,
            at REAL NOT NULL,
            event TEXT NOT NULL,
            person TEXT NOT NULL,
            by TEXT NOT NULL,
            comment TEXT NOT NULL
        );
        -- Every revision of every configuration.
        CREATE TABLE config (
            name TEXT NOT NULL,
            revision INTEGER NOT NULL,
            document TEXT NOT NULL,
            at REAL NOT NULL,
            by TEXT NOT NULL,
            PRIMARY KEY (name, revision)
        ) WITHOUT ROWID;
        -- The last answer of each source; never deleted by time.
        CREATE TABLE cached (
            cache TEXT NOT NULL,
            key TEXT NOT NULL,
            data TEXT NOT NULL,
            at REAL NOT NULL,
            PRIMARY KEY (cache, key)
        ) WITHOUT ROWID;
        -- Written behind; `session` and `number` make replaying a dump idempotent.
        CREATE TABLE record (
            session TEXT NOT NULL,
            number INTEGER NOT NULL,
            kind TEXT NOT NULL,
            run_id TEXT NOT NULL,
            at REAL NOT NULL,
            data TEXT NOT NULL,
            PRIMARY KEY (session, number)
        ) WITHOUT ROWID;
        CREATE INDEX record_at ON record (at);
        CREATE TABLE record_session (
            id TEXT PRIMARY KEY,
            worker TEXT NOT NULL,
            started_at REAL NOT NULL,
            ended_at REAL,
            how TEXT,                     -- clean, unclean
            counts TEXT NOT NULL          -- JSON
        ) WITHOUT ROWID;
        -- Who is told of every change of status: best effort, by messages of their own.
        CREATE TABLE status_view (
            workflow TEXT NOT NULL,
            name TEXT NOT NULL,
            PRIMARY KEY (workflow, name)
        ) WITHOUT ROWID;
        CREATE TRIGGER status_changed AFTER INSERT ON audit
        BEGIN
            INSERT INTO outbox (key, run_id, step, effect, payload, state, attempts, next_at)
                SELECT 'view/' || v.name || '/' || NEW.run_id || '/' || NEW.revision, NEW.run_id,
                    coalesce(NEW.step, ''), '@view/' || v.name,
                    json_object('revision', NEW.revision, 'event', NEW.event, 'status', json(NEW.status)),
                    'pending', 0, 0
                FROM status_view AS v JOIN run ON run.id = NEW.run_id AND run.workflow = v.workflow
                WHERE true ON CONFLICT DO NOTHING;
        END;
        CREATE INDEX audit_at ON audit (at);
        CREATE INDEX attempt_started ON attempt (started_at);
        CREATE INDEX approval_history ON approval_event (approval_id, id);
        -- Its run has gone another way: cancelled, skipped, undone; or its deadline has passed.
        CREATE TRIGGER approval_left AFTER UPDATE OF closed, state ON visit
            WHEN NEW.closed IS NOT NULL OR NEW.state = 'error'
        BEGIN
            UPDATE approval SET state = 'withdrawn',
                ended_at = (SELECT updated_at FROM run WHERE id = NEW.run_id)
                WHERE run_id = NEW.run_id AND visit = NEW.number AND state = 'open';
        END;
        """,
        # 7: agents, one row for each attempt; what they have done lies in `copies/`
        """
        CREATE TABLE agent (
            id TEXT PRIMARY KEY,
            run_id TEXT NOT NULL,         -- '': of nobody's run
            visit INTEGER NOT NULL,       -- the one that waits for it
            step TEXT NOT NULL,
            attempt INTEGER NOT NULL,
            kind TEXT NOT NULL,
            directory TEXT NOT NULL,      -- that is copied
            spec TEXT NOT NULL,           -- JSON: the command, its limits, the rules of its copy
            reads_digest TEXT NOT NULL,   -- of the files that it is declared to read
            state TEXT NOT NULL,          -- wanted, running, sealing, verifying, over
            next_at REAL NOT NULL,
            owner TEXT NOT NULL DEFAULT '',
            epoch INTEGER NOT NULL DEFAULT 0,
            errors INTEGER NOT NULL DEFAULT 0,  -- probes that failed, one after the other
            stop TEXT NOT NULL DEFAULT '',      -- why it shall end
            outcome TEXT NOT NULL DEFAULT '',
            why TEXT NOT NULL DEFAULT '',
            result TEXT,                  -- JSON
            evidence TEXT NOT NULL DEFAULT '{}',
            digest TEXT NOT NULL DEFAULT '',    -- of its sealed changes
            taken TEXT NOT NULL DEFAULT '',     -- the transaction that has committed them, or 'discarded'
            created_at REAL NOT NULL,
            started_at REAL,
            ended_at REAL
        ) WITHOUT ROWID;
        CREATE INDEX agent_visit ON agent (run_id, visit, attempt);
        CREATE INDEX agent_open ON agent (kind, next_at) WHERE state <> 'over';
        CREATE INDEX agent_created ON agent (created_at);
        -- Its run has gone another way: whoever watches the agent stops it.
        CREATE TRIGGER agent_left AFTER UPDATE OF closed, state ON visit
            WHEN NEW.closed IS NOT NULL OR NEW.state = 'error'
        BEGIN
            UPDATE agent SET stop = 'its run has gone another way'
                WHERE run_id = NEW.run_id AND visit = NEW.number AND state <> 'over' AND stop = '';
        END;
        """,
        # 8: who may use the doors that are open to other programs, and whom they tell
        """
        CREATE TABLE token (
            id TEXT PRIMARY KEY,
            name TEXT NOT NULL,
            hash TEXT NOT NULL UNIQUE,    -- the token itself is kept nowhere
            scopes TEXT NOT NULL,         -- separated by blanks
            run_id TEXT NOT NULL,         -- '': of every run
            created_at REAL NOT NULL,
            expires_at REAL,
            revoked_at REAL
        ) WITHOUT ROWID;
        -- What a request with a key was answered; `status` is NULL while it is being worked on.
        CREATE TABLE request (
            caller TEXT NOT NULL,
            key TEXT NOT NULL,
            fingerprint TEXT NOT NULL,    -- of the request: the key of another one is refused
            at REAL NOT NULL,
            status INTEGER,
            answer TEXT,
            PRIMARY KEY (caller, key)
        ) WITHOUT ROWID;
        CREATE INDEX request_at ON request (at);
        CREATE TABLE webhook (
            id TEXT PRIMARY KEY,
            url TEXT NOT NULL,
            events TEXT NOT NULL,         -- separated by blanks; '': every one
            workflow TEXT NOT NULL,       -- '': of every workflow
            created_at REAL NOT NULL
        ) WITHOUT ROWID;
        CREATE TRIGGER webhook_told AFTER INSERT ON audit
        BEGIN
            INSERT INTO outbox (key, run_id, step, effect, payload, state, attempts, next_at)
                SELECT 'hook/' || w.id || '/' || NEW.run_id || '/' || NEW.revision, NEW.run_id,
                    coalesce(NEW.step, ''), '@hook/' || w.id,
                    json_object('revision', NEW.revision, 'event', NEW.event, 'at', NEW.at,
                        'sequence', NEW.id, 'status', json(NEW.status)),
                    'pending', 0, 0
                FROM webhook AS w JOIN run ON run.id = NEW.run_id
                WHERE (w.workflow = '' OR w.workflow = run.workflow)
                    AND (w.events = '' OR instr(' ' || w.events || ' ', ' ' || NEW.event || ' '))
                ON CONFLICT DO NOTHING;
        END;
        -- Told at once, newest first, without looking at every run.
        CREATE INDEX outbox_dead ON outbox (id) WHERE state = 'dead';
        """,
    ),
)
