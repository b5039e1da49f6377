"""Persist before you answer: what each call has made durable when it returns, as ARCHITECTURE.md says it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from persisting import Limits, asker, flow

from surefoot import Engine
from surefoot_storage import FsOps

HERE = Path(__file__).parent
FOUND = {  # what a new process finds after the one that made the calls was killed
    "start": lambda e: e.get("b").wait().id == "b",
    "advance": lambda e: [h.label for h in e.history.of("a")][:2] == ["a/start", "a/first"],
    "resume": lambda e: "a/failed" in [h.label for h in e.history.of("a")],
    "retry": lambda e: "a/retried" in [h.label for h in e.history.of("a")],
    "skip": lambda e: "a/skipped" in [h.label for h in e.history.of("a")],
    "run": lambda e: e.get("b").wait().state == "error",
    "fork": lambda e: e.get("c").wait().workflow == "job",
    "pause": lambda e: "c/paused" in [h.label for h in e.history.of("c")],
    "unpause": lambda e: "c/unpaused" in [h.label for h in e.history.of("c")],
    "cancel": lambda e: e.get("c").wait().state == "cancelled",
    "preview": lambda e: "d/first" in [h.label for h in e.history.of("d")],  # by its commit
    "commit": lambda e: "d/first" in [h.label for h in e.history.of("d")],
    "undo": lambda e: e.get("d").wait().step == "first",
    "revert": lambda e: e.get("a").wait().state == "paused",
    "control.pause_queue": lambda e: e.control.queues().wait() is not None,
    "control.resume_queue": lambda e: not any(q["paused"] for q in e.control.queues().wait()),
    "send": lambda e: e._the_open.workspace.query("SELECT count(*) FROM message") == [(1,)],
    "approvals.approve": lambda e: e.approvals.get("yes/2").wait().state == "approved",
    "approvals.reject": lambda e: e.approvals.get("no/2").wait().state == "rejected",
    "approvals.delegate": lambda e: (
        [s.person for s in e.approvals.get("other/2").wait().seats] == ["ann", "bob"]
    ),
    "configuration.update": lambda e: e.configuration("limits", Limits).get().wait().revision == 1,
    "access.create": lambda e: [token.name for token in e.access.tokens().wait()] == ["ann"],
    "access.revoke": lambda e: e.access.tokens().wait()[0].revoked_at is not None,
    "webhooks.add": lambda e: [hook.url for hook in e.webhooks.all().wait()] == ["http://127.0.0.1:9/kept"],
    "webhooks.remove": lambda e: len(e.webhooks.all().wait()) == 1,
    "cache.get": lambda e: e.cache("rates", None.__class__).get().wait().data == 7,
    "records.flush": lambda e: [r.data for r in e.records.find(after=2.0).wait()] == [1],
    "records.replay": lambda e: e.records.find(limit=1).wait()[0].data == {"n": 1},
    "flush": lambda e: e.recovered.completed == (),
    "sync_checkpoint": lambda e: e.recovered.completed == (),
    "agents.launch": lambda e: len(e.agents.attempts().wait()) == 3,
    "agents.stop_all": lambda e: "an incident" in [a.why for a in e.agents.attempts().wait()],
    "agents.start_again": lambda e: "succeeded" in [a.outcome for a in e.agents.attempts().wait()],
    "agents.commit": lambda e: Path(e._root, "made.txt").read_text() == "made\n",
    "agents.stop": lambda e: "enough" in [a.why for a in e.agents.attempts().wait()],
    "agents.discard": lambda e: "discarded" in [a.taken for a in e.agents.attempts().wait()],
}


@pytest.fixture
def called(shim_library, root):
    """Flushes by call, of a process that was killed after the last one."""
    done = subprocess.run(
        [sys.executable, HERE / "support/persisting.py", root], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(HERE / "support"), "LD_PRELOAD": str(shim_library)},
    )  # fmt: skip
    assert done.returncode == 9, done.stderr[-2000:]
    return {line["call"]: line["flushes"] for line in map(json.loads, done.stdout.splitlines())}


def table():
    """By call: `durable` or not, as the document says."""
    text = (HERE.parent / "ARCHITECTURE.md").read_text()
    rows = re.findall(r"^\| (`[^|]+`) \| (durable|in memory)[^|]*\|", text, re.MULTILINE)
    return {call: kind for calls, kind in rows for call in re.findall(r"`([a-z_.]+)`", calls)}


def test_each_call_has_waited_for_the_disk_and_a_new_process_finds_what_it_did(called, root):
    documented = table()
    assert set(documented) == set(called)
    assert {call for call, flushes in called.items() if flushes} == {
        call for call, kind in documented.items() if kind == "durable"
    }
    assert {call for call, kind in documented.items() if kind == "durable"} == set(FOUND)
    with Engine(root, [flow, asker], resume=False) as engine:
        for call, is_found in FOUND.items():
            assert is_found(engine), call


def test_a_sync_checkpoint_flushes_every_file_and_is_where_a_new_process_begins(root):
    synced = set()

    class Watched(FsOps):
        def sync(self, fd):
            synced.add(os.fstat(fd).st_ino)
            super().sync(fd)

    with Engine(root, [flow], resume=False, durability="none", fs=Watched()) as engine:
        engine.start(flow, run_id="r").wait()
        engine.advance("r").wait()
        for number in range(5):
            engine.records.submit("event", number).wait()
        synced.clear()
        seq = engine.sync_checkpoint().wait()
        files = list((root / "runs/r").iterdir())
        assert {path.stat().st_ino for path in files} <= synced
        assert seq == engine.history.of("r")[-1].seq
        assert engine.sync_checkpoint().wait() == seq
        code = (
            "import sys; from surefoot import Engine\n"
            "with Engine(sys.argv[1], resume=False) as e:\n"
            "    print(e.get('r').wait().status, len(e.records.find().wait()), e.recovered.completed)"
        )
        done = subprocess.run([sys.executable, "-c", code, root], capture_output=True, text=True, check=True)
        assert done.stdout == f"{engine.get('r').wait().status} 5 ()\n"
