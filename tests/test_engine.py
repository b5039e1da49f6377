"""Runs end to end: order, retries, timeouts, cancellation, resume, effects, status."""

from __future__ import annotations

import asyncio
import errno
import json
import threading

import anyio
import pytest
from faulty import Hooked, fails
from pydantic import BaseModel

from surefoot import (
    DeclarationError,
    Done,
    Engine,
    InputRefused,
    Next,
    Retry,
    RunRefused,
    RunState,
    TransactionClosed,
    TransitionFailed,
    UnknownRun,
    Workflow,
    WorkspacePoisoned,
    rows,
)
from surefoot.testing import FakeClock


class Brief(BaseModel):
    topic: str
    count: int = 1


def status(root, run_id="r", directory="runs/{}"):
    return json.loads((root / directory.format(run_id) / "demo.status.json").read_text())


def flow_of(*bodies, **options):
    flow = Workflow("flow", input=Brief)
    for body in bodies:
        flow.step(**options)(body) if options else flow.step(body)
    return flow


def snapshot(root):
    return {
        str(p.relative_to(root)): p.read_bytes()
        for p in root.rglob("*")
        if p.is_file() and ".surefoot" not in p.parts
    }


async def test_sync_and_async_steps_in_declared_order(root):
    seen = []
    flow = Workflow("flow", input=Brief, directory="demos/{topic}/{run_id}")

    @flow.step
    def one(tx, brief):
        seen.append((tx.step, tx.attempt, brief.topic))
        tx.write_text("a.txt", brief.topic)

    @flow.step(reads=["a.txt", "missing.txt"], workspace_reads=["shared/*.md"])
    async def two(tx, brief):
        seen.append(tx.read_text("a.txt") + tx.read_text("missing.txt", default="?"))
        seen.append([tx.workspace.read_text(p) for p in tx.workspace.glob("shared/*.md")])
        tx.write_json("b.json", brief)

    (root / "shared").mkdir()
    (root / "shared/x.md").write_text("X")
    async with Engine(root, [flow]) as engine:
        result = await engine.run(flow, Brief(topic="t"), run_id="r")
    assert result.ok
    assert [t.step for t in result.transitions] == ["one", "two"]
    assert seen == [("one", 1, "t"), "t?", ["X"]]
    assert json.loads((root / "demos/t/r/b.json").read_text()) == {"topic": "t", "count": 1}
    shown = status(root, directory="demos/t/{}")
    assert (shown["state"], shown["transitions"], shown["transition_error"]) == ("completed", 2, False)


async def test_status_file_and_row_are_byte_for_byte_the_same_after_every_commit(root):
    flow = Workflow("flow", input=Brief)

    @flow.step
    def ok(tx, b):
        tx.write_text("x", "1")

    @flow.step
    def bad(tx, b):
        raise ValueError("no")

    async with Engine(root, [flow]) as engine:
        await engine.start(flow, {"topic": "t"}, run_id="r")
        for expected in ("running", "error", "error"):
            await engine.advance("r")
            run = await engine.get("r")
            assert (root / "runs/r/demo.status.json").read_text() == run.status
            assert status(root)["state"] == expected == run.state.value
        await engine.cancel("r")
        assert status(root)["state"] == "cancelled"
        log = rows.audit_log(engine._the_open.workspace, "r")
    assert [entry["event"] for entry in log] == [
        "started",
        "step",
        "failed",
        "retried",
        "failed",
        "cancelled",
    ]
    assert [entry["revision"] for entry in log] == list(range(1, 7))


async def test_branches_loops_and_early_ends(root):
    flow = Workflow("flow", input=Brief)

    @flow.step
    def check(tx, b):
        count = int(tx.read_text("n", default="0"))
        if count >= b.count:
            return Next("good")
        return Next("work")

    @flow.step(after=check)
    def work(tx, b):
        tx.write_text("n", str(int(tx.read_text("n", default="0")) + 1))
        return Next(check)

    @flow.step(after="check")
    def good(tx, b):
        return Done()

    @flow.step
    def never(tx, b):
        raise AssertionError

    async with Engine(root, [flow]) as engine:
        result = await engine.run(flow, {"topic": "t", "count": 2})
    assert [t.step for t in result.transitions] == ["check", "work", "check", "work", "check", "good"]
    assert result.ok


