"""Agents and tried commands by the command line, in pipelines, in a step's body, and by presets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from agentflow import QUICK, scripted

from surefoot import CommandFailed, DeclarationError, Engine, InputError, RunState, Workflow
from surefoot.agentspec import Agent
from surefoot.drivers import drivers, with_driver
from surefoot.loader import load_workflow
from surefoot_steps import RunAgent, RunCommand, TakeWork

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def cli(root):
    def call(*arguments, stdin=subprocess.DEVNULL, **options):
        return subprocess.run(
            [sys.executable, "-m", "surefoot", *map(str, arguments)],
            cwd=root, stdin=stdin, capture_output=True, text=True, timeout=60, **options,
        )  # fmt: skip

    return call


# --- surefoot try ---


def test_a_tried_command_changes_nothing_before_it_is_committed(root, cli):
    (root / "a.txt").write_text("a\n")
    tried = cli("try", "--", "sh", "-c", "echo said; echo b >> a.txt; echo n > new.txt")
    assert tried.returncode == 3, tried.stderr
    assert tried.stdout.startswith("said\n")
    assert "+b" in tried.stdout
    assert "surefoot workspace commit try-" in tried.stdout
    assert (root / "a.txt").read_text() == "a\n"
    agent_id = json.loads(cli("workspace", "list", "--json").stdout)[0]["id"]
    assert cli("workspace", "verify", agent_id, "--", "grep", "-q", "b", "a.txt").returncode == 0
    assert cli("workspace", "verify", agent_id, "--", "false").returncode == 1
    shown = json.loads(cli("workspace", "diff", agent_id, "--json").stdout)
    assert [change["path"] for change in shown["changes"]] == ["a.txt", "new.txt"]
    assert cli("workspace", "commit", agent_id, "--digest", "0" * 20).returncode == 4
    done = cli("workspace", "commit", agent_id, "--digest", shown["digest"][:16])
    assert done.returncode == 0
    assert (root / "a.txt").read_text() == "a\nb\n"
    txid = done.stdout.split("surefoot undo ")[1].split()[0]
    assert cli("undo", txid).returncode == 0
    assert (root / "a.txt").read_text() == "a\n"
    assert not (root / "new.txt").exists()


def test_yes_commits_what_succeeds_and_keeps_what_fails(root, cli):
    good = cli("try", "-y", "--", "sh", "-c", "echo good > good.txt")
    assert (good.returncode, (root / "good.txt").read_text()) == (0, "good\n")
    bad = cli("try", "-y", "--", "sh", "-c", "echo bad > bad.txt; exit 9")
    assert (bad.returncode, (root / "bad.txt").exists()) == (1, False)
    assert "exit code 9" in bad.stderr
    checked = cli("try", "-y", "--verify", "test -e other.txt", "--", "sh", "-c", "echo x > x.txt")
    assert (checked.returncode, (root / "x.txt").exists()) == (1, False)
    assert "rejected" in checked.stderr


def test_a_command_that_changes_nothing_leaves_nothing(root, cli):
    assert cli("try", "--", "true").stdout == "nothing was changed\n"
    assert json.loads(cli("workspace", "list", "--json").stdout) == []


def test_only_a_directory_is_copied_where_that_is_said(root, cli):
    (root / "src/deep").mkdir(parents=True)
    (root / "src/a.txt").write_text("a\n")
    (root / "other").mkdir()
    assert cli("try", "-y", "--of", "src", "--", "sh", "-c", "ls > list.txt").returncode == 0
    assert (root / "src/list.txt").read_text() == "a.txt\ndeep\nlist.txt\n"


def test_json_is_one_document(root, cli):
    facts = json.loads(cli("try", "--json", "--", "sh", "-c", "echo noise; echo x > x.txt").stdout)
    assert (facts["outcome"], facts["decision"], facts["changes"]) == (
        "succeeded",
        "kept",
        [["add", "x.txt"]],
    )


@pytest.mark.parametrize(("answer", "there"), [("commit", True), ("discard", False), ("keep", False)])
def test_somebody_at_a_terminal_is_asked(root, answer, there):
    """Through a terminal of its own, as a person has it."""
    import pty

    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "surefoot", "try", "--", "sh", "-c", "echo x > x.txt"],
        cwd=root, stdin=slave, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(slave)
    os.write(master, f"{answer}\n".encode())
    out, err = process.communicate(timeout=60)
    os.close(master)
    assert (root / "x.txt").exists() is there, out + err
    left = list((root / ".surefoot/copies").iterdir())
    assert bool(left) is (answer != "discard")


@pytest.mark.parametrize("late_s", [0.0, 0.15, 0.3])
def test_interrupting_a_try_stops_the_command_and_keeps_what_it_did(root, late_s):
    with subprocess.Popen(
        [sys.executable, "-m", "surefoot", "try", "--keep", "--", *scripted("slow", "60")],
        cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout.readline() == "step 0\n"
            time.sleep(late_s)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert "interrupted from the keyboard" in err, out
    assert "progress.txt" in out
    assert not (root / "progress.txt").exists()


# --- surefoot agent ---


def test_agents_are_shown_followed_stopped_and_launched_again(root, cli):
    with Engine(root, resume=False) as engine:
        row = engine.agents.launch(scripted("slow", "60"), **QUICK).wait()
        while not engine.agents.get(row.id).wait().started_at:
            time.sleep(0.02)
        (listed,) = json.loads(cli("agent", "list", "--json").stdout)
        assert (listed["id"], listed["state"]) == (row.id, "running")
        assert "running" in cli("agent", "list").stdout
        assert "confined: " in cli("agent", "show", row.id[:8]).stdout
        follower = subprocess.Popen(
            [sys.executable, "-m", "surefoot", "agent", "logs", "-f", row.id],
            cwd=root,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert follower.stdout.readline() == "step 0\n"
        assert cli("agent", "stop", row.id, "--why", "seen enough").returncode == 0
        assert engine.agents.wait(row.id).wait().why == "seen enough"
        follower.communicate(timeout=30)
        assert follower.returncode == 0
    assert "seen enough" in cli("agent", "list", "--all").stdout
    evidence = json.loads(cli("agent", "evidence", row.id).stdout)
    assert evidence["evidence"]["exit"]["cause"] == "stopped"
    text = cli("agent", "logs", row.id, "--from", "7").stdout
    assert text.startswith("step 1\n")
    assert cli("agent", "stop", row.id).returncode == 2
    assert cli("agent", "doctor").returncode == 1  # its work is undecided
    refused = cli("workspace", "discard", row.id)
    assert (refused.returncode, "--yes" in refused.stderr) == (4, True)
    assert cli("workspace", "discard", "--yes", row.id).returncode == 0
    assert cli("agent", "doctor").stdout == "nothing is wrong with agents\n"


def test_all_are_stopped_until_somebody_starts_again(root, cli):
    assert "0 agent(s)" in cli("agent", "stop", "--all", "--why", "an incident").stdout
    held = subprocess.Popen(
        [sys.executable, "-m", "surefoot", "try", "--json", "--", "true"],
        cwd=root,
        stdout=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 30
    while not json.loads(cli("agent", "list", "--json").stdout):
        assert time.monotonic() < end
    assert json.loads(cli("agent", "list", "--json").stdout)[0]["state"] == "wanted"
    assert cli("agent", "start-again").returncode == 0
    assert json.loads(held.communicate(timeout=30)[0])["decision"] == "unchanged"
    assert cli("agent", "stop").returncode == 2
    assert cli("agent", "show", "nobody").returncode == 2


FLOW = """
import sys
from surefoot import Workflow
flow = Workflow("flow")
@flow.step
def draft(tx, _):
    return tx.agent(["sh", "-c", "test -e {root}/mended && echo done > draft.md"], poll_s=0.05, retry={{"attempts": 1}})
