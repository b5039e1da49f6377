"""Queues and workers: limits, order, what happens to a worker that dies or freezes; in real processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import anyio
import pytest
from machines import looked

from surefoot import (
    DeclarationError,
    Engine,
    InputError,
    Queue,
    Rate,
    Retry,
    RunRefused,
    RunState,
    Workflow,
    rows,
)
from surefoot.testing import FakeClock
from surefoot_storage import Workspace

FLOW = """
import os, sys, time
from surefoot import Engine, Retry, Workflow
import anyio
flow = Workflow("job", directory="runs/{run_id}")
@flow.step
def work(tx, _):
    with open(os.environ["TRACE"], "a") as file:
        file.write(f"begin {tx.run_id} {os.getpid()}\\n")
    gate = os.environ.get("GATE", "")
    while gate and not os.path.exists(gate):
        time.sleep(0.01)
    tx.write_text("by", str(os.getpid()))
@flow.step
def last(tx, _):
    tx.write_text("last", "1")
async def main():
    async with Engine(sys.argv[1], [flow], lease_s=1.0) as engine:
        print("ready", flush=True)
        await anyio.sleep_forever()
if __name__ == "__main__":
    anyio.run(main)
"""


@pytest.fixture
def job(tmp_path):
    (tmp_path / "job.py").write_text(FLOW)
    namespace = {"__name__": "job", "__file__": str(tmp_path / "job.py")}
    exec(compile(FLOW, "job.py", "exec"), namespace)
    return namespace["flow"]


@pytest.fixture
def worker(tmp_path, root):
    """Starts worker processes; `gate` keeps their bodies waiting until that file is there."""
    processes = []

    def start(*, gate=True, command=False):
        env = {**os.environ, "TRACE": str(tmp_path / "trace"), "GATE": str(tmp_path / "gate") if gate else ""}
        argv = [sys.executable, tmp_path / "job.py", root]
        if command:
            argv = [sys.executable, "-m", "surefoot", "work", f"{tmp_path}/job.py:flow", "-w", root]
        process = subprocess.Popen(
            argv, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE if command else None
        )
        line = (process.stderr if command else process.stdout).readline()
        assert "working in" in line if command else line == "ready\n"
        processes.append(process)
        return process

    yield start
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)
            process.kill()
        process.wait()
        process.stdout.close()
        if process.stderr:
            process.stderr.close()


def until(condition, limit_s=30):
    end = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
    return found


def trace(tmp_path):
    path = tmp_path / "trace"
    return path.read_text().splitlines() if path.exists() else []


def state(engine, run_id):
    return engine.get(run_id).wait().state


# --- workers that die or freeze ---


@pytest.mark.long
def test_a_dead_workers_run_is_taken_over_at_once(job, worker, root, tmp_path):
    first = worker()
    with Engine(root, [job], resume=False) as engine:
        engine.start(job, run_id="r", queue="q").wait()
        until(lambda: trace(tmp_path))
        assert engine.why("r").wait().sentence == f"process {first.pid} is working on work"
        second = worker()
        first.kill()
        first.wait()
        killed = time.monotonic()
        until(lambda: len(trace(tmp_path)) == 2)
        assert time.monotonic() - killed < 5
        (tmp_path / "gate").touch()
        until(lambda: state(engine, "r") is RunState.COMPLETED)
        attempts = rows.attempts_of(engine._the_open.workspace, "r")
    assert [a["outcome"] for a in attempts] == ["interrupted", "committed", "committed"]
    assert (root / "runs/r/by").read_text() == str(second.pid)


@pytest.mark.long
def test_a_frozen_worker_loses_its_run_and_cannot_commit_when_it_goes_on(job, worker, root, tmp_path):
    first = worker()
    with Engine(root, [job], resume=False) as engine:
        engine.start(job, run_id="r", queue="q").wait()
        until(lambda: trace(tmp_path))
        first.send_signal(signal.SIGSTOP)
        second = worker()
        (tmp_path / "gate").touch()  # the frozen one does not see it
        until(lambda: state(engine, "r") is RunState.COMPLETED)
        assert (root / "runs/r/by").read_text() == str(second.pid)
        before = (root / "runs/r/demo.status.json").read_bytes()
        first.send_signal(signal.SIGCONT)
        engine.start(job, run_id="next", queue="q").wait()
        until(lambda: state(engine, "next") is RunState.COMPLETED)
        time.sleep(0.5)  # its body has ended by now; its commit must not happen
        assert (root / "runs/r/by").read_text() == str(second.pid)
        assert (root / "runs/r/demo.status.json").read_bytes() == before
        outcomes = [a["outcome"] for a in rows.attempts_of(engine._the_open.workspace, "r")]
    assert outcomes.count("committed") == 2


@pytest.mark.long
def test_a_frozen_worker_is_named(job, worker, root, tmp_path):
    first = worker()
    with Engine(root, [job], resume=False) as engine:
        engine.start(job, run_id="r", queue="q").wait()
        until(lambda: trace(tmp_path))
        first.send_signal(signal.SIGSTOP)
        answer = until(lambda: (a := engine.why("r").wait()).kind == "worker-stopped" and a)
        assert f"kill -CONT {first.pid}" in answer.remedy


@pytest.mark.long
def test_sigterm_lets_a_worker_finish_what_it_has_begun(job, worker, root, tmp_path):
    process = worker(command=True)
    with Engine(root, [job], resume=False) as engine:
        engine.start(job, run_id="r", queue="q").wait()
        until(lambda: trace(tmp_path))
        process.terminate()
        until(lambda: "finishing" in process.stderr.readline())
        engine.start(job, run_id="late", queue="q").wait()
        (tmp_path / "gate").touch()
        assert process.wait(20) == 0
        assert state(engine, "r") is RunState.COMPLETED
        assert state(engine, "late") is RunState.RUNNING
        assert engine.why("late").wait().kind == "queued"
    assert len(trace(tmp_path)) == 1


# --- limits and order ---


class Gated:
    """A workflow whose bodies say when they run, and wait until they are let go."""

    def __init__(self):
        self.flow = Workflow("gated")
        self.running, self.most, self.order = [], 0, []
        self.go = anyio.Event()

        @self.flow.step
        async def work(tx, _):
            self.running.append(tx.run_id)
            self.order.append(tx.run_id)
            self.most = max(self.most, len(self.running))
            await self.go.wait()
            await anyio.sleep(0.01)
            self.running.remove(tx.run_id)


async def completed(engine, count):
    with anyio.fail_after(30):
        while len(await engine.runs(states=["completed"])) < count:
            await anyio.sleep(0.02)


@pytest.mark.parametrize("limit", [{"at_once": 2}, {"here": 2}])
async def test_a_queues_limit_is_kept(root, limit):
    gated = Gated()
    async with Engine(root, [gated.flow], queues=[Queue("q", **limit)]) as engine:
        for n in range(8):
            await engine.start(gated.flow, run_id=f"r{n}", queue="q")
        with anyio.fail_after(20):
            while len(gated.running) < 2:
                await anyio.sleep(0.01)
        await looked(engine)
        gated.go.set()
        await completed(engine, 8)
    assert gated.most == 2


async def test_a_global_limit_is_kept_by_two_engines(root):
    gated = Gated()
    gated.go.set()
    queues = [Queue("q", at_once=3)]
    async with Engine(root, [gated.flow], queues=queues) as one, Engine(root, [gated.flow], queues=queues):
        for n in range(12):
            await one.start(gated.flow, run_id=f"r{n}", queue="q")
        await completed(one, 12)
    assert 2 <= gated.most <= 3


async def test_priority_then_the_order_of_starting(root):
    gated = Gated()
    gated.go.set()
    async with Engine(root, [gated.flow], resume=False) as engine:
        for n, priority in enumerate([5, 0, 5, -1, 0]):
            await engine.start(gated.flow, run_id=f"r{n}", queue="q", priority=priority)
    async with Engine(root, [gated.flow], queues=[Queue("q", here=1)]) as engine:
        await completed(engine, 5)
    assert gated.order == ["r3", "r1", "r4", "r0", "r2"]


async def test_a_lane_goes_one_after_the_other_and_others_pass_it(root):
    gated = Gated()
    async with Engine(root, [gated.flow], queues=["q"]) as engine:
        for n in range(3):
            await engine.start(gated.flow, run_id=f"a{n}", queue="q", lane="a")
        await engine.start(gated.flow, run_id="b0", queue="q", lane="b")
        with anyio.fail_after(20):
            while len(gated.running) < 2:
                await anyio.sleep(0.01)
        await looked(engine)
        assert sorted(gated.running) == ["a0", "b0"]
        answer = await engine.why("a2")
        assert (answer.kind, answer.sentence) == ("lane", "run a0 of the same lane (a) goes first")
        gated.go.set()
        await completed(engine, 4)
    assert [r for r in gated.order if r.startswith("a")] == ["a0", "a1", "a2"]


async def test_a_rate_is_kept(root):
    gated = Gated()
    gated.go.set()
    clock = FakeClock(auto=False)
    async with Engine(root, [gated.flow], clock=clock, queues=[Queue("q", rate=Rate(2, 60))]) as engine:
        for n in range(5):
            await engine.start(gated.flow, run_id=f"r{n}", queue="q")
        for done in (2, 4, 5):
            await completed(engine, done)
            await looked(engine)
            assert len(gated.order) == done
            clock.advance(61)


async def test_a_run_is_returned_while_another_one_has_its_key(root):
    gated = Gated()
    async with Engine(root, [gated.flow], queues=["q"]) as engine:
        first = await engine.start(gated.flow, queue="q", dedup="k")
        assert (await engine.start(gated.flow, queue="q", dedup="k")).id == first.id
        assert (await engine.start(gated.flow, queue="other", dedup="k")).id != first.id
        with pytest.raises(RunRefused):
            await engine.start(gated.flow, queue="q", dedup="k", on_exists="refuse")
        gated.go.set()
        await completed(engine, 1)
        assert (await engine.start(gated.flow, queue="q", dedup="k")).id != first.id


async def test_two_engines_that_start_one_key_start_it_once(root):
    gated = Gated()
    found = []
    async with (
        Engine(root, [gated.flow], resume=False) as one,
        Engine(root, [gated.flow], resume=False) as two,
    ):

        async def start(engine):
            found.append((await engine.start(gated.flow, queue="q", dedup="k")).id)

        async with anyio.create_task_group() as tasks:
            for engine in (one, two, one, two):
                tasks.start_soon(start, engine)
        assert len(set(found)) == 1
        assert len(await one.runs()) == 1


async def test_a_delayed_run_waits_and_does_not_hold_up_others(root):
    gated = Gated()
    gated.go.set()
    clock = FakeClock(auto=False)
    async with Engine(root, [gated.flow], clock=clock, queues=[Queue("q", here=1)]) as engine:
        await engine.start(gated.flow, run_id="late", queue="q", delay_s=600, priority=-10)
        await engine.start(gated.flow, run_id="now", queue="q")
        await completed(engine, 1)
        clock.advance(601)
        await completed(engine, 2)
    assert gated.order == ["now", "late"]


async def test_a_paused_queue_is_paused_over_restarts_and_says_so(root):
    gated = Gated()
    gated.go.set()
    for name in ("q", "*"):
        async with Engine(root, [gated.flow], resume=False) as engine:
            await engine.control.pause_queue(name, "the third party is down")
            await engine.start(gated.flow, run_id=f"r-{name.replace('*', 'all')}", queue="q")
        async with Engine(root, [gated.flow]) as engine:
            await looked(engine)
            assert gated.running == []
            run_id = f"r-{name.replace('*', 'all')}"
            answer = await engine.why(run_id)
            assert (answer.kind, answer.evidence) == ("queue-paused", ("the third party is down",))
            assert {q["queue"]: q["paused"] for q in await engine.control.queues()}.get(name) is True
            await engine.control.resume_queue(name)
            with anyio.fail_after(20):
                while (await engine.get(run_id)).state is not RunState.COMPLETED:
                    await anyio.sleep(0.02)


async def reaches(engine, run_id, state):
    with anyio.fail_after(20):
        while (await engine.get(run_id)).state is not state:
            await anyio.sleep(0.02)


async def test_a_queue_knows_how_long_its_runs_waited_and_were_worked_on(root, monkeypatch):
    monkeypatch.setattr("surefoot.locks.LOCK_ATTEMPTS", 2)
    clock = FakeClock(1000.0, auto=False)
    flow = Workflow("slow", directory="{run_id}")

    @flow.step
    def work(tx, _given):
        clock.advance(7)

    @flow.step(locks=["printer"])
    def print_(tx, _given):
        pass

    async with Engine(root, [flow], clock=clock, resume=False) as engine:
        await engine.start(flow, run_id="a", queue="q")
        await engine.start(flow, run_id="later", queue="q", delay_s=50)
    clock.advance(20)
    with Workspace(root) as other:
        lock = other.try_named_lock("printer")
        async with Engine(root, [flow], clock=clock) as engine:
            await reaches(engine, "a", RunState.ERROR)
        lock.release()
    async with Engine(root, [flow], clock=clock) as engine:
        clock.advance(30)
        await reaches(engine, "later", RunState.COMPLETED)
        await engine.control.drain()  # what is measured comes after the run's own commit
        (queue,) = await engine.control.queues()
    assert (queue["waits"], queue["wait_mean_s"], queue["wait_most_s"]) == (
        2,
        13.5,
        20.0,
    )  # 1057 - 1050, 1020 - 1000
    assert (queue["runs"], queue["lock_failures"], queue["error"]) == (2, 1, 1)
    assert queue["run_mean_s"] >= 7


async def test_draining_finishes_what_was_taken_and_takes_nothing_new(root):
    gated = Gated()
    async with Engine(root, [gated.flow], queues=[Queue("q", here=1)]) as engine:
        for n in range(3):
            await engine.start(gated.flow, run_id=f"r{n}", queue="q")
        while not gated.running:
            await anyio.sleep(0.01)
        async with anyio.create_task_group() as tasks:

            async def drain():
                await engine.control.drain()

            tasks.start_soon(drain)
            await anyio.sleep(0.05)
            gated.go.set()
        assert gated.order == ["r0"]
        assert (await engine.get("r1")).state is RunState.RUNNING


async def test_only_the_named_queues_are_served(root):
    gated = Gated()
    gated.go.set()
    async with Engine(root, [gated.flow], queues=["mine"]) as engine:
        await engine.start(gated.flow, run_id="theirs", queue="theirs")
        await engine.start(gated.flow, run_id="mine", queue="mine")
        await completed(engine, 1)
        await looked(engine)
    assert gated.order == ["mine"]


async def test_a_queued_run_that_fails_waits_for_its_retry_without_a_worker(root):
    clock = FakeClock(auto=False)
    flow, tries = Workflow("flow"), []

    @flow.step(retry=Retry(attempts=2, initial_s=300, jitter=0))
    def step(tx, _):
        tries.append(tx.attempt)
        if len(tries) == 1:
            raise ValueError("no")

    async with Engine(root, [flow], clock=clock, queues=["q"]) as engine:
        await engine.start(flow, run_id="r", queue="q")
        with anyio.fail_after(20):
            while (await engine.get("r")).state is not RunState.WAITING:
                await anyio.sleep(0.01)
        await anyio.sleep(0.05)
        assert ((await engine.get("r")).owner, engine._the_open._drivers) == ("", {})
        clock.advance(301)
        await completed(engine, 1)
    assert tries == [1, 2]


async def test_a_run_is_queued_by_the_transaction_that_starts_it(root):
    job = Workflow("job")
    job.step(name="work")(lambda tx, _: tx.write_text("done", "1"))
    flow = Workflow("flow")

    @flow.step
    def enqueue(tx, _):
        tx.write_text("order.txt", "1")
        tx.start(job, run_id="j", queue="jobs", priority=3, lane="l", delay_s=1)

    async with Engine(root, [flow, job], resume=False, clock=FakeClock()) as engine:
        assert (await engine.run(flow, run_id="r")).ok
        run = await engine.get("j")
        assert (run.queue, run.priority, run.lane, run.parent, run.state) == ("jobs", 3, "l", "r", "waiting")
        status = json.loads((root / "runs/j/demo.status.json").read_text())
        assert status == json.loads(run.status)


@pytest.mark.parametrize(
    "options",
    [
        {"priority": 1.5}, {"priority": "high"}, {"lane": ""}, {"lane": "a\nb"}, {"dedup": 3}, {"delay_s": -1},
        {"delay_s": float("nan")}, {"deadline_s": 0}, {"queue": "no queue"}, {"queue": 3}, {"queue": "x" * 200},
    ],
)  # fmt: skip
async def test_wrong_placing_is_refused_at_once(root, options):
    gated = Gated()
    async with Engine(root, [gated.flow], resume=False) as engine:
        with pytest.raises(InputError) as caught:
            await engine.start(gated.flow, **options)
        assert caught.value.expected
        assert await engine.runs() == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: Queue(""), lambda: Queue("a b"), lambda: Queue("q", at_once=0), lambda: Queue("q", here=-1),
        lambda: Queue("q", at_once=1.5), lambda: Rate(0, 1), lambda: Rate(1, 0), lambda: Rate(1, float("nan")),
        lambda: Engine(".", queues="q"), lambda: Engine(".", queues=["q", "q"]), lambda: Engine(".", queues=[3]),
        lambda: Engine(".", runs_max=0), lambda: Engine(".", lease_s=0.1), lambda: Engine(".", [3]),
        lambda: Engine(".", threads_max=0), lambda: Engine(".", effects_grace_s=-1),
    ],
)  # fmt: skip
def test_wrong_queues_are_refused(make):
    with pytest.raises(DeclarationError):
        make()


# --- versions, and workflows that nobody knows ---


def versioned(version, **options):
    flow = Workflow("flow", version=version, **options)
    answer = flow.signal("answer")

    @flow.step
    def ask(tx, _):
        return tx.wait_for(answer)

    @flow.step
    def end(tx, _):
        tx.write_text("version", version)

    return flow


async def test_parked_runs_go_on_with_new_code(root):
    async with Engine(root, [versioned("1")], resume=False) as engine:
        await engine.start(engine._the_open.workflows["flow"], run_id="r", queue="q")
        await engine.advance("r")
        await engine.send("r", "answer")
    async with Engine(root, [versioned("2")]) as engine:
        await completed(engine, 1)
    assert (root / "runs/r/version").read_text() == "2"


async def test_a_pinned_run_waits_for_its_version_and_says_so(root):
    async with Engine(root, [versioned("1", pinned=True)], resume=False) as engine:
        await engine.start(engine._the_open.workflows["flow"], run_id="r", queue="q")
        await engine.advance("r")
        await engine.send("r", "answer")
    async with Engine(root, [versioned("2", pinned=True)]) as engine:
        await looked(engine)
        assert (await engine.get("r")).state is RunState.WAITING
        with pytest.raises(RunRefused, match="version '1'"):
            await engine.resume("r")
    async with Engine(root, [versioned("1", pinned=True)]) as engine:
        await completed(engine, 1)


async def test_a_step_that_is_gone_fails_that_run_and_names_it_and_can_be_skipped(root):
    async with Engine(root, [versioned("1")], resume=False) as engine:
        for run_id in ("r", "other"):
            await engine.start(engine._the_open.workflows["flow"], run_id=run_id, queue="q")
            await engine.advance(run_id)
            await engine.send(run_id, "answer")
    new = Workflow("flow", version="2")
    new.step(name="ask_nicely")(lambda tx, _: None)
    new.step(name="end")(lambda tx, _: tx.write_text("version", "2"))
    async with Engine(root, [new]) as engine:
        with anyio.fail_after(20):
            while len(await engine.runs(states=["error"])) < 2:
                await anyio.sleep(0.02)
        failure = (await engine.get("r")).failure
        assert "flow/ask" in failure.message
        assert "ask_nicely, end" in failure.message
        assert (await engine.skip("r", outcome="end")).step == "end"
        await completed(engine, 1)
    assert (root / "runs/r/version").read_text() == "2"


async def test_runs_of_a_workflow_that_nobody_knows_stay_visible(root):
    gated = Gated()
    async with Engine(root, [gated.flow], resume=False) as engine:
        await engine.start(gated.flow, run_id="r", queue="q")
    async with Engine(root, [versioned("1")]) as engine:
        await looked(engine)
        assert (await engine.get("r")).state is RunState.RUNNING
        assert "gated" in (await engine.why("r")).remedy


async def test_a_dead_workers_runs_do_not_fill_their_queue(root):
    gated = Gated()
    gated.go.set()
    async with Engine(root, [gated.flow], resume=False) as engine:
        for n in range(3):
            await engine.start(gated.flow, run_id=f"r{n}", queue="q")
        workspace = engine._the_open.workspace
        await anyio.to_thread.run_sync(
            lambda: workspace.write_rows([rows.claim_run(rows.get_run(workspace, "r0"), "dead")])
        )
    async with Engine(root, [gated.flow], queues=[Queue("q", at_once=1)]) as engine:
        await completed(engine, 3)
    assert gated.most == 1


@pytest.mark.long
def test_workers_that_are_killed_and_stopped_do_everything_once(tmp_path):
    done = subprocess.run(
        [sys.executable, "tests/support/worksoak.py", tmp_path / "ws", "3", "180", "5"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["killed"] + found["stopped"] >= 3


class Explained:
    """A source that notes how SQLite would answer."""

    def __init__(self, workspace):
        self.workspace, self.plans = workspace, []

    def query(self, sql, values=()):
        self.plans += [row[-1] for row in self.workspace.query(f"EXPLAIN QUERY PLAN {sql}", values)]
        return self.workspace.query(sql, values)


async def test_no_question_of_a_worker_goes_through_all_runs(root):
    gated = Gated()
    async with Engine(root, [gated.flow], resume=False) as engine:
        await engine.start(gated.flow, run_id="r", queue="q")
        source = Explained(engine._the_open.workspace)
        taking = rows.Taking([("gated", None)], None, [], ["gone"], [])
        rows.ready_runs(source, 1.0, taking, 10)
        rows.next_ready(source, 1.0, taking)
        rows.woken_visits(source, "me")
        rows.owners(source)
        rows.at_limit(source, [Queue("q", at_once=1, rate=Rate(1, 1))], 1.0, [])
        rows.list_runs(source, states=["error"], limit=5)
        rows.list_runs(source, limit=5)
        rows.find_run(source, "r")
        rows.runs_in(source, "runs/r")
        rows.find_dedup(source, "q", "k")
        rows.children_of(source, "r")
        rows.unfinished_in_lane(source, "q", "l")
        rows.ahead_in_lane(source, await engine.get("r"))
        rows.unqueued_runs(source)
        rows.unknown_workflows(source, [("gated", None)])
        rows.queue_facts(source, 1.0)
        rows.open_attempts(source)
        rows.unrecorded_failures(source)
    tables = ("run", "visit", "attempt", "audit", "message", "txn", "e", "c")
    scans = [plan for plan in source.plans if plan.startswith("SCAN") and plan.split()[1] in tables]
    assert all("USING" in plan and "INDEX" in plan for plan in scans), scans
    assert not [plan for plan in source.plans if "SCAN run" in plan and "PRIMARY KEY" in plan], source.plans