@pytest.mark.parametrize(
    ("returned", "message"),
    [({"a": 1}, "expected None, Next"), ("good", "expected None, Next"), (Next("nowhere"), "nowhere")],
)
async def test_a_step_that_returns_something_else_fails_and_changes_nothing(root, returned, message):
    flow = Workflow("flow", input=Brief)

    @flow.step
    def odd(tx, b):
        tx.write_text("x", "1")
        return returned

    async with Engine(root, [flow]) as engine:
        result = await engine.run(flow, {"topic": "t"}, run_id="r")
    assert result.failure.error == "StepReturnRefused"
    assert message in result.failure.message
    assert list(snapshot(root)) == ["runs/r/demo.status.json"]


async def test_a_failing_step_is_retried_with_durable_attempts_and_growing_waits(root):
    clock = FakeClock()
    flow = Workflow("flow", input=Brief)
    attempts = []

    @flow.step(retry=Retry(attempts=4, initial_s=1.0, factor=3.0, jitter=0.0))
    def flaky(tx, b):
        attempts.append((tx.attempt, tx.key))
        tx.write_text("x", "1")
        if len(attempts) < 4:
            raise OSError(errno.EAGAIN, "busy")

    async with Engine(root, [flow], clock=clock) as engine:
        result = await engine.run(flow, {"topic": "t"}, run_id="r")
    assert result.ok
    assert attempts == [(n, "r/1/flaky") for n in (1, 2, 3, 4)]
    assert clock.slept == [1.0, 3.0, 9.0]
    assert [t.outcome for t in result.transitions] == ["retrying"] * 3 + ["committed"]


async def test_attempts_survive_the_process_and_the_run_resumes_by_itself(root):
    clock = FakeClock()
    flow = Workflow("flow", input=Brief)
    seen = []
    done = anyio.Event()

    @flow.step(retry=Retry(attempts=3, initial_s=60.0, jitter=0.0))
    async def flaky(tx, b):
        seen.append(tx.attempt)
        if tx.attempt < 3:
            raise ValueError(tx.attempt)

    @flow.step
    async def last(tx, b):
        done.set()

    async with Engine(root, [flow], clock=clock, resume=False) as engine:
        await engine.start(flow, {"topic": "t"}, run_id="r")
        assert (await engine.advance("r")).outcome == "retrying"
    assert status(root)["state"] == "waiting"
    assert status(root)["transition_error"] is True
    async with Engine(root, [flow], clock=clock) as engine:
        with anyio.fail_after(10):
            await done.wait()
            assert (await engine.resume("r")).state is RunState.COMPLETED
    assert seen == [1, 2, 3]


FAILING = {
    "exception": (lambda tx, b: 1 / 0, "ZeroDivisionError"),
    "missing template": (lambda tx, b: tx.render("nothing.j2"), "TemplateRefused"),
    "missing file": (lambda tx, b: tx.read_text("nothing"), "UnreadableFile"),
    "not text": (lambda tx, b: tx.workspace.read_text("binary"), "UnreadableFile"),
    "corrupt JSON": (lambda tx, b: tx.workspace.read_json("broken.json"), "UnreadableFile"),
    "outside": (lambda tx, b: tx.write_text("../../../../etc/x", ""), "PathRefused"),
    "the status file": (lambda tx, b: tx.write_text("demo.status.json", ""), "PathRefused"),
    "incompatible": (lambda tx, b: (tx.write_text("p", ""), tx.mkdir("p")), "IncompatibleOperations"),
    "not JSON": (lambda tx, b: tx.write_json("x", {1, 2}), "InputError"),
    "NaN": (lambda tx, b: tx.write_json("x", float("nan")), "InputError"),
    "broken message": (lambda tx, b: (_ for _ in ()).throw(Unprintable()), "Unprintable"),
}


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError


