"""Working copies: preparing and sealing one, against `cp -a --reflink=auto` and `find -printf`, interleaved.

Nothing is removed before the end: a disk that has just freed many files is slow at making new ones.

python bench/agents.py [FOLDER] [FILES]
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from surefoot_storage import Workspace

ROUNDS = 7


def make(folder: Path, files: int) -> None:
    """A source tree: files of up to 6 KB, a hundred in each directory."""
    chance = random.Random(1)
    for number in range(files):
        directory = folder / f"{number // 2000}" / f"{number // 100}"
        if number % 100 == 0:
            directory.mkdir(parents=True)
        (directory / f"{number}.py").write_bytes(chance.randbytes(chance.randint(100, 6000)))


def copy_and_find(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", "--reflink=auto", source, target], check=True)
    with open(os.devnull, "wb") as null:
        subprocess.run(["find", target, "-printf", "%p %s %T@ %C@ %i\n"], stdout=null, check=True)


def main() -> None:
    base = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="surefoot-bench-"))
    files = int(sys.argv[2]) if len(sys.argv) > 2 else 20_000
    make(base / "w/src", files)
    ours: list[float] = []
    prepared: list[float] = []
    theirs: list[float] = []
    with Workspace(base / "w", idle_s=3600) as workspace:
        for number in range(ROUNDS):
            os.sync()
            started = time.perf_counter()
            workspace.copies.prepare(f"c{number}", "src", lambda _path: False)
            ready = time.perf_counter()
            edited = Path(workspace.copies.path(f"c{number}")) / "0/0/7.py"
            edited.write_bytes(b"changed")
            changes = workspace.copies.seal(f"c{number}", lambda _path: False)
            ours.append(time.perf_counter() - started)
            prepared.append(ready - started)
            assert len(changes.changes) == 1
            os.sync()
            started = time.perf_counter()
            copy_and_find(base / "w/src", base / f"t{number}")
            theirs.append(time.perf_counter() - started)
    mine, other = statistics.median(ours), statistics.median(theirs)
    ratios = sorted(one / two for one, two in zip(ours, theirs, strict=True))
    print(
        f"{files} files, median of {ROUNDS}: prepared {statistics.median(prepared):.2f} s, and sealed"
        f" {mine:.2f} s; cp -a --reflink=auto and find {other:.2f} s"
    )
    print(f"ratio {mine / other:.2f} (goal: at most 1.5); of each round {ratios[0]:.2f} to {ratios[-1]:.2f}")
    shutil.rmtree(base)


if __name__ == "__main__":
    main()
