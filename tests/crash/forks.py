"""A fork server: everything is imported, each case runs in a forked child on a workspace that is copied for it.

The parent then opens the workspace without faults, and compares it with what a workload says.
"""

from __future__ import annotations

import gc
import json
import os
import pickle
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import workloads
from shim import Shim
from workloads import Tree, Workload

from surefoot_storage import (
    CommitError,
    CommitOutcomeUnknown,
    Conflict,
    PathRefused,
    Workspace,
    WorkspaceError,
    ballast,
    staging,
)

LYING = ("ENOENT", "EEXIST")  # errors which say something about names that is not so
LARGE_BYTES = staging.INLINE_BYTES_MAX + 1000


def look(root: Path) -> Tree:
    """What anybody sees."""
    found: Tree = {}
    for folder, dirs, files in os.walk(root):
        if folder == str(root):
            dirs.remove(".surefoot")
        for name in dirs + files:
            path = Path(folder, name)
            mode = path.lstat().st_mode & 0o7777
            data = (
                os.readlink(path).encode()
                if path.is_symlink()
                else None
                if path.is_dir()
                else path.read_bytes()
            )
            found[str(path.relative_to(root))] = (data, mode)
    return found


def copy(source: Path, target: Path) -> None:
    """With its hard links, and as the workspace that it is a copy of."""
    shutil.rmtree(target, ignore_errors=True)
    made: dict[int, Path] = {}
    for folder, dirs, files in os.walk(source):
        there = target / Path(folder).relative_to(source)
        if not there.exists():
            there.mkdir()
        for name in [*dirs, *files]:
            old, new = Path(folder, name), there / name
            found = old.lstat()
            if old.is_symlink():
                new.symlink_to(os.readlink(old))
            elif old.is_dir():
                new.mkdir()
            elif found.st_nlink > 1 and found.st_ino in made:
                os.link(made[found.st_ino], new)
            else:
                shutil.copyfile(old, new)
                made[found.st_ino] = new
            if not old.is_symlink():
                os.chmod(new, found.st_mode & 0o7777)
    marker = target / ".surefoot/workspace.json"
    note = json.loads(marker.read_text())
    note["place"][1] = str((target / ".surefoot").stat().st_ino)
    marker.write_text(json.dumps(note))


class Forks:
    def __init__(self, folder: Path, seed: int) -> None:
        self.template, self.root, self.crashed = (folder / name for name in ("template", "w", "crashed"))
        self.random = random.Random(seed)
        self.shim = Shim()
        self.cases = self.inside = self.worlds = 0
        self.problems: list[str] = []
        self.seen: Counter[str] = Counter()
        self.recipe: Any = None
        self.world: Workload
        self.trees: list[Tree]
        self.calls_in_phase: dict[str, int] = {}
        ballast.SIZE_BYTES_MAX = 64 << 10
        gc.freeze()

    def draw(self, part: int, parts: int) -> list[Workload]:
        found = list(workloads.all_workloads(kinds=(*workloads.KINDS, "symlink"), small=300, big=LARGE_BYTES))
        random.Random(0).shuffle(found)
        mine = found[part::parts]  # no two shards do the same
        self.random.shuffle(mine)
        return mine

    def prepare(self, world: Workload, recipe: Any) -> None:
        self.world, self.recipe = world, recipe
        self.worlds += 1
        old, new = world.trees()
        self.trees = [{}, old, *([old] * 2 if world.is_refused else [new, old])]
        shutil.rmtree(self.template, ignore_errors=True)
        self.template.mkdir()
        with self.open(self.template) as workspace:
            tx = workspace.begin()
            workloads.make(tx, {p: w for p, w in old.items() if w[1] != workloads.LINK})
            workspace.commit(tx)
        for path, (data, mode) in old.items():
            if mode == workloads.LINK:
                os.symlink(data or b"", self.template / path)

    def open(self, root: Path) -> Workspace:
        return Workspace(root, recipe=self.recipe, idle_s=3600)

    # --- in the child ---

    def in_child(self, work: Callable[[dict[str, Any]], None]) -> tuple[int, dict[str, Any]]:
        """(exit status, what it said last)."""
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            gc.disable()  # it would copy the parent's memory
            os.close(read_end)
            said: dict[str, Any] = {}
            try:
                work(said)
            except BaseException as error:
                said["raised"] = error.__class__.__name__
                said["text"] = str(error)[:300]
                said["known"] = isinstance(error, CommitError | WorkspaceError | PathRefused | Conflict)
                said["of the system"] = isinstance(error, OSError)
                said["unknown outcome"] = isinstance(error, CommitOutcomeUnknown)
            self.shim.disarm()
            said["calls"] = self.shim.count
            os.write(write_end, pickle.dumps(said))
            os._exit(0)
        os.close(write_end)
        with os.fdopen(read_end, "rb") as pipe:
            data = pipe.read()
        _, status = os.waitpid(pid, 0)
        return status, pickle.loads(data) if data else {}

    def commit(self, workspace: Workspace, write: Callable[[Any], None], acks: int) -> None:
        tx = workspace.begin()
        try:
            write(tx)
            workspace.commit(tx)
        except PathRefused:
            tx.fence()
            if not self.world.is_refused:
                raise
        os.write(acks, b".")

    def all_of_it(self, acks: int) -> None:
        with self.open(self.root) as workspace:
            self.commit(workspace, self.world.write, acks)
            if not self.world.is_refused:
                self.commit(workspace, self.world.undo, acks)
            workspace.checkpoint()

    # --- in the parent ---

    def check(self, where: str, acked: int, *, outcomes: tuple[int, ...] = ()) -> None:
        """In the parent, without faults."""
        for path, (data, mode) in look(self.root).items():
            if (
                data is not None
                and mode != workloads.LINK
                and not any(t.get(path, (None,))[0] == data for t in self.trees)
            ):
                self._problem(where, f"before recovery {path} is torn: {data[:30]!r} ({len(data)} bytes)")
        try:
            with self.open(self.root) as workspace:
                n = workspace.query("SELECT count(*) FROM txn WHERE status <> 9")[0][0]
                completed = workspace.recovered.completed
                conflicts = [edit.path for edit in workspace.upkeep.conflicts()]
                wrong = [str(d) for d in workspace.history.verify()]
                unapplied = workspace.unapplied
            left = [p.name for f in ("stage", "keep") for p in (self.root / ".surefoot" / f).iterdir()]
            found = look(self.root)
            self.seen["recovery had work" if completed else "nothing to recover"] += 1
        except Exception as error:
            self._problem(where, f"does not open: {type(error).__name__}: {error}")
            return
        expected = self.trees[min(n, len(self.trees) - 1)]
        if self.world.is_refused:
            n = max(n, acked)
        if found != expected or n < acked or (outcomes and n not in outcomes):
            odd = {
                p: (found.get(p), expected.get(p))
                for p in {*found, *expected}
                if found.get(p) != expected.get(p)
            }
            self._problem(
                where, f"acknowledged {acked}, in the log {n}, allowed {outcomes}: (found, expected) {odd}"
            )
        for what, there in (
            ("left behind", left),
            ("conflicts", conflicts),
            ("verify", wrong),
            ("unapplied", unapplied),
        ):
            if there and not (what == "conflicts" and any(e in where for e in LYING)):
                self._problem(where, f"{what}: {there}")

    def _problem(self, where: str, what: str) -> None:
        self.problems.append(f"{where}: {what}"[:900])
