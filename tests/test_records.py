"""Write-behind records: backpressure, retries, dumps and their replay, and that every record is accounted for."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import anyio
import pytest
from faulty import Hooked
from machines import not_run

from surefoot import Engine, InputError, InputRefused, RecordsFull, RecordsNotDurable, UnreadableFile
from surefoot.cli import main
from surefoot.doctor import findings
from surefoot.schema import SCHEMA
from surefoot_storage import CommitFailed, ReadOnlyWorkspace, Workspace


class Store:
    """An engine whose store refuses records while a test says so; its pauses are noted, not made."""

    def __init__(self, engine):
        self.engine, self.refuses, self.attempts, self.pauses = engine, False, 0, []
        self.writer = engine._the_open.records
        self.writer.pause = self.pause
        self.gate = anyio.Event()
        self.gate.set()
        self.real = self.writer._workspace.write_rows
        self.writer._workspace = SimpleNamespace(
            write_rows=self.write_rows, worker=self.writer._workspace.worker,
            flush=self.writer._workspace.flush,
            checkpoint_rows=self.writer._workspace.checkpoint_rows,
        )  # fmt: skip

    async def pause(self, seconds):
        self.pauses.append(round(seconds, 3))
        await anyio.lowlevel.checkpoint()

    def write_rows(self, statements, **more):
        self.attempts += 1
        if not self.gate.is_set():
            anyio.from_thread.run(self.gate.wait)
        if self.refuses:
            raise CommitFailed("commit", "", found="SQLITE_BUSY")
        self.real(statements, **more)

    def close_gate(self):
        """The writer stops at its next attempt."""
        self.gate = anyio.Event()


def opened(root, **more):
    return Engine(root, resume=False, **more)


def adds_up(figures):
    parts = ("appended", "dumped", "rejected", "queued")
    return figures["submitted"] == sum(figures[part] for part in parts)


async def stored(engine):
    return [record.data for record in await engine.records.find()]


async def test_what_is_flushed_is_durable_and_in_order(root):
    async with opened(root) as engine:
        for number in range(200):
            await engine.records.submit("event", {"n": number}, run_id="r" if number % 2 else "")
        await engine.records.flush()
        assert [data["n"] for data in await stored(engine)] == list(range(200))
        figures = engine.records.figures()
        assert (figures["appended"], figures["queued"]) == (200, 0)
        assert adds_up(figures)
        assert len(await engine.records.find(run_id="r", limit=7)) == 7
        assert await engine.records.find(kind="other") == []


async def test_a_flush_copies_the_log_into_the_database(root):
    """Looked at by another process: opening the file in this one would let go of SQLite's locks."""
    look = [
        sys.executable,
        "-c",
        "import sys; print(b'a marker of its own' in open(sys.argv[1], 'rb').read())",
    ]
    async with opened(root) as engine:
        await engine.records.submit("event", "a marker of its own")
        await engine.records.flush()
        done = await anyio.run_process([*look, str(root / ".surefoot/surefoot.db")])
        assert done.stdout == b"True\n"


async def test_closing_drains_the_queue(root):
    async with opened(root) as engine:
        for number in range(50):
            await engine.records.submit("event", number)
    async with opened(root) as engine:
        assert await stored(engine) == list(range(50))
        (session,) = await engine.records.sessions()
        assert (session["how"], session["counts"]["appended"]) == ("clean", 50)


async def test_a_full_queue_makes_the_caller_wait_or_refuses_at_once(root):
    async with opened(root) as engine:
        store = Store(engine)
        await engine.records.submit("event", -1)
        await engine.records.flush()
        store.close_gate()
        for number in range(50):
            await engine.records.submit("event", number)
        assert engine.records.figures()["queued"] == 50
        for _ in range(3):
            with pytest.raises(RecordsFull, match="room in a queue of 50.*found 50"):
                await engine.records.submit("event", "refused", on_full="refuse")
        assert adds_up(engine.records.figures())
        waited = []

        async def wait():
            await engine.records.submit("event", 50)
            waited.append(engine.records.figures()["queued"])

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            assert waited == []
            with anyio.move_on_after(0.05):
                await engine.records.submit("event", "given up")
            store.gate.set()
        await engine.records.flush()
        assert await stored(engine) == [-1, *range(51)]
        figures = engine.records.figures()
        assert (figures["submitted"], figures["rejected"], figures["appended"]) == (55, 3, 52)
        assert adds_up(figures)


