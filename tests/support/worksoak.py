"""Several workers over one queue of runs of all shapes, killed and stopped at random: nothing is lost or done twice.

python worksoak.py DIR WORKERS RUNS SEED
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import anyio
import structlog
from shapes import EXPECTED, SHAPES

from surefoot import Engine, RunRefused, rows

STUCK_S = 60  # without any run coming to its end


class Workers:
    """Processes that are killed, stopped and started again."""

    def __init__(self, root: Path, count: int, chance: random.Random) -> None:
        self._root, self._chance = root, chance
        self._living = [self._start() for _ in range(count)]
        self._stopped: dict[int, float] = {}
        self.killed = self.stopped = 0

    def _start(self) -> subprocess.Popen[str]:
        worker = Path(__file__).with_name("shapes.py")
        return subprocess.Popen([sys.executable, worker, self._root], stdout=subprocess.DEVNULL, text=True)

    def disturb(self) -> None:
        now = time.monotonic()
        for pid, until in list(self._stopped.items()):
            if now >= until:
                os.kill(pid, signal.SIGCONT)
                del self._stopped[pid]
        place = self._chance.randrange(len(self._living))
        process = self._living[place]
        assert process.poll() is None, f"a worker ended by itself with {process.returncode}"
        if self._chance.random() < 0.5:
            process.kill()
            process.wait()
            self._stopped.pop(process.pid, None)
            self._living[place] = self._start()
            self.killed += 1
        elif process.pid not in self._stopped:
            process.send_signal(signal.SIGSTOP)
            self._stopped[process.pid] = now + self._chance.uniform(0.1, 5.0)
            self.stopped += 1

    def calm(self) -> None:
        for pid in self._stopped:
            os.kill(pid, signal.SIGCONT)
        self._stopped.clear()

    def end(self) -> None:
        self.calm()
        for process in self._living:
            process.kill()
            process.wait()


async def enqueue(engine: Engine, count: int, chance: random.Random) -> None:
    shapes = list(SHAPES.values())
    for n in range(count):
        flow = shapes[n % len(shapes)]
        queue = chance.choice(["wide", "narrow", "lanes"])
        await engine.start(
            flow, run_id=f"r{n}", queue=queue, priority=chance.randrange(3),
            lane=f"l{chance.randrange(40)}" if queue == "lanes" else None,
        )  # fmt: skip


async def soak(root: Path, count: int, runs: int, seed: int) -> dict[str, int]:
    chance = random.Random(seed)
    workers = Workers(root, count, chance)
    try:
        async with Engine(root, SHAPES.values(), resume=False) as engine, anyio.create_task_group() as tasks:
            tasks.start_soon(enqueue, engine, runs, random.Random(seed + 1))
            tasks.start_soon(disturb, workers, chance, runs, engine)
            end, before = time.monotonic() + STUCK_S, 0
            while not await over(engine, runs):
                await answer(engine)
                done = (await counts(engine)).get("completed", 0)
                if done > before:
                    end, before = time.monotonic() + STUCK_S, done
                assert time.monotonic() < end, await left(engine)
                await anyio.sleep(0.2)
            tasks.cancel_scope.cancel()
        workers.end()
        async with Engine(root, SHAPES.values(), resume=False) as engine:
            found = check(engine, runs)
        return {**found, "killed": workers.killed, "stopped": workers.stopped}
    finally:
        workers.end()


async def disturb(workers: Workers, chance: random.Random, runs: int, engine: Engine) -> None:
    """By itself, so that a worker that was stopped with the commit lock in its hand is woken again."""
    while (await counts(engine)).get("completed", 0) < 0.85 * runs:
        await anyio.to_thread.run_sync(workers.disturb)
        await anyio.sleep(chance.uniform(0.1, 0.8))
    workers.calm()


async def counts(engine: Engine) -> dict[str, int]:
    return await anyio.to_thread.run_sync(rows.count_runs, engine._the_open.workspace)


async def over(engine: Engine, runs: int) -> bool:
    found = await counts(engine)
    return found.get("completed", 0) + found.get("error", 0) == sum(found.values()) >= runs


async def left(engine: Engine) -> str:
    waiting = [run.id for run in await engine.runs(states=["running", "waiting"], limit=5)]
    return "; ".join(f"{run_id}: {(await engine.why(run_id)).sentence}" for run_id in waiting)


async def answer(engine: Engine) -> None:
    for run in await engine.runs(workflow="asker", states=["running", "waiting"]):
        with contextlib.suppress(RunRefused):  # it is over meanwhile
            await engine.send(run.id, "answer", key="once")


def check(engine: Engine, runs: int) -> dict[str, int]:
    """Every run in a right state, every visit committed once, files and rows one story, nothing left open."""
    workspace = engine._the_open.workspace
    found = {"runs": 0, "transitions": 0, "interrupted": 0, "children": 0}
    for run in rows.list_runs(workspace):
        found["runs"] += 1
        found["children"] += run.parent is not None
        assert run.state == ("error" if run.workflow == "broken" else "completed"), (
            run.id,
            run.state,
            run.failure,
        )
        assert run.owner == "", run
        folder = Path(workspace.root) / run.directory
        assert (folder / "demo.status.json").read_text() == run.status, run.id
        notes = [path for path in folder.iterdir() if path.name not in ("demo.status.json", "n.json")]
        assert [path.read_text() for path in notes] == ["x"] * EXPECTED[run.workflow], (run.id, notes)
        attempts = rows.attempts_of(workspace, run.id)
        committed = [a["visit"] for a in attempts if a["outcome"] == "committed"]
        assert len(committed) == len(set(committed)), run.id
        assert all(a["ended_at"] for a in attempts), run.id
        found["transitions"] += len(committed)
        found["interrupted"] += sum(a["outcome"] == "interrupted" for a in attempts)
        steps = [line for line in rows.audit_log(workspace, run.id) if line["event"] == "step"]
        assert len(steps) == len(committed) == run.position, run.id
    assert found["runs"] == runs + found["children"]
    return found


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    folder, workers, runs, seed = sys.argv[1:5]
    Path(folder).mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    result = anyio.run(soak, Path(folder), int(workers), int(runs), int(seed))
    print(json.dumps({**result, "seconds": round(time.monotonic() - started)}))
