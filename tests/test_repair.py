"""Mending runs: skip, fork, bulk, and why something does not go on; from Python and from the command line."""

from __future__ import annotations

import json
import subprocess
import sys

import anyio
import pytest

from surefoot import (
    Done,
    Engine,
    InputError,
    RunRefused,
    RunState,
    StepReturnRefused,
    UndoRefused,
    UnknownRun,
    Workflow,
)
from surefoot.testing import FakeClock, Snapshot
from surefoot_storage import Retention

FILE = """
from surefoot import Done, Workflow
flow = Workflow("flow", directory="runs/{run_id}")
answer = flow.signal("answer")
@flow.step
def one(tx, _):
    tx.write_text("one", "1")
@flow.step
def two(tx, _):
    tx.write_text("one", "changed by two")
    if not tx.workspace.exists("mended"):
        raise ValueError("not mended")
    return tx.wait_for(answer)
@flow.step
def three(tx, _):
    tx.write_text("three", tx.read_text("one"))
"""


@pytest.fixture
def flow(tmp_path):
    (tmp_path / "flow.py").write_text(FILE)
    namespace = {"__name__": "flow", "__file__": str(tmp_path / "flow.py")}
    exec(compile(FILE, "flow.py", "exec"), namespace)
    return namespace["flow"]


def surefoot(root, *arguments, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "surefoot", *map(str, arguments), "-w", root], capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr
    return done.stdout


# --- skip ---


async def test_a_failed_step_is_skipped_and_the_run_goes_on(root, flow):
    async with Engine(root, [flow], resume=False) as engine:
        assert not (await engine.run(flow, run_id="r")).ok
        run = await engine.skip("r")
        assert (run.state, run.step, run.failure) == (RunState.RUNNING, "three", None)
        assert (await engine.resume("r")).ok
    assert (root / "runs/r/three").read_text() == "1"


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"outcome": "nonsense"}, StepReturnRefused), ({"outcome": 3}, InputError),
        ({"step": "one"}, InputError), ({"step": "nowhere"}, InputError), ({"step": ""}, InputError),
    ],
)  # fmt: skip
async def test_a_wrong_skip_is_refused_and_changes_nothing(root, flow, options, kind):
    async with Engine(root, [flow], resume=False) as engine:
        await engine.run(flow, run_id="r")
        before = await engine.get("r")
        with pytest.raises(kind):
            await engine.skip("r", **options)
        assert await engine.get("r") == before
        with pytest.raises(UnknownRun):
            await engine.skip("nobody")


async def test_skipping_takes_an_outcome_that_the_step_declares(root):
    flow = Workflow("flow")

    @flow.step(outcomes={"good": "end", "bad": Done()})
    def judge(tx, _):
        raise ValueError("cannot say")

    @flow.step
    def end(tx, _):
        tx.write_text("end", "1")

    async with Engine(root, [flow], resume=False) as engine:
        for run_id, outcome, state in (("a", "good", "running"), ("b", "bad", "completed")):
            await engine.run(flow, run_id=run_id)
            with pytest.raises(StepReturnRefused, match="good, bad"):
                await engine.skip(run_id)
            assert (await engine.skip(run_id, outcome=outcome)).state == state


async def test_a_skip_can_be_undone(root, flow):
    async with Engine(root, [flow], resume=False) as engine:
        await engine.run(flow, run_id="r")
        await engine.skip("r")
        entries = await anyio.to_thread.run_sync(lambda: engine.history.of("r"))
        await engine.undo(entries[-1].txid)
        run = await engine.get("r")
        assert (run.state, run.step) == (RunState.ERROR, "two")


# --- fork ---


