"""Branches, joins, fan-out, loops, outcomes, parts and child runs, end to end."""

from __future__ import annotations

import json
import threading

import anyio
import pytest
from pydantic import BaseModel

from surefoot import Done, Engine, Next, PathRefused, Retry, RunRefused, RunState, UndoRefused, Workflow, rows
from surefoot.testing import FakeClock, Snapshot, crash
from surefoot_storage import Statement


class Brief(BaseModel):
    topic: str = "t"


def diamond(left=None, right=None, **options):
    """start → (left, right) → end."""
    flow = Workflow("diamond", input=Brief)

    @flow.step
    def start(tx, b):
        tx.write_text("start", "1")

    flow.step(name="left", after="start", **options)(left or (lambda tx, b: tx.write_text("left", "1")))
    flow.step(name="right", after="start")(right or (lambda tx, b: tx.write_text("right", "1")))

    @flow.step(after=["left", "right"], reads=["left", "right"])
    def end(tx, b):
        tx.write_text("end", tx.read_text("left", default="?") + tx.read_text("right", default="?"))

    return flow


def status(root, run_id="r"):
    return json.loads((root / f"runs/{run_id}/demo.status.json").read_text())


async def test_branches_are_worked_on_at_the_same_time_and_joined(root):
    both = [anyio.Event(), anyio.Event()]

    async def left(tx, b):
        both[0].set()
        await both[1].wait()
        tx.write_text("left", "L")

    async def right(tx, b):
        both[1].set()
        await both[0].wait()
        tx.write_text("right", "R")

    async with Engine(root, [diamond(left, right)]) as engine:
        with anyio.fail_after(20):
            result = await engine.run(diamond_of(engine), run_id="r")
    assert result.ok
    assert [t.step for t in result.transitions].count("end") == 1
    assert (root / "runs/r/end").read_text() == "LR"


def diamond_of(engine):
    return engine._the_open.workflows["diamond"]


async def test_the_status_shows_all_branches_and_the_audit_log_each_commit(root):
    seen = []

    def left(tx, b):
        seen.append(status(root))

    async with Engine(root, [diamond(left)]) as engine:
        assert (await engine.run(diamond_of(engine), run_id="r")).ok
        log = rows.audit_log(engine._the_open.workspace, "r")
    assert seen[0]["open"] == 2
    assert [branch["step"] for branch in seen[0]["branches"]] == ["left", "right"]
    assert [line["step"] for line in log][:2] == [None, "start"]
    assert [line["revision"] for line in log] == list(range(1, 6))


async def test_a_branch_that_fails_stops_the_join_and_not_its_sibling_and_is_retried(root):
    broken = [True]

    def left(tx, b):
        if broken:
            raise ValueError("not yet")
        tx.write_text("left", "L")

    async with Engine(root, [diamond(left)]) as engine:
        result = await engine.run(diamond_of(engine), run_id="r")
        assert (result.state, result.step, result.failure.error) == (RunState.ERROR, "left", "ValueError")
        assert (root / "runs/r/right").exists()
        assert status(root)["transition_error"] is True
        broken.clear()
        assert (await engine.retry("r")).ok
    assert (root / "runs/r/end").read_text() == "L1"


async def test_a_failed_branch_can_be_skipped(root):
    def left(tx, b):
        raise ValueError("never")

    async with Engine(root, [diamond(left)], resume=False) as engine:
        await engine.run(diamond_of(engine), run_id="r")
        with pytest.raises(Exception, match="outcome"):
            await engine.skip("r", outcome="nonsense")
        run = await engine.skip("r")
        assert (run.state, run.step) == (RunState.RUNNING, "end")
        assert (await engine.resume("r")).ok
    assert (root / "runs/r/end").read_text() == "?1"


async def test_two_branches_that_wait_for_their_retry_keep_their_own_count(root):
    tries = {"left": 0, "right": 0}

    def fails(name, times):
        def body(tx, b):
            tries[name] += 1
            assert tx.attempt == tries[name]
            if tries[name] <= times:
                raise ValueError(name)

        return body

    flow = diamond(fails("left", 2), fails("right", 0), retry=Retry(attempts=3, initial_s=60, jitter=0))
    clock = FakeClock()
    async with Engine(root, [flow], clock=clock) as engine:
        assert (await engine.run(flow, run_id="r")).ok
    assert tries == {"left": 3, "right": 1}
    assert clock.now() >= 1_800_000_000 + 60 + 120


