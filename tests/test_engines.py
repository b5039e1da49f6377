"""Several engines, and commands beside them, over the runs of one workspace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading

import anyio
import pytest

from surefoot import Engine, RunRefused, Workflow, locks, moving, rows
from surefoot_storage import Workspace

FLOW = """
import os, sys, threading
from surefoot import Done, Engine, Next, Workflow
flow = Workflow("shared", directory="runs/{run_id}")
@flow.step(locks=["hot"])
def tick(tx, _given):
    n = tx.read_json("n.json", default=0) + 1
    tx.write_json("n.json", n)
    if n == 2 and "slow" in sys.argv:
        os.write(1, b"\\nthere\\n")  # one call: the log goes to the same place from another thread
        threading.Event().wait()
    return Next("tick") if n < 4 else Done()
@tick.effect
def tell(done):
    with open("told", "a") as file:
        file.write(done.key + "\\n")
if __name__ == "__main__":
    with Engine(sys.argv[1], [flow]) as engine:
        engine.run(flow, run_id="r").wait()
"""


@pytest.fixture
def flow_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shared.py").write_text(FLOW)
    namespace = {"__name__": "shared"}
    exec(compile(FLOW, "shared.py", "exec"), namespace)
    return tmp_path / "shared.py", namespace["flow"]


@pytest.fixture
def busy(flow_file, root):
    """Another process that is in the middle of the second step."""
    process = subprocess.Popen(
        [sys.executable, flow_file[0], root, "slow"], stdout=subprocess.PIPE, text=True
    )
    while process.stdout.readline() != "there\n":
        assert process.poll() is None
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_run_that_another_process_works_on_is_refused_and_shown(busy, flow_file, root):
    with Engine(root, [flow_file[1]], resume=False) as engine:
        with pytest.raises(RunRefused) as caught:
            engine.advance("r").wait()
        assert f"process {busy.pid} (" in caught.value.found
        assert engine.get("r").wait().position == 1
        shown = subprocess.run(
            [sys.executable, "-m", "surefoot", "status", "r", "-w", root, "--json"],
            capture_output=True,
            text=True,
        )
        assert json.loads(shown.stdout)["state"] == "running"


def test_a_run_of_a_process_that_dies_is_taken_over(busy, flow_file, root, monkeypatch):
    monkeypatch.setattr(moving, "POLL_S", 0.01)
    with Engine(root, [flow_file[1]], resume=False) as engine:
        results = []
        thread = threading.Thread(target=lambda: results.append(engine.resume("r").wait()))
        thread.start()
        busy.kill()
        thread.join(20)
        assert results[0].ok
        history = rows.attempts_of(engine._the_open.workspace, "r")
        assert [attempt["outcome"] for attempt in history] == [
            "committed", "interrupted", "committed", "committed", "committed",
        ]  # fmt: skip
    assert json.loads((root / "runs/r/n.json").read_text()) == 4


def test_a_run_can_be_cancelled_from_outside(root):
    flow = Workflow("slow", directory="runs/{run_id}")
    entered, go_on = threading.Event(), threading.Event()

    @flow.step
    def last(tx, _given):
        tx.write_text("never.txt", "x")
        entered.set()
        go_on.wait(20)

    with Engine(root, [flow], resume=False) as engine:
        results = []
        thread = threading.Thread(target=lambda: results.append(engine.run(flow, run_id="r").wait()))
        thread.start()
        assert entered.wait(20)
        done = subprocess.run(
            [sys.executable, "-m", "surefoot", "cancel", "r", "-w", root], capture_output=True
        )
        assert done.returncode == 0, done.stderr
        go_on.set()
        thread.join(20)
        assert results[0].state == "cancelled"
        assert results[0].transitions[-1].outcome == "cancelled"
    assert not (root / "runs/r/never.txt").exists()


def test_starting_one_run_from_two_engines_starts_it_once(flow_file, root):
    flow = flow_file[1]
    with Engine(root, [flow], resume=False) as first, Engine(root, [flow], resume=False) as second:
        barrier, found = threading.Barrier(2), []

        def start(engine):
            barrier.wait()
            found.append(engine.start(flow, run_id="r").wait())

        threads = [threading.Thread(target=start, args=(engine,)) for engine in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [run.id for run in found] == ["r", "r"]
        assert len(rows.audit_log(first._the_open.workspace, "r")) == 1


async def test_two_engines_drive_one_run_to_one_end(flow_file, root, anyio_backend, monkeypatch):
    monkeypatch.setattr(moving, "POLL_S", 0.01)
    flow = flow_file[1]
    results = []
    async with Engine(root, [flow], resume=False) as first, Engine(root, [flow], resume=False) as second:

        async def drive(engine):
            results.append(await engine.run(flow, run_id="r"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(drive, first)
            tasks.start_soon(drive, second)
        await first.deliver()
        await second.deliver()
    assert [result.state for result in results] == ["completed", "completed"]
    committed = [t for result in results for t in result.transitions if t.ok]
    assert len(committed) == 4
    keys = (root.parent / "told").read_text().split()
    assert sorted(keys) == sorted({*keys})  # each message was delivered by one of them
    assert len(keys) == 4
    del anyio_backend


def test_a_named_lock_holds_among_processes(flow_file, root, monkeypatch):
    monkeypatch.setattr(locks, "LOCK_ATTEMPTS", 3)
    monkeypatch.setattr(locks, "LOCK_PAUSE_S", 0.001)
    with Workspace(root) as holder, Engine(root, [flow_file[1]], resume=False) as engine:
        held = holder.try_named_lock("hot")
        assert holder.try_named_lock("hot") is None
        result = engine.run(flow_file[1], run_id="r").wait()
        assert result.failure.error == "LockNotTaken"
        assert f"process {os.getpid()}" in result.failure.message or "this process" in result.failure.message
        held.release()
        assert engine.retry("r").wait().ok


def test_a_workspace_that_stays_busy_leaves_the_run_where_it_was(root):
    flow = Workflow("f", directory="r")

    @flow.step
    def one(tx, _given):
        tx.write_text("a.txt", "x")

    code = (
        "import sys; from surefoot_storage import Workspace; w = Workspace(sys.argv[1])\n"
        "with w._section():\n    print('held', flush=True); sys.stdin.read()"
    )
    with Engine(root, [flow], resume=False, lock_wait_s=0.2) as engine:
        engine.start(flow, run_id="r").wait()
        holder = subprocess.Popen(
            [sys.executable, "-c", code, root], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert holder.stdout.readline() == "held\n"
        result = engine.advance("r").wait()
        assert result.outcome == "blocked"
        assert f"process {holder.pid} (" in result.failure.message
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
        assert engine.advance("r").wait().ok
