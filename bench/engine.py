"""What the engine costs: in a full store against an empty one, and where the time of many runs goes.

    python bench/engine.py [FINISHED] [PARKED] [FOLDER]

First: one store with FINISHED finished and PARKED parked runs, and an empty one; starting, advancing and
listing take turns in both, and the medians are divided. Then 1, 16 and 256 runs at once, engine and bare
protocol (see concurrency.py) in turns: the shares of Python (user time), system calls (system time) and
barriers (waiting for fdatasync) in the engine's time, how many barriers a transition takes, and the engine's
time over the bare protocol's. Shares overlap where threads do, and leave out waiting for anything else.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import structlog
from anyio import to_thread

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests/support")]

import concurrency
from surefoot import Engine, Workflow
from surefoot_storage import Statement, Workspace

TURNS = 40
LIST = 50

flow = Workflow("bench")
answer = flow.signal("answer")


@flow.step
def first(tx: Any, _given: Any) -> None:
    tx.write_text("a.txt", "first")


@flow.step
def second(tx: Any, _given: Any) -> Any:
    tx.write_text("a.txt", "second")
    return tx.wait_for(answer)


@flow.step
def third(tx: Any, _given: Any) -> None:
    tx.write_text("a.txt", "third")


# --- a full store ---


async def fill(root: Path, finished: int, parked: int) -> None:
    """Two real runs, and copies of all that the store knows of them."""
    async with Engine(root, [flow], resume=False) as engine:
        for run_id in ("finished", "parked"):
            await engine.start(flow, run_id=run_id, queue="q")
            await engine.advance(run_id)
            await engine.advance(run_id)
        await engine.send("finished", answer)
        assert (await engine.resume("finished")).ok
        workspace = engine._the_open.workspace
        for run_id, count in (("finished", finished), ("parked", parked)):
            for begin in range(0, count, 5_000):
                many = min(5_000, count - begin)
                await to_thread.run_sync(copy_run, workspace, run_id, begin, many)
        workspace.checkpoint()
        log = workspace._store.database  # the copies have no files: nothing shall look for them
        log.mark_checkpointed(log.head().last_seq, workspace.epoch)


def copy_run(workspace: Workspace, run_id: str, begin: int, count: int) -> None:
    numbers = json.dumps(list(range(begin, begin + count)))
    name = f"'{run_id}-' || n.value"
    statements = []
    head = workspace.query("SELECT max(seq) FROM txn")[0][0]
    seqs = [row[0] for row in workspace.query("SELECT seq FROM txn WHERE owner = ? ORDER BY seq", (run_id,))]
    earlier = f"(SELECT count(*) FROM txn AS t WHERE t.owner = '{run_id}' AND t.seq <= {{}}.seq)"
    place = f"{head} + (n.value - {begin}) * {len(seqs)} + {earlier}"
    for table, key, changed in (
        ("txn", "owner", {"txid": "hex(randomblob(16))", "owner": name, "seq": place.format("txn"),
                          "batch": place.format("txn")}),
        ("run", "id", {"id": name, "directory": f"'runs/' || {name}",
                       "ordinal": "(SELECT max(ordinal) FROM run) + 1 + n.key"}),
        ("visit", "run_id", {"run_id": name}),
        ("attempt", "run_id", {"run_id": name}),
        ("audit", "run_id", {"run_id": name, "id": "NULL"}),
    ):  # fmt: skip
        columns = [row[1] for row in workspace.query(f"PRAGMA table_info({table})")]
        chosen = ", ".join(changed.get(column, f"{table}.{column}") for column in columns)
        statements.append(
            Statement(
                f"INSERT INTO {table} ({', '.join(columns)}) SELECT {chosen}"
                f" FROM {table}, json_each(:numbers) AS n WHERE {table}.{key} = :run_id",
                {"numbers": numbers, "run_id": run_id},
            )
        )
    columns = [row[1] for row in workspace.query("PRAGMA table_info(file_op)")]
    moved = {"seq": place.format("file_op"), "path": f"CAST('runs/' || {name} || '/a.txt' AS BLOB)"}
    chosen = ", ".join(moved.get(column, f"file_op.{column}") for column in columns)
    statements.append(
        Statement(
            f"INSERT OR IGNORE INTO file_op ({', '.join(columns)}) SELECT {chosen} FROM file_op,"
            f" json_each(:numbers) AS n WHERE file_op.seq IN ({', '.join(map(str, seqs))})",
            {"numbers": numbers},
        )
    )
    workspace.write_rows(statements, durable=False)


def resident_mib() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


async def timed(work: Callable[[], Awaitable[object]]) -> float:
    begun = time.perf_counter()
    await work()
    return time.perf_counter() - begun


async def full_against_empty(base: Path, finished: int, parked: int) -> None:
    roots = {"empty": base / "empty", "full": base / "full"}
    for root in roots.values():
        root.mkdir()
    await fill(roots["full"], finished, parked)
    took: dict[str, dict[str, list[float]]] = {}
    size = (roots["full"] / ".surefoot/surefoot.db").stat().st_size
    print(f"{finished:,} finished and {parked:,} parked runs, a database of {size >> 20} MiB")
    async with contextlib.AsyncExitStack() as stack:
        engines = {}
        for name, root in roots.items():
            begun, before = time.perf_counter(), resident_mib()
            engines[name] = await stack.enter_async_context(Engine(root, [flow]))
            took_s = time.perf_counter() - begun
            await anyio.sleep(2)  # its worker has looked a few times
            more = resident_mib() - before
            tasks = len(anyio.get_running_tasks())
            print(f"  opening the {name} one: {took_s:.3f} s, {more:+.0f} MiB, {tasks} tasks")
            for number in range(LIST):  # a whole page in both of them
                await engines[name].start(flow, run_id=f"page{number}", queue="q")
                await engines[name].cancel(f"page{number}")
        for turn in range(TURNS):
            for name in sorted(engines, reverse=bool(turn % 2)):
                engine, run_id = engines[name], f"turn{turn}"
                for what, work in (
                    ("start", lambda e=engine, r=run_id: e.start(flow, run_id=r)),
                    ("advance", lambda e=engine, r=run_id: e.advance(r)),
                    ("list", lambda e=engine: e.runs(limit=LIST)),
                    ("list one state", lambda e=engine: e.runs(states=["cancelled"], limit=LIST)),
                    ("send", lambda e=engine, r=run_id: e.send(r, answer)),
                ):  # fmt: skip
                    took.setdefault(what, {}).setdefault(name, []).append(await timed(work))
    for what, times in took.items():
        full, empty = (statistics.median(times[name]) for name in ("full", "empty"))
        print(f"  {what:<15} {full * 1e3:7.2f} ms, empty {empty * 1e3:7.2f} ms: {full / empty:.2f} x")


# --- where the time goes ---


async def shares(base: Path, seconds: float) -> None:
    disk = ctypes.CDLL(None)
    disk.shim_barriers_ns.restype = ctypes.c_longlong
    for at_once in (1, 16, 256):
        concurrency.RUNS = max(at_once, 16)
        kinds = {"engine": concurrency.EngineRuns, "bare": concurrency.BareRuns}
        spent = {name: [0.0] * 6 for name in kinds}
        async with contextlib.AsyncExitStack() as stack:
            opened = {}
            for name, kind in kinds.items():
                (base / f"{name}{at_once}").mkdir()
                opened[name] = await stack.enter_async_context(kind(base / f"{name}{at_once}", at_once))
                await opened[name].slice()
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                for name, runs in opened.items():
                    before = looked_at(disk)
                    count = await runs.slice()
                    passed = [now - then for now, then in zip(looked_at(disk), before, strict=True)]
                    spent[name] = [a + b for a, b in zip(spent[name], [*passed, count], strict=True)]
        wall, user, system, waited, barriers, count = spent["engine"]
        print(
            f"{at_once:>4} at once: {wall / count * 1e3:.2f} ms a transition; Python {user / wall:.0%},"
            f" system calls {system / wall:.0%},"
            f" barriers {waited / wall:.0%} ({barriers / count:.2f} a transition);"
            f" {wall / count / (spent['bare'][0] / spent['bare'][5]):.2f} x the bare protocol"
        )


def looked_at(disk: ctypes.CDLL) -> list[float]:
    """Seconds that have passed, of user and system time, and in barriers; and how many of those."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    waited_s = disk.shim_barriers_ns() / 1e9
    return [time.perf_counter(), used.ru_utime, used.ru_stime, waited_s, disk.shim_barriers()]


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    finished = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    parked = int(sys.argv[2]) if len(sys.argv) > 2 else 10_000
    folder = sys.argv[3] if len(sys.argv) > 3 else os.environ.get("BENCH_FOLDER") or tempfile.mkdtemp(dir=".")
    base = Path(folder).absolute()
    base.mkdir(exist_ok=True)
    try:
        if "shim.so" in os.environ.get("LD_PRELOAD", ""):
            anyio.run(shares, base, 8.0)
        else:
            anyio.run(full_against_empty, base, finished, parked)
            concurrency.run_again(__file__, str(finished), str(parked), f"{base}/shares")
    finally:
        shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    main()
