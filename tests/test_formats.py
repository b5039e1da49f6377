"""Durable formats are promises: what older versions wrote is opened, finished and gone on with."""

from __future__ import annotations

import importlib.util
import json
import tarfile
from pathlib import Path

import pytest
from worlds import restamp

from surefoot import Engine
from surefoot_storage import ReadOnlyWorkspace, Workspace, processes

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
    spec = importlib.util.spec_from_file_location("v1_flow", FIXTURES / "v1_flow.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.flow


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