@pytest.mark.parametrize("name", FAILING)
async def test_a_failure_before_the_commit_point_changes_nothing_and_keeps_its_cause(root, name):
    body, error = FAILING[name]
    (root / "binary").write_bytes(b"abc\xff")
    (root / "broken.json").write_text('{"a": ')
    flow = Workflow("flow", input=Brief)
    broken = [True]

    @flow.step
    def step(tx, b):
        tx.write_text("made", "x")
        if broken:
            body(tx, b)

    async with Engine(root, [flow]) as engine:
        await engine.start(flow, {"topic": "t"}, run_id="r")
        before = {k: v for k, v in snapshot(root).items() if "status" not in k}
        result = await engine.advance("r")
        assert (result.outcome, result.state) == ("failed", RunState.ERROR)
        assert result.failure.error == error
        with pytest.raises(TransitionFailed):
            result.or_raise()
        assert {k: v for k, v in snapshot(root).items() if "status" not in k} == before
        run = await engine.get("r")
        assert run.failure == result.failure
        assert (run.failure.step, run.failure.attempt) == ("step", 1)
        assert "Traceback" in run.failure.traceback
        assert "execute.py" not in run.failure.traceback.split(", in ")[0]
        assert status(root)["transition_error"] is True
        assert status(root)["error"]["error"] == error
        broken.clear()
        assert (await engine.retry("r")).ok
        assert status(root)["transition_error"] is False


async def test_declared_templates_are_checked_and_values_must_be_given(root, tmp_path):
    (tmp_path / "t").mkdir()
    (tmp_path / "t/ok.html.j2").write_text("<p>{{ x }}</p>{{ y }}\n")
    flow = Workflow("flow", input=Brief, templates=tmp_path / "t")
    ran = []

    @flow.step(templates=["gone.j2"])
    def early(tx, b):
        ran.append(1)

    @flow.step(templates=["ok.html.j2"])
    async def late(tx, b):
        tx.write_text("out", tx.render("ok.html.j2", x="<b>"))

    async with Engine(root, [flow]) as engine:
        result = await engine.run(flow, {"topic": "t"}, run_id="r")
        assert (result.failure.error, ran) == ("TemplateRefused", [])
        (tmp_path / "t/gone.j2").write_text("")
        result = await engine.retry("r")
        assert "'y' is undefined" in result.failure.message


async def test_an_async_step_is_told_how_to_read_what_it_did_not_declare(root):
    flow = Workflow("flow", input=Brief)

    @flow.step
    async def step(tx, b):
        if b.count == 2:
            await tx.workspace.load("notes.md")
            await tx.workspace.load("*.md")
        tx.write_text("x", tx.workspace.read_text("notes.md") + str(tx.workspace.glob("*.md")))

    (root / "notes.md").write_text("n")
    async with Engine(root, [flow]) as engine:
        result = await engine.run(flow, {"topic": "t"})
        assert result.failure.error == "UndeclaredRead"
        assert "reads=" in result.failure.hint
        assert "await tx.load" in result.failure.hint
        assert (await engine.run(flow, {"topic": "t", "count": 2})).ok


async def test_a_timeout_reaches_sync_and_async_bodies_and_fences_them(root):
    flow = Workflow("flow", input=Brief)
    release, ended = threading.Event(), threading.Event()
    caught = []

    @flow.step(timeout_s=0.05)
    def stuck(tx, b):
        tx.write_text("x", "never")
        release.wait(10)
        try:
            tx.write_text("y", "never")
        except Exception:
            caught.append("swallowed")
        except TransactionClosed:
            caught.append("closed")
            raise
        finally:
            ended.set()

    async with Engine(root, [flow]) as engine:
        result = await engine.run(flow, {"topic": "t"}, run_id="r")
        assert result.failure.error == "StepTimedOut"
        release.set()
        assert await anyio.to_thread.run_sync(ended.wait, 10)
        assert caught == ["closed"]
    assert list(snapshot(root)) == ["runs/r/demo.status.json"]

    slow = Workflow("slow", input=Brief)

    @slow.step(timeout_s=0.05)
    async def forever(tx, b):
        await anyio.sleep_forever()

    async with Engine(root, [slow]) as engine:
        assert (await engine.run(slow, {"topic": "t"})).failure.error == "StepTimedOut"