async def test_failed_writes_are_retried_before_new_work_and_order_is_kept(root):
    async with opened(root) as engine:
        store = Store(engine)
        await engine.records.submit("event", 0)
        await engine.records.flush()
        store.refuses = True
        real = store.pause

        async def pause(seconds):
            await real(seconds)
            await engine.records.submit("event", len(store.pauses))  # new work, while it is retried
            store.refuses = len(store.pauses) < 3

        store.writer.pause = pause
        await engine.records.submit("event", "first")
        await engine.records.flush()
        assert store.pauses == [0.1, 0.2, 0.3]
        await engine.records.flush()
        assert await stored(engine) == [0, "first", 1, 2, 3]
        figures = engine.records.figures()
        assert (figures["failed"], figures["retried"], figures["dumped"]) == (3, 3, 0)
        assert adds_up(figures)


async def test_after_the_last_retry_they_go_to_a_dump_that_can_be_replayed(root):
    async with opened(root) as engine:
        store = Store(engine)
        store.refuses = True
        for number in range(3):
            await engine.records.submit("event", {"n": number}, run_id="r")
        await engine.records.flush()
        assert store.pauses == [0.1, 0.2, 0.3]
        figures = engine.records.figures()
        assert (figures["dumped"], figures["appended"], figures["queued"]) == (3, 0, 0)
        assert adds_up(figures)
        (name,) = await engine.records.dumps()
        facts = json.loads((root / ".surefoot/dumps" / name).read_text())
        assert (facts["format"], facts["count"], facts["session"]) == (1, 3, store.writer.session)
        assert "SQLITE_BUSY" in facts["error"]
        assert facts["at"] > 0
        dump = await engine.records.dump(name)
        assert [record.data["n"] for record in dump.records] == [0, 1, 2]
        store.refuses = False
        assert await stored(engine) == []
        done = await engine.records.replay(name)
        assert (done.stored, done.known) == (3, 0)
        assert [data["n"] for data in await stored(engine)] == [0, 1, 2]
        assert await engine.records.dumps() == [f"{name}.replayed"]
        again = await engine.records.replay(f"{name}.replayed")
        assert (again.stored, again.known) == (0, 3)
        assert len(await stored(engine)) == 3


async def test_where_the_disk_takes_no_dump_either_nothing_is_lost_or_called_durable(root):
    async with opened(root) as engine:
        store = Store(engine)
        store.refuses = True
        store.writer.dumps._fs = Hooked()
        store.writer.dumps._fs.hook = fails_to_write
        await engine.records.submit("event", 1)
        with pytest.raises(RecordsNotDurable, match="No space left") as caught:
            await engine.records.flush()
        assert "1 wait in memory" in caught.value.hint
        assert engine.records.figures()["queued"] == 1
        assert adds_up(engine.records.figures())
        store.refuses = False
        await engine.records.flush()
        assert await stored(engine) == [1]
        assert adds_up(engine.records.figures())


def fails_to_write(name, _arguments):
    if name == "write":
        raise OSError(28, "No space left on device")


async def test_closing_says_what_is_lost_where_neither_store_nor_disk_takes_it(root, monkeypatch):
    said = []
    monkeypatch.setattr(
        "surefoot.records.logger",
        lambda **_bound: SimpleNamespace(
            error=lambda event, **facts: said.append((event, facts["count"])), warning=lambda *_a, **_k: None
        ),
    )
    with anyio.fail_after(20):
        async with opened(root) as engine:
            store = Store(engine)
            store.refuses = True
            store.writer.dumps._fs = Hooked(fails_to_write)
            for number in range(3):
                await engine.records.submit("event", number)
    assert said[-1] == ("records.lost", 3)
    async with opened(root) as engine:
        assert await stored(engine) == []


async def test_a_store_that_is_locked_by_somebody_else_is_one_that_refuses(root):
    async with opened(root, lock_wait_s=0.05) as engine:
        engine._the_open.records.pause = no_pause
        await engine.records.submit("event", 1)
        await engine.records.flush()
        held, release = threading.Event(), threading.Event()

        def hold():
            with Workspace(root) as other, other._section():
                held.set()
                release.wait(20)

        thread = threading.Thread(target=hold)
        thread.start()
        assert held.wait(20)
        await engine.records.submit("event", 2)
        with anyio.fail_after(20):
            while not await engine.records.dumps():
                await anyio.sleep(0.02)
        release.set()
        thread.join()
        await engine.records.flush()
        assert adds_up(engine.records.figures())
        (name,) = await engine.records.dumps()
        assert "another thread of this process" in (await engine.records.dump(name)).error
        await engine.records.replay(name)
        assert await stored(engine) == [1, 2]


async def no_pause(_seconds):
    await anyio.lowlevel.checkpoint()


