"""Waiting as rows: sleeps, messages with payloads, timeouts, deadlines; also over restarts and in any order."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta

import anyio
import pytest
from machines import looked
from pydantic import BaseModel

from surefoot import (
    Done,
    Engine,
    InputError,
    InputRefused,
    Retry,
    RunRefused,
    RunState,
    UnknownRun,
    Workflow,
    rows,
)
from surefoot.testing import FakeClock, crash


class Answer(BaseModel):
    ok: bool
    comment: str = ""


def asking(outcomes=None, timeout_s=None, **options):
    flow = Workflow("asking")
    answer = flow.signal("answer", Answer)

    @flow.step(outcomes=outcomes, **options)
    def ask(tx, _):
        tx.write_text("question.md", "?")
        return tx.wait_for(answer, timeout_s=timeout_s)

    @flow.step(after=None if outcomes is None else [])
    def go_on(tx, _):
        tx.write_json("answer.json", tx.received(answer))

    return flow, answer


def answer_of(root, run_id="r"):
    return json.loads((root / f"runs/{run_id}/answer.json").read_text())


# --- messages ---


async def test_a_message_is_durable_and_wakes_the_run(root):
    flow, answer = asking()
    async with Engine(root, [flow]) as engine, anyio.create_task_group() as tasks:

        async def reply():
            while (await engine.get("r")).state is not RunState.WAITING:
                await anyio.sleep(0.01)
            run = await engine.get("r")
            assert (run.owner, run.step, run.position) == ("", "ask", 1)
            assert json.loads(run.status)["waits_for"] == "signal 'answer'"
            assert (await engine.why("r")).sentence == "ask waits for signal 'answer'"
            assert await engine.send("r", answer, Answer(ok=True, comment="fine"))

        await engine.start(flow, run_id="r")
        tasks.start_soon(reply)
        with anyio.fail_after(20):
            assert (await engine.resume("r")).ok
    assert answer_of(root) == {"ok": True, "comment": "fine"}


async def test_a_message_that_comes_first_waits_for_the_step(root):
    flow, answer = asking()
    async with Engine(root, [flow], resume=False) as engine:
        await engine.start(flow, run_id="r")
        assert await engine.send("r", answer, {"ok": False})
        with anyio.fail_after(20):
            assert (await engine.resume("r")).ok
    assert answer_of(root)["ok"] is False


async def test_the_next_engine_resumes_what_was_parked(root):
    flow, _answer = asking()
    async with Engine(root, [flow]) as engine:
        await engine.start(flow, run_id="r")
        await engine.advance("r")
    async with Engine(root, resume=False) as engine:  # which knows no workflow
        assert await engine.send("r", "answer", '{"ok": true}')
    assert not (root / "runs/r/answer.json").exists()
    async with Engine(root, [flow]) as engine:
        with anyio.fail_after(20):
            while (await engine.get("r")).state is not RunState.COMPLETED:
                await anyio.sleep(0.01)
    assert answer_of(root)["ok"] is True


async def test_a_message_is_sent_once_by_its_key(root):
    flow, answer = asking()
    async with Engine(root, [flow], resume=False) as engine:
        await engine.start(flow, run_id="r")
        assert await engine.send("r", answer, {"ok": True}, key="k")
        assert not await engine.send("r", answer, {"ok": True}, key="k")
        with pytest.raises(InputRefused, match="key"):
            await engine.send("r", answer, {"ok": False}, key="k")
        assert len(rows.messages_of(engine._the_open.workspace, "r")) == 1


async def test_each_message_is_received_once_in_the_order_of_arrival(root):
    flow = Workflow("reader")
    number = flow.signal("number", Answer)

    @flow.step
    def ask(tx, _):
        return tx.wait_for(number)

    @flow.step(outcomes={"more": "ask", "done": Done()})
    def take(tx, _):
        got = [*tx.read_json("got.json", default=[]), tx.received(number).comment]
        tx.write_json("got.json", got)
        return "done" if len(got) == 5 else "more"

    async with Engine(root, [flow]) as engine:
        await engine.start(flow, run_id="r")
        for n in range(5):
            await engine.send("r", number, {"ok": True, "comment": str(n)})
        with anyio.fail_after(20):
            assert (await engine.resume("r")).ok
    assert json.loads((root / "runs/r/got.json").read_text()) == list("01234")


@pytest.mark.parametrize(
    ("signal", "payload", "kind"),
    [
        ("answer", {"ok": "perhaps"}, InputRefused), ("answer", {}, InputRefused), ("answer", None, InputRefused),
        ("answer", "{", InputRefused), ("answer", {"ok": True, "comment": "x" * 300_000}, InputRefused),
        ("other", {"ok": True}, InputError), ("", {"ok": True}, InputError), (3, {"ok": True}, InputError),
    ],
)  # fmt: skip
async def test_a_wrong_message_is_refused_at_once(root, signal, payload, kind):
    flow, _ = asking()
    async with Engine(root, [flow], resume=False) as engine:
        await engine.start(flow, run_id="r")
        with pytest.raises(kind):
            await engine.send("r", signal, payload)
        assert rows.messages_of(engine._the_open.workspace, "r") == []


async def test_a_message_to_nobody_or_too_late_is_refused(root):
    flow, answer = asking()
    async with Engine(root, [flow], resume=False) as engine:
        with pytest.raises(UnknownRun):
            await engine.send("nobody", answer, {"ok": True})
        await engine.start(flow, run_id="r")
        await engine.cancel("r")
        with pytest.raises(RunRefused, match="cancelled"):
            await engine.send("r", answer, {"ok": True})


async def test_a_payload_that_nobody_could_check_is_set_aside_by_the_receiver(root):
    flow, answer = asking()
    async with Engine(root, resume=False) as blind, Engine(root, [flow], resume=False) as engine:
        await engine.start(flow, run_id="r")
        await engine.advance("r")
        await blind.send("r", "answer", {"ok": "perhaps"})
        async with anyio.create_task_group() as tasks:

            async def drive():
                assert (await engine.resume("r")).ok

            tasks.start_soon(drive)
            with anyio.fail_after(20):
                while (answered := await engine.why("r")).kind != "signal" or not answered.evidence:
                    await anyio.sleep(0.01)
            assert "refused: ok" in answered.evidence[0]
            await engine.send("r", answer, {"ok": True})
    assert answer_of(root)["ok"] is True


@pytest.mark.parametrize("at", ["prepared", "committed", "applied"])
def test_a_crash_around_parking_loses_neither_the_wait_nor_the_message(root, at):
    flow, answer = asking()
    crash(root, flow, run_id="r", step="ask", at=at)
    with Engine(root, [flow], resume=False) as engine:
        engine.send("r", answer, {"ok": True}).wait()
        assert engine.resume("r").wait().ok
        assert [m["visit"] is not None for m in rows.messages_of(engine._the_open.workspace, "r")] == [True]
    assert answer_of(root)["ok"] is True


async def test_an_undone_answer_can_be_received_again(root):
    flow, answer = asking()
    async with Engine(root, [flow], resume=False) as engine:
        await engine.start(flow, run_id="r")
        await engine.send("r", answer, {"ok": True})
        assert (await engine.resume("r")).ok
        entries = await anyio.to_thread.run_sync(lambda: engine.history.of("r"))
        asked = next(entry for entry in entries if entry.label == "r/ask")
        await engine.revert(asked.txid)
        run = await engine.get("r")
        assert (run.state, run.step, run.open[0].state.value) == (RunState.PAUSED, "ask", "parked")
        assert (await engine.retry("r")).ok
    assert answer_of(root)["ok"] is True


# --- time ---


async def test_sleeps_are_rows_and_end_when_their_time_has_come(root):
    clock = FakeClock()
    flow = Workflow("sleepy")

    @flow.step
    def first(tx, _):
        return tx.sleep(3600)

    @flow.step
    def second(tx, _):
        tx.write_text("at", str(tx.now))
        return tx.sleep(until=datetime.fromtimestamp(tx.now, UTC) + timedelta(days=14))

    @flow.step
    def third(tx, _):
        tx.write_text("later", str(tx.now))

    async with Engine(root, [flow], clock=clock) as engine:
        start = clock.now()
        assert (await engine.run(flow, run_id="r")).ok
    assert float((root / "runs/r/at").read_text()) == start + 3600
    assert float((root / "runs/r/later").read_text()) == start + 3600 + 14 * 86_400


@pytest.mark.parametrize(
    "given", [{"seconds": -1}, {"seconds": float("nan")}, {"seconds": "1"}, {}, {"seconds": 1, "until": 2.0},
              {"until": datetime.fromisoformat("2030-01-01")}, {"until": "tomorrow"}],
)  # fmt: skip
async def test_a_wrong_sleep_fails_the_step_and_changes_nothing(root, given):
    flow = Workflow("sleepy")

    @flow.step
    def step(tx, _):
        tx.write_text("x", "1")
        return tx.sleep(**given)

    async with Engine(root, [flow]) as engine:
        result = await engine.run(flow, run_id="r")
        assert (result.state, result.failure.error) == (RunState.ERROR, "InputError")
    assert not (root / "runs/r/x").exists()


async def test_a_wait_that_is_made_and_not_returned_is_an_error(root):
    flow = Workflow("sleepy")

    @flow.step
    def step(tx, _):
        tx.sleep(1)

    async with Engine(root, [flow]) as engine:
        result = await engine.run(flow, run_id="r")
        assert "return tx.sleep" in result.failure.hint


async def test_a_timeout_is_an_outcome_where_the_step_declares_it(root):
    flow, _ = asking(outcomes={"received": "go_on", "timeout": Done()}, timeout_s=7 * 86_400)
    clock = FakeClock()
    async with Engine(root, [flow], clock=clock) as engine:
        assert (await engine.run(flow, run_id="r")).ok
    assert clock.now() >= 1_800_000_000 + 7 * 86_400
    assert not (root / "runs/r/answer.json").exists()


async def test_a_timeout_that_nobody_expects_is_an_error_and_retrying_waits_again(root):
    flow, answer = asking(timeout_s=60)
    clock = FakeClock()
    async with Engine(root, [flow], clock=clock, resume=False) as engine:
        result = await engine.run(flow, run_id="r")
        assert (result.state, result.step) == (RunState.ERROR, "ask")
        assert "'timeout'" in result.failure.message
        assert (await engine.skip("r", outcome="go_on")).step == "go_on"
        await engine.cancel("r")
        await engine.run(flow, run_id="again")
        await engine.send("again", answer, {"ok": True})
        assert (await engine.retry("again")).ok
    assert answer_of(root, "again")["ok"] is True


async def test_a_run_waits_until_its_delay_is_over(root):
    clock = FakeClock()
    flow = Workflow("late")
    flow.step(name="only")(lambda tx, _: None)
    async with Engine(root, [flow], clock=clock) as engine:
        run = await engine.start(flow, run_id="r", delay_s=300)
        assert run.state is RunState.WAITING
        assert (await engine.why("r")).kind == "delayed"
        assert (await engine.resume("r")).ok
    assert clock.slept[0] == 300


# --- deadlines ---


@pytest.mark.parametrize("whose", ["step", "run"])
async def test_a_deadline_ends_retries_waits_and_bodies(root, whose):
    clock = FakeClock()
    options = {"deadline_s": 100.0} if whose == "step" else {}
    flow = Workflow("flow", deadline_s=None if whose == "step" else 100.0)

    @flow.step(retry=Retry(attempts=50, initial_s=30, factor=1, jitter=0), **options)
    def never(tx, _):
        raise ValueError("no")

    async with Engine(root, [flow], clock=clock) as engine:
        result = await engine.run(flow, run_id="r")
        assert result.state is RunState.ERROR
        assert clock.now() <= 1_800_000_000 + 100
        assert 3 <= len(result.transitions) <= 5


async def test_a_deadline_reaches_a_wait_and_a_retry_gives_all_the_time_again(root):
    clock = FakeClock()
    flow, answer = asking(deadline_s=100.0)
    async with Engine(root, [flow], clock=clock, resume=False) as engine:
        result = await engine.run(flow, run_id="r")
        assert result.failure.error == "DeadlineExceeded"
        await engine.send("r", answer, {"ok": True})
        assert (await engine.retry("r")).ok


async def test_a_body_that_runs_when_the_deadline_comes_is_stopped(root):
    flow = Workflow("flow")
    stop = threading.Event()

    @flow.step(deadline_s=0.05)
    async def slow(tx, _):
        tx.write_text("x", "1")
        await anyio.sleep(20)

    async with Engine(root, [flow]) as engine:
        result = await engine.run(flow, run_id="r")
        assert result.failure.error == "DeadlineExceeded"
    stop.set()
    assert not (root / "runs/r/x").exists()


# --- pausing ---


async def test_a_paused_run_does_not_go_on_before_somebody_says_so(root):
    flow, answer = asking()
    async with Engine(root, [flow]) as engine:
        await engine.start(flow, run_id="r")
        await engine.advance("r")
        assert (await engine.pause("r")).state is RunState.PAUSED
        await engine.send("r", answer, {"ok": True})
        assert (await engine.resume("r")).state is RunState.PAUSED
        assert (await engine.why("r")).kind == "paused"
        assert (await engine.unpause("r")).state is RunState.WAITING
        with anyio.fail_after(20):
            assert (await engine.resume("r")).ok


# --- many ---


@pytest.mark.long
async def test_ten_thousand_parked_runs_cost_no_task_and_wake_alone(root):
    flow, answer = asking()
    async with Engine(root, [flow], durability="none", resume=False) as engine:
        workspace = engine._the_open.workspace
        await engine.start(flow, run_id="r")
        await engine.advance("r")
        await anyio.to_thread.run_sync(copies_of_a_parked_run, workspace, 10_000)
    before = threading.active_count()
    async with Engine(root, [flow]) as engine:
        await looked(engine)
        assert engine._the_open._drivers == {}
        assert threading.active_count() <= before + 8
        await engine.send("c5000", answer, {"ok": True})
        with anyio.fail_after(20):
            while (await engine.get("c5000")).step == "ask":
                await anyio.sleep(0.02)
        assert len([r for r in await engine.runs() if r.state is RunState.WAITING]) == 10_000


def copies_of_a_parked_run(workspace, count):
    from surefoot_storage import Statement

    columns = [row[1] for row in workspace.query("PRAGMA table_info(run)")]
    chosen = ", ".join({"id": "'c' || n.value", "ordinal": "1000 + n.value",
                        "directory": "'runs/c' || n.value"}.get(c, f"run.{c}") for c in columns)  # fmt: skip
    visits = [row[1] for row in workspace.query("PRAGMA table_info(visit)")]
    chosen_visits = ", ".join({"run_id": "'c' || n.value"}.get(c, f"visit.{c}") for c in visits)
    numbers = json.dumps(list(range(count)))
    workspace.write_rows([
        Statement(f"INSERT INTO run ({', '.join(columns)}) SELECT {chosen} FROM run, json_each(:n) AS n WHERE run.id = 'r'", {"n": numbers}),
        Statement(f"INSERT INTO visit ({', '.join(visits)}) SELECT {chosen_visits} FROM visit, json_each(:n) AS n WHERE visit.run_id = 'r'", {"n": numbers}),
    ])  # fmt: skip
