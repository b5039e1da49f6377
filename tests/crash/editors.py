"""Editors of every kind against commits: whatever an editor has finished saving exists somewhere afterwards.

    python tests/crash/editors.py FOLDER ROUNDS SEED [RECIPE]

Two processes commit new versions of files, two others edit each of them once, in one of the `STYLES`, at a moment of
their own; the committing processes are killed and stopped now and then. Each round has a file of its
own, so that no edit is overwritten by a later one: its bytes must be found in a file, in the history or among the
conflicts. What lies outside the workspace must stay as it is. Prints JSON.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw

from surefoot_storage import Conflict, PathRefused, UnreadableFile, Workspace, WorkspaceBlocked

COMMITS_MIN, COMMITS_MAX = 4, 60  # of each round's file: until it was edited, and a few more
PAIRS = 2  # of a committing process and an editing one; each has every second round
CANARY = b"outside, and nobody's business"
Save = Callable[[Path, bytes], None]


def atomic(path: Path, token: bytes) -> None:
    new = path.with_name("editor.tmp")
    new.write_bytes(token)
    new.replace(path)


def in_place(path: Path, token: bytes) -> None:
    with open(path, "r+b") as file:
        file.truncate(0)
        pause()
        file.write(token)


def truncate(path: Path, token: bytes) -> None:
    with open(path, "wb") as file:
        pause()
        file.write(token)


def append(path: Path, token: bytes) -> None:
    for part in range(5):
        with open(path, "ab") as file:
            file.write(token + b"%d" % part)
        pause()


def recreate(path: Path, token: bytes) -> None:
    path.unlink()
    pause()
    path.write_bytes(token)


def chmod(path: Path, token: bytes) -> None:
    path.chmod(0o600)
    pause()
    with open(path, "ab") as file:
        file.write(token)


def move_directory(path: Path, token: bytes) -> None:
    path.with_name("inside").write_bytes(token)
    path.parent.rename(path.parent.with_name(f"{path.parent.name}-moved"))


def swap_for_link(path: Path, token: bytes) -> None:
    path.with_name("kept").write_bytes(token)
    link = path.with_name("editor.link")
    link.symlink_to(path.parents[2] / "canary")
    link.replace(path)


def held_open(path: Path, token: bytes) -> None:
    with open(path, "r+b") as file:
        before = os.stat(path).st_ino
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if os.stat(path).st_ino != before:
                    break
            pause()
        for _ in range(5):
            pause()
        file.write(token)


def mapped(path: Path, token: bytes) -> None:
    with open(path, "r+b") as file:
        memory = mmap.mmap(file.fileno(), 0)
    for _ in range(5):
        pause()
    memory[: len(token)] = token
    memory.flush()
    memory.close()


STYLES: dict[str, Save] = {
    save.__name__: save
    for save in (
        atomic,
        in_place,
        truncate,
        append,
        recreate,
        chmod,
        move_directory,
        swap_for_link,
        held_open,
        mapped,
    )
}


def pause() -> None:
    time.sleep(random.random() * 0.002)


def token_of(number: int) -> bytes:
    return b"<edit %06d>" % number


def edit(root: Path, rounds: range, seed: int, notes: Path) -> None:
    """Waits for each round's file, and saves once. What was finished is noted outside."""
    random.seed(seed)
    with open(notes, "a", encoding="ascii") as finished:
        for number in rounds:
            style = random.choice(list(STYLES))
            path = root / f"r{number}" / "doc"
            while not path.exists():
                time.sleep(0.0005)
            pause()
            try:
                STYLES[style](path, token_of(number))
            except (
                FileNotFoundError,
                ValueError,
            ):  # it had gone, or was empty, at that moment: nothing was saved
                finished.write(f"{number} {style} nothing\n")
            else:
                finished.write(f"{number} {style} saved\n")
            finished.flush()


def commit(root: Path, rounds: range, done: Path, edited: Path, recipe: Any) -> None:
    """Goes on from the round that was not done yet. Each round lasts until its file was edited."""
    first = int(done.read_text() or 0) if done.exists() else 0
    with Workspace(root, recipe=recipe, idle_s=3600, lock_wait_s=30) as workspace:
        for number in rounds:
            if number < first:
                continue
            for version in range(COMMITS_MAX):
                if version >= COMMITS_MIN and edits(edited) > rounds.index(number):
                    break
                with contextlib.suppress(PathRefused, UnreadableFile, WorkspaceBlocked):
                    write_version(workspace, f"r{number}/doc", number, version)
                if version % 2:
                    workspace.checkpoint()
            done.write_text(str(number + 1))


def edits(notes: Path) -> int:
    return notes.read_bytes().count(b"\n") if notes.exists() else 0


