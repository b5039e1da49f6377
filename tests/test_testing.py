"""The testing kit: a clock in one's hands, real crashes, changes, and writes past the transaction."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path

import anyio
import pytest

from surefoot import Engine, Retry, RunState, Workflow
from surefoot.testing import POINTS, BypassRefused, FakeClock, Snapshot, crash, refuse_bypass


def two_steps():
    flow = Workflow("two")

    @flow.step
    def one(tx, _):
        tx.write_text("a.txt", "one")
        tx.write_text("b.txt", "one")

    @flow.step
    def two(tx, _):
        tx.write_text("a.txt", "two")
        tx.write_text("b.txt", "two")

    return flow


@pytest.mark.parametrize("at", POINTS)
@pytest.mark.parametrize("step", ["one", "two"])
def test_a_crash_at_each_point_leaves_what_its_name_says(root, at, step):
    flow = two_steps()
    crash(root, flow, run_id="r", step=step, at=at)
    before, after = {"one": (None, "one"), "two": ("one", "two")}[step]
    found = {name: (root / f"runs/r/{name}").read_text() if (root / f"runs/r/{name}").exists() else None
             for name in ("a.txt", "b.txt")}  # fmt: skip
    put = {"read": 0, "prepared": 0, "committed": 0, "half-applied": 1, "applied": 2}[at]
    assert sorted(map(str, found.values())) == sorted(map(str, [after] * put + [before] * (2 - put)))
    with Engine(root, [flow], resume=False) as engine:
        run = engine.get("r").wait()
        committed = at in ("committed", "half-applied", "applied")
        assert run.last_step == (step if committed else {"one": None, "two": "one"}[step])
        assert engine.resume("r").wait().ok
    assert (root / "runs/r/b.txt").read_text() == "two"


def test_a_crash_in_an_async_step_and_going_on_with_a_crashed_run(root):
    flow = Workflow("flow")

    @flow.step
    async def only(tx, _):
        tx.write_text("a.txt", "x")

    for at in ("read", "prepared", "committed"):
        crash(root, flow, run_id="r", step=only, at=at)
    with Engine(root, [flow], resume=False) as engine:
        assert engine.get("r").wait().state is RunState.COMPLETED


def test_a_crash_that_cannot_happen_is_said(root):
    flow = two_steps()
    for wrong in ({"step": "three"}, {"step": "one", "at": "lunch"}):
        with pytest.raises(ValueError, match="one of"):
            crash(root, flow, run_id="r", **wrong)
    failing = Workflow("failing")
    failing.step(name="no")(lambda tx, _: 1 / 0)
    failing.step(name="never")(lambda tx, _: None)
    with pytest.raises(AssertionError, match="never came"):
        crash(root, failing, run_id="r", step="never")


async def test_a_clock_that_jumps_to_whatever_is_waited_for(root):
    clock, flow, tries = FakeClock(), Workflow("flow"), []

    @flow.step(retry=Retry(attempts=3, initial_s=100, factor=10, jitter=0))
    def step(tx, _):
        tries.append(clock.now())
        if len(tries) < 3:
            raise ValueError("no")

    async with Engine(root, [flow], clock=clock) as engine:
        assert (await engine.run(flow, run_id="r")).ok
    assert [b - a for a, b in itertools.pairwise(tries)] == [100, 300]  # max_s is 300
    assert clock.slept == [100, 300]


async def test_a_clock_that_stands_still(root):
    clock, flow = FakeClock(auto=False), Workflow("flow")
    flow.step(name="nap")(lambda tx, _: tx.sleep(60))
    flow.step(name="end")(lambda tx, _: None)
    async with Engine(root, [flow], clock=clock) as engine:
        await engine.start(flow, run_id="r", queue="q")
        with anyio.fail_after(20):
            while (await engine.get("r")).state is not RunState.WAITING:
                await anyio.sleep(0.005)
            clock.advance(59)
            await anyio.sleep(0.05)
            assert (await engine.get("r")).state is RunState.WAITING
            clock.advance(1)
            while (await engine.get("r")).state is not RunState.COMPLETED:
                await anyio.sleep(0.005)
    with pytest.raises(ValueError, match="set"):
        clock.advance(-1)


async def test_changes_are_a_dictionary(root):
    flow = two_steps()
    async with Engine(root, [flow], resume=False) as engine:
        await engine.start(flow, run_id="r")
        await engine.advance("r")
        before = Snapshot.of(root)
        await engine.advance("r")
        assert before.changes(Snapshot.of(root)) == {
            "runs/r/a.txt": ("one", "two"), "runs/r/b.txt": ("one", "two"),
        }  # fmt: skip
        assert before.changes(before) == {}
        assert Snapshot({}).changes(Snapshot({"x": b"1"})) == {"x": (None, "1")}


BYPASSES = {
    "write_text": lambda p: p.write_text("x"), "open a": lambda p: open(p, "a").close(), "touch": lambda p: p.touch(),
    "unlink": lambda p: os.unlink(p.parent / "there"), "rename": lambda p: os.rename(p.parent / "there", p),
    "replace in": lambda p: os.replace(p.parents[3] / "outside", p), "mkdir": lambda p: p.mkdir(),
    "rmtree": lambda p: shutil.rmtree(p.parent / "dir"), "copy": lambda p: shutil.copy(p.parents[3] / "outside", p),
    "symlink": lambda p: p.symlink_to("x"), "chmod": lambda p: (p.parent / "there").chmod(0o600),
    "truncate": lambda p: os.truncate(p.parent / "there", 0),
}  # fmt: skip


@pytest.mark.parametrize("how", BYPASSES)
async def test_a_write_past_the_transaction_is_refused(root, tmp_path, how):
    (tmp_path / "outside").write_text("x")
    there = root / "runs/r"
    (there / "dir").mkdir(parents=True)
    (there / "there").write_text("x")
    flow = Workflow("flow")

    @flow.step
    def step(tx, _):
        tx.write_text("good.txt", "1")
        BYPASSES[how](Path(tx.workspace._storage.root) / "runs/r/new")

    async with Engine(root, [flow], resume=False) as engine:
        await engine.start(flow, run_id="r", adopt=True)
        before = Snapshot.of(root)
        with refuse_bypass(root):
            result = await engine.advance("r")
        assert result.failure.error == BypassRefused.__name__
        assert "tx.write_text" in result.failure.message
        assert before.changes(Snapshot.of(root)) == {}
        assert how or (await engine.advance("r")).ok


async def test_what_goes_through_the_transaction_or_stays_outside_is_not(root, tmp_path):
    flow = two_steps()

    @flow.step
    def three(tx, _):
        (tmp_path / "elsewhere.txt").write_text("fine")
        assert Path(tx.workspace._storage.root, "runs/r/a.txt").read_text() == "two"
        with tx.create("big.bin") as out:
            out.write(b"x" * 1_000_000)
        tx.mkdir("d")
        tx.delete("a.txt")

    with refuse_bypass(root):
        async with Engine(root, [flow]) as engine:
            assert (await engine.run(flow, run_id="r")).ok
    (root / "free").write_text("afterwards anybody may")
