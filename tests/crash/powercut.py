"""Power cuts on real filesystems: images that are cloned while a workload commits, mounted again, recovered.

    python tests/crash/powercut.py FOLDER FILESYSTEM CUTS SEED [MUTANT]

FOLDER is on a real disk; needs root, loop devices, xfsprogs and, for btrfs, btrfs-progs. The image lies on an
xfs of its own, where FICLONE copies it in one instant: what the filesystem had not handed to its device by
then is lost, as in a power cut with a device that keeps what it was given. Losses inside the device's own
cache are not acted out. Prints JSON; every cut is judged before recovery, after it, and after a second one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import story
from mutants import break_promise

from surefoot_storage import FsOps, Policy, Workspace, processes, spares

FICLONE = 0x40049409
MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-F"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
}
OPTIONS = {"ext4": "loop", "xfs": "loop,nouuid", "btrfs": "loop"}
SIZE_MB = {"ext4": 400, "xfs": 400, "btrfs": 500}
WINDOW = 400  # transactions around the acknowledged ones that the oracle looks at
CHECKPOINT_EVERY = 9
CUTS_OF_A_DISK = 20


class NotPossible(Exception):
    """This machine cannot do it."""


def run(*command: object) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotPossible(f"{command[0]}: {done.stderr.strip() or done.stdout.strip()}")


@contextlib.contextmanager
def mounted(image: Path, where: Path, options: str) -> Iterator[Path]:
    where.mkdir(exist_ok=True)
    run("mount", "-o", options, image, where)
    try:
        yield where
    finally:
        for _ in range(50):
            if subprocess.run(["umount", where], capture_output=True, check=False).returncode == 0:
                break
            time.sleep(0.1)


@contextlib.contextmanager
def disk(folder: Path, filesystem: str) -> Iterator[tuple[Path, Path]]:
    """(image, where it is mounted): a fresh filesystem in an image that can be cloned."""
    host = folder / "host.img"
    try:
        run("truncate", "-s", "4G", host)
        run("mkfs.xfs", "-q", "-f", "-m", "reflink=1", host)
        with mounted(host, folder / "host", "loop") as clones:
            image = clones / "disk.img"
            run("truncate", "-s", f"{SIZE_MB[filesystem]}M", image)
            run(*MAKE[filesystem], image)
            with mounted(image, folder / "disk", OPTIONS[filesystem]) as where:
                yield image, where
    finally:
        host.unlink(missing_ok=True)


def clone(image: Path, copy: Path) -> None:
    with open(image, "rb") as source, open(copy, "wb") as target:
        fcntl.ioctl(target.fileno(), FICLONE, source.fileno())


def work(root: Path, acknowledged: Path, mutant: str) -> None:
    """Commits for ever; each acknowledgement is noted outside."""
    if mutant:
        break_promise(mutant)
    spares.AGE_S = 0.0  # as often as can be
    policy = Policy(spare_files="always")
    with (
        Workspace(root, policy=policy, idle_s=3600) as workspace,
        open(acknowledged, "a", encoding="ascii") as notes,
    ):
        n = 1
        while True:
            tx = workspace.begin()
            story.write(tx, n)
            workspace.commit(tx)
            notes.write(f"{n}\n")
            notes.flush()
            if n % CHECKPOINT_EVERY == 0:
                workspace.checkpoint()
            n += 1


def last_acknowledged(notes: Path) -> int:
    lines = notes.read_text(encoding="ascii").split("\n")[:-1] if notes.exists() else []
    return int(lines[-1]) if lines else 0


class Cuts:
    """One filesystem, many cuts."""

    def __init__(self, folder: Path, filesystem: str, seed: int, mutant: str = "") -> None:
        self.folder = folder
        self.mutant = mutant
        self.filesystem = filesystem
        self.random = random.Random(seed)
        self.problems: list[str] = []
        self.seen: Counter[str] = Counter()
        self.notes = folder / "acknowledged"
        self.transactions = 0

    def run(self, cuts: int) -> None:
        """Each disk is new, and cut a few times while it fills."""
        for first in range(0, cuts, CUTS_OF_A_DISK):
            with disk(self.folder, self.filesystem) as (image, where):
                (where / "w").mkdir()
                self.notes.unlink(missing_ok=True)
                self._episode(image, where / "w", range(first, min(cuts, first + CUTS_OF_A_DISK)))

    def _episode(self, image: Path, root: Path, cuts: range) -> None:
        command = [sys.executable, __file__, "--work", str(root), str(self.notes), self.mutant]
        process = subprocess.Popen(command)
        try:
            while last_acknowledged(self.notes) < 1:
                self._go_on(process, 0.01)
            for number in cuts:
                self._go_on(process, self.random.uniform(0.005, 0.15))
                acked = last_acknowledged(self.notes)
                copy = image.with_name("cut.img")
                clone(image, copy)
                process.send_signal(signal.SIGSTOP)  # it would fill the disk meanwhile
                with mounted(copy, self.folder / "cut", OPTIONS[self.filesystem]) as cut:
                    case = f"cut {number} (seen: {acked})"
                    try:
                        self._judge(case, cut / "w", acked)
                    except Exception as error:  # whatever recovery raises is a finding
                        self.problems.append(f"{case}: {type(error).__name__}: {error}"[:500])
                process.send_signal(signal.SIGCONT)
            self.transactions += last_acknowledged(self.notes)
        finally:
            process.kill()
            process.wait()

    def _go_on(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        time.sleep(seconds)
        if process.poll() is not None:
            raise RuntimeError(f"the workload ended: {process.returncode}")

    def _judge(self, case: str, root: Path, acked: int) -> None:
        before = story.read(root)
        self._expect(case, "torn before recovery", story.torn(before), [])
        numbers = range(max(0, acked), acked + WINDOW)
        self.seen[
            "one version before recovery" if story.number_of(before, numbers) else "a mix before recovery"
        ] += 1
        restamp(root)
        processes.boot_id = lambda: f"{self.random.random()}"
        with Workspace(root, idle_s=3600) as workspace:
            found = story.read(root)
            n = story.number_of(found, numbers)
            self._expect(
                case,
                "after recovery: some whole version that is not older than what was seen",
                n is not None,
                True,
            )
            rows = workspace.query("SELECT count(*) FROM txn WHERE status <> 9")[0][0]
            self._expect(case, "transactions in the log", rows, n)
            self._expect(case, "disk and store", [str(d) for d in workspace.history.verify()], [])
            self._expect(case, "conflicts", workspace.upkeep.conflicts(), [])
            self._expect(case, "unapplied", workspace.unapplied, ())
            self.seen["recovery had work" if workspace.recovered.completed else "nothing to recover"] += 1
            left = os.listdir(root / ".surefoot/stage") + os.listdir(root / ".surefoot/keep")
            self._expect(case, "left behind", left, [])
        with Workspace(root) as workspace:
            self._expect(
                case,
                "recovered twice",
                (workspace.recovered.completed, story.read(root) == found),
                ((), True),
            )
            if n is not None and n > 1:
                self._undo(case, workspace, root, n)

    def _undo(self, case: str, workspace: Workspace, root: Path, n: int) -> None:
        """Every old version that the last transaction displaced is there."""
        last = workspace.history.of("")[-1]
        tx = workspace.begin()
        workspace.go_back(tx, last.changes)
        workspace.commit(tx)
        self._expect(case, "undone", story.read(root) == story.state(n - 1), True)

    def _expect(self, case: str, what: str, found: object, expected: object) -> None:
        if found != expected:
            self.problems.append(f"{case}: {what}: expected {expected}, found {str(found)[:300]}")


def restamp(root: Path) -> None:
    """Another device number would make it a copied workspace: here it is the original."""
    marker = root / ".surefoot/workspace.json"
    note = json.loads(marker.read_text())
    fs = FsOps()
    fd = fs.open_root(str(root / ".surefoot"))
    note["place"] = [fs.filesystem(fd)[1], str(fs.fstat(fd).st_ino)]
    fs.close(fd)
    marker.write_text(json.dumps(note))


def main(folder: str, filesystem: str, cuts: str, seed: str, mutant: str = "") -> dict[str, Any]:
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    lab = Cuts(place, filesystem, int(seed), mutant)
    started = time.monotonic()
    lab.run(int(cuts))
    return {
        "filesystem": filesystem, "cuts": int(cuts), "seed": int(seed), "seen": lab.seen,
        "transactions": lab.transactions, "seconds": round(time.monotonic() - started, 1),
        "problems": lab.problems,
    }  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1] == "--work":
        work(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
    else:
        try:
            report = main(*sys.argv[1:])
        except (NotPossible, FileNotFoundError) as error:
            report = {"not_run": str(error), "problems": []}
        print(json.dumps(report))
        sys.exit(bool(report["problems"]))
