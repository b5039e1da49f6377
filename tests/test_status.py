"""One source of truth: cached reads that are never stale, foreign edits, views, the audit log, analytics."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import anyio
import pytest

from surefoot import DeclarationError, Engine, InputError, RunState, UnknownRun, Workflow
from surefoot.cli import main
from surefoot.statuses import KEPT_S, Statuses
from surefoot.testing import FakeClock
from surefoot_storage import FsOps, ReadOnlyWorkspace, Workspace

WRITER = """
import os, sys
sys.path[:0] = {path!r}
import structlog
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
from surefoot import Done, Engine, Next, SurefootError, Workflow
flow = Workflow("long", directory="demos/{{run_id}}")
@flow.step(visits_max=100_000)
def turn(tx, _):
    tx.write_text("n.txt", tx.key)
    return Next("turn")
with Engine({root!r}, [flow], resume=False) as engine:
    engine.start(flow, run_id="r").wait()
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            engine.advance("r").wait()
        except SurefootError:
            pass  # the other one has it
        print(engine.get("r").wait().revision, flush=True)
"""


def two_steps():
    flow = Workflow("two", directory="demos/{run_id}")

    @flow.step
    def first(tx, _):
        tx.write_text("a", "1")

    @flow.step
    def second(tx, _):
        tx.write_text("a", "2")

    return flow


class Counting(FsOps):
    reads = 0

    def read(self, *arguments, **more):
        Counting.reads += 1
        return super().read(*arguments, **more)


def process(code):
    return subprocess.Popen(
        [sys.executable, "-c", code], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def ended(*processes):
    for one in processes:
        one.kill()
        one.wait()
        one.stdin.close()
        one.stdout.close()


# --- cached reads ---


async def test_a_read_is_answered_from_memory_until_the_file_changes(root):
    flow = two_steps()
    async with Engine(root, [flow], resume=False, fs=Counting()) as engine:
        await engine.start(flow, run_id="r")
        first = await engine.status("r")
        assert (first.source, first.revision, first.foreign) == ("file", 1, False)
        assert first.document == json.loads((root / "demos/r/demo.status.json").read_text())
        before = Counting.reads
        for _ in range(50):
            assert (await engine.status("r")) == first
        assert Counting.reads == before
        await engine.advance("r")
        after = await engine.status("r")
        assert (after.revision, after.document["step"]) == (2, "second")
        after.document["step"] = "mine"
        assert (await engine.status("r")).document["step"] == "second"


def test_an_entry_that_nobody_uses_for_five_seconds_is_dropped(root):
    flow, now = two_steps(), [100.0]
    with Engine(root, [flow], resume=False) as engine:
        for run_id in ("a", "b"):
            engine.start(flow, run_id=run_id).wait()
    with Workspace(root) as workspace:
        statuses = Statuses(workspace, lambda: now[0])
        statuses.get("a")
        statuses.get("b")
        for _ in range(4):
            now[0] += KEPT_S - 1
            statuses.get("a")
        assert statuses.size == 1
        now[0] += KEPT_S
        with pytest.raises(UnknownRun):
            statuses.get("nobody")
        assert statuses.size == 0


def test_no_reader_in_any_process_sees_an_older_status_than_the_last_acknowledged_one(root):
    writer = process(WRITER.format(path=sys.path, root=str(root)))
    try:
        assert writer.stdout.readline() == "ready\n"
        with Engine(root, resume=False) as engine:
            for _ in range(150):
                writer.stdin.write("\n")
                writer.stdin.flush()
                acknowledged = int(writer.stdout.readline())
                status = engine.status("r").wait()
                assert (status.revision, status.source) == (acknowledged, "file")
    finally:
        ended(writer)


async def test_reads_beside_a_busy_writer_are_whole_and_never_go_back(root):
    flow = Workflow("long", directory="demos/{run_id}")

    @flow.step
    def first(tx, _):
        tx.write_text("a", "1")

    for n in range(30):
        flow.step(name=f"s{n}")(lambda tx, _, n=n: tx.write_text("a", str(n)))
    async with Engine(root, [flow], resume=False) as engine, Engine(root, resume=False) as reader:
        await engine.start(flow, run_id="r")
        seen = []

        async def read():
            while not seen or seen[-1] < 32:
                status = await reader.status("r")
                assert status.document["revision"] == status.revision
                seen.append(status.revision)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            assert (await engine.resume("r")).ok
        assert seen == sorted(seen)


# --- foreign edits, and what is not there ---


@pytest.mark.parametrize("edit", [b"{}", b"not json", b"\xff\xfe", b""])
async def test_a_foreign_edit_is_reported_kept_and_never_believed(root, edit):
    flow = two_steps()
    path = root / "demos/r/demo.status.json"
    async with Engine(root, [flow], resume=False) as engine:
        await engine.start(flow, run_id="r")
        await engine.status("r")
        path.write_bytes(edit)
        status = await engine.status("r")
        assert (status.source, status.foreign, status.document["state"]) == ("row", True, "running")
        assert (await engine.advance("r")).ok  # it never blocks the run
        status = await engine.status("r")
        assert (status.source, status.foreign, status.revision) == ("file", False, 2)
        assert json.loads(path.read_text()) == status.document
        events = [line["event"] for line in await engine.audit("r")]
        assert any(event.startswith("foreign status edit replaced") for event in events)
        entry = engine.history.of("r")[-1]
        change = next(c for c in entry.changes if c.path == "demos/r/demo.status.json")
        assert engine.history.read(change.before, change.path) == edit


async def test_a_run_whose_directory_is_gone_is_answered_from_the_log(root):
    flow = two_steps()
    async with Engine(root, [flow], resume=False) as engine:
        await engine.start(flow, run_id="r")
        await engine.status("r")
        (root / "demos/r/demo.status.json").unlink()
        (root / "demos/r").rmdir()
        status = await engine.status("r")
        assert (status.source, status.foreign, status.document["state"]) == ("row", False, "running")
        (root / "demos/r").symlink_to("/etc")
        assert (await engine.status("r")).source == "row"
    with pytest.raises(UnknownRun):
        async with Engine(root, resume=False) as engine:
            await engine.status("nobody")


# --- the three hard cases ---


def test_of_two_writers_at_once_one_wins_and_the_status_is_whole(root):
    """Two processes advance the same run: each transition happens once, file and row agree."""
    code = WRITER.format(path=sys.path, root=str(root))
    writers = [process(code)]
    writers[0].stdout.readline()
    writers.append(process(code))
    writers[1].stdout.readline()
    try:
        for _ in range(25):
            for writer in writers:
                writer.stdin.write("\n")
                writer.stdin.flush()
        last = [[int(writer.stdout.readline()) for _ in range(25)][-1] for writer in writers]
    finally:
        ended(*writers)
    with Engine(root, resume=False) as engine:
        run = engine.get("r").wait()
        assert run.revision >= max(last)
        assert (root / "demos/r/demo.status.json").read_text() == run.status
        steps = [line for line in engine.audit("r").wait() if line["event"] == "step"]
        revisions = [line["revision"] for line in steps]
        assert len(set(revisions)) == len(revisions)
        assert (root / "demos/r/n.txt").read_text() == f"r/{len(steps)}/turn"


CREATOR = """
import os, sys
sys.path[:0] = {path!r}
import structlog
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
import anyio
from surefoot import Engine, Workflow
flow = Workflow("two", directory="demos/{{run_id}}")
flow.step(name="first")(lambda tx, _: tx.write_text("a", "1"))
async def main():
    async with Engine({root!r}, [flow], resume=False) as engine:
        print("ready", flush=True)
        async def one(number):
            await engine.start(flow, run_id=f"{prefix}{{number}}")
            print(f"{prefix}{{number}}", flush=True)
        async with anyio.create_task_group() as tasks:
            for number in range(60):
                tasks.start_soon(one, number)
