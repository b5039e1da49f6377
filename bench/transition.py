"""One transition over three files: ours, the alternatives and the bare protocol, interleaved.

    python bench/transition.py [SECONDS] [FOLDER]

Workload: status (about 300 B), history (up to 20 entries), prompt (about 2 KB); each transition reads the
three, computes the next generation and replaces all three, durably, with a record that the step is done.
Every variant gets its own directory on the same disk and takes turns in slices, so that what else the
machine does hits all of them alike. Runs long enough for several checkpoints; prints ratios.

    engine      a Surefoot transition through the engine: everything that it promises
    bare        our own seam's calls and nothing else, over the three files: stage, one SQLite commit with
                contents inline and five rows, exchange, check; flush and unlink of displaced files every
                128 transitions
    bare+status the same over four files: the engine also writes the run's status document each time
    safe        hand-written: temp + fsync + rename for each file, one directory fsync, one progress row
                in SQLite (WAL, FULL, connection kept open). Not atomic as a set
    unsafe      open("w") for each file. Not durable, not atomic
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import apsw
import structlog

from surefoot import Done, Engine, FsOps, Next, Transaction, Workflow
from surefoot_storage.states import Stamp, digest_of

SLICE = 32  # transitions in a row before the next variant's turn
CHECKPOINT_EVERY = 128
DOCUMENT = "run.status.json"  # stands for the engine's own status file


def next_generation(status: bytes, history: bytes) -> dict[str, bytes]:
    """The three new contents."""
    n = json.loads(status)["n"] + 1
    entries = [*json.loads(history), {"n": n, "event": "transition", "note": "x" * 80}][-20:]
    return {
        "status.json": json.dumps({"n": n, "state": "running", "pad": "s" * 260}).encode(),
        "history.json": json.dumps(entries).encode(),
        "prompt.md": (f"# generation {n}\n" + "lorem ipsum " * 170).encode(),
    }


FIRST = {"status.json": b'{"n": 0}', "history.json": b"[]", "prompt.md": b"start"}


class Unsafe:
    """Plain writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, data in FIRST.items():
            (folder / name).write_bytes(data)

    def read(self) -> dict[str, bytes]:
        return {name: (self.folder / name).read_bytes() for name in FIRST}

    async def step(self) -> None:
        old = self.read()
        for name, data in next_generation(old["status.json"], old["history.json"]).items():
            (self.folder / name).write_bytes(data)

    def close(self) -> None:
        """Nothing is held."""