@pytest.mark.parametrize("at", ["prepared", "committed", "half-applied", "applied"])
@pytest.mark.parametrize("step", ["left", "right", "end"])
def test_a_crash_in_a_branch_loses_nothing_and_does_nothing_twice(root, at, step):
    flow = diamond()
    crash(root, flow, run_id="r", step=step, at=at)
    with Engine(root, [flow], resume=False) as engine:
        assert engine.resume("r").wait().ok
        attempts = rows.attempts_of(engine._the_open.workspace, "r")
    committed = [attempt["step"] for attempt in attempts if attempt["outcome"] == "committed"]
    assert sorted(committed) == ["end", "left", "right", "start"]
    assert (root / "runs/r/end").read_text() == "11"


async def test_an_undone_join_opens_its_branches_again(root):
    flow = diamond()
    async with Engine(root, [flow], resume=False) as engine:
        await engine.run(flow, run_id="r")
        before = Snapshot.of(root)
        started = next(e for e in await history(engine, "r") if e.label == "r/start")
        undone = await engine.revert(started.txid)
        assert undone.step == "start"
        assert Snapshot.of(root).files == {}
        assert (await engine.retry("r")).ok
        assert before.changes(Snapshot.of(root)) == {}
        log = await history(engine, "r")
        last_branch = next(e for e in reversed(log) if e.label == "r/end")
        await engine.undo(last_branch.txid)
        run = await engine.get("r")
        assert (run.state, run.step, len(run.open)) == (RunState.PAUSED, "end", 1)
        branch = next(e for e in reversed(log) if e.label in ("r/left", "r/right"))
        await engine.undo(branch.txid)
        run = await engine.get("r")
        assert {v.step: v.state.value for v in run.open} == {branch.label[2:]: "due", "end": "joining"}
        assert (await engine.retry("r")).ok
        assert before.changes(Snapshot.of(root)) == {}


async def history(engine, run_id):
    return await anyio.to_thread.run_sync(lambda: engine.history.of(run_id))


# --- outcomes and loops ---


def judged(rounds, **options):
    flow = Workflow("judged", input=Brief)

    @flow.step(**options)
    def draft(tx, b):
        tx.write_json("n.json", tx.read_json("n.json", default=0) + 1)

    @flow.step(outcomes={"good": "publish", "again": "draft", "hopeless": Done()})
    def judge(tx, b):
        n = tx.read_json("n.json")
        return "good" if n == rounds else "hopeless" if rounds < 0 and n == -rounds else "again"

    @flow.step
    def publish(tx, b):
        tx.write_text("published", "1")

    return flow


@pytest.mark.parametrize(("rounds", "published"), [(1, True), (4, True), (-3, False)])
async def test_an_outcome_chooses_what_follows(root, rounds, published):
    flow = judged(rounds)
    async with Engine(root, [flow]) as engine:
        assert (await engine.run(flow, run_id="r")).ok
        outcomes = [
            v["outcome"] for v in rows.visits_of(engine._the_open.workspace, "r") if v["step"] == "judge"
        ]
    assert outcomes == ["again"] * (abs(rounds) - 1) + ["good" if published else "hopeless"]
    assert (root / "runs/r/published").exists() is published


async def test_a_loop_that_never_ends_is_stopped_by_its_limit(root):
    flow = judged(10**6, visits_max=5)
    async with Engine(root, [flow]) as engine:
        result = await engine.run(flow, run_id="r")
        assert (result.state, result.step, result.failure.error) == (RunState.ERROR, "judge", "LapsExceeded")
        assert "draft 5 times" in result.failure.message
        assert result.failure.hint
    assert json.loads((root / "runs/r/n.json").read_text()) == 5


@pytest.mark.parametrize("returned", [None, "neither", 3, Next("draft"), Done()])
async def test_a_step_with_outcomes_returns_one_of_them(root, returned):
    flow = Workflow("flow")
    flow.step(name="judge", outcomes={"a": "b", "c": Done()})(lambda tx, _: returned)
    flow.step(name="b")(lambda tx, _: None)
    async with Engine(root, [flow]) as engine:
        result = await engine.run(flow, run_id="r")
        assert (result.state, result.failure.error) == (RunState.ERROR, "StepReturnRefused")
        assert "a, c" in result.failure.message


# --- fan-out ---


