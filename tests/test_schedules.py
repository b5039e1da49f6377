"""Schedules: each slot has one run or none; time zones, catching up, overlap, and clocks that are set."""

from __future__ import annotations

from datetime import UTC, datetime

import anyio
import pytest
from machines import looked

from surefoot import Engine, InputError, RunState, Workflow
from surefoot.clock import JUMP_S, SystemClock
from surefoot.testing import FakeClock

NOON = datetime(2027, 3, 1, 12, 0, tzinfo=UTC).timestamp()


def nightly(cron="0 * * * *", body=None, **options):
    flow = Workflow("job")

    @flow.step
    async def work(tx, _):
        if body is not None:
            await body()
        tx.write_text("at", str(tx.now))

    flow.schedule("hourly", cron, **options)
    return flow


async def settled(engine, count, state="completed"):
    with anyio.fail_after(20):
        while len(found := await engine.runs(states=[state])) < count:
            await anyio.sleep(0.01)
    return found


async def looks(engine):
    """Until its worker has looked twice from here on: whatever is due has been begun by then."""
    await looked(engine)


def ids(runs):
    return sorted(run.id for run in runs)


async def test_each_slot_is_started_once_by_one_of_two_workers(root):
    clock = FakeClock(NOON + 1, auto=False)
    flow = nightly()
    async with Engine(root, [flow], clock=clock) as one, Engine(root, [flow], clock=clock):
        await looks(one)
        for hour in range(1, 4):
            clock.advance(3600)
            await settled(one, hour)
        assert ids(await one.runs()) == [f"hourly-20270301T{h}0000Z" for h in (13, 14, 15)]


async def test_the_first_slot_is_the_next_one_and_nothing_before(root):
    clock = FakeClock(NOON + 1, auto=False)
    async with Engine(root, [nightly()], clock=clock) as engine:
        await looks(engine)
        assert await engine.runs() == []
        assert [s["name"] for s in await engine.control.schedules()] == ["hourly"]


async def test_slots_that_nobody_could_start_are_made_up_for_within_the_window(root):
    clock = FakeClock(NOON + 1, auto=False)
    async with Engine(root, [nightly()], clock=clock) as engine:
        await looks(engine)
    clock.advance(5 * 3600)
    async with Engine(root, [nightly(catch_up_s=2 * 3600 - 60, overlap="allow")], clock=clock) as engine:
        await settled(engine, 2)
        await looks(engine)
        assert ids(await engine.runs()) == ["hourly-20270301T160000Z", "hourly-20270301T170000Z"]


@pytest.mark.parametrize(
    ("overlap", "started", "cancelled"), [("skip", 1, 0), ("queue", 3, 0), ("allow", 3, 0), ("cancel", 3, 2)]
)
async def test_what_happens_to_a_slot_while_the_last_run_is_not_over(root, overlap, started, cancelled):
    go = anyio.Event()
    most = [0, 0]

    async def body():
        most[0] += 1
        most[1] = max(most)
        try:
            await go.wait()
        finally:
            most[0] -= 1

    clock = FakeClock(NOON + 1, auto=False)
    async with Engine(root, [nightly(body=body, overlap=overlap)], clock=clock) as engine:
        await looks(engine)
        for _ in range(3):
            clock.advance(3600)
            await looks(engine)
        assert len(await engine.runs()) == started
        assert len(await engine.runs(states=["cancelled"])) == cancelled
        with anyio.fail_after(20):
            while most[1] < (3 if overlap == "allow" else 1):  # taken is not yet begun
                await anyio.sleep(0.01)
        go.set()
        await settled(engine, started - cancelled)
    assert most[1] == (3 if overlap == "allow" else 1)


@pytest.mark.parametrize(
    ("zone", "cron", "after", "slots"),
    [
        ("Europe/Berlin", "30 2 * * *", "2027-03-27T12:00", ["2027-03-28T01:00", "2027-03-29T00:30"]),  # no 2:30 then
        ("Europe/Berlin", "30 2 * * *", "2027-10-30T12:00", ["2027-10-31T00:30", "2027-11-01T01:30"]),  # it comes twice
        ("UTC", "30 2 * * *", "2027-03-27T12:00", ["2027-03-28T02:30", "2027-03-29T02:30"]),
        ("America/New_York", "0 9 * * 1", "2027-03-12T00:00", ["2027-03-15T13:00", "2027-03-22T13:00"]),
    ],
)  # fmt: skip
def test_slots_are_in_the_schedules_own_time_zone(zone, cron, after, slots):
    schedule = nightly(cron, zone=zone).schedules["hourly"]
    found = schedule.slots(datetime.fromisoformat(after).replace(tzinfo=UTC).timestamp())
    assert [f"{datetime.fromtimestamp(next(found), UTC):%Y-%m-%dT%H:%M}" for _ in slots] == slots


