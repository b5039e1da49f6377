"""The whole lab by one command; writes its results into LAB.md.

    python tests/crash/lab.py [--long] [--seed N] [--only SUITE] [--scale F] [--write]

Suites run one after the other, each in as many processes as there are processors, on parts that do not overlap.
`--long` is what a release gets; `--scale 0.1` does a tenth. Ends with 1 where anything was found.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SHARDS = os.cpu_count() or 1
BEGIN, END = "<!-- results: written by `make lab` -->\n", "<!-- end of results -->\n"


@dataclass(frozen=True)
class Suite:
    """`command(share, shard)` is what one process does."""

    name: str
    what: str
    unit: str
    short: int
    long: int
    command: Callable[[int, str, int, Path], list[str]]
    count: str = "cases"
    shards: int = SHARDS
    preloads: bool = False


def _simulate(model: str) -> Callable[[int, str, int, Path], list[str]]:
    index = ("weak", "ordered", "btrfs").index(model)

    def command(share: int, shard: str, seed: int, _folder: Path) -> list[str]:
        part, parts = map(int, shard.split("/"))
        return ["simulate.py", str(share), str(seed), model, f"{3 * part + index}/{3 * parts}"]

    return command


def _kill(mode: str) -> Callable[[int, str, int, Path], list[str]]:
    return lambda share, shard, seed, folder: [
        "killpoints.py",
        str(folder),
        mode,
        str(share),
        str(seed),
        shard,
    ]


def _undo(files: int) -> Callable[[int, str, int, Path], list[str]]:
    def command(share: int, shard: str, seed: int, folder: Path) -> list[str]:
        parts = int(shard.partition("/")[2])
        return ["killpoints.py", str(folder), "undo", str(share * parts), str(seed), shard, str(files)]

    return command


def _replay(share: int, shard: str, seed: int, folder: Path) -> list[str]:
    return ["replay.py", str(folder), str(share), str(seed + int(shard.partition("/")[0]))]


def _editors(recipe: str) -> Callable[[int, str, int, Path], list[str]]:
    return lambda share, _shard, seed, folder: ["editors.py", str(folder), str(share), str(seed), recipe]


SUITES = (
    Suite("simulated disk, weak", "every unflushed write and name lost or kept by itself", "distinct states",
          100_000, 3_400_000, _simulate("weak"), "states"),
    Suite("simulated disk, ordered", "names in order, data written out or not, as on ext4 and xfs", "distinct states",
          100_000, 3_400_000, _simulate("ordered"), "states"),
    Suite("simulated disk, btrfs-like", "whole commits of the filesystem, and what was flushed since", "distinct states",
          100_000, 3_400_000, _simulate("btrfs"), "states"),
    Suite("kill points", "SIGKILL before every call of open, commit, undo, checkpoint, close", "kills",
          5_000, 500_000, _kill("kill"), preloads=True),
    Suite("errors", "12 errnos and short writes, once and from then on, in every phase", "injections",
          5_000, 250_000, _kill("errors"), preloads=True),
    Suite("undo of 1 file", "SIGKILL before every call of the undo", "kills", 1000, 1000, _undo(1), preloads=True),
    Suite("undo of 40 files", "the same", "kills", 1000, 1000, _undo(40), preloads=True),
    Suite("undo of 5,000 files", "before calls evenly spread over all of them", "kills", 20, 40_000, _undo(5000),
          preloads=True),
    Suite("replay", "a record of the real process with SQLite, weak model", "distinct states",
          1_000, 50_000, _replay, "states"),
    Suite("editors", "ten styles of saving, two committing processes killed and stopped", "saves",
          2_000, 100_000, _editors("journal"), "rounds", shards=1),
    Suite("editors, flush recipe", "the same where every staged file is flushed", "saves",
          1_000, 50_000, _editors("flush"), "rounds", shards=1),
)  # fmt: skip


def run(suite: Suite, total: int, seed: int, folder: Path, library: Path) -> dict[str, Any]:
    """One suite, all its shards; the reports added up."""
    started = time.monotonic()

    def one(part: int) -> dict[str, Any]:
        place = folder / f"{suite.name.replace(' ', '-')}-{part}"
        command = suite.command(-(-total // suite.shards), f"{part}/{suite.shards}", seed, place)
        environment = {**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent / 'support'}"}
        if suite.preloads:
            environment["LD_PRELOAD"] = str(library)
        done = subprocess.run(
            [sys.executable, str(HERE / command[0]), *command[1:]],
            capture_output=True,
            text=True,
            env=environment,
        )
        shutil.rmtree(place, ignore_errors=True)
        if not done.stdout:
            return {"problems": [f"it did not run: {done.stderr[-2000:]}"]}
        return json.loads(done.stdout.splitlines()[-1])

    with ThreadPoolExecutor(suite.shards) as pool:
        reports = list(pool.map(one, range(suite.shards)))
    seen: Counter[str] = Counter()
    for report in reports:
        seen.update(report.get("seen", {}))
        seen.update(
            {key: report[key] for key in ("inside_recovery", "workloads", "kills", "stops") if key in report}
        )
    return {
        "count": sum(report.get(suite.count, 0) for report in reports),
        "seen": dict(seen),
        "problems": [problem for report in reports for problem in report["problems"]],
        "seconds": round(time.monotonic() - started),
    }


def detail(seen: dict[str, int]) -> str:
    wanted = ("of all combinations of one change", "recovery had work", "inside recovery", "recovery killed", "killed on top", "CommitOutcomeUnknown", "workloads",
              "kills", "stops")  # fmt: skip
    found = [f"{key}: {seen[key]:,}" for key in wanted if seen.get(key)]
    return "; ".join(found)


def rendered(results: list[tuple[Suite, dict[str, Any]]], seed: int, long: bool) -> str:
    machine = (
        f"{os.cpu_count()} cores, {platform.system()} {platform.release().split('-', 1)[0]},"
        f" Python {platform.python_version()}, SQLite {apsw.sqlite_lib_version()}, in {filesystem()}"
    )
    day = dt.datetime.now(dt.UTC).date().isoformat()
    lines = [
        f"`make lab{' LONG=1' if long else ''} SEED={seed}`, {day}, {machine}.",
        "",
        "| suite | what it does | count | of these | violations | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for suite, result in results:
        lines.append(
            f"| {suite.name} | {suite.what} | {result['count']:,} {suite.unit} | {detail(result['seen'])} |"
            f" {len(result['problems'])} | {result['seconds']} |"
        )
    return "\n".join(lines) + "\n"


def filesystem() -> str:
    done = subprocess.run(["stat", "-f", "-c", "%T", "/dev/shm"], capture_output=True, text=True)
    return f"/dev/shm ({done.stdout.strip()})"


def build_shim(folder: Path) -> Path:
    library = folder / "shim.so"
    source = HERE.parent / "support" / "shim.c"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    return library


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="surefoot-lab-") as folder:
        library = build_shim(Path(folder))
        for suite in [suite for suite in SUITES if given.only in suite.name]:
            total = max(suite.shards, int((suite.long if given.long else suite.short) * given.scale))
            result = run(suite, total, given.seed, Path(folder), library)
            results.append((suite, result))
            print(f"{suite.name}: {result['count']:,} {suite.unit}, {len(result['problems'])} violations, "
                  f"{result['seconds']} s; {detail(result['seen'])}", flush=True)  # fmt: skip
            print("".join(f"  {problem}\n" for problem in result["problems"][:5]), end="", flush=True)
    if given.write:
        page = ROOT / "LAB.md"
        text = page.read_text()
        before, after = text.partition(BEGIN)[0], text.partition(END)[2]
        page.write_text(
            before + BEGIN + "\n" + rendered(results, given.seed, given.long) + "\n" + END + after
        )
    return int(any(result["problems"] for _, result in results))


if __name__ == "__main__":
    sys.exit(main())