async def test_bodies_that_run_on_are_limited_and_declared_reads_too(root):
    flow = Workflow("flow", input=Brief)
    release = threading.Event()

    @flow.step(timeout_s=0.02)
    def deaf(tx, b):
        release.wait(20)

    big = Workflow("big", input=Brief)
    big.step(workspace_reads=["*.bin"], reads_bytes_max=10)(lambda_step)
    (root / "x.bin").write_bytes(b"x" * 11)
    async with Engine(root, [flow, big]) as engine:
        failures = [(await engine.run(flow, {"topic": "t"})).failure for _ in range(9)]
        release.set()
        assert [f.error for f in failures] == ["StepTimedOut"] * 8 + ["SurefootError"]
        assert "tx.check()" in failures[-1].hint
        failure = (await engine.run(big, {"topic": "t"})).failure
        assert "at most 10 bytes" in failure.message


async def test_a_cancelled_task_changes_nothing_and_marks_the_run(root):
    flow = Workflow("flow", input=Brief)
    started = anyio.Event()
    block = [True]

    @flow.step
    async def step(tx, b):
        tx.write_text("x", "1")
        started.set()
        if block:
            await anyio.sleep_forever()

    async with Engine(root, [flow]) as engine:
        async with anyio.create_task_group() as tasks:

            async def drive():
                await engine.run(flow, {"topic": "t"}, run_id="r")

            tasks.start_soon(drive)
            await started.wait()
            tasks.cancel_scope.cancel()
        run = await engine.get("r")
        assert (run.state, run.failure.error) == (RunState.ERROR, "StepCancelled")
        assert not (root / "runs/r/x").exists()
        block.clear()
        assert (await engine.retry("r")).ok


async def test_engine_cancel_stops_a_running_step(root):
    flow = Workflow("flow", input=Brief)
    started = anyio.Event()

    @flow.step
    async def step(tx, b):
        tx.write_text("x", "1")
        started.set()
        await anyio.sleep_forever()

    results = []
    async with Engine(root, [flow]) as engine, anyio.create_task_group() as tasks:

        async def drive():
            results.append(await engine.run(flow, {"topic": "t"}, run_id="r"))

        tasks.start_soon(drive)
        await started.wait()
        assert (await engine.cancel("r")).state is RunState.CANCELLED
        with pytest.raises(RunRefused):
            await engine.cancel("r")
    assert results[0].state is RunState.CANCELLED
    assert not (root / "runs/r/x").exists()


async def test_closing_the_engine_interrupts_and_the_next_one_goes_on(root):
    flow = Workflow("flow", input=Brief)
    started = anyio.Event()
    block = [True]

    @flow.step
    async def step(tx, b):
        started.set()
        if block:
            await anyio.sleep_forever()
        tx.write_text("x", "1")

    async with Engine(root, [flow]) as engine:
        await engine.start(flow, {"topic": "t"}, run_id="r")
    async with Engine(root, [flow]):  # resumes it in the background
        with anyio.fail_after(10):
            await started.wait()
    assert status(root)["state"] == "running"
    assert status(root)["transition_error"] is False
    block.clear()
    async with Engine(root, [flow]) as engine:
        assert (await engine.resume("r")).ok


