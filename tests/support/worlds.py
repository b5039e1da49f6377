"""Workloads for the crash tests: a directory before, one transition, the directory after.

The oracle knows nothing of the product: it is two dictionaries.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from surefoot import Engine, Next, Transaction, Workflow
from surefoot_storage import Policy, Workspace, spares

Tree = dict[str, tuple[bytes | None, int]]  # path -> (content or None for a directory, mode)


@dataclass
class World:
    """Old and new contents of the run's directory, and how a step gets from one to the other."""

    name: str
    old: dict[str, bytes]
    new: dict[str, bytes]
    modes: dict[str, int] = field(default_factory=dict)
    empty_dirs_old: tuple[str, ...] = ()
    empty_dirs_new: tuple[str, ...] = ()
    act: Callable[[Transaction], None] | None = None  # instead of one write or delete for each path
    spares: bool = False  # the transition finds spare files for what it replaces
    undo: bool = False  # what is tested is the undo of the transition

    @property
    def before(self) -> str:
        """Which version there is before what is tested."""
        return "new" if self.undo else "old"

    @property
    def after(self) -> str:
        """And which one it leads to."""
        return "old" if self.undo else "new"

    def workflow(self) -> Workflow:
        flow = Workflow("world", directory="run")

        @flow.step
        def prepare(tx: Transaction, _given: Any) -> None:
            for path, data in self.old.items():
                tx.write_bytes(path, data)
            for path in self.empty_dirs_old:
                tx.mkdir(path)

        @flow.step
        def change(tx: Transaction, _given: Any) -> Next | None:
            if self.act is not None:
                self.act(tx)
                return None
            for path, data in self.new.items():
                tx.write_bytes(path, data, mode=self.modes.get(path))
            for path in sorted(set(self.old) - set(self.new)):
                tx.delete(path)
            for path in self.empty_dirs_new:
                tx.mkdir(path)
            for path in self.empty_dirs_old:
                if path not in self.empty_dirs_new:
                    tx.rmdir(path)
            return None

        @change.effect
        def tell(_done: Any) -> None:
            """Delivered while the kill points go on."""

        return flow

    def tree(self, which: str) -> Tree:
        """What the run's directory must hold, the status file aside."""
        files = self.old if which == "old" else self.new
        dirs = self.empty_dirs_old if which == "old" else self.empty_dirs_new
        found: Tree = {
            p: (d, self.modes.get(p, 0o644) if which == "new" else 0o644) for p, d in files.items()
        }
        for path in [*files, *(f"{d}/x" for d in dirs)]:
            parts = path.split("/")[:-1]
            for i in range(len(parts)):
                found["/".join(parts[: i + 1])] = (None, 0o755)
        # directories that a deletion leaves empty stay
        for path in self.old:
            if which == "new" and "/" in path and self.act is None:
                found.setdefault(path.rpartition("/")[0], (None, 0o755))
        return found


