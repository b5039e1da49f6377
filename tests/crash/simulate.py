"""Power cuts on the simulated disk: the real commit, checkpoint and recovery, on states counted in millions.

    python tests/crash/simulate.py STATES SEED [MODEL[,MODEL…]] [SHARD/SHARDS]

Workloads of up to three changes (`workloads.py`) are committed, undone and checkpointed on `simdisk.py`; after
every change and every flush `models.py` says what a cut may leave: of transactions of one change all there is, by
the weak model, of others a sample. Each state that was not seen before is recovered and judged by what the
workload says, which shares no code with the product. Every so often recovery itself is cut, and what that leaves
is recovered. Prints JSON.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import models
from models import Found, Point, Story, assemble, fingerprint
from record import TOP, Inode, Record
from simdisk import SimFs
from simlog import SimLog, State
from workloads import Tree, Workload, all_workloads, make

from surefoot_storage import Policy, layout, rescuing, rollforward, spares, staging, tree
from surefoot_storage.layout import FOLDERS, Layout
from surefoot_storage.machinery import Machinery
from surefoot_storage.mark import AppliedMark
from surefoot_storage.queueing import Request
from surefoot_storage.recipes import Recipe
from surefoot_storage.states import File, digest_of
from surefoot_storage.transaction import FileTransaction

INLINE = 100  # bytes, so that "large" costs little here
RECIPES = {"weak": ("journal", "flush"), "ordered": ("journal",), "btrfs": ("flush",)}
NESTED_EVERY = 40  # so many states until a recovery is cut itself
SAMPLES_NESTED = 2


SMALL: tuple[tuple[Any, str, float], ...] = (
    (staging, "INLINE_BYTES_MAX", INLINE), (rollforward, "INLINE_BYTES_MAX", INLINE),
    (rescuing, "INLINE_BYTES_MAX", INLINE), (staging, "SMALL_BYTES_MAX", INLINE), (tree, "HELD_BYTES_MAX", INLINE),
    (spares, "AGE_S", 0.0),
)  # fmt: skip


def make_small() -> None:
    """In this process, for good."""
    for module, name, value in SMALL:
        setattr(module, name, value)


class Machine:
    """The parts of a workspace, put together over a simulated disk and log."""

    def __init__(
        self, inodes: dict[int, Inode], state: State, recipe: str, epoch: str, worker: str,
        record: Record | None = None, spare_files: Any = "never",
    ) -> None:  # fmt: skip
        self.fs = SimFs(inodes, recipe, record)
        self.log = SimLog(state, record)
        root = self.fs.open_root("/")
        folders = Layout.open(self.fs, root)
        self.seen: list[tuple[str, str]] = []
        store: Any = SimpleNamespace(
            layout=folders, root=root, database=self.log, epoch=epoch,
            recipe=Recipe(recipe, "simulated", True),  # type: ignore[arg-type]
            workers=SimpleNamespace(id=worker, living=lambda: {worker}),
            mark=AppliedMark(self.fs, folders.applied, epoch=epoch, workspace="w"),
            ballast=SimpleNamespace(give_up=lambda: False),
        )  # fmt: skip
        policy = Policy(spare_files=spare_files)
        self.parts = Machinery(
            self.fs, store, policy, "full", contextlib.nullcontext, self._report, lambda: 0.0
        )
        self.epoch, self.worker = epoch, worker
        self._number = 0

    def _report(self, seq: int, path: str, kept_as: str, found: str, kept: str = "theirs") -> None:
        del kept
        self.seen.append((path, found))
        self.log.note_foreign_edit(seq, path, kept_as, found, "theirs", 0.0)

    def commit(self, write: Any) -> None:
        self._number += 1
        tx = FileTransaction(self.parts.tree, f"{self.worker}t{self._number}")
        write(tx)
        tx.seal()
        request = Request([], tx=tx, staged=self.parts.committer.stage(tx))
        self.parts.committer.carry_out([request])
        if request.error is not None:
            raise request.error

    def checkpoint(self) -> None:
        self.parts.checkpoint.run_alone(self.epoch)


def empty_disk() -> dict[int, Inode]:
    inodes = {TOP: Inode(0o755, entries={".surefoot": 2}), 2: Inode(0o700, entries={})}
    for number, name in enumerate(FOLDERS, 3):
        inodes[number] = Inode(0o700, entries={})
        inodes[2].entries[name] = number  # type: ignore[index]
    return inodes


def user_tree(inodes: dict[int, Inode]) -> Tree:
    found: Tree = {}

    def visit(number: int, prefix: str) -> None:
        for name, child in (inodes[number].entries or {}).items():
            inode = inodes[child]
            if prefix or name != ".surefoot":
                found[prefix + name] = (None if inode.entries is not None else inode.data, inode.mode)
                if inode.entries is not None:
                    visit(child, f"{prefix}{name}/")

    visit(TOP, "")
    return found


class Case:
    """One workload on one recipe: what was on the disk before, and the record of what followed."""

    def __init__(self, world: Workload, recipe: str, *, spare_files: bool = False) -> None:
        self.world, self.recipe = world, recipe
        old, new = world.trees()
        self.trees = [{}, old, new, old, new]
        first = Machine(empty_disk(), State(), recipe, "before", "w1")
        first.parts.recover()
        first.commit(lambda tx: make(tx, old))
        first.checkpoint()
        self.base = {number: inode.copy() for number, inode in first.fs.inodes.items()}
        self.state = first.log.state.copy()
        self.record = Record()
        self.acked: list[tuple[Point, int]] = [(Point(0, 0), 1)]
        machine = Machine(
            first.fs.inodes, first.log.state, recipe, "before", "w2", self.record,
            "always" if spare_files else "never",
        )  # fmt: skip
        machine.parts.recover()
        self._work(machine, spare_files=spare_files)
        self.steps = machine.log.steps
        self.story = Story(self.record)
        self.tried: set[tuple[Found, int]] = set()

    def _work(self, machine: Machine, *, spare_files: bool) -> None:
        """Done, undone and checkpointed; with spare files once more."""
        works = [self.world.write, self.world.undo] + [self.world.write] * spare_files
        for number, work in enumerate(works, 2):
            machine.commit(work)
            self.acked.append((Point(len(self.record.changes), len(self.record.events)), number))
            if number > 2 or spare_files:
                machine.checkpoint()

    def acknowledged(self, point: Point) -> int:
        return max(n for at, n in self.acked if (at.changes, at.events) <= (point.changes, point.events))

    def log_state(self, logged: int) -> State:
        state = self.state.copy()
        for step in self.steps[:logged]:
            step(state)
        return state


class Simulation:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.problems: list[str] = []
        self.counts: Counter[str] = Counter()
        self.seen: set[int] = set()
        self.points = 0

    def run(
        self, states: int, names: list[str], worlds: list[Workload], each: int, problems_max: int = 20
    ) -> None:
        """Until so many distinct states were judged; every model in turn, `each` states of a workload."""
        turn = 0
        while len(self.seen) < states and len(self.problems) < problems_max:
            world = worlds[turn % len(worlds)]
            name = names[turn % len(names)]
            recipe = RECIPES[name][turn // len(names) % len(RECIPES[name])]
            spare = recipe == "journal" and turn % 3 == 0
            case = Case(world, recipe, spare_files=spare)
            self.counts[f"workloads {name}"] += 1
            self.case(case, name, min(each, states - len(self.seen)))
            turn += 1

    def exhaust(self, worlds: list[Workload]) -> None:
        """Every combination that the weak model allows, on both recipes."""
        for world in worlds:
            for recipe in RECIPES["weak"]:
                case = Case(world, recipe)
                for point in case.story.points():
                    for found in models.weak(case.story, point, self.random, 1 << models.EXHAUSTIVE_BITS):
                        self.once(case, "weak", point, found)
        self.counts["of all combinations of one change"] = len(self.seen)

    def once(self, case: Case, model: str, point: Point, found: Found) -> None:
        tried = (found, case.acknowledged(point))
        if tried not in case.tried:
            case.tried.add(tried)
            self.state(case, model, point, found)

    def case(self, case: Case, model: str, states: int) -> None:
        before = len(self.seen)
        points = case.story.points()
        self.points += len(points)
        self.random.shuffle(points)
        for index, point in enumerate(points):
            left = states - (len(self.seen) - before)
            if left <= 0:
                return
            share = max(4, 2 * left // (len(points) - index))
            for found in models.MODELS[model](case.story, point, self.random, share):
                self.once(case, model, point, found)

    def state(self, case: Case, model: str, point: Point, found: Found) -> None:
        inodes = assemble(case.base, case.record, found)
        acked = case.acknowledged(point)
        key = hash((str(case.world), case.recipe, fingerprint(inodes), found.logged, acked))
        if key in self.seen:
            self.counts["seen before"] += 1
            return
        self.seen.add(key)
        self.counts[model] += 1
        log = case.log_state(found.logged)
        where = f"[{case.world}] {case.recipe}/{model} at {point}, {found}"
        if model != "weak":
            self._before(case, where, inodes)
        nested = len(self.seen) % NESTED_EVERY == 0
        base = {number: inode.copy() for number, inode in inodes.items()} if nested else None
        if self.judge(case, where, inodes, log, acked) and base is not None:
            self.nested(case, model, where, base, case.log_state(found.logged), acked)

    def _before(self, case: Case, where: str, inodes: dict[int, Inode]) -> None:
        """Anybody who looks before recovery sees each file whole, one version or another."""
        versions = [case.trees[n] for n in range(1, len(case.trees))]
        for path, (data, _) in user_tree(inodes).items():
            if data is not None and not any(tree.get(path, (None, 0))[0] == data for tree in versions):
                self._problem(where, f"before recovery {path} is torn: {data[:40]!r} ({len(data)} bytes)")

    def judge(
        self, case: Case, where: str, inodes: dict[int, Inode], log: State, acked: int,
        record: Record | None = None,
    ) -> bool:  # fmt: skip
        """Recovers it, twice; False where something is wrong."""
        before = len(self.problems)
        try:
            machine = Machine(inodes, log, case.recipe, "after", "w3", record)
            outcome = machine.parts.recover()
            found = user_tree(inodes)
            self._judge(case, where, machine, outcome, found, acked)
            again = Machine(inodes, machine.log.state, case.recipe, "later", "w4").parts.recover()
            if again.completed or user_tree(inodes) != found:
                self._problem(where, f"recovering again did {again.completed}")
        except Exception as error:  # whatever recovery raises is a finding
            self._problem(where, f"{type(error).__name__}: {error}")
        return len(self.problems) == before

    def _judge(self, case: Case, where: str, machine: Machine, outcome: Any, found: Tree, acked: int) -> None:
        state, inodes = machine.log.state, machine.fs.inodes
        n = len(state.txns)
        self.counts["recovery had work" if outcome.completed else "nothing to recover"] += 1
        if n < acked:
            self._problem(where, f"transaction {acked} was acknowledged, the log ends at {n}")
        if found != case.trees[n]:
            wrong = {p: (found.get(p), case.trees[n].get(p)) for p in {*found, *case.trees[n]}
                     if found.get(p) != case.trees[n].get(p)}  # fmt: skip
            self._problem(where, f"not version {n}: (found, expected) {str(wrong)[:300]}")
        if outcome.foreign or outcome.unapplied or machine.seen:
            self._problem(where, f"reported {outcome.foreign} {outcome.unapplied} {machine.seen}")
        control = inodes[inodes[TOP].entries[".surefoot"]].entries  # type: ignore[index]
        for name in ("stage", "keep", "conflicts"):
            if left := inodes[control[name]].entries:  # type: ignore[index]
                self._problem(where, f"left in {name}: {sorted(left)}")
        for digest in self._old_versions(state):
            if not self._is_kept(digest, state, machine):
                self._problem(where, f"old version {digest.hex()[:12]} is gone: it cannot be undone")

    def _old_versions(self, state: State) -> Iterator[bytes]:
        for _, _, _, ops in state.txns.values():
            for op in ops:
                if isinstance(op.old, File) and getattr(op.new, "digest", None) != op.old.digest:
                    yield op.old.digest

    def _is_kept(self, digest: bytes, state: State, machine: Machine) -> bool:
        data = state.blobs.get(digest)
        if data is None:
            store: layout.Layout = machine.parts.checkpoint._layout
            with contextlib.suppress(Exception):
                data = store.read_blob(digest)
        return data is not None and digest_of(data) == digest

    def nested(
        self, case: Case, model: str, where: str, base: dict[int, Inode], log: State, acked: int
    ) -> None:
        """A cut during the recovery of this state."""
        record, first = Record(), log.copy()
        inodes = {number: inode.copy() for number, inode in base.items()}
        machine = Machine(inodes, log, case.recipe, "after", "w3", record)
        machine.parts.recover()
        story = Story(record)
        for point in story.points():
            for found in models.MODELS[model](story, point, self.random, SAMPLES_NESTED):
                state = first.copy()
                for step in machine.log.steps[: found.logged]:
                    step(state)
                cut = assemble(base, record, found)
                key = hash(("nested", str(case.world), case.recipe, fingerprint(cut), found.logged, acked))
                if key not in self.seen:
                    self.seen.add(key)
                    self.counts["inside recovery"] += 1
                    if model != "weak":
                        self._before(case, f"{where}, then at {point} of recovery, {found}", cut)
                    self.judge(case, f"{where}, then at {point} of recovery, {found}", cut, state, acked)

    def _problem(self, where: str, what: str) -> None:
        self.problems.append(f"{where}: {what}"[:1200])


def main(states: str, seed: str, names: str = "weak,ordered,btrfs", shard: str = "0/1") -> dict[str, Any]:
    make_small()
    simulation = Simulation(int(seed))
    started = time.monotonic()
    part, parts = map(int, shard.split("/"))
    if names == "weak":
        simulation.exhaust([w for w in all_workloads() if len(w.ops) == 1][part // 3 :: max(1, parts // 3)])
    worlds = [world for world in all_workloads() if len(world.ops) > 1]
    random.Random(0).shuffle(worlds)
    worlds = worlds[part::parts]  # no two shards see the same state
    simulation.random.shuffle(worlds)
    simulation.run(int(states), names.split(","), worlds, max(200, int(states) // len(worlds)))
    return {
        "states": len(simulation.seen), "seed": int(seed), "points": simulation.points,
        "seen": simulation.counts, "seconds": round(time.monotonic() - started, 1),
        "problems": simulation.problems,
    }  # fmt: skip


if __name__ == "__main__":
    report = main(*sys.argv[1:])
    print(json.dumps(report))
    sys.exit(bool(report["problems"]))
