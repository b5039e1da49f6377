"""Agents with real processes: launched, watched, stopped, lost, taken over, and what they have changed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from agentflow import QUICK, Result, drafting, scripted, spec
from faulty import Hooked

from surefoot import (
    Agent,
    Conflict,
    CopyRefused,
    Engine,
    InputError,
    RunRefused,
    RunState,
    Transaction,
    Workflow,
    rows,
)
from surefoot.agentlooks import said
from surefoot.judging import judge, result_of, verified
from surefoot.probing import all_tagged, kill_tagged, tagged
from surefoot.supervising import AT_ONCE
from surefoot.tending import ERRORS_MAX, Tending, copy_name
from surefoot_storage import processes

AGENTFLOW = Path(__file__).parent / "support/agentflow.py"
NEXT = {"succeeded": "keep", "failed": "other", "timed_out": "other", "stalled": "other",
        "over_limit": "other", "lost": "other", "cancelled": "other", "rejected": "other",
        "unverified": "other", "conflict": "other"}  # fmt: skip


@pytest.fixture(autouse=True)
def no_process_is_left():
    """Whatever a test does: nothing that it has launched goes on."""
    yield
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with suppress(OSError):
                environment = Path(f"/proc/{entry}/environ").read_bytes()
                mine = (
                    b"SUREFOOT_AGENT=" in environment
                    and f"PYTEST_XDIST_WORKER={os.environ.get('PYTEST_XDIST_WORKER')}"
                )
                if mine and mine.encode() in environment:
                    os.kill(int(entry), signal.SIGKILL)


def outcome_of(root, flow, run_id="r", **options):
    """(result of the run, its last attempt's row)."""
    with Engine(root, [flow], resume=False, **options) as engine:
        result = engine.run(flow, run_id=run_id).wait()
        attempts = engine.agents.attempts(run_id=run_id).wait()
    return result, attempts[0]


def until(condition, seconds=20.0):
    """Waits for another process."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)
    return found


def spawn_of(root, agent_id, folder="run"):
    path = root / ".surefoot/copies" / copy_name(agent_id) / folder / "spawn.json"
    return json.loads(path.read_text()) if path.exists() else None


# --- what an agent does lands as a whole ---


def test_what_an_agent_has_done_lands_with_the_step_that_takes_it(root):
    flow = drafting(scripted("good", "draft.md", "deep/er/notes.md"), model=Result, prompt="prompt.md",
                    result="result.json")  # fmt: skip
    result, row = outcome_of(root, flow)
    assert result.state is RunState.COMPLETED
    assert (root / "demos/r/draft.md").read_text() == "write a draft, done\n"
    assert (root / "demos/r/deep/er/notes.md").exists()
    assert (row.outcome, row.state, row.result["ok"]) == ("succeeded", "over", True)
    assert row.taken == result.transitions[-1].txid
    assert row.evidence["exit"]["cpu_s"] > 0
    assert row.evidence["exit"]["peak_rss_bytes"] > 1 << 20
    assert set(result.transitions[-1].files) > {"demos/r/draft.md", "demos/r/deep/er/notes.md"}
    with Engine(root, [flow], resume=False) as engine:
        engine.undo(result.transitions[-1].txid).wait()
        assert not (root / "demos/r/draft.md").exists()
        assert engine.retry("r").wait().state is RunState.COMPLETED  # from what is sealed: nothing runs again
    assert (root / "demos/r/draft.md").exists()


def test_nothing_of_a_failed_agent_is_in_the_workspace_and_nothing_of_it_is_lost(root):
    flow = drafting(scripted("crash", "3"))
    result, row = outcome_of(root, flow)
    assert (result.state, result.failure.error) == (RunState.ERROR, "AgentFailed")
    assert "exit code 3" in result.failure.message
    assert not (root / "demos/r/half.txt").exists()
    assert (row.outcome, row.taken) == ("failed", "")
    with Engine(root, [flow], resume=False) as engine:
        assert "half done" in engine.agents.diff(row.id).wait()
        commit = engine.agents.commit(row.id, digest=row.digest[:12]).wait()
    assert (root / "demos/r/half.txt").read_text() == "half done\n"
    with Engine(root, [flow], resume=False) as engine:
        engine.undo(commit.txid).wait()
    assert not (root / "demos/r/half.txt").exists()


def test_an_outcome_that_is_declared_leads_on_with_its_evidence(root):
    result, _ = outcome_of(root, drafting(scripted("crash", "kill"), outcomes=NEXT))
    assert result.state is RunState.COMPLETED
    facts = json.loads((root / "demos/r/other.json").read_text())
    assert (facts["outcome"], facts["why"]) == ("failed", "it was killed by signal 9")


def test_an_agent_that_is_killed_is_settled_and_launched_again_by_policy(root):
    """Killed by somebody else in the first attempt; the second one is left alone."""
    flow = drafting(scripted("slow", "0.5"), retry={"attempts": 2, "on": ["failed"], "initial_s": 0})
    with Engine(root, [flow]) as engine:
        engine.start(flow, run_id="r").wait()
        engine.resume("r", through_waits=False).wait()
        first = until(lambda: [a for a in engine.agents.attempts().wait() if a.started_at])[0]
        os.kill(spawn_of(root, first.id)["command"]["pid"], signal.SIGKILL)
        until(lambda: engine.get("r").wait().state is RunState.COMPLETED)
        attempts = engine.agents.attempts(run_id="r").wait()
    assert [a.outcome for a in attempts] == ["succeeded", "failed"]
    assert (root / "demos/r/draft.md").exists()


def test_retrying_a_run_launches_its_agent_once_more(root):
    flow = drafting(["sh", "-c", f"test -e {root}/mended && echo done > draft.md"])
    result, _ = outcome_of(root, flow)
    assert result.state is RunState.ERROR
    (root / "mended").write_text("")
    with Engine(root, [flow], resume=False) as engine:
        assert engine.retry("r").wait().state is RunState.COMPLETED
        assert len(engine.agents.attempts(run_id="r").wait()) == 2


# --- completion ---


@pytest.mark.parametrize(
    ("argv", "options", "outcome", "why"),
    [
        (["sh", "-c", "exit 7"], {}, "failed", "exit code 7"),
        (["surely-no-such-command"], {}, "failed", "could not be started"),
        (scripted("hang"), {"limits": {"wall_s": 0.7, "grace_s": 0.2}}, "timed_out", "wall_s"),
        (scripted("hang"), {"limits": {"idle_s": 1.0, "grace_s": 0.2}}, "stalled", "idle_s"),
        (["sh", "-c", "while :; do :; done"], {"limits": {"cpu_s": 0.4, "grace_s": 0}}, "over_limit", "cpu_s"),
        (
            [sys.executable, "-c", "b = bytearray(200 << 20); import time; time.sleep(60)"],
            {"limits": {"memory_bytes": 64 << 20, "grace_s": 0}}, "over_limit", "memory",
        ),
        (["sh", "-c", "yes"], {"limits": {"output_bytes": 100_000, "grace_s": 0}}, "over_limit", "output"),
        (
            ["sh", "-c", "head -c 3000000 /dev/zero > big; sleep 60"],
            {"limits": {"disk_bytes": 1_000_000, "grace_s": 0}}, "over_limit", "disk",
        ),
        (scripted("hang", "all", "DONE"), {"done": {"line": r"all DONE"}, "limits": {"grace_s": 0}}, "succeeded", "line"),
        (scripted("hang"), {"done": {"idle_s": 1}, "limits": {"grace_s": 0}}, "succeeded", "idle"),
        (
            ["sh", "-c", "echo '{\"ok\": true}' > result.json; sleep 60"],
            {"result": "result.json", "done": {"result_s": 0.3}, "limits": {"grace_s": 0}}, "succeeded", "result",
        ),
        (["true"], {"result": "result.json"}, "failed", "left no result"),
        (["sh", "-c", "echo nonsense > result.json"], {"result": "result.json"}, "failed", "not JSON"),
        (["sh", "-c", "echo '{\"ok\": 17}' > result.json"], {"result": "result.json"}, "failed", "Result: ok"),
        (["sh", "-c", "ln -s /etc/passwd result.json"], {"result": "result.json"}, "failed", "left no result"),
        (["sh", "-c", "echo '{\"ok\": true}'"], {"result": "@stdout"}, "succeeded", "exit code 0"),
        (["true"], {"verify": [["true"], ["sh", "-c", "exit 4"]]}, "rejected", "exit code 4"),
        (["true"], {"verify": [["surely-no-such-command"]]}, "unverified", "No such file"),
        (["true"], {"verify": [["sleep", "60"]], "verify_s": 0.5, "limits": {"grace_s": 0}}, "unverified", "wall_s"),
        (["true"], {"prompt": "nothing-there.md"}, "failed", "could not be launched"),
        (["true"], {"secrets": {"KEY": "env:SURELY_NOT_SET"}}, "failed", "no variable SURELY_NOT_SET"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else "",
)  # fmt: skip
def test_each_end_has_its_outcome_and_its_reason(root, argv, options, outcome, why):
    result, row = outcome_of(root, drafting(argv, model=Result, outcomes=NEXT, **options))
    assert (row.outcome, result.state) == (outcome, RunState.COMPLETED)
    assert why in row.why
    assert all_tagged_of(root) == []


def all_tagged_of(root):
    uuid = json.loads((root / ".surefoot/workspace.json").read_text())["uuid"]
    return all_tagged(uuid)


def test_a_busy_agent_that_says_nothing_is_not_idle(root):
    busy = "import time; end = time.monotonic() + 2.5\nwhile time.monotonic() < end: pass"
    _, row = outcome_of(root, drafting([sys.executable, "-c", busy], limits={"idle_s": 1}))
    assert row.outcome == "succeeded"


def test_what_detaches_itself_and_goes_on_writing_is_ended_before_the_work_is_sealed(root):
    result, row = outcome_of(root, drafting(scripted("fork")))
    assert result.state is RunState.COMPLETED
    assert row.evidence["exit"]["leftovers"] >= 1
    assert all_tagged_of(root) == []
    text = (root / "demos/r/written.txt").read_text()
    assert text.endswith("\n")
    with Engine(root, resume=False) as engine:
        assert engine.agents.doctor().wait() == []


@pytest.mark.parametrize(
    ("confine", "why"), [("none", "could not be sealed"), ("auto", "has deleted everything in its copy")]
)
def test_an_agent_that_deletes_its_copy_fails_and_harms_nothing(root, confine, why):
    """Confined, it can empty the directory, and not remove it."""
    if confine == "auto":
        needs_landlock()
    result, row = outcome_of(root, drafting(scripted("vandal"), outcomes=NEXT, confine=confine))
    assert result.state is RunState.COMPLETED
    assert row.outcome == "failed"
    assert why in row.why
    assert (root / "demos/r/old.txt").read_text() == "old\n"


# --- supervisors that die ---


def start_supervisor(root, *mode, run_id="r"):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LD_")}
    return subprocess.Popen(
        [sys.executable, AGENTFLOW, root, run_id, *mode], stdout=subprocess.PIPE, env=environment
    )


def test_a_supervisor_that_is_killed_loses_no_agent_and_no_exit(root):
    """It goes on while nobody watches; its end is found by the next one."""
    supervisor = start_supervisor(root, "slow", "1.5")
    spawn = until(lambda: spawn_of(root, "r/2"))
    supervisor.kill()
    supervisor.wait()
    supervisor.stdout.close()
    assert processes.start_time(spawn["command"]["pid"]) == spawn["command"]["start_time"]
    until(lambda: (root / ".surefoot/copies/r%2F2/run/exit.json").exists())
    flow = drafting(scripted("surely", "not", "run", "again"))
    with Engine(root, [flow]) as engine:
        until(lambda: engine.get("r").wait().state is RunState.COMPLETED)
        (row,) = engine.agents.attempts().wait()
    assert row.outcome == "succeeded"
    assert row.evidence["exit"]["code"] == 0
    assert (root / "demos/r/draft.md").exists()


def test_a_running_agent_is_attached_to_by_the_next_supervisor(root):
    supervisor = start_supervisor(root, "slow", "2")
    spawn = until(lambda: spawn_of(root, "r/2"))
    supervisor.kill()
    supervisor.wait()
    supervisor.stdout.close()
    flow = drafting(scripted("surely", "not", "run", "again"))
    with Engine(root, [flow]) as engine:
        assert until(lambda: engine.agents.get("r/2").wait().owner == engine._the_open.workspace.worker)
        until(lambda: engine.get("r").wait().state is RunState.COMPLETED)
        row = engine.agents.get("r/2").wait()
    assert row.evidence["spawn"]["command"] == spawn["command"]
    assert (row.outcome, row.attempt) == ("succeeded", 1)


def test_a_frozen_supervisor_loses_its_agent_and_changes_nothing_when_it_goes_on(root):
    supervisor = start_supervisor(root, "slow", "2")
    until(lambda: spawn_of(root, "r/2"))
    os.kill(supervisor.pid, signal.SIGSTOP)
    try:
        flow = drafting(scripted("surely", "not", "run", "again"))
        with Engine(root, [flow], lease_s=1.0) as engine:
            until(lambda: engine.get("r").wait().state is RunState.COMPLETED)
            row = engine.agents.get("r/2").wait()
            os.kill(supervisor.pid, signal.SIGCONT)
            assert supervisor.wait(timeout=30) == 0
            assert engine.agents.get("r/2").wait() == row
            events = [event["event"] for event in engine.audit("r").wait()]
    finally:
        supervisor.kill()
        supervisor.stdout.close()
    assert (row.outcome, events.count("woken")) == ("succeeded", 1)


def test_who_does_not_watch_an_agent_any_more_cannot_change_it(root):
    with Engine(root, resume=False) as one, Engine(root, resume=False) as other:
        row = one.agents.launch(spec("slow", "1")).wait()
        until(lambda: one.agents.get(row.id).wait().started_at)
        theirs = other._the_open.workspace
        with pytest.raises(Conflict, match="watch agent"):
            Tending(theirs, row.id, lambda: 0.0, None).look()
        late = replace(one.agents.get(row.id).wait(), epoch=0)
        with pytest.raises(Conflict):
            theirs.write_rows([rows.change_agent(late, state="over")])
        assert one.agents.wait(row.id).wait().outcome == "succeeded"


TERMINAL = """
import os, pty, sys, time
pid, master = pty.fork()
if pid == 0:
    os.execv(sys.executable, [sys.executable, "-m", "surefoot", "try", "--keep", "--", *sys.argv[2:]])
while not os.path.exists(sys.argv[1]):
    time.sleep(0.02)
os.close(master)
os.waitpid(pid, 0)
"""


def test_the_terminal_may_go_away(root, tmp_path):
    """With everybody in it: the agent goes on."""
    enough = tmp_path / "enough"
    command = [sys.executable, "-c", TERMINAL, str(enough), *scripted("slow", "1.5")]
    with subprocess.Popen(command, cwd=root) as terminal:
        begun = lambda: [p.parents[1].name for p in root.glob(".surefoot/copies/try-*/run/spawn.json")]  # noqa: E731
        (agent_id,) = until(begun)
        enough.touch()
        assert terminal.wait(timeout=30) == 0
    with Engine(root) as engine:
        work = engine.agents.wait(agent_id).wait()
    assert (work.outcome, ("add", "draft.md") in work.changes) == ("succeeded", True)


def test_an_agent_whose_shim_is_killed_is_lost_and_everything_of_it_ends(root):
    with Engine(root, resume=False) as engine:
        row = engine.agents.launch(spec("hang")).wait()
        spawn = until(lambda: spawn_of(root, row.id))
        until(lambda: (root / ".surefoot/copies" / row.id / "work/begun.txt").exists())
        os.kill(spawn["shim"]["pid"], signal.SIGKILL)
        work = engine.agents.wait(row.id).wait()
    assert (work.outcome, work.evidence["killed"]) == ("lost", 1)
    assert processes.state_of(spawn["command"]["pid"]) in ("", "Z")
    assert work.changes == (("add", "begun.txt"),)  # what it had done is kept


def test_a_lost_agent_is_launched_again_unless_it_is_said_otherwise(root):
    flow = drafting(scripted("slow", "1"), retry={"attempts": 2, "initial_s": 0})
    with Engine(root, [flow]) as engine:
        engine.start(flow, run_id="r").wait()
        engine.resume("r", through_waits=False).wait()
        os.kill(until(lambda: spawn_of(root, "r/2"))["shim"]["pid"], signal.SIGKILL)
        until(lambda: engine.get("r").wait().state is RunState.COMPLETED)
        assert [a.outcome for a in engine.agents.attempts().wait()] == ["succeeded", "lost"]


def test_a_machine_that_was_started_again_has_lost_its_agents(root, monkeypatch):
    """Whatever has their pids now is somebody else."""
    with Engine(root, resume=False) as engine:
        row = engine.agents.launch(spec("slow", "60")).wait()
        spawn = until(lambda: spawn_of(root, row.id))
    kill_tagged(spawn["nonce"])
    until(lambda: processes.state_of(spawn["shim"]["pid"]) in ("", "Z"))
    folder = root / ".surefoot/copies" / row.id / "run"
    (folder / "exit.json").unlink(missing_ok=True)
    monkeypatch.setattr(processes, "boot_id", lambda: "another boot")
    with Engine(root) as engine:
        assert engine.agents.wait(row.id).wait().outcome == "lost"


def test_a_pid_that_belongs_to_somebody_else_by_now_is_not_killed():
    from surefoot.probing import _kill

    child = subprocess.Popen(["sleep", "60"])
    _kill(child.pid, processes.start_time(child.pid) - 1)
    assert child.poll() is None
    _kill(child.pid, processes.start_time(child.pid))
    assert child.wait() == -signal.SIGKILL


def test_polls_that_fail_end_the_attempt_after_the_fifth_and_nothing_is_left(root):
    """The disk does not give the records of the process."""
    failing = []

    def hook(name, arguments):
        if failing and name == "read" and arguments[1] in ("spawn.json", "exit.json"):
            failing.append(arguments[1])
            raise OSError(5, "Input/output error")

    with Engine(root, resume=False, fs=Hooked(hook)) as engine:
        row = engine.agents.launch(spec("slow", "60")).wait()
        until(lambda: engine.agents.get(row.id).wait().started_at)
        failing.append("")
        begun = time.monotonic()
        work = engine.agents.wait(row.id).wait()
        took_s = time.monotonic() - begun
    assert work.outcome == "failed"
    assert "could not be watched" in work.why
    assert work.evidence["probe_errors"] == ERRORS_MAX == len(failing) - 1
    assert took_s >= 0.05 * (1 + 2 + 3 + 4)
    assert all_tagged_of(root) == []


def test_polls_that_fail_and_then_do_not_are_forgiven(root):
    left = [4]

    def hook(name, arguments):
        if name == "read" and arguments[1] == "exit.json" and left[0]:
            left[0] -= 1
            raise OSError(5, "Input/output error")

    with Engine(root, resume=False, fs=Hooked(hook)) as engine:
        row = engine.agents.launch(spec("good")).wait()
        work = engine.agents.wait(row.id).wait()
        assert (work.outcome, left) == ("succeeded", [0])
        assert engine.agents.get(row.id).wait().errors == 0


def test_a_full_disk_while_sealing_keeps_the_work_until_there_is_room(root):
    full = [True]

    def hook(name, arguments):
        if full[0] and name == "copy":
            raise OSError(28, "No space left on device")

    with Engine(root, resume=False, fs=Hooked(hook)) as engine:
        row = engine.agents.launch(spec("good")).wait()
        work = engine.agents.wait(row.id).wait()
        assert (work.outcome, work.digest) == ("failed", "")
        assert "could not be sealed" in work.why
        assert engine.agents.clean(kept_s=0).wait() == []
        found = [one["problem"] for one in engine.agents.doctor().wait()]
        assert any("not sealed" in problem for problem in found)
        full[0] = False
        assert "nothing, done" in engine.agents.diff(row.id).wait()
        engine.agents.commit(row.id).wait()
    assert (root / "draft.md").read_text() == "nothing, done\n"


def test_a_disk_that_is_really_full_keeps_the_work_as_well(small_ext4):
    """There is room for what the agent writes, and none for keeping it a second time."""
    root = small_ext4 / "w"
    root.mkdir()
    with Engine(root, resume=False) as engine:
        free = os.statvfs(root).f_bavail * os.statvfs(root).f_frsize
        if free < 3 << 20:
            (root / ".surefoot/ballast").unlink(missing_ok=True)
            free = os.statvfs(root).f_bavail * os.statvfs(root).f_frsize
        size = free * 6 // 10
        row = engine.agents.launch(["sh", "-c", f"head -c {size} /dev/urandom > big.bin"], **QUICK).wait()
        work = engine.agents.wait(row.id).wait()
        assert "No space left" in work.why
        held = (root / ".surefoot/copies" / row.id / "work/big.bin").read_bytes()
        assert len(held) == size
        with pytest.raises(CopyRefused, match="No space left"):
            engine.agents.changes(row.id).wait()
        assert engine.agents.clean(kept_s=0).wait() == []
        assert (root / ".surefoot/copies" / row.id / "work/big.bin").read_bytes() == held


def test_a_record_of_another_launch_is_no_evidence(root):
    with Engine(root, resume=False) as engine:
        row = engine.agents.launch(spec("slow", "60")).wait()
        until(lambda: engine.agents.get(row.id).wait().started_at)
        forged = root / ".surefoot/copies" / row.id / "run/exit.json"
        forged.write_text(json.dumps({"nonce": "made up", "cause": "exited", "code": 0}))
        work = engine.agents.wait(row.id).wait()
    assert (work.outcome, "another launch" in work.why) == ("failed", True)


def supervised(root, log, library, kill_at):
    """A whole run in a process that is killed at its n-th state-changing call; 0: not at all."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"LD_PRELOAD": str(library), "KILL_AT": str(kill_at)}
    return subprocess.run(
        [sys.executable, AGENTFLOW, root, "r", "counted", log],
        env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.mark.long
def test_a_supervisor_that_is_killed_at_any_call_launches_once_and_takes_all_or_nothing(
    tmp_path, shim_library
):
    """Every 13th of its calls, from the first to the last; then another one goes on."""
    (first := tmp_path / "whole").mkdir()
    whole = supervised(first, tmp_path / "log", shim_library, 0)
    count = int(whole.stdout.split()[-1])
    assert count > 40
    for kill_at in range(1, count + 1, 13):
        root, log = tmp_path / f"at{kill_at}", tmp_path / f"log{kill_at}"
        root.mkdir()
        killed = supervised(root, log, shim_library, kill_at)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        with Engine(
            root,
            [
                flow := drafting(
                    ["sh", "-c", f"echo begun >> {log}; echo one > one.txt; echo two > two.txt"],
                    confine="none",
                )
            ],
        ) as engine:
            made = [(root / f"demos/r/{name}.txt").exists() for name in ("one", "two")]
            assert made[0] == made[1], kill_at
            engine.start(flow, run_id="r").wait()
            engine.resume("r").wait()
            assert engine.get("r").wait().state is RunState.COMPLETED, kill_at
            assert engine.agents.doctor().wait() == [], kill_at
        assert (root / "demos/r/two.txt").read_text() == "two\n"
        assert log.read_text() == "begun\n", kill_at


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", "{", '{"nonce": null}', "\x00\x00"])
@pytest.mark.parametrize("note", ["exit.json", "spawn.json"])
def test_records_that_are_damaged_fail_the_attempt_and_nobody_else(root, note, text):
    with Engine(root, resume=False) as engine:
        row = engine.agents.launch(spec("hang")).wait()
        until(lambda: engine.agents.get(row.id).wait().started_at)
        (root / ".surefoot/copies" / row.id / "run" / note).write_text(text)
        work = engine.agents.wait(row.id).wait()
        assert (work.outcome, work.evidence["probe_errors"]) == ("failed", ERRORS_MAX)
        again = engine.agents.launch(spec("good")).wait()
        assert engine.agents.wait(again.id).wait().outcome == "succeeded"
    assert all_tagged_of(root) == []


def test_a_count_that_is_damaged_is_written_again_by_the_next_beat(root):
    with Engine(root, resume=False) as engine:
        row = engine.agents.launch(spec("slow", "1")).wait()
        until(lambda: (root / ".surefoot/copies" / row.id / "run/beat.json").exists())
        (root / ".surefoot/copies" / row.id / "run/beat.json").write_text('{"monotonic_s": null}')
        assert engine.agents.wait(row.id).wait().outcome == "succeeded"


# --- stopping, limits of how many ---


def test_stopping_an_agent_ends_all_that_it_has_started_and_keeps_what_it_did(root):
    with Engine(root, resume=False) as engine:
        row = engine.agents.launch(spec("hang", limits={"grace_s": 0.2})).wait()
        until(lambda: engine.agents.get(row.id).wait().started_at)
        engine.agents.stop(row.id, "enough").wait()
        work = engine.agents.wait(row.id).wait()
        assert (work.outcome, work.why) == ("cancelled", "enough")
        assert work.changes == (("add", "begun.txt"),)
        with pytest.raises(RunRefused):
            engine.agents.stop(row.id).wait()
    assert all_tagged_of(root) == []


def test_cancelling_a_run_ends_its_agent(root):
    flow = drafting(scripted("slow", "60"), limits={"grace_s": 0.2})
    with Engine(root, [flow]) as engine:
        engine.start(flow, run_id="r").wait()
        engine.resume("r", through_waits=False).wait()
        until(lambda: spawn_of(root, "r/2"))
        engine.cancel("r").wait()
        until(lambda: engine.agents.get("r/2").wait().state == "over")
        assert engine.agents.get("r/2").wait().outcome == "cancelled"
    assert all_tagged_of(root) == []


def test_stopping_all_survives_restarts_until_somebody_starts_again(root):
    with Engine(root) as engine:
        rows_ = [engine.agents.launch(spec("hang", limits={"grace_s": 0.1})).wait() for _ in range(2)]
        until(lambda: all(engine.agents.get(row.id).wait().started_at for row in rows_))
        assert engine.agents.stop_all("an incident").wait() == 2
        for row in rows_:
            assert engine.agents.wait(row.id).wait().outcome == "cancelled"
        waiting = engine.agents.launch(spec("good")).wait()
    with Engine(root) as engine:
        until(lambda: engine._the_supervisor._swept > 0)
        assert engine.agents.get(waiting.id).wait().state == "wanted"
        assert "an incident" in str(engine.agents.doctor().wait())
        engine.agents.start_again().wait()
        assert engine.agents.wait(waiting.id).wait().outcome == "succeeded"


def test_no_more_of_a_kind_run_at_once_than_are_allowed(root):
    """Counted by what they say themselves: when they began and ended."""
    with Engine(root, agents={"slow": 2}) as engine:
        launched = [engine.agents.launch(spec("slow", "0.4", kind="slow")).wait() for _ in range(5)]
        launched.append(engine.agents.launch(spec("slow", "0.4", kind="other")).wait())
        works = [engine.agents.wait(row.id).wait() for row in launched]
    assert [work.outcome for work in works] == ["succeeded"] * 6
    spans = [(w.evidence["exit"]["started_at"], w.evidence["exit"]["ended_at"]) for w in works[:5]]
    most = max(sum(begin <= at < end for begin, end in spans) for at, _ in spans)
    assert most == 2
    assert AT_ONCE == 4


def test_two_supervisors_launch_each_agent_once(root):
    log = root / "launched.txt"
    argv = ["sh", "-c", f"echo x >> {log}; echo y > made.txt"]
    with Engine(root) as one, Engine(root) as other:
        launched = [
            engine.agents.launch(
                Agent(argv=tuple(argv), confine="none", skip=("launched.txt",), **QUICK)
            ).wait()
            for engine in (one, other, one, other)
        ]
        works = [other.agents.wait(row.id).wait() for row in launched]
    assert [work.outcome for work in works] == ["succeeded"] * 4
    assert log.read_text() == "x\n" * 4


# --- logs, secrets, environment, confinement ---


def test_what_it_says_is_kept_to_a_limit_with_true_offsets(root):
    limits = {"log_bytes": 64 << 10}
    argv = [sys.executable, "-c", "for n in range(40000): print(f'line {n:07d}')"]
    with Engine(root, resume=False) as engine:
        row = engine.agents.launch(argv, limits=limits, **QUICK).wait()
        work = engine.agents.wait(row.id).wait()
        said_ = engine.agents.logs(row.id).wait()
        assert said_.offset > 0  # the beginning was let go
        assert said_.next_offset == work.evidence["exit"]["output_bytes"] == 40000 * 13
        assert said_.text.endswith("line 0039999\n")
        middle = engine.agents.logs(row.id, said_.next_offset - 26).wait()
        assert middle.text == "line 0039998\nline 0039999\n"
        kept = sum(p.stat().st_size for p in (root / ".surefoot/copies" / row.id / "run").glob("log.*"))
        assert kept <= limits["log_bytes"]


def test_secrets_are_in_no_log_no_row_and_no_file(root, monkeypatch):
    monkeypatch.setenv("THE_SECRET", "sesame-open-4711")
    monkeypatch.setenv("NOT_PASSED", "private-thing-0815")
    code = (
        "import os, sys, time\n"
        "s = os.environ['KEY']\n"
        "for piece in (s[:5], s[5:9], s[9:]):\n"
        "    sys.stdout.write(piece); sys.stdout.flush(); time.sleep(0.05)\n"
        "print(); print('NOT_PASSED' in os.environ, 'THE_SECRET' in os.environ, len(s))\n"
    )
    with Engine(root, resume=False) as engine:
        row = engine.agents.launch(
            [sys.executable, "-c", code], secrets={"KEY": "env:THE_SECRET"}, **QUICK
        ).wait()
        assert engine.agents.wait(row.id).wait().outcome == "succeeded"
        text = engine.agents.logs(row.id).wait().text
    assert text == "[secret]\nFalse False 16\n"
    for path in root.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert b"sesame-open-4711" not in data, path
            assert b"private-thing-0815" not in data, path


def test_secrets_themselves_are_refused_where_their_source_belongs(root):
    with Engine(root, resume=False) as engine, pytest.raises(InputError, match="not the secret itself"):
        engine.agents.launch(["true"], secrets={"KEY": "sesame"}).wait()


def needs_landlock():
    from machines import not_run

    from surefoot.shim import landlock

    if landlock.abi() == 0:
        not_run("this kernel has no Landlock")


@pytest.mark.parametrize("level", ["auto", "project", "strict"])
def test_a_confined_agent_cannot_write_to_the_workspace_and_says_what_confines_it(root, tmp_path, level):
    needs_landlock()
    (root / "live.txt").write_text("live\n")
    outside = tmp_path / "beside"
    outside.mkdir()
    script = (
        f"echo in > inside.txt; mktemp > /dev/null && echo tmp; echo x >> {root}/live.txt; echo x > {root}/new.txt;"
        f" rm -f {root}/live.txt; echo x > {outside}/allowed.txt && echo beside; true"
    )
    with Engine(root, resume=False) as engine:
        row = engine.agents.launch(["sh", "-c", script], confine=level, **QUICK).wait()
        work = engine.agents.wait(row.id).wait()
        text = engine.agents.logs(row.id).wait().text
    assert (root / "live.txt").read_text() == "live\n"
    assert not (root / "new.txt").exists()
    assert work.changes == (("add", "inside.txt"),)
    assert "tmp\n" in text
    assert (outside / "allowed.txt").exists() == (level != "strict")
    wanted = "strict" if level == "strict" else "project"
    assert work.evidence["spawn"]["confined"].startswith(f"{wanted} (landlock")


def test_confinement_that_is_demanded_and_cannot_be_had_launches_nothing(root, monkeypatch):
    """Where it is only wished for, the agent runs, and what was reached is recorded."""
    import shutil

    from surefoot import launching

    broken = root.parent / "engine"
    shutil.copytree(Path(launching.__file__).parent / "shim", broken / "shim")
    text = (broken / "shim/landlock.py").read_text()
    (broken / "shim/landlock.py").write_text(
        text.replace("return max(0, int(_libc().syscall(_CREATE, None, 0, _VERSION)))", "return 0")
    )
    monkeypatch.setattr(launching, "__file__", str(broken / "launching.py"))
    with Engine(root, resume=False) as engine:
        wished = engine.agents.launch(spec("good")).wait()
        demanded = engine.agents.launch(spec("good", confine="strict")).wait()
        assert engine.agents.wait(wished.id).wait().outcome == "succeeded"
        work = engine.agents.wait(demanded.id).wait()
        assert engine.agents.get(wished.id).wait().evidence["spawn"]["confined"].startswith("none (")
    assert (work.outcome, work.changes) == ("failed", ())
    assert "no Landlock" in work.why


# --- approvals of exact changes; what it has read ---


def approved_flow(argv, **options):
    flow = Workflow("reviewed", directory="demos/{run_id}")

    @flow.step
    def draft(tx: Transaction, _given):
        tx.write_text("prompt.md", "write a draft\n")
        return tx.agent(argv, **{**QUICK, **options})

    @flow.step
    def review(tx: Transaction, _given):
        return tx.ask("Commit this?", work=tx.work(), approvers=["ann"])

    @flow.step
    def keep(tx: Transaction, _given):
        tx.approved()
        tx.take(tx.work())

    return flow


def test_changes_are_approved_by_their_digest_and_land_with_the_approval(root):
    flow = approved_flow(scripted("good"))
    with Engine(root, [flow]) as engine:
        engine.start(flow, run_id="r", queue="q").wait()
        (request,) = until(lambda: engine.approvals.requests().wait())
        (row,) = engine.agents.attempts().wait()
        assert request.ask.changes == row.digest
        (root / ".surefoot/copies/r%2F2/work/draft.md").write_text("written after it was sealed\n")
        engine.approvals.approve(request.id, by="ann").wait()
        assert engine.resume("r").wait().state is RunState.COMPLETED
    assert (root / "demos/r/draft.md").read_text() == "write a draft, done\n"


def test_an_approval_of_other_changes_is_no_approval(root):
    flow = approved_flow(scripted("good"))
    with Engine(root, [flow]) as engine:
        engine.start(flow, run_id="r", queue="q").wait()
        (request,) = until(lambda: engine.approvals.requests().wait())
        (row,) = engine.agents.attempts().wait()
        later = rows.change_agent(row, digest="0" * 64)
        engine._the_open.workspace.write_rows([later])
        engine.approvals.approve(request.id, by="ann").wait()
        result = engine.resume("r").wait()
    assert (result.state, result.failure.error) == (RunState.ERROR, "ApprovalRefused")
    assert not (root / "demos/r/draft.md").exists()


def test_what_it_was_declared_to_read_has_changed_is_a_conflict(root):
    (root / "style.md").write_text("plain\n")
    flow = drafting(["sh", "-c", f"cp {root}/style.md used.md; echo '' >> {root}/style.md"],
                    reads=["style.md"], confine="none")  # fmt: skip
    result, _ = outcome_of(root, flow)
    assert (result.state, result.failure.error) == (RunState.ERROR, "Conflict")
    assert "style.md" in result.failure.message
    assert not (root / "demos/r/used.md").exists()


# --- bad input ---


@pytest.mark.parametrize(
    ("given", "options", "words"),
    [
        ("ls -l", {}, "a list of arguments"), ([], {}, "argv or driver"), (["a\0b"], {}, "argv"),
        (["a"], {"nonsense": 1}, "nonsense"), (["a"], {"driver": "nobody"}, "driver"),
        (["a"], {"limits": {"wall_s": -1}}, "wall_s"), (["a"], {"limits": {"wall_s": float("nan")}}, "wall_s"),
        (["a"], {"result": "/etc/passwd"}, "below the directory"), (["a"], {"prompt": "../x"}, "below"),
        (["a"], {"done": {"line": "("}}, "regular expression"), (["a"], {"done": {"result_s": 1}}, "needs result"),
        (["a"], {"verify": [[]]}, "verify"), (["a"], {"retry": {"on": ["succeeded"]}}, "not tried again"),
        (["a"], {"retry": {"attempts": 0}}, "attempts"), (["a"], {"env": {"A=B": "c"}}, "environment"),
        (["a"], {"confine": "total"}, "confine"), (["a"], {"kind": "a b"}, "kind"), (["a"], {"poll_s": 0}, "poll_s"),
        (17, {}, "a list of arguments"), (["a"], {"directory": "no/such"}, "a directory"),
        (["a"], {"directory": "../.."}, "inside"), (["a"], {"directory": ".surefoot"}, "Surefoot's own"),
    ],
)  # fmt: skip
def test_what_cannot_be_launched_is_refused_at_once(root, given, options, words):
    with Engine(root, resume=False) as engine:
        with pytest.raises(InputError, match=words.replace("(", r"\(")):
            engine.agents.launch(given, **options).wait()
        assert engine.agents.attempts().wait() == []
    assert not (root / ".surefoot/copies").exists()


def test_calls_that_name_nothing_are_refused(root):
    with Engine(root, resume=False) as engine:
        for call in (
            engine.agents.get,
            engine.agents.diff,
            engine.agents.stop,
            engine.agents.commit,
            engine.agents.discard,
        ):
            with pytest.raises(InputError, match="surefoot agent list"):
                call("nobody").wait()
        with pytest.raises(InputError):
            engine.agents.attempts(states=["asleep"])
        with pytest.raises(InputError):
            engine.agents.logs("x", -1)
    for wrong in (0, -1, True, "many", {"claude": 0}):
        with pytest.raises(InputError):
            Engine(root, agents=wrong)


async def test_agents_from_async_code_on_both_event_loops(root):
    flow = drafting(scripted("good"), model=Result, result="result.json")
    async with Engine(root, [flow]) as engine:
        await engine.start(flow, run_id="r", queue="q")
        with anyio.fail_after(30):
            while (await engine.get("r")).state is not RunState.COMPLETED:
                await anyio.sleep(0.02)
        row = await engine.agents.launch(["true"], **QUICK)
        assert (await engine.agents.wait(row.id)).outcome == "succeeded"
    assert (root / "demos/r/draft.md").exists()


def test_a_directory_that_is_gone_when_the_agent_is_to_begin_fails_it(root):
    (root / "src").mkdir()
    with Engine(root, resume=False) as engine:
        engine.agents.stop_all("not yet").wait()
        row = engine.agents.launch(["true"], directory="src", **QUICK).wait()
        (root / "src").rmdir()
        engine.agents.start_again().wait()
        work = engine.agents.wait(row.id).wait()
    assert work.outcome == "failed"
    assert "could not be launched: copy src" in work.why


def test_a_fan_out_launches_an_agent_for_each_item_and_the_join_takes_them_all(root):
    flow = Workflow("many", directory="demos/{run_id}")

    @flow.step
    def plan(tx, _given):
        tx.write_json("plan.json", ["a", "b", "c"])

    @flow.step(each="plan.json", at_once=3)
    def work(tx, _given, item):
        return tx.agent(["sh", "-c", f"echo {item} > {item}.txt"], **QUICK)

    @flow.step
    def keep(tx, _given):
        for done in tx.works():
            tx.take(done)

    with Engine(root, [flow], resume=False) as engine:
        assert engine.run(flow, run_id="r").wait().state is RunState.COMPLETED
        assert {a.taken for a in engine.agents.attempts().wait()} == {engine.history.of("r")[-1].txid}
    assert [(root / f"demos/r/{name}.txt").read_text() for name in "abc"] == ["a\n", "b\n", "c\n"]


def test_a_preview_shows_what_an_agent_has_done_and_commits_that(root):
    flow = drafting(scripted("good"))
    with Engine(root, [flow], resume=False) as engine:
        done = engine.run(flow, run_id="r").wait().transitions[-1]
        engine.undo(done.txid).wait()
        assert not (root / "demos/r/draft.md").exists()
        shown = engine.preview("r").wait()
        assert "write a draft, done" in shown.diff
        done = engine.commit(shown.digest).wait()
        assert engine.agents.attempts().wait()[0].taken == done.txid
    assert (root / "demos/r/draft.md").exists()


# --- the pure half ---


def test_what_evidence_means():
    exit_ = {"cause": "exited", "code": 0, "signal": None, "error": ""}
    assert judge(exit_, "")[0] == "succeeded"
    assert judge({**exit_, "code": None, "signal": 15}, "enough") == ("cancelled", "enough")
    assert judge({**exit_, "code": None, "signal": 9}, "")[0] == "failed"
    assert verified([])[0] == "succeeded"
    assert result_of(Agent(argv=("a",)), None, Result) == (None, "")


def test_logs_are_read_across_pieces(root):
    class Pieces:
        def entries(self, _name, _folder):
            return ["log.00000000000000000010", "log.00000000000000000004", "spawn.json"]

        def content(self, _name, _folder, piece, *, most):
            return b"456789" if piece.endswith("04") else b"abc"

    assert said(Pieces(), "x", 0) == ("456789abc", 4, 13)
    assert said(Pieces(), "x", 9) == ("9abc", 9, 13)
    assert said(Pieces(), "x", 13) == ("", 13, 13)
    assert tagged("no such mark") == []