async def test_a_clock_that_is_set_back_starts_no_slot_twice(root):
    clock = FakeClock(NOON + 1, auto=False)
    async with Engine(root, [nightly()], clock=clock) as engine:
        await looks(engine)
        clock.advance(3600)
        await settled(engine, 1)
        clock.set(NOON - 7200)
        await looks(engine)
        clock.set(NOON + 3700)
        await looks(engine)
        assert len(await engine.runs()) == 1


async def test_a_paused_schedule_makes_up_for_nothing(root):
    clock = FakeClock(NOON + 1, auto=False)
    async with Engine(root, [nightly()], clock=clock) as engine:
        await looks(engine)
        await engine.control.pause_schedule("hourly")
        clock.advance(7200)
        await looks(engine)
        await engine.control.resume_schedule("hourly")
        await looks(engine)
        assert await engine.runs() == []
        clock.advance(3600)
        await settled(engine, 1)
        with pytest.raises(InputError, match="hourly"):
            await engine.control.pause_schedule("daily")


async def test_a_schedule_that_was_changed_begins_with_its_next_slot(root):
    clock = FakeClock(NOON + 1, auto=False)
    async with Engine(root, [nightly()], clock=clock) as engine:
        await looks(engine)
    clock.advance(7200)
    async with Engine(root, [nightly("30 * * * *")], clock=clock) as engine:
        await looks(engine)
        assert await engine.runs() == []
        clock.advance(3600)
        assert ids(await settled(engine, 1)) == ["hourly-20270301T143000Z"]


async def test_a_slot_whose_directory_is_taken_is_not_tried_for_ever(root):
    clock = FakeClock(NOON + 1, auto=False)
    flow = Workflow("job", directory="same")
    flow.step(name="work")(lambda tx, _: None)
    flow.schedule("hourly", "0 * * * *")
    (root / "same").mkdir()
    (root / "same/theirs").write_text("x")
    async with Engine(root, [flow], clock=clock) as engine:
        await looks(engine)
        clock.advance(3600)
        await looks(engine)
        assert await engine.runs() == []
        (root / "same/theirs").unlink()
        clock.advance(3600)
        assert ids(await settled(engine, 1)) == ["hourly-20270301T140000Z"]


# --- clocks that are set ---


class Two:
    """A wall clock and a steady one."""

    def __init__(self):
        self.wall, self.steady = 1_000_000.0, 500.0
        self.clock = SystemClock(wall=lambda: self.wall, steady=lambda: self.steady)

    def passes(self, seconds, *, jump=0.0):
        self.steady += seconds
        self.wall += seconds + jump
        return self.clock.now()


def test_a_clock_that_jumps_forward_is_believed_when_it_stays_there():
    two = Two()
    assert two.passes(10) == 1_000_010
    assert two.passes(1, jump=86_400) == 1_000_011
    assert two.passes(JUMP_S / 2) == 1_000_011 + JUMP_S / 2
    assert two.passes(JUMP_S) == two.wall
    assert two.passes(5) == two.wall


def test_a_clock_that_jumps_forward_and_is_set_back_has_not_jumped():
    two = Two()
    two.passes(10)
    two.passes(1, jump=86_400)
    assert two.passes(1, jump=-86_400) == two.wall == 1_000_012


def test_small_steps_and_steps_back_are_believed_at_once():
    two = Two()
    two.passes(10)
    assert two.passes(1, jump=JUMP_S - 1) == two.wall
    assert two.passes(1, jump=-3600) == two.wall
    assert two.passes(1, jump=30) == two.wall


async def test_no_timeout_comes_early_because_somebody_set_the_clock(root):
    two = Two()
    flow = Workflow("flow")
    answer = flow.signal("answer")
    flow.step(name="ask")(lambda tx, _: tx.wait_for(answer, timeout_s=7 * 86_400))
    flow.step(name="end")(lambda tx, _: None)
    async with Engine(root, [flow], clock=two.clock) as engine:
        await engine.start(flow, run_id="r", queue="q")
        with anyio.fail_after(20):
            while (await engine.get("r")).state is not RunState.WAITING:
                await anyio.sleep(0.01)
        two.passes(1, jump=30 * 86_400)
        await looks(engine)
        assert (await engine.get("r")).state is RunState.WAITING
        two.passes(1, jump=-30 * 86_400)
        await engine.send("r", answer)
        await settled(engine, 1)