async def test_a_fork_begins_at_a_step_with_the_files_as_they_were_then(root, flow):
    (root / "mended").write_text("")
    async with Engine(root, [flow], resume=False) as engine:
        await engine.start(flow, run_id="r")
        (root / "runs/r/notes.txt").write_text("somebody's")
        (root / "runs/r/big").write_bytes(b"x" * 3_000_000)
        await engine.advance("r")
        await engine.advance("r")
        assert (root / "runs/r/one").read_text() == "changed by two"
        await engine.send("r", "answer")
        assert (await engine.resume("r")).ok
        source = Snapshot.of(root / "runs/r")
        run = await engine.fork("r", "two", new_id="again")
        assert (run.state, run.step, run.last_step, run.position) == (RunState.RUNNING, "two", None, 0)
        assert Snapshot.of(root / "runs/again").files == {
            "one": b"1", "notes.txt": b"somebody's", "big": b"x" * 3_000_000,
        }  # fmt: skip
        assert json.loads((root / "runs/again/demo.status.json").read_text())["step"] == "two"
        await engine.send("again", "answer")
        assert (await engine.resume("again")).ok
        assert Snapshot.of(root / "runs/r") == source


async def test_a_fork_needs_a_step_that_the_run_came_to_and_old_versions(root, flow):
    async with Engine(root, [flow], resume=False) as engine:
        await engine.run(flow, run_id="r")
        for step in ("nowhere", "three", 3):
            with pytest.raises(InputError):
                await engine.fork("r", step)
        with pytest.raises(RunRefused):
            await engine.fork("r", "one", new_id="r")
        assert len(await engine.runs()) == 1


async def test_a_fork_whose_old_versions_are_gone_is_refused(root):
    flow = Workflow("flow")
    for n in range(4):
        flow.step(name=f"s{n}")(lambda tx, _, n=n: tx.write_text("a", str(n) * 9))
    async with Engine(root, [flow], resume=False, retention=Retention(transactions_max=1)) as engine:
        await engine.run(flow, run_id="r")
        await anyio.to_thread.run_sync(engine.upkeep.collect)
        with pytest.raises(UndoRefused, match="r/a"):
            await engine.fork("r", "s1", new_id="again")
        assert not (root / "runs/again").exists()


# --- many ---


async def test_many_runs_are_retried_in_their_queue(root, flow):
    async with Engine(root, [flow], resume=False) as engine:
        for n in range(5):
            await engine.start(flow, run_id=f"r{n}", queue="q")
            await engine.advance(f"r{n}")
            assert (await engine.advance(f"r{n}")).outcome == "failed"
        meant = await engine.bulk("retry", states=["error"], dry_run=True)
        assert sorted(meant.done) == [f"r{n}" for n in range(5)]
        assert len(await engine.runs(states=["error"])) == 5
    (root / "mended").write_text("")
    async with Engine(root, [flow], queues=["q"]) as engine:
        done = await engine.bulk("retry", queue="q", per_s=200)
        assert (len(done.done), done.refused) == (5, ())
        with anyio.fail_after(20):
            while (
                len([r for r in await engine.runs() if r.step == "two" and r.state is RunState.WAITING]) < 5
            ):
                await anyio.sleep(0.02)
        await engine.bulk("pause", workflow="flow")
        assert len(await engine.runs(states=["paused"])) == 5
        await engine.bulk("unpause", queue="q")
        await engine.bulk("cancel", workflow="flow", limit=3)
        assert len(await engine.runs(states=["cancelled"])) == 3


@pytest.mark.parametrize(
    "options",
    [{"action": "retry"}, {"action": "explode", "states": ["error"]}, {"action": "retry", "states": ["broken"]},
     {"action": "retry", "queue": "q", "per_s": 0}, {"action": "retry", "queue": "q", "limit": 0}],
)  # fmt: skip
async def test_a_wrong_bulk_operation_is_refused(root, flow, options):
    async with Engine(root, [flow], resume=False) as engine:
        with pytest.raises(InputError):
            await engine.bulk(**options)


