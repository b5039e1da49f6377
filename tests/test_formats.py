"""Durable formats are promises: what older versions wrote is opened, finished and gone on with."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import apsw
import pytest
from worlds import restamp

from surefoot import Engine
from surefoot.schema import SCHEMA
from surefoot_storage import ReadOnlyWorkspace, Workspace, WorkspaceBusy, WorkspaceUnusable, processes
from surefoot_storage.schema import STORAGE

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture
def unpacked(root, monkeypatch):
    """A workspace as an older version left it; the machine was started again since."""
    monkeypatch.setattr(processes, "boot_id", lambda: "another boot")

    def unpack(name):
        with tarfile.open(FIXTURES / name) as tar:
            tar.extractall(root, filter="data")
        restamp(root)
        return root

    return unpack


@pytest.fixture
def version_1(unpacked):
    """Killed after a commit; then a power cut took `a.txt` back to its old version, and `big.bin` away."""
    root = unpacked("v1_killed.tar.gz")
    (root / "demos/half/a.txt").chmod(0o644)
    return root


@pytest.fixture
def version_2(unpacked):
    """Killed in the middle of putting a commit in place, with spare files in its stage."""
    return unpacked("v2_killed.tar.gz")


@pytest.fixture
def version_3(unpacked):
    """A transition that was undone, done again, and killed between two files."""
    return unpacked("v3_killed.tar.gz")


def test_a_workspace_of_the_third_version_is_recovered_undone_and_previewed(version_3):
    root, flow = version_3, flow_of_version_1()
    assert (root / "demos/half/big.bin").read_bytes() == b"old big " * 50000
    with Engine(root, [flow], resume=False) as engine:
        assert (root / "demos/half/a.txt").read_bytes() == b"second a\n"
        assert (root / "demos/half/big.bin").read_bytes() == b"new big " * 50000
        assert list((root / ".surefoot/stage").iterdir()) == []
        assert engine.upkeep.conflicts() == []
        events = [entry.label for entry in engine.history.of("half")]
        assert events == [
            "half/start",
            "half/outline",
            "half/change",
            "half/undo",
            "half/retried",
            "half/change",
        ]
        assert engine.commit(engine.preview("half").wait().digest).wait().ok
        assert (root / "demos/half/a.txt").read_bytes() == b"third a\n"
        engine.revert(engine.history.of("half")[1].txid).wait()
        assert (root / "demos/half/a.txt").read_bytes() == b"first a\n"
        assert (root / "demos/half/big.bin").read_bytes() == b"old big " * 50000


def test_a_workspace_of_the_second_version_is_recovered_and_its_transitions_can_be_undone(version_2):
    root = version_2
    with Engine(root, resume=False) as engine:  # which knows no workflow: nobody sends anything meanwhile
        assert (root / "demos/half/a.txt").read_bytes() == b"second a\n"
        assert not (root / "demos/half/sub/b.txt").exists()
        assert list((root / ".surefoot/stage").iterdir()) == []
        assert engine.upkeep.conflicts() == []
        entry = engine.history.of("half")[-1]
        assert (entry.label, entry.actor) == ("half/change", "")
        done = engine.undo(entry.txid).wait()
        assert done.withdrawn == ("half/2/change/tell",)
        assert (root / "demos/half/a.txt").read_bytes() == b"first a\n"
        assert (root / "demos/half/sub/b.txt").read_bytes() == b"first b\n"
        assert (root / "demos/half/big.bin").read_bytes() == b"old big " * 50000
    with Engine(root, [flow_of_version_1()], resume=False) as engine:
        assert engine.retry("half").wait().ok


def flow_of_version_1():
    return module_of("v1_flow").flow


def test_a_workspace_of_the_first_version_is_recovered_and_migrated(version_1):
    root = version_1
    with Workspace(root) as workspace:
        assert set(workspace.recovered.completed) == {"demos/half/a.txt", "demos/half/big.bin"}
        assert (root / "demos/half/a.txt").read_bytes() == b"second a\n"
        assert (root / "demos/half/a.txt").stat().st_mode & 0o777 == 0o600
        assert (root / "demos/half/big.bin").read_bytes() == b"new big " * 50000
        assert workspace.query("SELECT count(*), min(level), max(pruned) FROM txn") == [(7, "full", 0)]
    assert json.loads((root / ".surefoot/workspace.json").read_text())["format"] == 2
    for folder in ("stage", "keep", "conflicts"):
        assert list((root / ".surefoot" / folder).iterdir()) == []


def test_its_runs_go_on_and_its_messages_are_delivered(version_1):
    flow = flow_of_version_1()
    told = []
    effect = flow.steps["change"].effects[0]
    object.__setattr__(effect, "function", lambda done: told.append(done.run_id))
    with Engine(version_1, [flow], resume=False) as engine:
        assert engine.get("done").wait().state == "completed"
        assert engine.retry("half").wait().ok
        engine.deliver().wait()
    assert (version_1 / "demos/half/a.txt").read_bytes() == b"third a\n"
    assert "half" in told


def test_looking_at_it_does_not_migrate_it(version_1):
    before = (version_1 / ".surefoot/surefoot.db").read_bytes()
    with ReadOnlyWorkspace(version_1) as seen:
        assert seen.query("SELECT count(*) FROM run") == [(2,)]
    assert (version_1 / ".surefoot/surefoot.db").read_bytes() == before


@pytest.fixture
def version_5(unpacked):
    """Branches, waits, a queue and a child run; one of the runs was killed between two of its files."""
    return unpacked("v5_killed.tar.gz")


def test_runs_of_the_fifth_version_are_where_they_were_and_go_on(version_5):
    root, flows = version_5, module_of("v5_flow")
    with Engine(root, flows.ALL, resume=False) as engine:
        assert (root / "demos/half/left2.txt").read_text() == "left\n"
        runs = {run.id: run for run in engine.runs().wait()}
        assert {run_id: (run.state, run.step) for run_id, run in runs.items()} == {
            "asking": ("waiting", "ask"), "done": ("completed", None), "half": ("running", "right"),
            "parent": ("waiting", "spawn"), "paused": ("paused", "ask"), "queued": ("running", "work"),
            "stuck": ("error", "right"), "the-child": ("error", "work"), "told": ("waiting", "ask"),
        }  # fmt: skip
        (night,) = [queue for queue in engine.control.queues().wait() if queue["queue"] == "night"]
        assert (night["paused"], night["reason"], night["waits"]) == (True, "inventory", 0)
        for run_id in ("stuck", "the-child", "queued"):
            (root / f"demos/{run_id}/mended").write_text("")
        for run_id in ("stuck", "the-child", "half", "told", "parent"):
            assert engine.retry(run_id).wait().ok, run_id
        engine.send("asking", flows.answer, flows.Answer(yes=False)).wait()
        engine.send("paused", flows.answer, flows.Answer(yes=True)).wait()
        engine.control.resume_queue("night").wait()
        for run_id in ("asking", "paused"):
            assert engine.retry(run_id).wait().ok, run_id
    with Engine(root, flows.ALL, queues=[flows.queue]) as engine:
        while engine.get("queued").wait().state != "completed":
            pass
    assert (root / "demos/asking/heard.txt").read_text() == "False\n"
    assert (root / "demos/told/heard.txt").read_text() == "True\n"
    assert (root / "demos/parent/after.txt").read_text() == "after\n"


@pytest.fixture
def version_6(unpacked):
    """Approvals, a configuration and records; one run was killed between two of its files."""
    return unpacked("v6_killed.tar.gz")


def test_requests_and_settings_of_the_sixth_version_are_there_and_its_runs_go_on(version_6):
    root, flows = version_6, module_of("v6_flow")
    with Engine(root, [flows.publish], resume=False) as engine:
        assert (root / "demos/half/b.txt").read_text() == "released\n"
        asked = {request.run_id: request for request in engine.approvals.requests().wait()}
        assert sorted(asked) == ["asking", "one-of-two"]
        engine.approvals.approve(asked["one-of-two"].id, by="bob").wait()
        assert engine.resume("one-of-two").wait().ok
        assert engine.configuration("tone", flows.Settings).get().wait().value.tone == "warm"
        assert [record.data for record in engine.records.find(kind="note").wait()] == [{"a": 1}]
        assert engine.agents.attempts().wait() == []
    assert (root / "demos/one-of-two/a.txt").read_text() == "released\n"


@pytest.fixture
def version_7(unpacked):
    """Agents: the work of one waits for a person, that of the other was being taken when the process died."""
    return unpacked("v7_killed.tar.gz")


def test_agents_of_the_seventh_version_are_there_and_their_work_can_be_decided(version_7):
    root, flows = version_7, module_of("v7_flow")
    with Engine(root, [flows.write], resume=False) as engine:
        assert (root / "demos/half/b.txt").read_text() == "new\n"
        assert {a.run_id: a.outcome for a in engine.agents.attempts().wait()} == {
            "asking": "succeeded",
            "half": "succeeded",
        }
        (asked,) = engine.approvals.requests().wait()
        engine.approvals.approve(asked.id, by="ann").wait()
        assert engine.resume("asking").wait().ok
        assert engine.resume("half").wait().state == "completed"
        assert engine.access.tokens().wait() == engine.webhooks.all().wait() == []
    assert (root / "demos/asking/a.txt").read_text() == "draft, by an agent\n"


@pytest.fixture
def version_4(unpacked):
    """Runs in every state; one of them was killed between two of its files."""
    return unpacked("v4_killed.tar.gz")


def module_of(name):
    spec = importlib.util.spec_from_file_location(name, FIXTURES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_runs_of_the_fourth_version_are_where_they_were_and_go_on(version_4):
    root, flows = version_4, module_of("v4_flow")
    before = {
        path.parent.name: json.loads(path.read_text()) for path in root.glob("demos/*/demo.status.json")
    }
    workflows = [flows.flow, flows.shaky, flows.patient]
    with Engine(root, workflows, resume=False) as engine:
        assert (root / "demos/half/b.txt").read_text() == "second b\n"
        runs = {run.id: run for run in engine.runs().wait()}
        assert {run_id: (run.state, run.step) for run_id, run in runs.items()} == {
            "done": ("completed", None), "failed": ("error", "break"), "waiting": ("waiting", "break"),
            "paused": ("paused", "change"), "seen": ("running", "change"), "half": ("running", "last"),
        }  # fmt: skip
        for run_id in ("done", "failed", "waiting", "paused", "seen"):
            assert json.loads(runs[run_id].status) == before[run_id]
        assert [run.visits for run in (runs["done"], runs["failed"], runs["half"])] == [3, 1, 3]
        assert {run_id: engine.why(run_id).wait().kind for run_id in runs} == {
            "done": "over", "failed": "error", "waiting": "nobody-drives", "paused": "paused",
            "seen": "nobody-drives", "half": "worker-died",
        }  # fmt: skip
        (digest,) = [row[0] for row in engine._the_open.workspace.query("SELECT digest FROM sealed")]
        assert engine.commit(digest).wait().step == "change"
        for run_id in ("failed", "waiting"):
            (root / f"demos/{run_id}/mended").write_text("")
        for run_id in ("failed", "waiting", "paused", "seen", "half"):
            assert engine.retry(run_id).wait().ok, run_id
            assert len(engine.get(run_id).wait().open) == 0


def test_what_the_fourth_version_did_can_be_undone(version_4):
    root, flows = version_4, module_of("v4_flow")
    with Engine(root, [flows.flow], resume=False) as engine:
        undone = engine.undo(engine.history.of("done")[-1].txid).wait()
        assert (undone.state, undone.step) == ("paused", "last")
        assert (root / "demos/done/a.txt").read_text() == "second a\n"
        assert engine.retry("done").wait().ok
        assert (root / "demos/done/a.txt").read_text() == "third a\n"
        back = engine.revert(engine.history.of("half")[0].txid).wait()
        assert (back.state, back.step) == ("paused", "outline")
        assert engine.retry("half").wait().ok


# --- migrations ---


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5])
def test_the_store_as_it_was_is_kept_and_each_step_is_told(unpacked, version):
    root, told = unpacked(f"v{version}_killed.tar.gz"), []
    with Workspace(root, schemas=[SCHEMA], observer=lambda *event: told.append(event)):
        pass
    kept = [path.name for path in (root / ".surefoot").iterdir() if ".before-" in path.name]
    assert len(kept) == 1
    copy = apsw.Connection(str(root / ".surefoot" / kept[0]), flags=apsw.SQLITE_OPEN_READONLY)
    versions = dict(copy.execute("SELECT name, version FROM component").fetchall())
    copy.close()
    assert told[0] == (
        "store_kept",
        {"as_it_was": kept[0], **{c: versions[c] for c in told[0][1] if c in versions}},
    )
    steps = [(facts["component"], facts["version"]) for event, facts in told if event == "migrating"]
    current = {"storage": STORAGE.version, "engine": SCHEMA.version}
    assert steps == [
        (component, step)
        for component in ("storage", "engine")
        for step in range(versions[component] + 1, current[component] + 1)
    ]
    told.clear()
    with Workspace(root, schemas=[SCHEMA], observer=lambda *event: told.append(event)) as workspace:
        assert workspace.query("PRAGMA integrity_check") == [("ok",)]
    assert told == []


def test_only_the_copy_of_the_last_migration_is_kept(unpacked):
    root = unpacked("v4_killed.tar.gz")
    older = root / ".surefoot/surefoot.db.before-engine3"
    older.write_bytes(b"from before")
    with Workspace(root, schemas=[SCHEMA]):
        pass
    assert not older.exists()


def test_an_older_process_at_work_is_not_migrated_under_its_feet(unpacked):
    """It would go on with tables that it does not know."""
    root = unpacked("v5_killed.tar.gz")
    with Workspace(root) as old:  # which needs no tables of the engine, and has them open
        before = old.query("SELECT version FROM component WHERE name = 'engine'")
        with pytest.raises(WorkspaceBusy, match="nobody else to have it open") as caught:
            Workspace(root, schemas=[SCHEMA])
        assert "another engine of this process" in str(caught.value)
        assert old.query("SELECT version FROM component WHERE name = 'engine'") == before
    Workspace(root, schemas=[SCHEMA]).close()


@pytest.mark.parametrize("component", ["storage", "engine"])
def test_a_store_of_a_newer_version_is_refused_and_left_untouched(root, component):
    Workspace(root, schemas=[SCHEMA]).close()
    database = apsw.Connection(str(root / ".surefoot/surefoot.db"))
    database.execute("UPDATE component SET version = 99 WHERE name = ?", (component,))
    database.close()
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    with pytest.raises(WorkspaceUnusable, match="made by a newer version; it was left untouched"):
        Workspace(root, schemas=[SCHEMA])
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


@pytest.mark.long
@pytest.mark.parametrize("version", [2, 5])
def test_a_migration_killed_at_any_call_is_done_by_the_next_open(shim_library, tmpfs_folder, version):
    lab = Path(__file__).parent / "crash"
    path = os.pathsep.join([str(lab), str(lab.parent / "support")])
    done = subprocess.run(
        [sys.executable, lab / "migrations.py", FIXTURES / f"v{version}_killed.tar.gz", tmpfs_folder],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": path, "LD_PRELOAD": str(shim_library)},
    )  # fmt: skip
    assert done.stdout, done.stderr[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["problems"] == []
    assert report["calls"] > 60
    assert report["kept"] == report["calls"]