@pytest.mark.skipif(os.geteuid() != 0, reason="not run, because mounting needs root")
def test_on_a_full_disk_nothing_is_lost_and_all_is_stored_when_there_is_room(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", small], check=False)
    if done.returncode:
        not_run("this machine does not mount a tmpfs")
    try:
        anyio.run(fill_and_free, small)
    finally:
        subprocess.run(["umount", "-l", small], check=False)


def fill(path):
    with contextlib.suppress(OSError), open(path, "wb", buffering=0) as filler:
        while True:
            filler.write(b"x" * 4096)


async def fill_and_free(small):
    async with opened(small) as engine:
        engine._the_open.records.pause = no_pause
        await engine.records.submit("event", "before")
        await engine.records.flush()
        fill(small / "filler")
        for number in range(40):
            await engine.records.submit("event", [number, "y" * 200_000])
        with pytest.raises(RecordsNotDurable):
            await engine.records.flush()
        figures = engine.records.figures()
        assert figures["queued"] > 0
        assert adds_up(figures)
        (small / "filler").unlink()
        await engine.records.flush()
        for name in await engine.records.dumps():
            if not name.endswith(".replayed"):
                await engine.records.replay(name)
        found = await stored(engine)
        assert ["before", *range(40)] == [found[0], *(data[0] for data in found[1:])]


async def test_warnings_come_at_the_stated_thresholds_and_once(root, monkeypatch):
    said = []
    monkeypatch.setattr(
        "surefoot.records.logger",
        lambda **_bound: SimpleNamespace(
            warning=lambda event, **facts: said.append((event, facts)), error=lambda *_a, **_k: None
        ),
    )
    async with opened(root) as engine:
        store = Store(engine)
        for number in range(20):
            await engine.records.submit("event", number)
        await engine.records.flush()
        real = store.write_rows

        def fail_once(*given, **more):
            store.writer._workspace.write_rows = real
            raise CommitFailed("commit", "", found="SQLITE_BUSY")

        for expected in (0, 0, 1, 1):  # 1 of 20, 2 of 21, 3 of 22 are over a tenth
            store.writer._workspace.write_rows = fail_once
            await engine.records.submit("event", "again")
            await engine.records.flush()
            assert [event for event, _ in said].count("records.many_retries") == expected
        store.close_gate()
        for number in range(50):
            await engine.records.submit("event", number)
        for attempt in range(1, 105):
            with pytest.raises(RecordsFull):
                await engine.records.submit("event", 0, on_full="refuse")
            assert [event for event, _ in said].count("records.many_rejections") == (attempt > 100)
        store.gate.set()
        await engine.records.flush()
        store.refuses = True
        await engine.records.submit("event", "last")
        await engine.records.flush()
        assert said[-1][0] == "records.dumped"
        assert adds_up(engine.records.figures())


@pytest.mark.parametrize("moment", ["queued", "retry", "dump", "flushed"])
def test_a_kill_loses_what_was_queued_and_never_what_was_flushed(root, moment):
    code = f"""
import os, sys
sys.path[:0] = {sys.path!r}
import anyio
from surefoot import Engine
from surefoot_storage import CommitFailed, Dumps
async def main():
    async with Engine({str(root)!r}, resume=False) as engine:
        for n in range(10):
            await engine.records.submit("event", n)
        await engine.records.flush()
        if {moment!r} == "flushed":
            os._exit(9)
        workspace = engine._the_open.workspace
        real = workspace.write_rows
        def refuse(*a, **k):
            if {moment!r} == "queued":
                os._exit(9)
            raise CommitFailed("commit", "", found="SQLITE_BUSY")
        workspace.write_rows = refuse
        async def pause(seconds):
            if {moment!r} == "retry":
                os._exit(9)
        engine._the_open.records.pause = pause
        real_write = Dumps.write
        def write(self, name, data):
            real_write(self, name, data)
            os._exit(9)
        Dumps.write = write
        for n in range(10, 20):
            await engine.records.submit("event", n)
        await anyio.sleep(10)
anyio.run(main)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    with opened(root) as engine:
        assert [record.data for record in engine.records.find().wait()] == list(range(10))
        (session,) = engine.records.sessions().wait()
        assert (session["how"], session["counts"]["appended"]) == ("unclean", 0 if moment == "never" else 10)
        names = engine.records.dumps().wait()
        assert len(names) == (moment == "dump")
        for name in names:
            engine.records.replay(name).wait()
            assert [r.data for r in engine.records.find().wait()][10:]


async def test_an_unclean_end_is_reported_once_and_a_living_session_is_not(root, monkeypatch):
    said = []
    monkeypatch.setattr(
        "surefoot.recovering.logger",
        lambda **bound: SimpleNamespace(warning=lambda event, **facts: said.append((event, bound, facts))),
    )
    code = f"""
import os, sys
sys.path[:0] = {sys.path!r}
from surefoot import Engine
with Engine({str(root)!r}, resume=False) as engine:
    engine.records.submit("event", 1).wait()
    engine.records.flush().wait()
    os._exit(9)
"""
    await anyio.run_process([sys.executable, "-c", code], check=False)
    async with opened(root) as living:
        await living.records.submit("event", 2)
        await living.records.flush()
        async with opened(root):
            pass
        assert [(event, facts["appended"]) for event, _, facts in said] == [("records.unclean_end", 1)]


async def test_a_dump_and_its_replay_from_two_places_at_once_store_each_record_once(root):
    async with opened(root) as one, opened(root) as two:
        store = Store(one)
        store.refuses = True
        for number in range(20):
            await one.records.submit("event", number)
        await one.records.flush()
        names = await one.records.dumps()
        store.refuses = False

        async def replay(engine, name):
            with contextlib.suppress(UnreadableFile, OSError):  # the other one was faster
                await engine.records.replay(name)

        async with anyio.create_task_group() as tasks:
            for engine in (one, two):
                for name in names:
                    tasks.start_soon(replay, engine, name)
        assert await stored(one) == list(range(20))


# --- dumps that are not what they were, and the commands ---


@pytest.fixture
def dumped(root):
    """A workspace with one dump of two records; and its name."""

    async def make():
        async with opened(root) as engine:
            store = Store(engine)
            store.refuses = True
            for number in range(2):
                await engine.records.submit("event", number, run_id="r")
            await engine.records.flush()
            return await engine.records.dumps()

    (name,) = anyio.run(make)
    return root, name


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda _facts: "{", "JSONDecodeError"),
        (lambda facts: json.dumps({**facts, "records": facts["records"][:1]}), "another number of records"),
        (lambda facts: json.dumps({**facts, "format": 2}), "format 2"),
        (lambda facts: json.dumps({"format": 1}), "KeyError"),
        (lambda facts: json.dumps({**facts, "records": [{"x": 1}], "count": 1}), "TypeError"),
    ],
)
def test_a_dump_that_cannot_be_read_is_refused_and_left_alone(dumped, change, found):
    root, name = dumped
    path = root / ".surefoot/dumps" / name
    path.write_text(change(json.loads(path.read_text())))
    before = path.read_bytes()
    with opened(root) as engine:
        with pytest.raises(InputRefused, match=found):
            engine.records.replay(name).wait()
        assert engine.records.find().wait() == []
    assert path.read_bytes() == before


def test_the_doctor_names_dumps_that_wait(dumped):
    root, name = dumped
    with ReadOnlyWorkspace(root, schemas=[SCHEMA]) as opened_:
        (finding,) = [f for f in findings(opened_, opened_.checkup, now=1e10) if f.kind == "dumps-waiting"]
    assert (finding.evidence, finding.remedy) == (name, "surefoot dumps replay --all")
    with opened(root) as engine:
        engine.records.replay(name).wait()
    with ReadOnlyWorkspace(root, schemas=[SCHEMA]) as opened_:
        assert "dumps-waiting" not in [f.kind for f in findings(opened_, opened_.checkup, now=1e10)]


def test_the_commands_list_show_and_replay(dumped, capsys):
    root, name = dumped

    def command(*arguments):
        with pytest.raises(SystemExit) as caught:
            main(["dumps", *arguments, "-w", str(root)])
        captured = capsys.readouterr()
        return caught.value.code, captured.out, captured.err

    assert command("list") == (0, f"{name}\n", "")
    code, out, _ = command("show", name)
    assert code == 0
    assert "2 record(s)" in out
    assert json.loads(command("show", name, "--json")[1])["count"] == 2
    code, _, err = command("show", "nothing")
    assert code != 0
    assert "hint: surefoot dumps list" in err
    assert command("replay", "--all")[1] == f"{name}: 2 stored, 0 were there\n"
    assert command("replay", "--all")[1] == "nothing to replay\n"
    assert command("replay", f"{name}.replayed")[1] == f"{name}.replayed: 0 stored, 2 were there\n"
    assert command("replay", "../../etc/passwd")[0] != 0
    with Workspace(root) as workspace:
        assert workspace.query("SELECT count(*) FROM record") == [(2,)]


async def test_what_cannot_be_a_record_is_refused_and_not_counted(root):
    async with opened(root) as engine:
        for data in (float("nan"), {1, 2}, object(), "x" * 300_000, {"a": b"bytes"}):
            with pytest.raises(InputRefused):
                await engine.records.submit("event", data)
        for kind in ("", "a b", 7, None, "../x"):
            with pytest.raises(InputError):
                await engine.records.submit(kind, 1)
        for more in ({"run_id": 7}, {"on_full": "drop"}, {"run_id": "x\ny"}):
            with pytest.raises(InputError):
                await engine.records.submit("event", 1, **more)
        with pytest.raises(InputError):
            await engine.records.find(limit=0)
        assert engine.records.figures()["submitted"] == 0
    for wrong in (0, -1, True, "50"):
        with pytest.raises(InputError):
            Engine(root, records_max=wrong)