def test_a_native_asyncio_cancellation_cannot_abandon_a_commit(root):
    flow = Workflow("flow", input=Brief)
    in_commit, go_on = threading.Event(), threading.Event()

    @flow.step
    def step(tx, b):
        tx.write_text("x", "1")

    def hook(name, arguments):
        if name == "rename_new" and "x" in arguments:
            in_commit.set()
            go_on.wait(10)

    async def main():
        async with Engine(root, [flow], fs=Hooked(hook)) as engine:
            await engine.start(flow, {"topic": "t"}, run_id="r")
            task = asyncio.ensure_future(_awaited(engine.advance("r")))
            await asyncio.to_thread(in_commit.wait, 10)
            task.cancel()
            await asyncio.sleep(0)
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            run = await engine.get("r")
            assert (run.state, run.failure) == (RunState.COMPLETED, None)

    asyncio.run(main())
    assert (root / "runs/r/x").read_text() == "1"


async def _awaited(pending):
    return await pending


@pytest.mark.parametrize("edits", [1, 5, 6])
async def test_a_conflict_is_run_again_at_most_five_times(root, edits):
    (root / "shared").write_text("0")
    flow = Workflow("flow", input=Brief)
    runs = []

    @flow.step
    def step(tx, b):
        seen = tx.workspace.read_text("shared")
        runs.append(seen)
        tx.write_text("copy", seen)
        if len(runs) <= edits:
            (root / "shared").write_text(str(len(runs)))

    async with Engine(root, [flow], random=lambda: 0.0) as engine:
        result = await engine.run(flow, {"topic": "t"}, run_id="r")
        attempts = rows.attempts_of(engine._the_open.workspace, "r")
    assert len(attempts) == 1
    if edits <= 5:
        assert result.ok
        assert (root / "runs/r/copy").read_text() == str(edits)
    else:
        assert result.failure.error == "Conflict"
        assert "shared" in result.failure.message
        assert len(runs) == 6
    assert (root / "shared").read_text() == str(edits)


async def test_starting_is_idempotent_or_refused(root):
    flow = flow_of(lambda_step)
    other = Workflow("other", input=Brief)
    other.step(lambda_step)
    async with Engine(root, [flow, other]) as engine:
        first = await engine.start(flow, {"topic": "t"}, run_id="r")
        assert (await engine.start(flow, {"topic": "t"}, run_id="r")).id == first.id
        for refused in (
            engine.start(flow, {"topic": "another"}, run_id="r"),
            engine.start(other, {"topic": "t"}, run_id="r"),
            engine.start(flow, {"topic": "t"}, run_id="r", on_exists="refuse"),
        ):
            with pytest.raises(RunRefused):
                await refused
        for bad in ({"topic": 1, "count": "x"}, {}, "not json", [1]):
            with pytest.raises(InputRefused):
                await engine.start(flow, bad, run_id="new")
        for bad_id in ("", "../x", "a/b", ".hidden", "x" * 200, 7):
            with pytest.raises(InputRefused):
                await engine.start(flow, {"topic": "t"}, run_id=bad_id)
        with pytest.raises(UnknownRun, match="the latest are r"):
            await engine.get("nope")
        (root / "runs/full").mkdir()
        (root / "runs/full/theirs").write_text("x")
        with pytest.raises(RunRefused, match="theirs"):
            await engine.start(flow, {"topic": "t"}, run_id="full")
        assert not (root / "runs/full/demo.status.json").exists()
        assert (await engine.start(flow, {"topic": "t"}, run_id="full", adopt=True)).id == "full"


def lambda_step(tx, b):
    tx.write_text("x", "1")


async def test_effects_are_delivered_in_order_retried_and_set_aside(root):
    clock = FakeClock()
    flow = Workflow("flow", input=Brief)
    told = []

    @flow.step
    def one(tx, b):
        tx.write_text("x", "1")

    @one.effect(retry=Retry(attempts=3, initial_s=0.0, jitter=0.0))
    async def flaky(done):
        told.append((done.key, done.attempt, done.files, done.input.topic))
        if done.attempt < 3:
            raise ConnectionError

    @flow.step
    def two(tx, b):
        tx.write_text("y", "1")

    @two.effect(retry=Retry(attempts=2, initial_s=0.0, jitter=0.0))
    def hopeless(done):
        told.append((done.key, done.attempt))
        raise ConnectionError("down")

    async with Engine(root, [flow], clock=clock) as engine:
        assert (await engine.run(flow, {"topic": "t"}, run_id="r")).ok
        assert await engine.deliver() == 0
        assert rows.count_effects(engine._the_open.workspace, "dead") == 1
    assert told == [
        *[("r/1/one/flaky", n, ("runs/r/x",), "t") for n in (1, 2, 3)],
        ("r/2/two/hopeless", 1),
        ("r/2/two/hopeless", 2),
    ]