def mapped(body=None, **options):
    flow = Workflow("mapped", input=Brief)

    @flow.step
    def plan(tx, b):
        tx.write_json("items.json", [f"i{n}" for n in range(10)])

    @flow.step(each="items.json", writes=["out/{item}.txt"], **options)
    def write(tx, b, item):
        if body is not None:
            body(tx, item)
        tx.write_text(f"out/{item}.txt", item)

    @write.effect
    def tell(done):
        pass

    @flow.step
    def bind(tx, b):
        tx.write_json("bound.json", sorted(tx.list_dir("out")))

    return flow


async def test_each_item_is_a_transition_of_its_own_and_the_next_step_comes_after_all(root):
    running, most = [0], [0]
    lock = threading.Lock()
    some = threading.Barrier(3)

    def body(tx, item):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        if item in ("i0", "i1", "i2"):
            some.wait(20)
        with lock:
            running[0] -= 1

    flow = mapped(body, at_once=3)
    async with Engine(root, [flow]) as engine:
        result = await engine.run(flow, run_id="r")
        await engine.deliver()
        keys = {
            m["key"]
            for m in rows.effects_of(engine._the_open.workspace, [t.txid for t in result.transitions])
        }
    assert result.ok
    assert most[0] == 3
    assert len(keys) == 10
    assert json.loads((root / "runs/r/bound.json").read_text()) == sorted(f"i{n}.txt" for n in range(10))


async def test_items_that_failed_are_retried_alone(root):
    broken, seen = {"i3", "i7"}, []

    def body(tx, item):
        seen.append(item)
        if item in broken:
            raise ValueError(item)

    flow = mapped(body)
    async with Engine(root, [flow]) as engine:
        result = await engine.run(flow, run_id="r")
        assert (result.state, result.step) == (RunState.ERROR, "write")
        assert not (root / "runs/r/bound.json").exists()
        broken.clear()
        del seen[:]
        assert (await engine.retry("r")).ok
    assert sorted(seen) == ["i3", "i7"]


@pytest.mark.parametrize("listed", [{"a": 1}, "text", 3, None])
async def test_a_fan_out_over_something_else_than_a_list_is_refused(root, listed):
    flow = Workflow("flow")
    flow.step(name="each", each=lambda tx, _: listed)(lambda tx, _, item: None)
    async with Engine(root, [flow]) as engine:
        result = await engine.run(flow, run_id="r")
        assert result.failure.error == "StepReturnRefused"
        assert "list" in result.failure.message


@pytest.mark.parametrize("items", [[], ["one"], [{"deep": [1, None, "ä"]}, 2.5, True]])
async def test_items_are_any_json_and_there_may_be_none(root, items):
    got = []
    flow = Workflow("flow")

    @flow.step(each=lambda tx, _: items)
    async def each(tx, _, item):
        got.append(item)

    @flow.step
    def after(tx, _):
        tx.write_text("after", "1")

    async with Engine(root, [flow]) as engine:
        assert (await engine.run(flow, run_id="r")).ok
    assert sorted(map(json.dumps, got)) == sorted(map(json.dumps, items))
    assert (root / "runs/r/after").exists()


async def test_a_thousand_items(root):
    flow = Workflow("flow")

    @flow.step(each=lambda tx, _: list(range(1000)))
    async def each(tx, _, item):
        if item % 100 == 0:
            tx.write_json(f"{item}.json", item)

    async with Engine(root, [flow], durability="none") as engine:
        assert (await engine.run(flow, run_id="r")).ok
        assert (await engine.get("r")).position == 1001
    assert len(list((root / "runs/r").glob("*.json"))) == 11


# --- writes, parts ---


async def test_a_step_that_says_what_it_writes_writes_nothing_else(root):
    ok = Workflow("ok", input=Brief)

    @ok.step(writes=["{topic}/*.md", "/shared/index.md"])
    def step(tx, b):
        tx.write_text("t/a.md", "x")
        tx.workspace.write_text("shared/index.md", "x")

    bad = Workflow("bad")
    bad.step(name="s", writes=["only.md"])(lambda tx, b: tx.write_text("elsewhere.md", "x"))
    async with Engine(root, [ok, bad]) as engine:
        assert (await engine.run(ok, run_id="a")).ok
        result = await engine.run(bad, run_id="b")
        assert result.failure.error == PathRefused.__name__
        assert "elsewhere.md" in result.failure.message
    assert not (root / "runs/b/elsewhere.md").exists()


