"""The crash lab as each check-in gets it (`make lab` and `make lab-power` do more), and that it sees broken promises."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mutation
import pytest
from machines import not_run

LAB = Path(__file__).parent / "crash"


def lab(suite, *arguments, preload=""):
    command = [sys.executable, LAB / suite, *map(str, arguments)]
    path = os.pathsep.join(str(folder) for folder in (LAB, LAB.parent / "support"))
    environment = {**os.environ, "PYTHONPATH": path, **({"LD_PRELOAD": str(preload)} if preload else {})}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
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
    report = lab("replay.py", in_memory, 400, 1)
    assert report["problems"] == []
    assert report["states"] == 400
    assert report["seen"]["recovery had work"] > 50


@pytest.mark.long
@pytest.mark.parametrize("mutant", ["no-commit-flush", "no-checkpoint-flush", "no-staged-flush"])
def test_the_replay_sees_a_flush_that_is_missing(in_memory, mutant):
    assert lab("replay.py", in_memory, 150, 1, mutant)["problems"]


# --- the simulated disk: together 300,000 distinct states ---


@pytest.mark.long
@pytest.mark.parametrize("shard", [0, 1])
@pytest.mark.parametrize("model", ["weak", "ordered", "btrfs"])
def test_every_state_that_a_power_cut_may_leave_is_recovered(model, shard):
    part = 3 * shard + ["weak", "ordered", "btrfs"].index(model)
    report = lab("simulate.py", 50_000, 1, model, f"{part}/6")
    assert report["problems"] == []
    assert report["states"] >= 50_000
    assert report["seen"]["recovery had work"] > 5_000
    assert report["seen"]["inside recovery"] > 5_000


SEEN_AT_ONCE = [
    site for site in mutation.sites()
    if site.kind == "flush" and site.module in ("staging", "flusher") and "sync_filesystem" not in site.text
    and "area.stage" not in site.text  # seen by test_order
    and "start_writeback" not in site.text  # a write-out that begins later is as safe: test_order
]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("site", SEEN_AT_ONCE, ids=lambda site: f"{site.module}-{site.line}-{site.text}")
def test_the_simulated_disk_sees_each_flush_that_is_missing(site):
    assert any(mutation.by_simulation(site, states) for states in (2500, 5000))  # most are seen soon


def test_the_list_of_mutants_knows_its_exceptions():
    names = [(site.module, site.text) for site in mutation.sites()]
    for kind, module, text in mutation.HARMLESS:
        assert any(m == module and t.startswith(text) for m, t in names), (kind, module, text)


# --- real processes: 5,000 kills, 5,000 injected errors ---


@pytest.mark.long
@pytest.mark.parametrize("shard", [0, 1])
def test_killed_at_any_call_of_small_transactions_of_every_kind(shim_library, in_memory, shard):
    report = lab(
        "killpoints.py", in_memory / f"kill{shard}", "kill", 2000, 1, f"{shard}/2", preload=shim_library
    )
    assert report["problems"] == []
    assert report["cases"] + report["inside_recovery"] >= 2400
    assert report["seen"]["recovery had work"] > 50


@pytest.mark.long
@pytest.mark.parametrize("shard", [0, 1])
def test_any_error_at_any_call_of_small_transactions_of_every_kind(shim_library, in_memory, shard):
    report = lab(
        "killpoints.py", in_memory / f"fail{shard}", "errors", 2500, 1, f"{shard}/2", preload=shim_library
    )
    assert report["problems"] == []
    assert report["cases"] == 2500
    assert report["seen"]["CommitOutcomeUnknown"] > 20


@pytest.mark.long
@pytest.mark.parametrize("recipe", ["", "flush"])
def test_whatever_an_editor_has_saved_exists_somewhere(tmp_path, recipe):
    report = lab("editors.py", tmp_path / "lab", 300, 1, recipe)
    assert report["problems"] == []
    assert report["conflicts"] > 50
    assert len(report["seen"]) == 10
