"""Power cuts under the weak model, from a record of the real process, SQLite included.

    python tests/crash/replay.py FOLDER STATES SEED [MUTANT]

A process is recorded while it commits (`recorder.c`: every change to a file with its bytes, every flush). At
each point of the record the disk can have lost any of the changes that no flush had covered by then: each
write and each directory entry by itself, in any combination (the model of ALICE, Pillai et al., OSDI 2014;
weaker than any filesystem that Surefoot knows). Such states are built as real directories, opened with the
real SQLite and the real recovery, and compared with the oracle in `story.py`. Few losses are tried all,
many are sampled: all lost, none lost, one lost, one kept, the last ones lost, and at random. A flush counts
for its own file or directory only. Permission bits are never lost here. FOLDER should be on tmpfs.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import story
from mutants import break_promise
from powercut import restamp

from surefoot_storage import Policy, Workspace, processes, spares

BEFORE, LAST = 5, 10  # transactions before the record begins, and at its end
EXHAUSTIVE_MAX = 5  # so many changes that may be lost are tried in every combination
SAMPLES = 12
RECIPE: Any = "journal"  # tmpfs has one of its own, which flushes nothing


@dataclass
class Inode:
    data: bytearray | None  # None: a directory
    entries: dict[str, int] = field(default_factory=dict)
    mode: int = 0o600


@dataclass(frozen=True)
class Change:
    kind: str  # data, size, zero, entry
    inode: int  # of the file, or of the directory
    other: int = 0
    offset: int = 0
    name: str = ""
    data: bytes = b""


@dataclass
class Record:
    """Changes in order; by which place in the order each of them is covered by a flush; acknowledgements."""

    changes: list[Change] = field(default_factory=list)
    covered: dict[int, int] = field(default_factory=dict)
    inodes: dict[int, Inode] = field(default_factory=dict)
    marks: list[tuple[int, int]] = field(default_factory=list)  # (place, transaction)

    def cover(self, inode: int | None) -> None:
        place = len(self.changes)
        for number, change in enumerate(self.changes):
            if number not in self.covered and inode in (None, change.inode):
                self.covered[number] = place


def scan(path: Path, inodes: dict[int, Inode]) -> int:
    """What there is before the record, durable."""
    found = path.lstat()
    if path.is_dir():
        inode = inodes[found.st_ino] = Inode(None, mode=found.st_mode & 0o7777)
        for child in path.iterdir():
            inode.entries[child.name] = scan(child, inodes)
    elif found.st_ino not in inodes:
        inodes[found.st_ino] = Inode(bytearray(path.read_bytes()), mode=found.st_mode & 0o7777)
    return found.st_ino


def load(log: Path, inodes: dict[int, Inode]) -> Record:
    record, data, place = Record(inodes=inodes), log.read_bytes(), 0
    while place < len(data):
        end = data.index(b"\n", place)
        kind, a, b, offset, length, name = data[place:end].decode("utf-8", "surrogateescape").split("\t")
        inode, other, at, size = int(a), int(b), int(offset), int(length)
        place = end + 1 + size
        if kind == "mark":
            record.marks.append((len(record.changes), inode))
        elif kind in ("file", "dir"):
            inodes[inode] = Inode(bytearray() if kind == "file" else None, mode=at & 0o7777 or 0o700)
        elif inode not in inodes and kind != "syncfs":
            continue  # outside
        elif kind == "mode":
            inodes[inode].mode = at & 0o7777
        elif kind in ("sync", "syncfs"):
            record.cover(None if kind == "syncfs" else inode)
        else:
            record.changes.append(Change(kind, inode, other, at, name, data[end + 1 : place]))
    return record


def lost_sets(free: list[int], rng: random.Random) -> Iterator[frozenset[int]]:
    """Which of the changes that may be lost are lost."""
    yield frozenset()
    yield frozenset(free)
    if len(free) <= EXHAUSTIVE_MAX:
        for bits in range(1, 1 << len(free)):
            yield frozenset(number for place, number in enumerate(free) if bits >> place & 1)
        return
    yield from (frozenset([rng.choice(free)]) for _ in range(SAMPLES))
    yield from (frozenset(free) - {rng.choice(free)} for _ in range(SAMPLES))
    yield from (frozenset(free[rng.randrange(len(free)) :]) for _ in range(SAMPLES))
    yield from (frozenset(n for n in free if rng.random() < 0.5) for _ in range(SAMPLES))


class Replay:
    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.problems: list[str] = []
        self.seen: Counter[str] = Counter()
        self.done: set[bytes] = set()
        self.first: dict[int, Inode] = {}  # before the record begins

    def record(self, library: Path, mutant: str) -> tuple[Record, int]:
        root = self.folder / "w"
        root.mkdir(parents=True)
        log = self.folder / "record"
        with Workspace(root, idle_s=3600, recipe=RECIPE) as workspace:
            for n in range(1, BEFORE):
                commit(workspace, n)
        top = scan(root, self.first)
        command = [sys.executable, __file__, "--work", str(root), str(log), mutant]
        subprocess.run(command, env={**os.environ, "LD_PRELOAD": str(library)}, check=True)
        return load(log, dict(self.first)), top

    def run(self, record: Record, top: int, states: int) -> None:
        points = list(range(len(record.changes) + 1))
        while points and len(self.done) < states:
            place = points.pop(self.random.randrange(len(points)))
            free = [n for n in range(place) if record.covered.get(n, place + 1) > place]
            for lost in lost_sets(free, self.random):
                self.one(record, top, place, lost)
                if len(self.done) >= states:
                    break

    def one(self, record: Record, top: int, place: int, lost: frozenset[int]) -> None:
        disk = {n: Inode(None if i.data is None else bytearray(i.data), dict(i.entries), i.mode)
                for n, i in self.first.items()}  # fmt: skip
        for number in range(place):
            if number not in lost:
                apply(disk, record, record.changes[number])
        acked = max([n for at, n in record.marks if at <= place], default=BEFORE - 1)
        key = digest(disk, top) + bytes([acked])
        if key in self.done:
            return
        self.done.add(key)
        root = self.folder / "state"
        shutil.rmtree(root, ignore_errors=True)
        build(disk, top, root)
        self.judge(f"at change {place} without {sorted(lost)} (acknowledged: {acked})", root, acked)

    def judge(self, case: str, root: Path, acked: int) -> None:
        processes.boot_id = lambda: "after the power cut"
        try:
            restamp(root)
            with Workspace(root, idle_s=3600, recipe=RECIPE) as workspace:
                found = story.read(root)
                n = story.number_of(found, range(acked, acked + 2))
                rows = workspace.query("SELECT count(*) FROM txn WHERE status <> 9")[0][0]
                wrong = [str(difference) for difference in workspace.history.verify()]
                self.seen["recovery had work" if workspace.recovered.completed else "nothing to recover"] += 1
                conflicts = [edit.path for edit in workspace.upkeep.conflicts()]
            if n is None or rows != n or wrong or conflicts:
                self.problems.append(
                    f"{case}: version {n}, {rows} in the log, {wrong[:3]}, conflicts {conflicts}"
                )
        except Exception as error:  # whatever recovery raises is a finding
            self.problems.append(f"{case}: {type(error).__name__}: {error}"[:600])


def apply(disk: dict[int, Inode], record: Record, change: Change) -> None:
    if change.inode not in disk:
        made = record.inodes[change.inode]
        disk[change.inode] = Inode(None if made.data is None else bytearray(), mode=made.mode)
    inode = disk[change.inode]
    if change.kind == "entry":
        inode.entries.pop(change.name, None)
        if change.other:
            inode.entries[change.name] = change.other
        return
    assert inode.data is not None
    size = change.offset if change.kind == "size" else change.offset + (len(change.data) or change.other)
    if change.kind == "size" and size < len(inode.data):
        del inode.data[size:]
    elif change.kind != "zero" and size > len(inode.data):
        inode.data.extend(bytes(size - len(inode.data)))
    if change.kind == "data":
        inode.data[change.offset : size] = change.data
    elif change.kind == "zero":
        length = min(size, len(inode.data)) - change.offset
        inode.data[change.offset : change.offset + length] = bytes(max(0, length))


def walk(disk: dict[int, Inode], inode: int, path: str) -> Iterator[tuple[str, int]]:
    yield path, inode
    for name, child in sorted(disk[inode].entries.items()):
        yield from walk(disk, child, f"{path}/{name}") if child in disk else [(f"{path}/{name}", child)]


def digest(disk: dict[int, Inode], top: int) -> bytes:
    found = hashlib.sha256()
    for path, inode in walk(disk, top, ""):
        found.update(path.encode("utf-8", "surrogateescape") + b"\0" + str(inode).encode() + b"\0")
        if inode in disk and disk[inode].data is not None:
            found.update(hashlib.sha256(disk[inode].data or b"").digest())
    return found.digest()


def build(disk: dict[int, Inode], top: int, root: Path) -> None:
    """Hard links stay hard links; a file whose every write was lost is empty."""
    made: dict[int, Path] = {}
    for path, inode in walk(disk, top, ""):
        where = Path(f"{root}{path}")
        found = disk.get(inode, Inode(bytearray()))
        if found.data is None:
            where.mkdir()
        elif inode in made:
            os.link(made[inode], where)
        else:
            where.write_bytes(found.data)
            made[inode] = where
        where.chmod(found.mode | 0o700 if found.data is None else found.mode)


def commit(workspace: Workspace, n: int) -> None:
    tx = workspace.begin()
    story.write(tx, n)
    workspace.commit(tx)


def work(root: Path, log: Path, mutant: str) -> None:
    """What is recorded: opening, commits, two checkpoints, one of them with the log's own, closing."""
    if mutant:
        break_promise(mutant)
    spares.AGE_S = 0.0
    recorder = ctypes.CDLL(None)
    recorder.recorder_start(str(log).encode())
    with Workspace(root, idle_s=3600, recipe=RECIPE, policy=Policy(spare_files="always")) as workspace:
        for n in range(BEFORE, LAST):
            commit(workspace, n)
            recorder.recorder_mark(n)
            if n % 2:
                workspace.checkpoint()
            if n == BEFORE + 2:
                workspace._store.database.checkpoint_log()
    recorder.recorder_stop()


def build_recorder(folder: Path) -> Path:
    library = folder / "recorder.so"
    source = Path(__file__).with_name("recorder.c")
    command = ["cc", "-O1", "-shared", "-fPIC", "-w", "-o", str(library), str(source), "-ldl", "-lpthread"]
    subprocess.run(command, check=True)
    return library


def main(folder: str, states: str, seed: str, mutant: str = "") -> dict[str, Any]:
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    replay = Replay(place, int(seed))
    started = time.monotonic()
    record, top = replay.record(build_recorder(place), mutant)
    replay.run(record, top, int(states))
    return {
        "states": len(replay.done), "seed": int(seed), "changes": len(record.changes), "seen": replay.seen,
        "seconds": round(time.monotonic() - started, 1), "problems": replay.problems,
    }  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1] == "--work":
        work(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
    else:
        report = main(*sys.argv[1:])
        print(json.dumps(report))
        sys.exit(bool(report["problems"]))
