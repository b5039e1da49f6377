"""Kills and errors at every call of every small transaction, in real processes, SQLite included.

    LD_PRELOAD=shim.so python killpoints.py FOLDER kill CASES SEED [SHARD/SHARDS]
    LD_PRELOAD=shim.so python killpoints.py FOLDER errors CASES SEED [SHARD/SHARDS]
    LD_PRELOAD=shim.so python killpoints.py FOLDER undo CASES SEED [SHARD/SHARDS] [FILES]

A fork server: the parent has everything imported, a child is forked for each case, from a workspace that is
copied each time. `kill`: SIGKILL before the n-th state-changing call of opening, committing, undoing and closing,
for every n; after every fourth one the recovery is killed as well, before a call of its own. `errors`: the n-th
call fails, once or from then on, or a write is short, while a transaction is committed, checkpointed, closed or
recovered; sometimes the process is killed on top of that. The parent then opens the workspace without faults and
compares with `workloads.py`. Workloads are drawn at random, without repetition. `undo`: the undo of a transaction
of FILES files is killed, before every call where these are no more than CASES, else before that many of them,
evenly spread. FOLDER should be on tmpfs.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import workloads
from forks import Forks, copy
from workloads import Workload

ERRORS = (
    "EIO",
    "ENOSPC",
    "EDQUOT",
    "EACCES",
    "EPERM",
    "EROFS",
    "EBUSY",
    "EXDEV",
    "EINTR",
    "EMFILE",
    "ENOENT",
    "EEXIST",
)
SHORT = -1
PHASES = ("commit", "checkpoint", "close", "recovery")
RECIPES: tuple[Any, ...] = ("journal", "flush", "portable")


class Lab(Forks):
    # --- kills ---

    def kill_everywhere(self, cases: int) -> None:
        kill_at = 0
        while self.cases < cases:
            kill_at += 1
            copy(self.template, self.root)
            status, acked = self.killed(kill_at)
            if status == 0:
                break
            self.cases += 1
            where = f"[{self.world}] {self.recipe}: kill before call {kill_at}"
            if kill_at % 4 == 0:
                self.kill_recovery(where, acked)
            self.check(where, acked)

    def killed(self, kill_at: int) -> tuple[int, int]:
        read_end, write_end = os.pipe()

        def work(_said: dict[str, Any]) -> None:
            self.shim.arm(kill_at=kill_at)
            self.all_of_it(write_end)

        status, said = self.in_child(work)
        os.close(write_end)
        with os.fdopen(read_end, "rb") as pipe:
            acked = 1 + len(pipe.read())
        if "raised" in said:
            self._problem(
                f"[{self.world}] {self.recipe}", f"without a kill: {said['raised']}: {said['text']}"
            )
        if status and os.WTERMSIG(status) != signal.SIGKILL:
            self._problem(f"[{self.world}] {self.recipe}", f"died of {status}")
        return status, acked

    def kill_recovery(self, where: str, acked: int) -> None:
        """At one call of its own; the workspace is left as that leaves it."""
        copy(self.root, self.crashed)
        _, said = self.in_child(lambda _said: self._reopen(0))
        second = self.random.randint(1, max(1, said.get("calls", 1)))
        copy(self.crashed, self.root)
        status, _ = self.in_child(lambda _said: self._reopen(second))
        if status:
            self.inside += 1
            self.seen["recovery killed"] += 1
        del where, acked

    def _reopen(self, kill_at: int) -> None:
        self.shim.arm(kill_at=kill_at)
        self.open(self.root).close()

    # --- the undo of many files ---

    def undo_many(self, cases: int, files: int, part: int, parts: int) -> int:
        """Returns how many calls there are."""
        self.world, self.recipe = Workload(()), "journal"
        old = {f"f{n}": (b"old %d" % n, 0o644) for n in range(files)}
        new = {f"f{n}": (b"new, %d" % n, 0o644) for n in range(files)}
        self.trees = [{}, old, new, old]
        self.template.mkdir()
        with self.open(self.template) as workspace:
            for tree in (old, new):
                tx = workspace.begin()
                workloads.make(tx, tree)
                workspace.commit(tx)
        total = self._undo(0)[2]
        points = range(1, total + 1) if total <= cases else range(1, total + 1, total // cases)
        for kill_at in list(points)[part::parts]:
            status, acked, _ = self._undo(kill_at)
            self.cases += 1
            where = f"undo of {files} files: kill before call {kill_at} of {total}"
            if status == 0:
                self._problem(where, "it was not killed")
            self.check(where, acked)
        return total

    def _undo(self, kill_at: int) -> tuple[int, int, int]:
        """(exit status, acknowledged, calls)."""
        copy(self.template, self.root)
        read_end, write_end = os.pipe()

        def work(_said: dict[str, Any]) -> None:
            with self.open(self.root) as workspace:
                self.shim.arm(kill_at=kill_at)
                tx = workspace.begin()
                workspace.go_back(tx, workspace.history.of("")[-1].changes)
                workspace.commit(tx)
                os.write(write_end, b".")

        status, said = self.in_child(work)
        os.close(write_end)
        with os.fdopen(read_end, "rb") as pipe:
            return status, 2 + len(pipe.read()), said.get("calls", 0)

    # --- errors ---

    def fail_everywhere(self, cases: int, number: int, name: str, *, from_then_on: bool, phase: str) -> None:
        fail_at = 0
        if phase == "recovery":
            self._crash_half_way()
        while self.cases < cases:
            fail_at += 1
            copy(self.crashed if phase == "recovery" else self.template, self.root)
            arm = {"fail_at": fail_at, "error": number, "from_then_on": from_then_on}
            if self.random.random() < 0.1:
                arm["kill_at"] = fail_at + self.random.randint(1, 12)
            said_acks = self._failed(phase, arm)
            if said_acks is None:
                return
            self.cases += 1
            status, said, acked = said_acks
            when = "from" if from_then_on else "at"
            where = f"[{self.world}] {self.recipe}: {name} {when} call {fail_at} of {phase}"
            if arm.get("kill_at") and status:
                where += f", killed before call {arm['kill_at']}"
                self.seen["killed on top"] += 1
                self.check(where, acked)
                continue
            self._judge(where, status, said, acked)

    def _crash_half_way(self) -> None:
        """A workspace whose recovery has something to do."""
        copy(self.template, self.root)
        read_end, write_end = os.pipe()

        def work(said: dict[str, Any]) -> None:
            with self.open(self.root) as workspace:
                self.shim.arm()
                self.commit(workspace, self.world.write, write_end)
                said["calls"] = self.shim.count

        _, said = self.in_child(work)
        calls = said["calls"]

        def die(_said: dict[str, Any]) -> None:
            with self.open(self.root) as workspace:
                self.shim.arm(kill_at=max(1, calls - self.random.randint(0, 3)))
                self.commit(workspace, self.world.write, write_end)

        copy(self.template, self.root)
        self.in_child(die)
        os.close(write_end)
        os.close(read_end)
        copy(self.root, self.crashed)

    def _failed(self, phase: str, arm: dict[str, Any]) -> tuple[int, dict[str, Any], int] | None:
        """(status, what it said, acknowledged); None where the phase has no such call."""
        read_end, write_end = os.pipe()

        def work(said: dict[str, Any]) -> None:
            if phase == "recovery":
                self.shim.arm(**arm)
                self.open(self.root).close()
                return
            workspace = self.open(self.root)
            if phase == "commit":
                self.shim.arm(**arm)
            self.commit(workspace, self.world.write, write_end)
            if phase == "commit":
                self.shim.disarm()
                said["unapplied"] = workspace.unapplied
                return
            if phase == "checkpoint":
                self.shim.arm(**arm)
                workspace.checkpoint()
            else:
                self.shim.arm(**arm)
                workspace.close()

        status, said = self.in_child(work)
        os.close(write_end)
        with os.fdopen(read_end, "rb") as pipe:
            acked = 1 + len(pipe.read())
        if status == 0 and said["calls"] < arm["fail_at"]:
            return None
        return status, said, acked

    def _judge(self, where: str, status: int, said: dict[str, Any], acked: int) -> None:
        if status:
            self._problem(where, f"died of {status}")
        raised = said.get("raised")
        self.seen[raised or "no error"] += 1
        if raised and not said["known"] and not (said["of the system"] and "of checkpoint" in where):
            self._problem(where, f"raised {raised}: {said['text']}")
        if raised and "of commit" in where and not said["unknown outcome"]:
            self.check(where, 1, outcomes=(1,))
        else:
            self.check(where, acked)


def main(
    folder: str, mode: str, cases: str, seed: str, shard: str = "0/1", files: str = "40"
) -> dict[str, Any]:
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    lab, started, most = Lab(place, int(seed)), time.monotonic(), int(cases)
    part, parts = map(int, shard.split("/"))
    if mode == "undo":
        lab.seen[f"calls of {files} files"] = lab.undo_many(most, int(files), part, parts)
    else:
        draw_and_break(lab, mode, most, part, parts)
    return {
        "cases": lab.cases, "inside_recovery": lab.inside, "workloads": lab.worlds, "seed": int(seed),
        "seen": lab.seen, "seconds": round(time.monotonic() - started, 1), "problems": lab.problems,
    }  # fmt: skip


def draw_and_break(lab: Lab, mode: str, most: int, part: int, parts: int) -> None:
    worlds = lab.draw(part, parts)
    kinds = [
        (name, on, phase) for name in (*ERRORS, "SHORT") for on in (False, True) for phase in PHASES
        if not (on and name == "EINTR")  # who repeats an interrupted call would do so for ever
    ]  # fmt: skip
    lab.random.shuffle(kinds)
    for turn, world in enumerate(worlds):
        if lab.cases >= most or len(lab.problems) > 20:
            break
        lab.prepare(world, RECIPES[turn % len(RECIPES)] if "swap" not in str(world) else RECIPES[turn % 2])
        if mode == "kill":
            lab.kill_everywhere(most)
        else:
            name, on, phase = kinds[turn % len(kinds)]
            number = SHORT if name == "SHORT" else getattr(errno, name)
            lab.fail_everywhere(most, number, name, from_then_on=on, phase=phase)


if __name__ == "__main__":
    report = main(*sys.argv[1:])
    print(json.dumps(report))
    sys.exit(bool(report["problems"]))