anyio.run(main)
"""


@pytest.mark.parametrize("kill_after", [None, 1, 7, 20, 41])
def test_many_runs_are_created_at_once_and_a_kill_in_the_middle_leaves_none_half_made(root, kill_after):
    creators = [
        process(CREATOR.format(path=sys.path, root=str(root), prefix=prefix)) for prefix in ("a", "b")
    ]
    acknowledged = []
    try:
        for creator in creators:
            assert creator.stdout.readline() == "ready\n"
        while line := creators[0].stdout.readline():
            acknowledged.append(line.strip())
            if len(acknowledged) == kill_after:
                creators[0].kill()
        acknowledged += [line.strip() for line in creators[1].stdout]
    finally:
        ended(*creators)
    assert len(acknowledged) >= 60 + (kill_after or 60)
    with Engine(root, resume=False) as engine:
        runs = {run.id: run for run in engine.runs().wait()}
        assert set(acknowledged) <= set(runs)
        for run_id, run in runs.items():
            assert (root / f"demos/{run_id}/demo.status.json").read_text() == run.status
            assert engine.status(run_id).wait().source == "file"
        assert {path.name for path in (root / "demos").iterdir()} == set(runs)


# --- views, audit log, analytics ---


async def test_a_view_is_told_of_every_change_in_order_whoever_makes_it(root):
    told = []
    flow = two_steps()

    @flow.view
    def tracker(change):
        told.append((change.revision, change.event, change.status["state"]))

    async with Engine(root, [flow], resume=False) as engine:
        await engine.start(flow, run_id="r")
    async with Engine(root, resume=False) as engine:  # which does not know the workflow
        await engine.pause("r")
        await engine.unpause("r")
    async with Engine(root, [flow], resume=False) as engine:
        assert (await engine.resume("r")).undelivered == 0
        await engine.deliver()
    assert told == [
        (1, "started", "running"), (2, "paused", "paused"), (3, "unpaused", "running"), (4, "step", "running"),
        (5, "step", "completed"),
    ]  # fmt: skip


async def test_a_view_that_fails_holds_up_neither_the_run_nor_its_effects_nor_other_views(root):
    told = []
    flow = Workflow("f", directory="{run_id}")

    @flow.step
    def work(tx, _):
        tx.write_text("a", "1")

    @work.effect
    def tell(done):
        told.append("effect")

    @flow.view
    def broken(_change):
        raise ConnectionError("down")

    @flow.view
    async def other(change):
        told.append(change.revision)

    async with Engine(root, [flow], resume=False, clock=FakeClock(), effects_grace_s=0.5) as engine:
        assert (await engine.run(flow, run_id="r")).ok
        await engine.deliver()
        assert sorted(map(str, told)) == ["1", "2", "effect"]
        assert (await engine.get("r")).state is RunState.COMPLETED


async def test_a_view_that_is_not_declared_any_more_is_told_nothing(root):
    def flow_with(view):
        flow = two_steps()
        if view:
            flow.view(view)
        return flow

    told = []

    def tracker(_change):
        told.append(1)
        raise ConnectionError("down")

    engine = Engine(root, [flow_with(tracker)], resume=False, effects_grace_s=0)
    async with engine, engine._the_open.outbox._busy:
        await engine.start(engine._settings.workflows["two"], run_id="r")
    before, flow = len(told), flow_with(None)  # it may have been tried once when the lock was given back
    later = FakeClock(time.time() + 10_000, auto=False)  # a retry is due by then
    async with Engine(root, [flow], resume=False, clock=later) as engine:
        assert (await engine.resume("r")).ok
        await engine.deliver()
        assert len(told) == before
        assert engine._the_open.workspace.query("SELECT count(*) FROM outbox WHERE state <> 'delivered'") == [
            (0,)
        ]
    with pytest.raises(DeclarationError):
        flow.view(7)
    flow.view(tracker)
    with pytest.raises(DeclarationError):
        flow.view(tracker)


async def test_the_audit_log_is_read_behind_a_cursor_and_exported_as_lines(root, capsys):
    flow = two_steps()
    async with Engine(root, [flow], resume=False) as engine:
        for run_id in ("r", "q"):
            await engine.run(flow, run_id=run_id)
        lines, after = [], 0
        while page := await engine.audit(after=after, limit=2):
            lines += page
            after = page[-1]["id"]
        assert [(line["run_id"], line["event"], line["revision"]) for line in lines] == [
            (run_id, event, revision)
            for run_id in ("r", "q")
            for revision, event in ((1, "started"), (2, "step"), (3, "step"))
        ]
        for wrong in ({"after": -1}, {"limit": 0}, {"after": "x"}):
            with pytest.raises(InputError):
                await engine.audit(**wrong)
    capsys.readouterr()
    assert command(root, "audit", "q") == 0
    exported = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert exported == [line for line in lines if line["run_id"] == "q"]
    assert command(root, "audit", "nobody") != 0


def command(root, *arguments):
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "-w", str(root)])
    return caught.value.code


async def test_analytics_count_runs_and_attempts_and_measure_them(root, capsys):
    clock = FakeClock(auto=False)
    flow = Workflow("two", directory="{run_id}")

    @flow.step
    def first(tx, _):
        clock.advance(3 if tx.run_id == "slow" else 1)

    @flow.step
    def second(tx, _):
        clock.advance(2)
        if tx.run_id == "bad":
            raise ValueError("no")

    async with Engine(root, [flow], resume=False, clock=clock) as engine:
        for run_id in ("a", "slow", "bad"):
            await engine.run(flow, run_id=run_id)
        later = clock.now()
        clock.advance(1)
        await engine.start(flow, run_id="gone")
        await engine.cancel("gone")
        facts = await engine.analytics()
        (two,) = facts["workflows"]
        assert {name: two[name] for name in ("created", "finished", "failed", "cancelled")} == {
            "created": 4, "finished": 2, "failed": 1, "cancelled": 1,
        }  # fmt: skip
        assert (two["mean_s"], two["most_s"]) == (4.0, 5.0)
        assert {s["step"]: (s["attempts"], s["p50_s"], s["p95_s"]) for s in facts["steps"]} == {
            "first": ({"committed": 3}, 1.0, 3.0), "second": ({"committed": 2, "failed": 1}, 2.0, 2.0),
        }  # fmt: skip
        assert (await engine.analytics(since=later + 0.5))["workflows"][0]["created"] == 1
        assert (await engine.analytics(workflow="other")) == {"workflows": [], "steps": []}
        with pytest.raises(InputError):
            await engine.analytics(since=-1)
    capsys.readouterr()
    assert command(root, "stats") == 0
    assert "two: 4 created, 2 finished, 1 failed, 1 cancelled; mean 4.00 s" in capsys.readouterr().out
    assert command(root, "stats", "--hours", "1", "--json") == 0
    with ReadOnlyWorkspace(root) as opened:
        assert opened.query("SELECT count(*) FROM run") == [(4,)]