class Safe(Unsafe):
    """What a careful programmer writes by hand."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.db = open_database(folder / "progress.db")
        self.db.execute("CREATE TABLE progress (id INTEGER PRIMARY KEY, n INTEGER)")
        self.db.execute("INSERT INTO progress VALUES (1, 0)")

    async def step(self) -> None:
        old = self.read()
        for name, data in next_generation(old["status.json"], old["history.json"]).items():
            temporary = self.folder / f"{name}.tmp"
            write_and_sync(temporary, data)
            os.replace(temporary, self.folder / name)
        fd = os.open(self.folder, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
        self.db.execute("UPDATE progress SET n = n + 1")

    def close(self) -> None:
        self.db.close()


class Bare(Unsafe):
    """The protocol without a product around it."""

    def __init__(self, folder: Path, *extra: str) -> None:
        super().__init__(folder)
        self.names = (*FIRST, *extra)
        for name in extra:
            (folder / name).write_bytes(b"{}")
        self.fs = FsOps()
        (folder / "stage").mkdir()
        self.root, self.stage = self.fs.open_root(str(folder)), self.fs.open_root(str(folder / "stage"))
        self.db = open_database(folder / "log.db")
        self.db.execute("PRAGMA wal_autocheckpoint = 0").fetchall()
        self.db.execute("CREATE TABLE row (id INTEGER PRIMARY KEY, kind TEXT, data BLOB)")
        self.n = 0
        self.displaced: list[str] = []

    async def step(self) -> None:
        fs = self.fs
        old = {name: fs.read(self.root, name) for name in self.names}
        new = next_generation(old["status.json"][0], old["history.json"][0])
        for name in self.names[len(FIRST) :]:
            new[name] = b'{"n": %d, "pad": "%s"}' % (self.n, b"d" * 450)
        staged = []
        for name, data in new.items():
            fd = fs.create(self.stage, stage := f"{self.n}.{name}")
            fs.write(fd, data)
            fs.chmod(fd, 0o644)
            fs.start_writeback(fd)
            staged.append((fd, stage, name))
        for name in new:
            assert Stamp.of(fs.lstat(self.root, name)) == Stamp.of(old[name][1])
        self.db.execute("BEGIN IMMEDIATE")
        rows = [(f"content {digest_of(data).hex()}", data) for data in new.values()] + [
            (f"row {i}", b"") for i in range(5)
        ]
        self.db.executemany("INSERT INTO row (kind, data) VALUES (?, ?)", rows)
        self.db.execute("COMMIT")
        for fd, _, _ in staged:
            fs.wait_writeback(fd)
            fs.close(fd)
        for _, stage, name in staged:
            fs.exchange(self.stage, stage, self.root, name)
            assert fs.lstat(self.stage, stage) is not None
            self.displaced.append(stage)
        self.n += 1
        if self.n % CHECKPOINT_EVERY == 0:
            self.checkpoint()

    def checkpoint(self) -> None:
        self.fs.sync_filesystem(self.root)
        for stage in self.displaced:
            self.fs.unlink(self.stage, stage)
        self.displaced.clear()
        self.db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)

    def close(self) -> None:
        self.checkpoint()
        self.db.close()


def write_and_sync(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def open_database(path: Path) -> apsw.Connection:
    db = apsw.Connection(str(path))
    db.execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL").fetchall()
    return db


flow = Workflow("bench", directory="run")


@flow.step(reads=list(FIRST))
async def again(tx: Transaction, _given: Any) -> Next | Done:
    """Reads three, replaces three; a run is one slice of these."""
    old = {name: tx.read_bytes(name) if tx.exists(name) else data for name, data in FIRST.items()}
    for name, data in next_generation(old["status.json"], old["history.json"]).items():
        tx.write_bytes(name, data)
    return Next("again") if json.loads(tx.read_bytes("status.json"))["n"] % SLICE else Done()


async def measure(
    variants: dict[str, Callable[[], Awaitable[Any]]], seconds: float
) -> dict[str, list[float]]:
    """Seconds of each transition, by variant. The engine drives a whole run of them in one call."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for name, step in variants.items():
            calls = 1 if name == "engine" else SLICE
            for _ in range(calls):
                started = time.perf_counter()
                await step()
                took = time.perf_counter() - started
                times[name] += [took * calls / SLICE] * (SLICE // calls)
    return times


async def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 30.0
    base = Path(tempfile.mkdtemp(prefix="surefoot-bench-", dir=sys.argv[2] if len(sys.argv) > 2 else "."))
    folders = {name: base / name for name in ("engine", "bare", "bare+status", "safe", "unsafe")}
    for folder in folders.values():
        folder.mkdir()
    others = {
        "bare": Bare(folders["bare"]),
        "bare+status": Bare(folders["bare+status"], DOCUMENT),
        "safe": Safe(folders["safe"]),
        "unsafe": Unsafe(folders["unsafe"]),
    }
    try:
        async with Engine(folders["engine"], [flow], resume=False) as engine:
            runs = itertools.count()

            async def slice_of_transitions() -> None:
                result = await engine.run(flow, run_id=f"r{next(runs)}", adopt=True)
                assert result.ok
                assert len(result.transitions) == SLICE

            steps = {"engine": slice_of_transitions, **{name: other.step for name, other in others.items()}}
            await measure(steps, 1.0)  # warm up
            times = await measure(steps, seconds)
            marks = engine._the_open.workspace.query("SELECT checkpointed_seq FROM workspace")[0][0]
        report(times, marks)
    finally:
        for other in others.values():
            other.close()
        shutil.rmtree(base)


def report(times: dict[str, list[float]], checkpointed: int) -> None:
    totals = {name: sum(values) / len(values) for name, values in times.items()}
    print(f"{len(times['engine'])} transitions each, {checkpointed} of the engine's checkpointed meanwhile")
    print("variant     per second  mean ms  p50 ms  p95 ms   engine / variant (mean)")
    for name, values in times.items():
        p50, p95 = statistics.median(values) * 1e3, statistics.quantiles(values, n=20)[18] * 1e3
        ratio = totals["engine"] / totals[name]
        rate, mean = 1 / totals[name], totals[name] * 1e3
        print(f"{name:<11} {rate:>10.0f} {mean:>8.2f} {p50:>7.2f} {p95:>7.2f}   {ratio:.2f}")


if __name__ == "__main__":
    anyio.run(main)
