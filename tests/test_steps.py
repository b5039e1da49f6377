"""Ready-made steps: commands in a scratch directory."""

from __future__ import annotations

import os
import time

import pytest

from surefoot import Engine, Workflow
from surefoot_steps import run_command


def run(root, body, **options):
    flow = Workflow("flow")
    flow.step(name="step", **options)(lambda tx, given: body(tx))
    with Engine(root, [flow]) as engine:
        return engine.run(flow, run_id="r").wait()


def shell(tx, script, **options):
    return run_command(tx, ["sh", "-c", script], **{"result": "out", **options})


def test_only_the_named_result_enters_the_transaction(root):
    def body(tx):
        answer = shell(
            tx, 'cat in > out; echo scratch > other; echo "$WHO" said', give={"in": "x"}, env={"WHO": "me"}
        )
        assert answer.log == "me said\n"
        tx.write_bytes("out", answer.result)

    assert run(root, body).ok
    assert sorted(os.listdir(root / "runs/r")) == ["demo.status.json", "out"]


FAILS = {
    "exit 3": "exit code 3",
    "kill -9 $$": "killed by signal 9",
    "true": "no file 'out' left behind",
    "ln -s /etc/passwd out": "no file 'out' left behind",
    "echo oh no >&2; exit 1": "its last words: oh no",
    "head -c 100 /dev/zero > out": "more than result_bytes_max=10",
    "sleep 60": "still running after 0.2 s",
}


@pytest.mark.parametrize("script", FAILS)
def test_what_goes_wrong_is_said_and_changes_nothing(root, script):
    result = run(
        root, lambda tx: shell(tx, script, timeout_s=0.2 if "sleep" in script else 20, result_bytes_max=10)
    )
    assert result.failure.error == "CommandFailed"
    assert FAILS[script] in result.failure.message
    assert os.listdir(root / "runs/r") == ["demo.status.json"]


def test_a_missing_command_and_a_wrong_name_are_named(root):
    assert "is it installed" in run(root, lambda tx: run_command(tx, ["no-such"], result="o")).failure.hint
    (root.parent / "b").mkdir()
    assert run(root.parent / "b", lambda tx: shell(tx, "true", result="../x")).failure.error == "InputError"


def test_a_timeout_of_the_step_kills_the_whole_process_group(root):
    pidfile = root / "pids"

    def body(tx):
        shell(tx, f"sleep 60 & echo $! >> {pidfile}; echo $$ >> {pidfile}; wait")

    result = run(root, body, timeout_s=1.0)
    assert result.failure.error == "StepTimedOut"
    pids = [int(line) for line in pidfile.read_text().split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        os.sched_yield()
    assert not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
