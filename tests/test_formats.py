"""Durable formats are promises: what older versions wrote is opened, finished and gone on with."""

from __future__ import annotations

import importlib.util
import json
import tarfile
from pathlib import Path

import pytest

from surefoot import Engine
from surefoot_storage import ReadOnlyWorkspace, Workspace, processes

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture
def version_1(root, monkeypatch):
    """Killed after a commit; then a power cut took `a.txt` back to its old version, and `big.bin` away."""
    monkeypatch.setattr(processes, "boot_id", lambda: "another boot")
    with tarfile.open(FIXTURES / "v1_killed.tar.gz") as tar:
        tar.extractall(root, filter="data")
    (root / "demos/half/a.txt").chmod(0o644)
    return root


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
    spec = importlib.util.spec_from_file_location("v1_flow", FIXTURES / "v1_flow.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    told = []
    effect = module.flow.steps["change"].effects[0]
    object.__setattr__(effect, "function", lambda done: told.append(done.run_id))
    with Engine(version_1, [module.flow], resume=False) as engine:
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