async def test_preview_shows_the_exact_diff_and_changes_nothing(root):
    flow = Workflow("flow", input=Brief)

    @flow.step
    def step(tx, b):
        tx.write_text("new.txt", "made\n")
        tx.workspace.write_text("old.txt", "after\n")
        tx.workspace.delete("gone.txt")
        tx.write_bytes("image", b"\xff\x00")

    @step.effect
    def tell(done):
        raise AssertionError

    (root / "old.txt").write_text("before\n")
    (root / "gone.txt").write_text("gone\n")
    async with Engine(root, [flow], resume=False) as engine:
        await engine.start(flow, {"topic": "t"}, run_id="r")
        before = snapshot(root)
        shown = await engine.preview("r")
        assert snapshot(root) == before
        assert (await engine.get("r")).position == 0
    assert "--- a/old.txt\n+++ b/old.txt\n@@ -1 +1 @@\n-before\n+after\n" in shown.diff
    assert "--- /dev/null\n+++ b/runs/r/new.txt\n@@ -0,0 +1 @@\n+made\n" in shown.diff
    assert "--- a/gone.txt\n+++ /dev/null\n" in shown.diff
    assert "binary runs/r/image: 0 -> 2 bytes" in shown.diff
    assert shown.effects == ("tell",)
    kinds = {c.path: c.kind for c in shown.changes}
    assert kinds["old.txt"], kinds["gone.txt"] == ("changed", "deleted")


async def test_unapplied_is_reported_blocks_the_run_and_is_finished_later(root):
    flow = Workflow("flow", input=Brief)

    @flow.step
    def one(tx, b):
        tx.write_text("x", "1")

    @flow.step
    def two(tx, b):
        tx.write_text("y", "1")

    fs = Hooked()
    async with Engine(root, [flow], fs=fs, resume=False) as engine:
        await engine.start(flow, {"topic": "t"}, run_id="r")
        fs.hook = lambda name, args: (
            fails(errno.EACCES)() if name.startswith("rename") and "x" in args else None
        )
        result = await engine.advance("r")
        assert result.outcome == "unapplied"
        assert result.unapplied[0][0] == "runs/r/x"
        blocked = await engine.resume("r")
        assert blocked.transitions[-1].outcome == "blocked"
        assert blocked.state is RunState.RUNNING
        fs.hook = lambda _n, _a: None
        assert (await engine.resume("r")).ok
    assert (root / "runs/r/x").read_text() == "1"


async def test_a_failure_that_the_disk_does_not_let_us_record_is_recorded_at_the_next_open(root):
    flow = Workflow("flow", input=Brief)

    @flow.step
    def step(tx, b):
        tx.write_text("x", "1")

    fs = Hooked()
    async with Engine(root, [flow], fs=fs, resume=False) as engine:
        await engine.start(flow, {"topic": "t"}, run_id="r")
        fs.hook = lambda name, _args: fails(errno.ENOSPC)() if name == "create" else None
        result = await engine.advance("r")
        assert (result.outcome, result.failure.error) == ("failed", "StageFailed")
        assert "No space left" in result.failure.message
    assert status(root)["transition_error"] is False
    async with Engine(root, [flow], resume=False) as engine:
        run = await engine.get("r")
        assert (run.state, run.failure.error) == (RunState.ERROR, "StageFailed")
        assert status(root)["transition_error"] is True
        assert (await engine.retry("r")).ok


