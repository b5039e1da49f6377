"""A migration, killed before each of its calls: opened again, the store is the old one or the new one, whole.

    LD_PRELOAD=shim.so python tests/crash/migrations.py FIXTURE.tar.gz FOLDER

Each kill happens in a forked child on a fresh copy; then the workspace is opened as anybody would. What was
in the tables of the older version must be there, and the kept copy too. Prints JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tarfile
from pathlib import Path

import apsw
from shim import Shim

from surefoot.schema import SCHEMA
from surefoot_storage import Workspace, ballast

TABLES = ("run", "visit", "audit", "txn", "file_op", "message", "attempt", "outbox")


def contents(database: Path) -> dict[str, int]:
    """How much there is of everything that the older version knew."""
    connection = apsw.Connection(str(database), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        known = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        counts = {}
        for table in known.intersection(TABLES):
            counts[table] = int(str(connection.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0]))
        return counts
    finally:
        connection.close()


def forget_place(root: Path) -> None:
    """A copy would be refused as one."""
    marker = root / ".surefoot/workspace.json"
    note = json.loads(marker.read_text())
    note.pop("place", None)
    marker.write_text(json.dumps(note))


def opened(root: Path) -> None:
    Workspace(root, schemas=[SCHEMA], idle_s=3600).close()


def killed(root: Path, shim: Shim, call: int) -> int:
    """The child's status: 0 where it came to its end before that call."""
    child = os.fork()
    if child == 0:
        shim.arm(kill_at=call)
        opened(root)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def main(fixture: str, folder: str) -> dict[str, object]:
    ballast.SIZE_BYTES_MAX = 64 << 10
    place, shim, problems, call = Path(folder), Shim(), [], 0
    template = place / "template"
    with tarfile.open(fixture) as tar:
        tar.extractall(template, filter="data")
    before = contents(template / ".surefoot/surefoot.db")
    kept = 0
    while True:
        call += 1
        root = place / "w"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(template, root, symlinks=True)
        forget_place(root)
        status = killed(root, shim, call)
        if status and os.WTERMSIG(status) != signal.SIGKILL:
            return {"calls": call, "kept": kept, "problems": [*problems, f"call {call}: died of {status}"]}
        try:
            opened(root)
            after = contents(root / ".surefoot/surefoot.db")
            lost = {table: (n, after[table]) for table, n in before.items() if after[table] < n}
            if lost:
                problems.append(f"call {call}: (before, after) {lost}")
        except Exception as error:
            problems.append(f"call {call}: {type(error).__name__}: {error}")
        copies = [path for path in (root / ".surefoot").iterdir() if ".before-" in path.name]
        whole = [path for path in copies if not path.name.endswith(".new")]
        kept += len(whole)
        if len(whole) != 1 or len(copies) != 1 or not contents(whole[0]).get("run"):
            problems.append(f"call {call}: kept {[path.name for path in copies]}")
        if status == 0:
            return {"calls": call, "kept": kept, "problems": problems}


if __name__ == "__main__":
    report = main(*sys.argv[1:])
    print(json.dumps(report))
    sys.exit(bool(report["problems"]))