def write_version(workspace: Workspace, path: str, number: int, version: int) -> None:
    while True:
        tx = workspace.begin(owner=path)  # a history of its own, which nobody shortens
        seen = tx.read_bytes(path) if tx.exists(path) else b""
        tx.write_bytes(
            path, b"round %d, version %d, after %d bytes %s" % (number, version, len(seen), b"." * 40)
        )
        try:
            workspace.commit(tx)
        except Conflict:
            continue
        return


def everything(root: Path) -> list[bytes]:
    """Each content that can still be got at."""
    found = [
        p.read_bytes()
        for p in root.rglob("*")
        if p.is_file() and not p.is_symlink() and p.suffix not in (".db", ".db-wal")
    ]
    database = apsw.Connection(str(root / ".surefoot/surefoot.db"), flags=apsw.SQLITE_OPEN_READONLY)
    found += [data for (data,) in database.execute("SELECT data FROM blob WHERE data IS NOT NULL")]
    database.close()
    return found


class Committer:
    """One committing process, which is started again until it has done its rounds."""

    def __init__(self, place: Path, number: int, rounds: str, recipe: str) -> None:
        self.command = [
            sys.executable, __file__, "--commit", str(place / "w"), str(number), rounds, str(place / f"done{number}"),
            str(place / f"finished{number}"), recipe,
        ]  # fmt: skip
        self.process = subprocess.Popen(self.command)

    def disturb(self, rng: random.Random) -> str:
        """Killed or stopped; what was done to it."""
        if self.process.poll() is not None:
            return "over" if self.process.returncode == 0 else f"failed: {self.process.returncode}"
        if rng.random() < 0.5:
            self.process.send_signal(signal.SIGSTOP)
            time.sleep(rng.uniform(0.01, 0.2))
            self.process.send_signal(signal.SIGCONT)
            return "stopped"
        self.process.kill()
        self.process.wait()
        self.process = subprocess.Popen(self.command)
        return "killed"


def main(folder: str, rounds: str, seed: str, recipe: str = "") -> dict[str, Any]:
    place = Path(folder)
    root = place / "w"
    root.mkdir(parents=True)
    (place / "canary").write_bytes(CANARY)
    rng, started, done = random.Random(int(seed)), time.monotonic(), Counter[str]()
    editors = [
        subprocess.Popen(
            [sys.executable, __file__, "--edit", str(root), str(n), rounds, seed, str(place / f"finished{n}")]
        )
        for n in range(PAIRS)
    ]
    committers = [Committer(place, n, rounds, recipe) for n in range(PAIRS)]
    try:
        while any(committer.process.poll() is None for committer in committers):
            time.sleep(rng.uniform(0.1, 0.8))
            done[rng.choice(committers).disturb(rng)] += 1
        for editor in editors:
            editor.wait(timeout=60)
    finally:
        for process in (*editors, *(committer.process for committer in committers)):
            process.kill()
            process.wait()
    with Workspace(root, recipe=recipe or None) as workspace:  # type: ignore[arg-type]
        conflicts, unapplied = len(workspace.upkeep.conflicts()), workspace.unapplied
    report = judge(place, root, unapplied)
    report["problems"] += [f"a committing process {what}" for what in done if what.startswith("failed")]
    return {
        "rounds": int(rounds), "kills": done["killed"], "stops": done["stopped"], "conflicts": conflicts,
        "seed": int(seed), "recipe": recipe, **report, "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip


def judge(place: Path, root: Path, unapplied: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    problems = [f"not in place: {path}: {cause}" for path, cause in unapplied]
    styles: Counter[str] = Counter()
    there = b"\n".join(everything(root))
    lines = [line for n in range(PAIRS) for line in (place / f"finished{n}").read_text().splitlines()]
    for line in lines:
        number, style, what = line.split()
        styles[f"{style} {what}"] += 1
        token = token_of(int(number))
        wanted = [token + b"%d" % part for part in range(5)] if style == "append" else [token]
        if what == "saved":
            problems += [
                f"round {number}, {style}: {part!r} is nowhere" for part in wanted if part not in there
            ]
    if (place / "canary").read_bytes() != CANARY:
        problems.append("a file outside the workspace was changed")
    problems += [f"left behind: {p.name}" for p in (root / ".surefoot/stage").iterdir()]
    return {"seen": styles, "problems": problems}


if __name__ == "__main__":
    if sys.argv[1] in ("--edit", "--commit"):
        mine = range(int(sys.argv[3]), int(sys.argv[4]), PAIRS)
        if sys.argv[1] == "--edit":
            edit(Path(sys.argv[2]), mine, int(sys.argv[5]), Path(sys.argv[6]))
        else:
            commit(Path(sys.argv[2]), mine, Path(sys.argv[5]), Path(sys.argv[6]), sys.argv[7] or None)
    else:
        report = main(*sys.argv[1:])
        print(json.dumps(report))
        sys.exit(bool(report["problems"]))