@pytest.mark.parametrize("fails", [None, "check", "index"])
async def test_parts_share_their_steps_transaction(root, fails):
    flow = Workflow("flow")
    order = []

    @flow.step
    def publish(tx, _):
        order.append("publish")
        tx.write_text("page.html", "<p>")

    @publish.part
    def check(tx, _):
        order.append(f"check {tx.part}")
        assert tx.read_text("page.html") == "<p>"
        if fails == "check":
            raise ValueError("wrong")

    @publish.part(reads=["notes.md"])
    def index(tx, _):
        order.append("index")
        tx.write_text("index.html", tx.read_text("notes.md", default="-"))
        if fails == "index":
            raise ValueError("wrong")

    async with Engine(root, [flow]) as engine:
        result = await engine.run(flow, run_id="r")
    if fails is None:
        assert result.ok
        assert order == ["publish", "check check", "index"]
        assert (root / "runs/r/index.html").read_text() == "-"
    else:
        assert f"in part {fails}: wrong" in result.failure.message
        assert not (root / "runs/r/page.html").exists()
        assert not (root / "runs/r/index.html").exists()


# --- child runs ---


def family(child_body=lambda tx, b: tx.write_text("child", b.topic), outcomes=None):
    child = Workflow("child", input=Brief)
    child.step(name="work")(child_body)
    parent = Workflow("parent", input=Brief)

    @parent.step(outcomes=outcomes)
    def spawn(tx, b):
        for topic in ("x", "y"):
            tx.start(child, {"topic": topic})
        return tx.wait_for_runs()

    @parent.step(after=None if outcomes is None else [])
    def collect(tx, b):
        tx.write_json("children.json", tx.received())

    return parent, child


@pytest.mark.parametrize("resume", [True])
async def test_child_runs_start_with_the_commit_and_their_parent_waits_for_them(root, resume):
    parent, child = family()
    async with Engine(root, [parent, child], resume=resume) as engine:
        with anyio.fail_after(20):
            assert (await engine.run(parent, run_id="r")).ok
    got = json.loads((root / "runs/r/children.json").read_text())
    assert got == [{"run_id": "r.1.1", "state": "completed"}, {"run_id": "r.1.2", "state": "completed"}]
    assert (root / "runs/r.1.2/child").read_text() == "y"


async def test_a_step_that_fails_has_started_no_run(root):
    child = Workflow("child")
    child.step(name="work")(lambda tx, _: None)
    parent = Workflow("parent")

    @parent.step
    def spawn(tx, _):
        tx.start(child)
        raise ValueError("after all not")

    async with Engine(root, [parent, child]) as engine:
        assert not (await engine.run(parent, run_id="r")).ok
        assert [run.id for run in await engine.runs()] == ["r"]
    assert not (root / "runs/r.1.1").exists()


async def test_a_child_in_error_is_mended_and_the_parent_goes_on(root):
    broken = [True]

    def body(tx, b):
        if broken and b.topic == "y":
            raise ValueError("no")

    parent, child = family(body)
    async with Engine(root, [parent, child]) as engine:
        await engine.start(parent, run_id="r")
        await engine.advance("r")
        with anyio.fail_after(20):
            while (await engine.get("r.1.2")).state is not RunState.ERROR:
                await anyio.sleep(0.01)
        answer = await engine.why("r")
        assert answer.kind == "runs"
        assert "r.1.2: error at work" in answer.evidence
        broken.clear()
        assert (await engine.retry("r.1.2")).ok
        with anyio.fail_after(20):
            assert (await engine.resume("r")).ok


async def test_a_parent_that_declares_the_outcome_is_told_of_an_error(root):
    def body(tx, b):
        raise ValueError("no")

    parent, child = family(body, outcomes={"completed": "collect", "error": Done()})
    async with Engine(root, [parent, child]) as engine:
        with anyio.fail_after(20):
            assert (await engine.run(parent, run_id="r")).ok
    assert not (root / "runs/r/children.json").exists()


async def test_cancelling_a_parent_cancels_its_children(root):
    async def body(tx, b):
        await anyio.sleep_forever()

    parent, child = family(body)
    async with Engine(root, [parent, child], resume=False) as engine:
        await engine.start(parent, run_id="r")
        await engine.advance("r")
        await engine.cancel("r")
        assert {run.state for run in await engine.runs()} == {RunState.CANCELLED}


async def test_a_child_in_a_directory_that_is_taken_fails_its_parents_step_by_name(root):
    child = Workflow("child", directory="same")
    child.step(name="work")(lambda tx, _: None)
    parent = Workflow("parent")

    @parent.step
    def spawn(tx, _):
        tx.start(child)

    (root / "same").mkdir()
    (root / "same/file").write_text("x")
    async with Engine(root, [parent, child]) as engine:
        result = await engine.run(parent, run_id="r")
        assert result.failure.error == RunRefused.__name__
        assert "same" in result.failure.message


