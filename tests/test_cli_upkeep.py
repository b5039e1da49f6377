"""The commands that look after a workspace, as a person or a program types them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from faulty import Hooked, Once

from surefoot.schema import SCHEMA
from surefoot_storage import Workspace

FLOW = """
from surefoot import Workflow
flow = Workflow("f", directory="demos/{run_id}")
@flow.step
def one(tx, _given):
    tx.write_text("a.txt", "one " * 1000)
    tx.write_text("secret.txt", "hunter2 " * 20)
@flow.step
def two(tx, _given):
    tx.write_text("a.txt", "two " * 1000)
    tx.write_text("secret.txt", "gone")
"""


@pytest.fixture
def cli(tmp_path):
    (tmp_path / "flow.py").write_text(FLOW)
    (tmp_path / "w").mkdir()

    def run(*arguments, code=0):
        done = subprocess.run(
            [sys.executable, "-m", "surefoot", *arguments, "-w", "w", "--json"],
            cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return json.loads(done.stdout)

    run("run", "flow.py:flow", "--id", "r")
    return run


def test_du_and_gc(cli):
    usage = cli("du")
    assert usage["database"]["size_bytes"] > 0
    assert usage["old_versions_in_database"]["files"] > 3
    would = cli("gc", "--days", "0", "--dry-run")
    assert (would["done"], would["transactions"]) == (False, 3)
    assert cli("gc", "--days", "0")["contents"] == would["contents"]
    assert cli("gc", "--days", "0")["contents"] == 0


def test_forget_says_what_it_would_do_first(cli, tmp_path):
    would = cli("forget", "demos/r/secret.txt")
    assert (would["done"], would["contents"]) == (False, 2)
    assert cli("forget", "demos/r/secret.txt", "--yes")["done"]
    assert cli("forget", "demos/r/secret.txt")["contents"] == 0
    stored = b"".join(p.read_bytes() for p in (tmp_path / "w/.surefoot").rglob("*") if p.is_file())
    assert b"hunter2 hunter2" not in stored
    assert (tmp_path / "w/demos/r/secret.txt").read_text() == "gone"


def test_backup_and_restore(cli, tmp_path):
    assert cli("backup", "copy")["uuid"]
    assert cli("backup", "copy", code=2)["code"] == "input"
    cli("run", "flow.py:flow", "--id", "later")
    assert len(cli("list")) == 2
    restored = cli("restore", "copy")
    assert restored["moved"].endswith(".surefoot.replaced-1")
    assert [run["run_id"] for run in cli("list")] == ["r"]
    assert (tmp_path / "w/demos/later/a.txt").exists()
    cli("run", "flow.py:flow", "--id", "after")


def test_a_copy_is_refused_until_it_is_adopted(cli, tmp_path):
    shutil.copytree(tmp_path / "w", tmp_path / "copied")
    shutil.rmtree(tmp_path / "w")
    (tmp_path / "copied").rename(tmp_path / "w")
    refused = cli("run", "flow.py:flow", "--id", "s", code=5)
    assert "surefoot adopt" in refused["hint"]
    assert cli("adopt")["unfinished"] == []
    cli("run", "flow.py:flow", "--id", "s")


def test_conflicts_are_listed_and_decided(cli, tmp_path):
    root = tmp_path / "w"
    fs = Hooked()
    with Workspace(root, schemas=[SCHEMA], fs=fs) as workspace:
        fs.hook = Once("exchange", lambda: (root / "demos/r/a.txt").write_text("theirs"), word="a.txt")
        tx = workspace.begin()
        tx.write_bytes("demos/r/a.txt", b"ours")
        if workspace.recipe.exchanges:
            workspace.commit(tx)
        else:
            pytest.skip("not run, because this disk cannot exchange names")
    (edit,) = cli("conflicts")
    assert (edit["path"], edit["kept"]) == ("demos/r/a.txt", "theirs")
    assert cli("resolve", str(edit["id"]), "--use", "theirs")["resolution"] == "theirs"
    assert (root / "demos/r/a.txt").read_text() == "theirs"
    assert cli("conflicts") == []
    assert len(cli("conflicts", "--all")) == 1
    assert cli("resolve", "99", "--use", "ours", code=2)["code"] == "unknown"