async def test_a_step_that_no_longer_exists_fails_that_run_and_is_named(root):
    flow = flow_of(lambda_step)
    async with Engine(root, [flow], resume=False) as engine:
        await engine.start(flow, {"topic": "t"}, run_id="r")
    renamed = Workflow("flow", input=Brief)
    renamed.step(name="another")(lambda_step)
    async with Engine(root, [renamed], resume=False) as engine:
        result = await engine.resume("r")
        assert result.state is RunState.ERROR
        assert "flow/lambda_step" in result.failure.message


async def test_a_foreign_edit_of_the_status_file_does_not_block_the_run(root):
    flow = flow_of(lambda_step)
    async with Engine(root, [flow], resume=False) as engine:
        await engine.start(flow, {"topic": "t"}, run_id="r")
        (root / "runs/r/demo.status.json").write_text("{}")
        assert (await engine.advance("r")).ok
        events = [entry["event"] for entry in rows.audit_log(engine._the_open.workspace, "r")]
        assert any("foreign status edit" in event for event in events)
    assert status(root)["state"] == "completed"


async def test_steps_that_share_a_lock_take_turns(root):
    flow = Workflow("flow", input=Brief)
    inside = []

    @flow.step(locks=["hot"])
    async def step(tx, b):
        inside.append(1)
        assert len(inside) == 1
        await anyio.lowlevel.checkpoint()
        tx.write_text("x", "1")
        inside.pop()

    async with Engine(root, [flow]) as engine, anyio.create_task_group() as tasks:
        for n in range(5):

            async def drive(n=n):
                assert (await engine.run(flow, {"topic": "t"}, run_id=f"r{n}")).ok

            tasks.start_soon(drive)


def test_the_same_from_sync_code_and_misuse_is_loud(root):
    flow = flow_of(lambda_step)
    engine = Engine(root, [flow])
    with pytest.raises(WorkspacePoisoned, match="never opened"):
        _ = engine.recovered
    with engine:
        assert engine.run(flow, {"topic": "t"}).wait().or_raise().ok
        with Engine(root, [flow]) as second:
            assert [run.state for run in second.runs().wait()] == ["completed"]
        pending = engine.runs()
        with pytest.warns(RuntimeWarning, match="neither awaited nor waited for"):
            del pending
    with pytest.raises(DeclarationError, match="outside|Transaction"):
        flow.steps["lambda_step"](None, None)


def test_interruptions_are_counted_and_a_poison_step_is_stopped(root):
    flow = flow_of(lambda_step)
    with Engine(root, [flow], resume=False) as engine:
        engine.start(flow, {"topic": "t"}, run_id="r").wait()
    for n in range(1, 6):
        with Engine(root, [flow], resume=False) as engine:
            run = engine.get("r").wait()
            assert run.interruptions == n - 1
            start = rows.start_attempt(run, run.open[0], 0.0)  # as a process that died right after
            engine._the_open.workspace.write_rows([start], durable=False)
    with Engine(root, [flow]) as engine:
        run = engine.get("r").wait()
        assert (run.state, run.failure.error) == (RunState.ERROR, "ProcessDied")
        assert engine.retry("r").wait().ok


def test_declarations_are_checked():
    flow = flow_of(lambda_step)
    cases = [
        lambda: flow.step(lambda_step),
        lambda: flow.step(name="bad name")(lambda_step),
        lambda: flow.step(name="a", after="nowhere")(lambda_step),
        lambda: flow.step(name="b", reads=["{unknown}.md"])(lambda_step),
        lambda: flow.step(name="c", reads=["../x"])(lambda_step),
        lambda: flow.step(name="d", reads=["{"])(lambda_step),
        lambda: flow.step(name="e")(lambda tx: None),
        lambda: Workflow("", input=Brief),
        lambda: Workflow("w", input=dict),
        lambda: Workflow("w", directory="/abs"),
        lambda: Workflow("w").check(),
        lambda: Engine(".", [flow, flow_of(lambda_step)]),
    ]
    for case in cases:
        with pytest.raises(DeclarationError) as caught:
            case()
        assert caught.value.found