def generation(text: str, size: int) -> bytes:
    return (text.encode() * (size // len(text) + 1))[:size]


def replaces(count: int, size: int = 300) -> World:
    names = [f"file{i:02}.txt" for i in range(count)]
    return World(
        f"replace{count}",
        {name: generation(f"old {name} ", size) for name in names},
        {name: generation(f"new {name} ", size + 7) for name in names},
    )


MIXED = World(
    "mixed",
    {"keep.txt": b"kept\n", "change.txt": b"before\n", "gone.txt": b"gone\n", "d/a.txt": b"a\n"},
    {
        "keep.txt": b"kept\n",
        "change.txt": b"after\n",
        "made.txt": b"made\n",
        "e/f/b.txt": b"b\n",
        "d/a.txt": b"a\n",
    },
    modes={"keep.txt": 0o600, "made.txt": 0o755},
    empty_dirs_old=("hollow",),
    empty_dirs_new=("fresh",),
)
LARGE = World(
    "large",
    {"big.bin": generation("old big ", 400_000), "small.txt": b"old\n"},
    {"big.bin": generation("new big ", 500_000), "small.txt": b"new\n"},
)


def _act_trees(tx: Transaction, *, swap: bool = True) -> None:
    """Every kind of change to a whole directory."""
    tx.write_bytes("born/a.txt", b"a\n")
    tx.write_bytes("born/b/c.txt", b"c\n", mode=0o600)
    tx.mkdir("born/hollow")
    tx.rmtree("gone")
    if swap:
        tx.swap("site")
    tx.write_bytes("site/index.html", b"new index\n")
    tx.write_bytes("site/blog/two.html", b"two\n")
    tx.delete("site/blog/one.html")
    tx.delete("was-file")
    tx.write_bytes("was-file/now.txt", b"below\n")
    tx.rmtree("was-dir")
    tx.write_bytes("was-dir", b"a file now\n")
    tx.rename("Readme.md", "README.md")


TREES = World(
    "trees",
    {
        "gone/x.txt": b"x\n",
        "gone/y/z.txt": b"z\n",
        "site/index.html": b"old index\n",
        "site/style.css": b"same\n",
        "site/blog/one.html": b"one\n",
        "site/blog/same.html": b"same too\n",
        "was-file": b"a file\n",
        "was-dir/inner.txt": b"inner\n",
        "Readme.md": b"read me\n",
    },
    {
        "born/a.txt": b"a\n",
        "born/b/c.txt": b"c\n",
        "site/index.html": b"new index\n",
        "site/style.css": b"same\n",
        "site/blog/two.html": b"two\n",
        "site/blog/same.html": b"same too\n",
        "was-file/now.txt": b"below\n",
        "was-dir": b"a file now\n",
        "README.md": b"read me\n",
    },
    modes={"born/b/c.txt": 0o600},
    empty_dirs_new=("born/hollow",),
    act=_act_trees,
)
# where two names cannot be exchanged
TREES_BY_FILE = replace(TREES, name="trees-by-file", act=lambda tx: _act_trees(tx, swap=False))


def _act_streams(tx: Transaction) -> None:
    """Large contents that are streamed: one replaced, one new in a new directory."""
    for path in ("big.bin", "made/big2.bin"):
        with tx.create(path) as out:
            for start in range(0, len(STREAMS.new[path]), 100_000):
                out.write(STREAMS.new[path][start : start + 100_000])
    tx.write_bytes("small.txt", b"new\n")


STREAMS = World(
    "streams",
    {"big.bin": generation("old big ", 1_500_000), "small.txt": b"old\n"},
    {
        "big.bin": generation("new big ", 1_600_000),
        "made/big2.bin": generation("made ", 700_000),
        "small.txt": b"new\n",
    },
    act=_act_streams,
)
SPARES = replace(replaces(3), name="spares", spares=True)
UNDOES = [
    replace(world, name=f"undo-{world.name}", undo=True)
    for world in (replaces(3), replaces(40), MIXED, TREES, STREAMS)
]
WORLDS = {
    world.name: world
    for world in (replaces(3), replaces(40), MIXED, LARGE, TREES, TREES_BY_FILE, STREAMS, SPARES, *UNDOES)
}


def read_tree(root: Path) -> Tree:
    """The run's directory as anybody would see it."""
    found: Tree = {}
    for folder, dirs, files in os.walk(root / "run"):
        for name in dirs:
            path = Path(folder) / name
            found[str(path.relative_to(root / "run"))] = (None, stat.S_IMODE(path.lstat().st_mode))
        for name in files:
            path = Path(folder) / name
            if name != "demo.status.json":
                found[str(path.relative_to(root / "run"))] = (
                    path.read_bytes(),
                    stat.S_IMODE(path.lstat().st_mode),
                )
    return found


def torn(world: World, root: Path) -> list[str]:
    """Before recovery: files that are neither the whole old nor the whole new version."""
    bad = []
    for path, (data, _) in read_tree(root).items():
        if data is not None and data not in (world.old.get(path), world.new.get(path)):
            bad.append(path)
    return bad


def restamp(root: Path) -> None:
    """A copied workspace would be refused as one: for the tests it is the original."""
    marker = root / ".surefoot" / "workspace.json"
    if marker.exists():
        note = json.loads(marker.read_text())
        if "place" in note:
            note["place"][1] = str((root / ".surefoot").stat().st_ino)
            marker.write_text(json.dumps(note))


def make(world: World, root: Path, recipe: Any = None) -> None:
    """The state before: a run whose next step is `change`."""
    root.mkdir(parents=True)
    flow = world.workflow()
    with Engine(root, [flow], resume=False, recipe=recipe) as engine:
        engine.start(flow, run_id="r").wait()
        engine.advance("r").wait().or_raise()
        if world.undo:
            engine.advance("r").wait().or_raise()


def change(world: World, root: Path, recipe: Any = None, ready: Callable[[], None] = lambda: None) -> Any:
    """The transition under test, with opening and closing; where spare files come first, without opening."""
    policy = Policy(spare_files="always" if world.spares else "auto")
    with Engine(
        root, [world.workflow()], resume=False, recipe=recipe, effects_grace_s=5.0, policy=policy
    ) as engine:
        if world.spares:
            _make_spares(world, engine._the_open.workspace)
            ready()
        if world.undo:
            engine.undo(engine.history.of("r")[-1].txid).wait()
            return SimpleNamespace(outcome="committed", failure=None)
        return engine.advance("r").wait()


def _make_spares(world: World, workspace: Workspace) -> None:
    """Writes something else and then the same again, so that two versions of each path are displaced."""
    spares.AGE_S = 0.0
    for suffix in (b"x", b""):
        tx = workspace.begin()
        for path, data in world.old.items():
            tx.write_bytes(f"run/{path}", data + suffix)
        workspace.commit(tx)
    workspace.checkpoint()


def verdict(world: World, root: Path, recipe: Any = None) -> dict[str, Any]:
    """After reopening: which version everything is, or what is wrong."""
    with Workspace(root, recipe=recipe) as workspace:
        row = workspace.query("SELECT status, position FROM run WHERE id = 'r'")
        audit = workspace.query("SELECT count(*) FROM audit WHERE event = 'step'")[0][0]
        outbox = workspace.query("SELECT count(*) FROM outbox")[0][0]
        unapplied = workspace.unapplied
        conflicts = os.listdir(root / ".surefoot" / "conflicts")
        workspace.checkpoint()
        left = os.listdir(root / ".surefoot" / "stage") + os.listdir(root / ".surefoot" / "keep")
    found = read_tree(root)
    which = next((w for w in ("old", "new") if found == world.tree(w)), "MIX")
    status = (root / "run" / "demo.status.json").read_bytes()
    problems = []
    if which == "MIX":
        problems.append(f"neither old nor new: {_difference(found, world)}")
    position = row[0][1]
    if position != (2 if which == "new" or world.undo else 1):
        problems.append(f"files are {which}, rows say {position} transitions")
    if world.undo and json.loads(row[0][0])["state"] != ("paused" if which == "old" else "completed"):
        problems.append(f"files are {which}, the run is {row[0][0]}")
    if (audit, outbox) != (position, position - 1):
        problems.append(f"audit {audit}, outbox {outbox} at position {position}")
    if status != row[0][0].encode():
        problems.append("status file and row differ")
    problems += [f"left behind: {name}" for name in left]
    problems += [f"conflict kept for no reason: {name}" for name in conflicts]
    problems += [f"unapplied: {entry}" for entry in unapplied]
    return {"which": which, "problems": problems, "state": json.loads(row[0][0])}


def _difference(found: Tree, world: World) -> str:
    parts = []
    for which in ("old", "new"):
        want = world.tree(which)
        differing = sorted(p for p in {*found, *want} if found.get(p) != want.get(p))
        parts.append(f"against {which}: {differing[:5]}")
    return "; ".join(parts)
