"""The crash lab's short versions: what `make lab-power` does for longer. And that it sees broken promises."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from machines import not_run

LAB = Path(__file__).parent / "crash"


def lab(suite, *arguments):
    command = [sys.executable, LAB / suite, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr[-3000:]
    assert done.stdout, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    if "not_run" in report:
        not_run(report["not_run"])
    print(report)
    return report


@pytest.mark.long
@pytest.mark.parametrize("filesystem", ["ext4", "xfs", "btrfs"])
def test_after_a_power_cut_everything_that_was_acknowledged_is_there_and_whole(tmp_path, filesystem):
    report = lab("powercut.py", tmp_path, filesystem, 40, 1)
    assert report["problems"] == []
    assert report["seen"]["recovery had work"] > 3
    assert report["transactions"] > 20


@pytest.mark.long
@pytest.mark.parametrize(
    ("filesystem", "mutant", "words"),
    [
        ("ext4", "no-write-out", "torn before recovery"),
        ("xfs", "no-commit-flush", "transactions in the log"),
        ("btrfs", "no-staged-flush", "torn before recovery"),
    ],
)
def test_the_lab_sees_a_promise_that_is_broken(tmp_path, filesystem, mutant, words):
    report = lab("powercut.py", tmp_path, filesystem, 10, 1, mutant)
    assert any(words in problem for problem in report["problems"])


@pytest.fixture
def in_memory(tmp_path, tmpfs_folder):
    """A real directory for each state: on a disk that would take long."""
    if shutil.which("cc") is None:
        not_run("there is no C compiler", missing_package=True)
    return tmpfs_folder


@pytest.mark.long
def test_whatever_no_flush_had_covered_may_be_lost(in_memory):
    report = lab("replay.py", in_memory, 600, 1)
    assert report["problems"] == []
    assert report["states"] == 600
    assert report["seen"]["recovery had work"] > 100


@pytest.mark.long
@pytest.mark.parametrize("mutant", ["no-commit-flush", "no-checkpoint-flush", "no-staged-flush"])
def test_the_replay_sees_a_flush_that_is_missing(in_memory, mutant):
    assert lab("replay.py", in_memory, 150, 1, mutant)["problems"]