@flow.step
def keep(tx, _):
    tx.take(tx.work())
"""


def test_a_run_with_an_agent_by_the_command_line(root, cli, tmp_path):
    (tmp_path / "flow.py").write_text(FLOW.format(root=root))
    failed = cli("run", f"{tmp_path}/flow.py:flow", "--id", "r")
    assert failed.returncode == 1
    assert "exit code 1" in failed.stdout
    (root / "mended").write_text("")
    assert cli("agent", "retry", "r/2").returncode == 0
    assert (root / "runs/r/draft.md").read_text() == "done\n"
    assert json.loads(cli("agent", "list", "--all", "--json").stdout)[0]["outcome"] == "succeeded"


def test_supervise_watches_what_others_have_left_and_says_why_runs_wait(root, cli, tmp_path):
    (tmp_path / "flow.py").write_text(FLOW.format(root=root))
    (root / "mended").write_text("")
    started = cli("run", f"{tmp_path}/flow.py:flow", "--id", "r", "--no-wait")
    assert started.returncode in (0, 3)
    why = json.loads(cli("why", "r", "--json").stdout)
    assert "agent" in why["sentence"], why
    supervisor = subprocess.Popen(
        [sys.executable, "-m", "surefoot", "supervise", f"{tmp_path}/flow.py:flow", "--agents", "2"],
        cwd=root, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        end = time.monotonic() + 30
        while not (root / "runs/r/draft.md").exists():
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        supervisor.send_signal(signal.SIGTERM)
        supervisor.communicate(timeout=30)
    assert supervisor.returncode == 0
    assert cli("supervise", "--agents", "many").returncode == 2


# --- presets ---


@pytest.mark.parametrize("name", drivers())
def test_each_preset_is_run_by_a_stand_in_of_the_same_command_line(root, tmp_path, monkeypatch, name):
    """It gets the arguments of the preset and its prompt, and answers as the real one does."""
    stand_in = tmp_path / "bin" / drivers()[name]["argv"][0]
    stand_in.parent.mkdir()
    stand_in.write_text(
        f"#!{sys.executable}\n"
        "import json, sys\n"
        "given = open(sys.argv[sys.argv.index('--message-file') + 1]).read() if '--message-file' in sys.argv else sys.stdin.read()\n"
        "open('answer.txt', 'w').write(given)\n"
        "open('arguments.json', 'w').write(json.dumps(sys.argv[1:]))\n"
        "print('working', file=sys.stderr)\n"
        "print(json.dumps({'result': 'done', 'is_error': False}))\n"
    )
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stand_in.parent}:{os.environ['PATH']}")
    (root / "prompt.md").write_text("write a poem\n")
    with Engine(root, resume=False) as engine:
        row = engine.agents.launch(driver=name, **QUICK).wait()
        work = engine.agents.wait(row.id).wait()
        assert (work.outcome, row.kind) == ("succeeded", name), work.why
        assert "working" in engine.agents.logs(row.id).wait().text
        engine.agents.commit(row.id).wait()
    assert (root / "answer.txt").read_text() == "write a poem\n"
    arguments = json.loads((root / "arguments.json").read_text())
    assert [a for a in arguments if not a.startswith("/")] == [
        a for a in drivers()[name]["argv"][1:] if "{" not in a
    ]
    if drivers()[name].get("result") == "@stdout":
        assert work.result == {"result": "done", "is_error": False}


def test_what_is_given_wins_over_a_preset():
    spec = with_driver(Agent(driver="claude", argv=("claude", "--verbose"), limits={"wall_s": 5}))
    assert (spec.argv, spec.limits.wall_s, spec.result) == (("claude", "--verbose"), 5, "@stdout")
    with pytest.raises(InputError, match="a driver: claude"):
        with_driver(Agent(driver="nobody"))


def test_presets_are_shown_to_be_copied(cli):
    import tomllib

    assert tomllib.loads(cli("agent", "drivers").stdout) == drivers()


# --- in a step's body, and in pipelines ---


def one(body, **options):
    flow = Workflow("flow", directory="demos/{run_id}")
    flow.step(**options)(body)
    return flow


def ran(root, flow):
    with Engine(root, [flow], resume=False) as engine:
        return engine.run(flow, run_id="r").wait()


def test_what_a_command_in_a_step_changes_is_the_steps(root):
    def make(tx, _given):
        tx.write_text("in/given.txt", "given\n")
        done = tx.run(["sh", "-c", "cp in/given.txt out.txt; rm in/given.txt; echo said"], poll_s=0.05)
        assert done.log == "said\n"
        assert not tx.exists("in/given.txt")
        tx.write_text("after.txt", tx.read_text("out.txt"))

    assert ran(root, one(make)).state is RunState.COMPLETED
    assert (root / "demos/r/out.txt").read_text() == "given\n"
    assert (root / "demos/r/after.txt").read_text() == "given\n"
    assert not (root / "demos/r/in/given.txt").exists()
    assert list((root / ".surefoot/copies").iterdir()) == []


def test_what_a_step_has_written_keeps_its_mode_through_a_command(root):
    script = root / "demos/r/script.sh"
    script.parent.mkdir(parents=True)
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)

    def make(tx, _given):
        tx.write_text("script.sh", "#!/bin/sh\necho ran > ran.txt\n")
        tx.write_text("private/key.txt", "key\n", mode=0o600)
        tx.write_text("data.json", "{}\n")
        tx.run(["sh", "-c", "./script.sh && chmod 640 data.json"], poll_s=0.05)

    with Engine(root, [flow := one(make)], resume=False) as engine:
        assert engine.run(flow, run_id="r", adopt=True).wait().state is RunState.COMPLETED
    modes = {p.name: p.stat().st_mode & 0o777 for p in (root / "demos/r").rglob("*") if p.is_file()}
    assert (modes["script.sh"], modes["key.txt"], modes["data.json"]) == (0o755, 0o600, 0o640)
    assert (root / "demos/r/private").stat().st_mode & 0o777 == 0o755
    assert (root / "demos/r/ran.txt").exists()


def test_a_command_that_fails_in_a_step_changes_nothing_and_says_its_last_words(root):
    def make(tx, _given):
        tx.write_text("mine.txt", "mine\n")
        tx.run(["sh", "-c", "echo half > half.txt; echo last words; exit 5"])

    result = ran(root, one(make))
    assert (result.state, result.failure.error) == (RunState.ERROR, CommandFailed.__name__)
    assert "exit code 5" in result.failure.message
    assert "last words" in result.failure.message
    assert not (root / "demos/r/half.txt").exists()
    assert not (root / "demos/r/mine.txt").exists()
    assert list((root / ".surefoot/copies").iterdir()) == []


def test_a_step_that_times_out_stops_its_command(root):
    def make(tx, _given):
        tx.run(scripted("hang"), limits={"grace_s": 0.1})

    result = ran(root, one(make, timeout_s=1.0))
    assert result.failure.error == "StepTimedOut"
    end = time.monotonic() + 10
    while list((root / ".surefoot/copies").iterdir()):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_what_a_killed_step_left_of_its_command_is_removed_by_the_next_engine(root):
    code = (
        "import sys, structlog; structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))\n"
        "from surefoot import Engine, Workflow\n"
        "flow = Workflow('flow', directory='demos/{run_id}')\n"
        "@flow.step\n"
        "def make(tx, _):\n"
        f"    tx.run({scripted('hang')!r}, confine='none')\n"
        "with Engine(sys.argv[1], [flow], resume=False) as engine: engine.run(flow, run_id='r').wait()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, root])
    end = time.monotonic() + 30
    while not list(root.glob(".surefoot/copies/body-*/work/begun.txt")):
        assert time.monotonic() < end
        time.sleep(0.02)
    (spawned,) = root.glob(".surefoot/copies/body-*/run/spawn.json")
    pid = json.loads(spawned.read_text())["command"]["pid"]
    process.kill()
    process.wait()
    with Engine(root, resume=False) as engine:
        assert list((root / ".surefoot/copies").iterdir()) == []
        assert engine.agents.doctor().wait() == []
    assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"driver": "claude"}, "driver"),
        ({"retry": {}}, "retry"),
        ({"nonsense": 1}, "nonsense"),
        ({"directory": "../x"}, "inside"),
    ],
)
def test_a_command_in_a_step_refuses_what_it_cannot_do(root, options, words):
    result = ran(root, one(lambda tx, _given: tx.run(["true"], **options), name="step"))
    assert (result.state, words in result.failure.message) == (RunState.ERROR, True)


PIPELINE = """
workflow = "drafts"
directory = "demos/{run_id}"