async def test_cancelling_stops_all_branches(root):
    begun, flow = [], Workflow("flow")

    for name in ("left", "right"):

        @flow.step(name=name, after=[])
        async def wait(tx, _, name=name):
            begun.append(name)
            tx.write_text(name, "x")
            await anyio.sleep_forever()

    async with Engine(root, [flow], resume=False) as engine, anyio.create_task_group() as tasks:
        results = []

        async def drive():
            results.append(await engine.run(flow, run_id="r"))

        tasks.start_soon(drive)
        with anyio.fail_after(20):
            while len(begun) < 2:
                await anyio.sleep(0.01)
            await engine.cancel("r")
            while not results:
                await anyio.sleep(0.01)
        assert results[0].state is RunState.CANCELLED
        assert (await engine.get("r")).open == ()
        assert {a["outcome"] for a in rows.attempts_of(engine._the_open.workspace, "r")} == {"cancelled"}
    assert not (root / "runs/r/left").exists()


async def test_pausing_lets_what_is_being_worked_on_come_to_its_end(root):
    flow, begun, go = Workflow("flow"), [], anyio.Event()

    @flow.step
    async def first(tx, _):
        begun.append(tx.attempt)
        await go.wait()
        tx.write_text("first", "x")

    flow.step(name="second")(lambda tx, _: tx.write_text("second", "x"))
    async with Engine(root, [flow], queues=["q"]) as engine:
        await engine.start(flow, run_id="r", queue="q")
        with anyio.fail_after(20):
            while not begun:
                await anyio.sleep(0.01)
            await engine.pause("r")
            go.set()
            while not (root / "runs/r/first").exists():
                await anyio.sleep(0.01)
            while (await engine.get("r")).position < 1:
                await anyio.sleep(0.01)
        run = await engine.get("r")
        assert (run.state, run.step) == (RunState.PAUSED, "second")
        await engine.unpause("r")
        with anyio.fail_after(20):
            while (await engine.get("r")).state is not RunState.COMPLETED:
                await anyio.sleep(0.01)


async def test_a_transition_that_started_runs_is_not_undone_under_them(root):
    parent, child = family()
    async with Engine(root, [parent, child], resume=False) as engine:
        await engine.start(parent, run_id="r")
        done = await engine.advance("r")
        for undo in (lambda: engine.undo(done.txid), lambda: engine.revert(done.txid)):
            with pytest.raises(UndoRefused):
                await undo()
        started = next(e for e in await history(engine, "r") if e.label == "r/start")
        with pytest.raises(UndoRefused, match=r"r\.1\.1"):
            await engine.revert(started.txid)
        assert (root / "runs/r.1.1/demo.status.json").exists()


async def test_two_workflows_of_one_name_are_refused_before_anything_is_committed(root):
    impostor = Workflow("parent")
    impostor.step(name="x")(lambda tx, _: None)
    parent = Workflow("parent")
    parent.step(name="spawn")(lambda tx, _: tx.start(impostor) and None)
    async with Engine(root, [parent]) as engine:
        result = await engine.run(parent, run_id="r")
        assert (result.state, result.failure.error) == (RunState.ERROR, "DeclarationError")
        assert len(await engine.runs()) == 1


@pytest.mark.parametrize("at_once", [1, 3])
async def test_branches_of_a_run_that_somebody_has_taken_commit_nothing_and_crash_nothing(root, at_once):
    flow, seen = Workflow("flow"), []

    @flow.step(each=lambda tx, _: [1, 2, 3], at_once=at_once)
    def each(tx, _, item):
        seen.append(item)
        tx.write_text(f"{item}", str(seen.count(item)))
        if len(seen) == at_once:
            stolen = Statement("UPDATE run SET epoch = epoch + 1, owner = 'thief' WHERE id = 'r'")
            tx.workspace._storage.write_rows([stolen])

    async with Engine(root, [flow], resume=False) as engine:
        with anyio.fail_after(20):
            result = await engine.run(flow, run_id="r")
        assert result.ok
        assert "overtaken" in [t.outcome for t in result.transitions]
        steps = [
            line["visit"]
            for line in rows.audit_log(engine._the_open.workspace, "r")
            if line["event"] == "step"
        ]
        assert len(steps) == len(set(steps)) == 4
