"""`surefoot doctor` and `diagnose`: beside a frozen, a killed and a healthy process."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time

import apsw
import pytest
from faulty import Hooked

from surefoot import Engine, Retry, Workflow, rows
from surefoot.doctor import bundle, findings
from surefoot.schema import SCHEMA
from surefoot_storage import ReadOnlyWorkspace, Workspace, processes
from surefoot_storage.checkup import FREE_BYTES_MIN
from surefoot_storage.fsops import FsOps

SECRET = "hunter2"


def look(root, *, now=None, deep=False):
    with ReadOnlyWorkspace(root, schemas=[SCHEMA]) as opened:
        found = findings(opened, opened.checkup, now=now or time.time(), deep=deep)
    return {finding.kind: finding for finding in found}


@pytest.fixture
def flow():
    flow = Workflow("f", directory="{run_id}")

    @flow.step
    def one(tx, _given):
        tx.write_text("a.txt", SECRET)

    @flow.step
    def two(tx, _given):
        raise ValueError(SECRET)

    return flow


@pytest.fixture
def used(root, flow):
    """A run in error."""
    with Engine(root, [flow], resume=False) as engine:
        engine.run(flow, run_id="r").wait()
    return root


def in_process(root, code):
    """A process that has the workspace open, and says when it is where it shall be."""
    head = (
        f"import os, sys, signal\nsys.path[:0] = {sys.path!r}\nfrom surefoot_storage import Workspace, FsOps\n"
        f"from surefoot.schema import SCHEMA\nroot = {str(root)!r}\n"
    )
    process = subprocess.Popen([sys.executable, "-c", head + code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.stdout.close()
    return process


def test_a_healthy_workspace_has_nothing(root):
    with Engine(root, resume=False):
        assert look(root) == {}
    assert look(root, deep=True) == {}


def test_a_run_in_error_comes_with_its_cause_and_what_to_do(used):
    finding = look(used)["run-in-error"]
    assert finding.is_problem
    assert "ValueError" in finding.evidence
    assert finding.remedy


def test_a_paused_run_is_only_worth_knowing(used):
    with Engine(used, resume=False) as engine:
        engine.revert(engine.history.of("r")[0].txid).wait()
    finding = look(used)["run-paused"]
    assert not finding.is_problem
    assert "surefoot advance r" in finding.remedy


def test_a_frozen_process_that_holds_the_lock_is_named_with_its_release(root):
    code = (
        "w = Workspace(root, schemas=[SCHEMA])\n"
        "with w._section():\n    print('ready', flush=True)\n    os.kill(os.getpid(), signal.SIGSTOP)\n"
    )
    process = in_process(root, code)
    try:
        while processes.state_of(process.pid) != "T":
            os.sched_yield()
        finding = look(root)["lock-held"]
        assert f"process {process.pid}" in finding.evidence
        assert f"kill -CONT {process.pid}" in finding.remedy
    finally:
        process.kill()
        process.wait()
    assert "lock-held" not in look(root)


def test_a_frozen_worker_that_holds_no_lock_is_named_too(root):
    code = "w = Workspace(root, schemas=[SCHEMA])\nprint('ready', flush=True)\nos.kill(os.getpid(), signal.SIGSTOP)\n"
    process = in_process(root, code)
    try:
        while processes.state_of(process.pid) != "T":
            os.sched_yield()
        assert f"kill -CONT {process.pid}" in look(root)["worker-stopped"].remedy
    finally:
        process.kill()
        process.wait()
    assert not look(root)["dead-workers"].is_problem


def test_a_process_that_died_in_a_commit_leaves_something_to_recover(root):
    code = (
        "class Dying(FsOps):\n    def rename_new(self, *a):\n        os._exit(9)\n"
        "w = Workspace(root, schemas=[SCHEMA])\nw.checkpoint()\nprint('ready', flush=True)\n"
        "w.fs.rename_new = lambda *a: os._exit(9)\n"
        "tx = w.begin()\ntx.write_bytes('a', b'1')\nw.commit(tx)\n"
    )
    process = in_process(root, code)
    assert process.wait() == 9
    found = look(root)
    assert "surefoot recover" in found["half-committed"].remedy
    assert "orphans" in found
    Workspace(root, schemas=[SCHEMA]).close()
    assert look(root) == {}
    assert (root / "a").read_bytes() == b"1"


def test_after_a_reboot_what_is_not_known_to_be_on_the_disk_is_counted(used, monkeypatch):
    code = (
        "w = Workspace(root, schemas=[SCHEMA])\ntx = w.begin()\ntx.write_bytes('a', b'1')\nw.commit(tx)\n"
        "print('ready', flush=True)\nos._exit(9)\n"
    )
    in_process(used, code).wait()
    monkeypatch.setattr(processes, "boot_id", lambda: "another boot")
    assert "1 transaction(s)" in look(used)["restarted"].evidence


def test_a_reboot_after_a_clean_end_is_nothing(root, monkeypatch):
    with Workspace(root, schemas=[SCHEMA]) as workspace:
        tx = workspace.begin()
        tx.write_bytes("a", b"1")
        workspace.commit(tx)
    monkeypatch.setattr(processes, "boot_id", lambda: "another boot")
    assert look(root) == {}


def test_files_that_cannot_be_put_in_place_are_named_with_the_cause(root):
    def refuse(name, _arguments):
        if name == "rename_new":
            raise OSError(5, "Input/output error")

    fs = Hooked()
    with Workspace(root, schemas=[SCHEMA], fs=fs) as workspace:
        tx = workspace.begin()
        tx.write_bytes("a", b"1")
        fs.hook = refuse
        assert not workspace.commit(tx).applied
        finding = look(root)["not-in-place"]
        assert "a: " in finding.evidence
        assert "surefoot recover" in finding.remedy


def test_a_run_that_nobody_moves_on_is_noticed_after_a_while(root):
    flow = Workflow("f", directory="{run_id}")

    @flow.step(retry=Retry(attempts=3, initial_s=3600.0))
    def one(tx, _given):
        raise ValueError

    with Engine(root, [flow], resume=False) as engine:
        engine.start(flow, run_id="r").wait()
        assert engine.advance("r").wait().outcome == "retrying"
    assert "run-abandoned" not in look(root)
    finding = look(root, now=time.time() + 7200)["run-abandoned"]
    assert "surefoot advance r --all" in finding.remedy


def test_a_copied_workspace_is_recognised(used, tmp_path):
    shutil.copytree(used, tmp_path / "copy")
    assert "surefoot adopt" in look(tmp_path / "copy")["wrong-store"].remedy


def test_damage_is_found(used):
    connection = apsw.Connection(str(used / ".surefoot/surefoot.db"))
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection.close()
    database = used / ".surefoot/surefoot.db"
    data = bytearray(database.read_bytes())
    assert "database-damaged" not in look(used)
    for start in range(4 * 4096, 20 * 4096, 4096):  # what lies further back is room for later
        data[start : start + 200] = b"\xa5" * 200
    database.write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-m", "surefoot", "doctor", "-w", used], capture_output=True, text=True, check=False
    )
    assert done.returncode in (1, 5)
    assert "the database is damaged" in done.stdout or "malformed" in done.stderr


def test_little_room_and_edits_are_noticed(used):
    class Small(FsOps):
        def free_bytes(self, _fd):
            return FREE_BYTES_MIN - 1

    with ReadOnlyWorkspace(used, schemas=[SCHEMA], fs=Small()) as opened:
        assert "disk-full" in [finding.kind for finding in opened.checkup.findings()]
    (used / "r/a.txt").write_text("edited")
    assert "differs" not in look(used)
    assert "r/a.txt" in look(used, deep=True)["differs"].what


def test_the_bundle_holds_no_secrets_and_no_names_of_files(used):
    (used / "r/a.txt").write_text("edited")
    with ReadOnlyWorkspace(used, schemas=[SCHEMA]) as opened:
        facts = bundle(opened, opened.checkup, version="1", now=0.0)
        text = json.dumps(facts)
        assert rows.get_run(opened, "r").failure.message == SECRET
    assert SECRET not in text
    assert "a.txt" not in text
    assert str(used) not in text
    assert (facts["runs"][0]["state"], facts["runs"][0]["error"]) == ("error", "ValueError")
    assert facts["transactions"][0]["files"] >= 1


def test_the_commands(used, tmp_path):
    def cli(*arguments):
        command = [sys.executable, "-m", "surefoot", *arguments, "-w", str(used)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    done = cli("doctor")
    assert done.returncode == 1
    assert re.search(r"problem +run r is in error at two\n +ValueError.*\n +hint: ", done.stdout)
    assert json.loads(cli("doctor", "--json").stdout)[0]["kind"] == "run-in-error"
    assert json.loads(cli("diagnose").stdout)["effects"]["pending"] == 0
    assert cli("diagnose", "bundle.json").returncode == 0
    assert json.loads((tmp_path / "bundle.json").read_text())["versions"]["surefoot"]
    again = cli("diagnose", "bundle.json")
    assert again.returncode == 2
    assert "File exists" in again.stderr