[steps.draft]
use = "agent"
argv = ["sh", "-c", "tr a-z A-Z < prompt.md > draft.md; echo '{}' > result.json"]
prompt = "prompt.md"
text = "write about {{ run_id }}\\n"
result = "result.json"
ignore = ["result.json"]
verify = [["test", "-s", "draft.md"]]

[steps.review]
use = "approve"
title = "Commit this?"
work = true

[steps.keep]
use = "take"
approved = true

[steps.count]
use = "run"
argv = ["sh", "-c", "wc -c < draft.md > size.txt"]
"""


def test_a_pipeline_launches_reviews_takes_and_runs(root, tmp_path):
    (tmp_path / "drafts.toml").write_text(PIPELINE)
    flow = load_workflow(str(tmp_path / "drafts.toml"))
    with Engine(root, [flow]) as engine:
        engine.start(flow, run_id="r", queue="q").wait()
        end = time.monotonic() + 30
        while not (asked := engine.approvals.requests().wait()):
            assert time.monotonic() < end
            time.sleep(0.02)
        assert not (root / "demos/r/draft.md").exists()
        engine.approvals.approve(asked[0].id, by="ann").wait()
        assert engine.resume("r").wait().state is RunState.COMPLETED
    assert (root / "demos/r/draft.md").read_text() == "WRITE ABOUT R\n"
    assert (root / "demos/r/size.txt").read_text().strip() == "14"
    assert not (root / "demos/r/result.json").exists()


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (RunAgent(), "argv or driver"), (RunAgent(argv=["a"], text="x"), "prompt"),
        (RunAgent(argv=["a"], confine="total"), "confine"), (RunAgent(argv=["a"], git="merge"), "git"),
        (RunAgent(driver="claude", secrets={"A": "b"}), "not the secret itself"),
        (RunCommand(argv=["a"], confine="total"), "confine"),
    ],
)  # fmt: skip
def test_ready_steps_refuse_what_no_agent_can_have_when_they_are_declared(step, words):
    with pytest.raises(DeclarationError, match=words):
        step.declare(Workflow("flow"), "step")


def test_taking_without_work_says_so(root):
    flow = Workflow("flow")
    TakeWork().declare(flow, "keep")
    result = ran(root, flow)
    assert (result.state, "tx.agent" in result.failure.hint) == (RunState.ERROR, True)


def test_three_agents_on_one_repository(tmp_path):
    done = subprocess.run(
        [sys.executable, EXAMPLES / "agents/three.py", tmp_path / "w"],
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "approved by command: approved" in done.stdout
    assert "greet.py: print('Hello everybody'); VERSION: 2" in done.stdout
