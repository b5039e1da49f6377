"""Several processes over one workspace, killed and stopped at random, and watched by one that only reads.

    python soak.py FOLDER PROCESSES RUNS TRANSITIONS SEED

Each of PROCESSES engines drives RUNS runs; every transition counts in a file of its run, and some also in
a file that all share. Prints JSON: what was done to them, and every promise that was broken.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anyio
import structlog

from surefoot import Done, Engine, Next, SurefootError, Transaction, Workflow
from surefoot.schema import SCHEMA
from surefoot_storage import Workspace

SHARED = 24
STUCK_S = 120.0


def sealed(value: dict[str, Any]) -> str:
    """With a checksum: a reader sees whether it has a whole version."""
    text = json.dumps(value, sort_keys=True)
    return json.dumps({"value": value, "sum": hashlib.sha256(text.encode()).hexdigest(), "pad": "x" * 700})


def unsealed(data: str) -> dict[str, Any]:
    found = json.loads(data)
    text = json.dumps(found["value"], sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest() == found["sum"], "torn"
    return found["value"]


def workflow(transitions: int) -> Workflow:
    flow = Workflow("soak", directory="runs/{run_id}")

    @flow.step
    def tick(tx: Transaction, _given: Any) -> Any:
        own = unsealed(tx.read_text("own.json", default=sealed({"n": 0})))
        tx.write_text("own.json", sealed({"n": own["n"] + 1}))
        number = int(hashlib.sha256(tx.key.encode()).hexdigest(), 16)
        if number % 4 == 0:
            name = f"shared/{number // 4 % SHARED}.json"
            there = unsealed(tx.workspace.read_text(name, default=sealed({"by": {}})))
            there["by"][tx.run_id] = there["by"].get(tx.run_id, 0) + 1
            tx.workspace.write_text(name, sealed(there))
        return Next("tick") if own["n"] + 1 < transitions else Done()

    return flow


# --- one engine ---


async def work(root: Path, index: int, runs: int, transitions: int) -> None:
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(40),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    flow = workflow(transitions)
    acks = os.open(root.parent / f"acks.{index}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def acknowledge(result: Any) -> None:
        if result.ok:
            os.write(acks, f"{result.txid}\n".encode())

    async def drive(engine: Engine, run_id: str) -> None:
        while True:
            try:
                result = await engine.run(flow, run_id=run_id)
                if result.ok:
                    return
                if result.state == "error":
                    await engine.retry(run_id)
            except SurefootError as error:
                if type(error).__name__ not in ("RunRefused", "WorkspaceBusy", "Conflict"):
                    raise
                await anyio.sleep(0.05)

    async with Engine(root, [flow], on_transition=acknowledge) as engine, anyio.create_task_group() as tasks:
        for number in range(runs):
            tasks.start_soon(drive, engine, f"p{index}r{number}")


# --- one that only reads ---


def poll(root: Path) -> None:
    """Files by name, and rows before files: never torn, never older than the row said."""
    seen, late = 0, 0
    with Workspace(root, schemas=[SCHEMA]) as workspace:
        while not (root.parent / "stop").exists():
            for path in list(root.glob("shared/*.json")):
                unsealed(path.read_text())
                seen += 1
            for run_id, position, status in workspace.query("SELECT id, position, status FROM run"):
                path = root / "runs" / run_id
                if position:
                    assert unsealed((path / "own.json").read_text())["n"] >= position, (run_id, position)
                on_disk = json.loads((path / "demo.status.json").read_text())
                assert on_disk["revision"] >= json.loads(status)["revision"], run_id
                seen += 1
                late += on_disk["revision"] > json.loads(status)["revision"]
    print(json.dumps({"reads": seen, "newer_than_row": late}))


# --- the parent: starts, stops, kills, judges ---


def start(mode: str, root: Path, *arguments: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, __file__, mode, str(root), *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=open(root.parent / f"stderr.{mode}{arguments[:1]}", "a"), text=True,
    )  # fmt: skip


def main(folder: Path, processes: int, runs: int, transitions: int, seed: int) -> dict[str, Any]:
    chance = random.Random(seed)
    root = folder / "workspace"
    (root / "shared").mkdir(parents=True)
    Workspace(root, schemas=[SCHEMA]).close()
    workers = {i: start("work", root, i, runs, transitions) for i in range(processes)}
    poller = start("poll", root)
    kills = stops = 0
    problems: list[str] = []
    started = moved = time.monotonic()
    last = ""
    while any(worker.poll() != 0 for worker in workers.values()):
        time.sleep(chance.uniform(0.05, 0.4))
        for index, worker in workers.items():
            if worker.poll() not in (None, 0):
                if worker.poll() != -signal.SIGKILL:
                    problems.append(f"worker {index} ended with {worker.poll()}")
                workers[index] = start("work", root, index, runs, transitions)
        alive = [worker for worker in workers.values() if worker.poll() is None]
        if alive and chance.random() < 0.5:
            victim = chance.choice(alive)
            if chance.random() < 0.4:
                victim.kill()
                victim.wait()
                kills += 1
            else:
                os.kill(victim.pid, signal.SIGSTOP)
                time.sleep(chance.uniform(0.02, 0.5))
                os.kill(victim.pid, signal.SIGCONT)
                stops += 1
        now = ",".join(
            str((folder / f"acks.{i}").stat().st_size) for i in workers if (folder / f"acks.{i}").exists()
        )
        if now != last:
            last, moved = now, time.monotonic()
        if time.monotonic() - moved > STUCK_S or len(problems) > 5:
            problems.append(f"nothing moved for {STUCK_S} s")
            break
    took = time.monotonic() - started
    for worker in workers.values():
        worker.kill()
    (folder / "stop").touch()
    out, _ = poller.communicate(timeout=60)
    if poller.returncode:
        problems.append(f"the reader failed: {(folder / 'stderr.poll()').read_text()[-800:]}")
    problems += judge(root, folder, processes, runs, transitions)
    return {
        "seed": seed, "kills": kills, "stops": stops, "seconds": round(took, 1), "problems": problems,
        "reader": json.loads(out) if out.strip() else {},
    }  # fmt: skip


def judge(root: Path, folder: Path, processes: int, runs: int, transitions: int) -> list[str]:
    """Counts in files, rows and acknowledgements must be one story."""
    problems = []
    with Workspace(root, schemas=[SCHEMA]) as workspace:
        committed = {txid for (txid,) in workspace.query("SELECT txid FROM audit WHERE event = 'step'")}
        states = dict(workspace.query("SELECT id, state FROM run"))
        unapplied = workspace.unapplied
        foreign = workspace.query("SELECT path, kept_as, found FROM foreign_edit")
    acknowledged = set()
    for path in folder.glob("acks.*"):
        acknowledged |= {line for line in path.read_text().splitlines() if len(line) == 32}
    problems += [f"acknowledged and lost: {txid}" for txid in acknowledged - committed]
    expected = processes * runs * transitions
    if len(committed) != expected:
        problems.append(f"{len(committed)} transitions committed, {expected} expected")
    in_shared: dict[str, int] = {}
    for path in root.glob("shared/*.json"):
        for run_id, count in unsealed(path.read_text())["by"].items():
            in_shared[run_id] = in_shared.get(run_id, 0) + count
    for index in range(processes):
        for number in range(runs):
            run_id = f"p{index}r{number}"
            if states.get(run_id) != "completed":
                problems.append(f"{run_id} is {states.get(run_id)}")
                continue
            own = unsealed((root / "runs" / run_id / "own.json").read_text())["n"]
            keys = [f"{run_id}/{n + 1}/tick" for n in range(transitions)]
            shared = sum(int(hashlib.sha256(k.encode()).hexdigest(), 16) % 4 == 0 for k in keys)
            if own != transitions or in_shared.get(run_id, 0) != shared:
                problems.append(
                    f"{run_id}: own {own} of {transitions}, shared {in_shared.get(run_id)} of {shared}"
                )
    problems += [f"unapplied: {entry}" for entry in unapplied]
    problems += [f"foreign edit where nobody edited: {entry}" for entry in foreign]
    problems += [f"left in the stage: {name}" for name in os.listdir(root / ".surefoot/stage")]
    return problems


if __name__ == "__main__":
    if sys.argv[1] == "work":
        anyio.run(work, Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
    elif sys.argv[1] == "poll":
        poll(Path(sys.argv[2]))
    else:
        report = main(Path(sys.argv[1]), *map(int, sys.argv[2:6]))
        print(json.dumps(report))
