"""Many runs at once, several processes, slow disks: ours and the bare protocol, interleaved.

    python bench/concurrency.py [SECONDS] [FOLDER]

Each transition reads three small files, computes the next generation and replaces all three. A turn is the
same work for everybody: 16 runs of 32 transitions, one after the other or all at once, and then the flush and
the freeing of what they left behind, so that nobody works among another's debris. `bare` is our
own seam's calls and nothing else: every caller stages its own files, one of them commits for all that wait
(one SQLite commit, contents inline, five rows each), exchanges, checks; flush and unlink every 128.
The 5 ms rows need a C compiler: every flush of the process is made that much slower.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Self

import anyio
import structlog
from anyio import to_thread
from pydantic import BaseModel

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests/support")]

import shim

from surefoot import Done, Engine, FsOps, Next, Transaction, Workflow
from surefoot_storage.states import Stamp, digest_of
from transition import CHECKPOINT_EVERY, FIRST, next_generation, open_database

SLICE = 32  # transitions of each run in one turn
RUNS = 16


class Given(BaseModel):
    """Which directory a run works in: there are as many as runs at once, used again and again."""

    demo: str


flow = Workflow("bench", directory="demos/{demo}", input=Given)


@flow.step(reads=list(FIRST))
async def again(tx: Transaction, _given: Any) -> Next | Done:
    """Reads three, replaces three; a run is one slice of these."""
    old = {name: tx.read_bytes(name) if tx.exists(name) else data for name, data in FIRST.items()}
    for name, data in next_generation(old["status.json"], old["history.json"]).items():
        tx.write_bytes(name, data)
    return Next("again") if json.loads(tx.read_bytes("status.json"))["n"] % SLICE else Done()


class EngineRuns:
    """One engine; some of its runs at once."""

    def __init__(self, folder: Path, at_once: int) -> None:
        self.folder, self.at_once, self.round = folder, at_once, 0

    async def __aenter__(self) -> Self:
        self.engine = await Engine(self.folder, [flow], resume=False).__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.engine.__aexit__(None, None, None)

    async def slice(self) -> int:
        self.round += 1

        limit = anyio.CapacityLimiter(self.at_once)

        async def one(number: int) -> None:
            async with limit:
                given = Given(demo=f"d{number}")
                result = await self.engine.run(flow, given, run_id=f"r{self.round}.{number}", adopt=True)
            assert result.ok, result.failure

        async with anyio.create_task_group() as tasks:
            for number in range(RUNS):
                tasks.start_soon(one, number)
        await to_thread.run_sync(self.engine._the_open.workspace.checkpoint)
        return RUNS * SLICE


class BareRuns:
    """The protocol without a product around it; some of its runs at once."""

    def __init__(self, folder: Path, at_once: int) -> None:
        self.folder, self.at_once, self.n = folder, at_once, 0
        self.fs = FsOps()
        self.lock, self.queue, self.leading = threading.Lock(), [], False  # type: ignore[var-annotated]
        self.displaced: list[str] = []

    async def __aenter__(self) -> Self:
        (self.folder / "stage").mkdir()
        self.stage = self.fs.open_root(str(self.folder / "stage"))
        self.roots = []
        for number in range(RUNS):
            (self.folder / f"r{number}").mkdir()
            for name, data in FIRST.items():
                (self.folder / f"r{number}" / name).write_bytes(data)
            self.roots.append(self.fs.open_root(str(self.folder / f"r{number}")))
        self.db = open_database(self.folder / "log.db")
        self.db.execute("PRAGMA wal_autocheckpoint = 0").fetchall()
        self.db.execute("CREATE TABLE row (id INTEGER PRIMARY KEY, kind TEXT, data BLOB)")
        return self

    async def __aexit__(self, *error: object) -> None:
        self.db.close()

    async def slice(self) -> int:
        limit = anyio.CapacityLimiter(self.at_once)

        async def one(number: int) -> None:
            async with limit:
                for _ in range(SLICE):
                    await to_thread.run_sync(self.transition, number)

        async with anyio.create_task_group() as tasks:
            for number in range(RUNS):
                tasks.start_soon(one, number)
        await to_thread.run_sync(self.checkpoint)
        return RUNS * SLICE

    def transition(self, number: int) -> None:
        fs, root = self.fs, self.roots[number]
        old = {name: fs.read(root, name) for name in FIRST}
        staged = []
        for name, data in next_generation(old["status.json"][0], old["history.json"][0]).items():
            fd = fs.create(self.stage, stage := f"{number}.{time.monotonic_ns()}.{name}")
            fs.write(fd, data)
            fs.chmod(fd, 0o644)
            fs.start_writeback(fd)
            staged.append((fd, stage, name, data, Stamp.of(old[name][1])))
        done = threading.Lock()
        done.acquire()
        with self.lock:
            self.queue.append((root, staged, done))
            lead, self.leading = not self.leading, True
        while lead:
            with self.lock:
                batch, self.queue = self.queue, []
                lead = self.leading = bool(batch)
            self.commit(batch)
        done.acquire()

    def commit(self, batch: list[Any]) -> None:
        fs, rows = self.fs, []
        for root, staged, _ in batch:
            for _, _, name, data, stamp in staged:
                assert Stamp.of(fs.lstat(root, name)) == stamp
                rows.append((f"content {digest_of(data).hex()}", data))
            rows += [(f"row {i}", b"") for i in range(5)]
        if not batch:
            return
        self.db.execute("BEGIN IMMEDIATE")
        self.db.executemany("INSERT INTO row (kind, data) VALUES (?, ?)", rows)
        self.db.execute("COMMIT")
        for root, staged, done in batch:
            for fd, stage, name, _, _ in staged:
                fs.wait_writeback(fd)
                fs.close(fd)
                fs.exchange(self.stage, stage, root, name)
                fs.lstat(self.stage, stage)
                self.displaced.append(stage)
            done.release()
        self.n += len(batch)
        if self.n >= CHECKPOINT_EVERY:
            self.checkpoint()

    def checkpoint(self) -> None:
        self.n = 0
        self.fs.sync_filesystem(self.stage)
        for stage in self.displaced:
            self.fs.unlink(self.stage, stage)
        self.displaced.clear()
        self.db.wal_checkpoint()


async def rates(base: Path, seconds: float) -> dict[str, float]:
    """Transitions per second of each variant; they take turns."""
    kinds = {"engine": EngineRuns, "bare": BareRuns}
    variants = {f"{kind} x {n}": (kinds[kind], n) for kind in kinds for n in (1, RUNS)}
    took: dict[str, list[float]] = {name: [] for name in variants}
    async with contextlib.AsyncExitStack() as stack:
        opened = {}
        for name, (kind, at_once) in variants.items():
            folder = base / name.replace(" ", "-")
            folder.mkdir()
            opened[name] = await stack.enter_async_context(kind(folder, at_once))
        for variant in opened.values():
            await variant.slice()  # warm up
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for name, variant in opened.items():
                started = time.perf_counter()
                count = await variant.slice()
                took[name].append((time.perf_counter() - started) / count)
    return {name: 1 / statistics.mean(values) for name, values in took.items()}


def show(title: str, found: dict[str, float]) -> None:
    print(f"\n{title}")
    for name, rate in found.items():
        print(f"  {name:<14} {rate:>8.0f} per second")
    for kind in ("engine", "bare"):
        print(f"  {kind}: {RUNS} runs / 1 run = {found[f'{kind} x {RUNS}'] / found[f'{kind} x 1']:.2f}")


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 40.0
    base = Path(tempfile.mkdtemp(prefix="surefoot-bench-", dir=sys.argv[2] if len(sys.argv) > 2 else "."))
    try:
        if "shim.so" not in os.environ.get("LD_PRELOAD", ""):
            show("this disk", anyio.run(rates, base, seconds))
            run_again(__file__, str(seconds), *sys.argv[2:])
        else:
            ctypes.CDLL(None).shim_delay(5000)
            show("every flush 5 ms slower", anyio.run(rates, base, seconds))
    finally:
        shutil.rmtree(base)


def run_again(file: str, *arguments: str) -> None:
    """The second half: with the shim that knows about flushes."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            library = shim.build(Path(folder))
        except FileNotFoundError:
            print("the rest was not run, because there is no C compiler")
            return
        subprocess.run(
            [sys.executable, file, *arguments], env={**os.environ, "LD_PRELOAD": str(library)}, check=True
        )


if __name__ == "__main__":
    main()