async def test_listing_is_limited_and_filtered(root, flow):
    async with Engine(root, [flow], resume=False) as engine:
        for n in range(5):
            await engine.start(flow, run_id=f"r{n}", queue="q" if n % 2 else "")
        assert len(await engine.runs(limit=2)) == 2
        assert {r.id for r in await engine.runs(queue="q")} == {"r1", "r3"}
        assert await engine.runs(workflow="other") == []
        for wrong in ({"limit": 0}, {"limit": -1}, {"states": ["broken"]}):
            with pytest.raises(InputError):
                await engine.runs(**wrong)


# --- why ---


async def test_why_has_an_answer_for_every_state(root, flow):
    clock = FakeClock(auto=False)
    async with Engine(root, [flow], resume=False, clock=clock) as engine:
        await engine.start(flow, run_id="r")
        assert (await engine.why("r")).kind == "nobody-drives"
        await engine.advance("r")
        await engine.advance("r")
        failed = await engine.why("r")
        assert (failed.kind, failed.sentence) == ("error", "two failed for good after 1 attempt(s)")
        assert failed.evidence == ("two: ValueError: not mended",)
        (root / "mended").write_text("")
        await engine.advance("r")
        assert (await engine.why("r")).kind == "signal"
        await engine.pause("r")
        assert (await engine.why("r")).kind == "paused"
        await engine.cancel("r")
        assert (await engine.why("r")).sentence.startswith("it is cancelled since")
        with pytest.raises(UnknownRun):
            await engine.why("nobody")


def test_the_commands_for_repair(root, flow, tmp_path):
    at = f"{tmp_path}/flow.py:flow"
    surefoot(root, "run", at, "--id", "r", code=1)
    assert "two failed for good" in surefoot(root, "why", "r")
    (root / "mended").write_text("")
    assert "waiting" in surefoot(root, "advance", "r") or True
    assert json.loads(surefoot(root, "why", "r", "--json"))["kind"] == "signal"
    assert "answer sent" in surefoot(root, "send", "r", "answer", "--key", "k")
    assert "sent before" in surefoot(root, "send", "r", "answer", "{}", "--key", "k")
    surefoot(root, "send", "r", "other", "--from", at, code=2)
    assert "paused" in surefoot(root, "pause", "r")
    assert "unpause" in surefoot(root, "why", "r")
    assert "waiting" in surefoot(root, "unpause", "r")
    assert "begins at two" in surefoot(root, "fork", "r", "two", "--id", "again", "--queue", "q")
    assert "next: three" in surefoot(root, "skip", "r", "--from", at)
    assert "surefoot work" in surefoot(root, "why", "again")
    assert "again: would be" in surefoot(root, "bulk", "cancel", "--queue", "q", "--dry-run")
    assert json.loads(surefoot(root, "bulk", "cancel", "--queue", "q", "--json"))["done"] == ["again"]
    assert "paused" in surefoot(root, "queue", "pause", "q", "--reason", "why not")
    assert "PAUSED why not" in surefoot(root, "queue", "list")
    assert "goes on" in surefoot(root, "queue", "resume", "q")
    assert "no schedules" in surefoot(root, "schedule", "list")
    surefoot(root, "schedule", "pause", "nightly", code=2)
    assert "in queue q" in surefoot(root, "run", at, "--id", "queued", "--queue", "q", "--priority", "3")


def test_commands_do_not_wait_for_messages_unless_they_are_asked_to(root, flow, tmp_path):
    at = f"{tmp_path}/flow.py:flow"
    (root / "mended").write_text("")
    shown = surefoot(root, "run", at, "--id", "r", "--no-wait", code=3)
    assert "waiting at two" in shown
    assert "surefoot why r" in shown
    assert "r: waiting at two" in surefoot(root, "recover", "--resume", code=3)
    surefoot(root, "send", "r", "answer")
    assert "r: completed" in surefoot(root, "recover", "--resume")
    branches = surefoot(root, "status", "r")
    assert "completed" in branches
