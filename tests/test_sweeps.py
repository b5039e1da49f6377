"""SIGKILL and errors at every state-changing call of one transition, in the real process, every thread.

`make sweep` runs everything; here it is shortened to what fits into a check-in beside `test_lab.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SWEEP = Path(__file__).parent / "support" / "sweep.py"
FULL = os.environ.get("SUREFOOT_SWEEP") == "full"


def sweep(library: Path, folder: Path, world: str, mode: str, recipe: str = "", stride: int = 1) -> dict:
    done = subprocess.run(
        [sys.executable, SWEEP, folder, world, mode, *([recipe] if recipe else [])],
        env={**os.environ, "LD_PRELOAD": str(library), "SWEEP_STRIDE": str(stride)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    print(f"{world} {mode} {recipe}: {report['cases']} cases, {report['seen']}")
    return report


@pytest.mark.parametrize("files", [3, 40])
def test_one_flush_for_any_number_of_small_files_and_two_after_a_log_reset(shim_library, tmp_path, files):
    report = sweep(shim_library, tmp_path, f"replace{files}", "count")
    if report["recipe"] == "portable":
        pytest.skip("not run, because the temporary directory is not on ext4, xfs or tmpfs")
    assert report["flushes"] == [1] * 6
    assert report["flushes_after_reset"] == [2, 1]


KILLS = [
    ("replace3", ""), ("mixed", ""), ("mixed", "portable"), ("large", ""), ("trees", ""), ("trees-by-file", "portable"),
    ("streams", "flush"), ("spares", ""), ("undo-replace40", ""), ("undo-trees", ""), ("undo-streams", ""),
    *([
        ("streams", "portable"), ("trees", "memory"), ("mixed", "flush"), ("replace40", ""), ("trees", "flush"),
        ("streams", ""),
    ] if FULL else []),
]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize(("world", "recipe"), KILLS)
def test_killed_before_any_call_it_is_all_old_or_all_new(shim_library, tmp_path, world, recipe):
    report = sweep(shim_library, tmp_path, world, "kill", recipe)
    assert report["problems"] == []
    assert report["cases"] > 80
    assert set(report["seen"]) == {"old", "new"}
    if world == "spares" and "fallocate" not in report["names"]:
        pytest.skip("not run, because the temporary directory is not on ext4 or xfs")


RECOVERIES = [
    ("mixed", ""), ("trees", ""), ("spares", ""),
    *([("undo-trees", ""), ("undo-mixed", "")] if FULL else []),
    *([
        ("replace3", ""), ("mixed", "portable"), ("large", ""), ("trees-by-file", "portable"), ("streams", "flush"),
    ] if FULL else []),
]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize(("world", "recipe"), RECOVERIES)
def test_killed_again_during_recovery_it_is_still_right(shim_library, tmp_path, world, recipe):
    report = sweep(shim_library, tmp_path, world, "recovery", recipe, stride=1 if FULL else 24)
    assert report["problems"] == []
    assert report["cases"] > (200 if FULL else 60)


FAILURES = [
    ("replace3", "ENOSPC", ""),
    ("large", "EIO", ""),
    ("trees", "EIO", ""),
    ("streams", "ENOSPC", "flush"),
    ("spares", "EIO", ""),
    ("undo-mixed", "ENOSPC", ""),
    *(
        [
            ("replace3", "EACCES,EIO", ""),
            ("mixed", "EIO", "portable"),
            ("large", "ENOSPC", ""),
            ("spares", "ENOSPC", ""),
            ("undo-mixed", "EIO", ""),
        ]
        if FULL
        else []
    ),
    *(
        [("trees", "ENOSPC,EACCES", "flush"), ("streams", "EIO", ""), ("trees-by-file", "EIO", "portable")]
        if FULL
        else []
    ),
    *([("mixed", "ENOSPC,EACCES,EIO,EINTR,EROFS,EMFILE,EDQUOT,EPERM", "")] if FULL else []),
]


@pytest.mark.long
@pytest.mark.parametrize(("world", "errors", "recipe"), FAILURES)
def test_a_failure_at_any_call_changes_nothing_or_is_completed(shim_library, tmp_path, world, errors, recipe):
    report = sweep(shim_library, tmp_path, world, errors, recipe)
    assert report["problems"] == []
    assert report["cases"] > 200


@pytest.mark.long
@pytest.mark.parametrize("mode", ["kill", "EIO"])
@pytest.mark.parametrize("filesystem", ["xfs_folder", "tmpfs_folder", "btrfs_folder", "overlay_folder"])
def test_kills_and_failures_on_other_filesystems(shim_library, filesystem, mode, request):
    folder = request.getfixturevalue(filesystem) / mode
    folder.mkdir()
    world = "trees" if mode == "kill" or FULL else "mixed"
    report = sweep(shim_library, folder, world, mode)
    assert report["problems"] == []
    assert report["cases"] > 100
    if filesystem == "xfs_folder":
        (folder / "spares").mkdir()
        assert sweep(shim_library, folder / "spares", "spares", mode)["problems"] == []
    if FULL:
        (folder / "streams").mkdir()
        assert sweep(shim_library, folder / "streams", "streams", mode)["problems"] == []
