"""The command line as a person and as a program meets it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from surefoot_storage import Workspace

FLOWS = """
from pydantic import BaseModel
from surefoot import Workflow, Retry
class Brief(BaseModel):
    topic: str
    count: int = 1
flow = Workflow("flow", input=Brief)
@flow.step
def one(tx, b):
    tx.write_text("one.txt", b.topic + "\\n")
@flow.step
def two(tx, b):
    if tx.workspace.exists("broken"):
        raise ValueError("it is broken")
    tx.write_text("two.txt", "two\\n")
plain = 7
"""


@pytest.fixture
def cli(tmp_path):
    (tmp_path / "flows.py").write_text(FLOWS)
    (tmp_path / "w").mkdir()

    def call(*arguments, cwd=tmp_path, workspace="w"):
        command = [sys.executable, "-m", "surefoot", *arguments]
        env = {**os.environ, "SUREFOOT_WORKSPACE": workspace, "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)

    return call


def test_a_run_from_start_to_end_and_its_traces(cli, tmp_path):
    done = cli("run", "flows.py:flow", "--id", "r", "-i", "topic=sea", "--json")
    assert done.returncode == 0, done.stderr
    assert [t["step"] for t in json.loads(done.stdout)["transitions"]] == ["one", "two"]
    assert (tmp_path / "w/runs/r/one.txt").read_text() == "sea\n"
    assert json.loads(cli("status", "r", "--json").stdout)["state"] == "completed"
    assert "completed" in cli("list").stdout
    log = json.loads(cli("log", "r", "--json").stdout)
    assert [entry["event"] for entry in log] == ["started", "step", "step"]
    assert "+ runs/r/two.txt" in log[2]["files"]
    again = cli("run", "flows.py:flow", "--id", "r", "-i", "topic=sea")
    assert (again.returncode, again.stdout) == (0, "r: completed\n")
    refused = cli("run", "flows.py:flow", "--id", "r", "-i", "topic=land")
    assert refused.returncode == 2
    assert "hint: choose another id" in refused.stderr


def test_a_command_tells_what_it_could_not_deliver(cli, tmp_path):
    effects = (
        "@one.effect\ndef good(done):\n    pass\n@two.effect\ndef bad(done):\n    raise OSError('down')\n"
    )
    (tmp_path / "effects.py").write_text(FLOWS + effects)
    done = cli("run", "effects.py:flow", "--id", "r", "-i", "topic=x")
    assert done.stdout == "r: completed\n1 effect(s) not delivered yet\n"
    assert "1 waiting, 0 dead" in cli("status", "r").stdout


def test_failure_preview_advance_and_recover(cli, tmp_path):
    (tmp_path / "w/broken").touch()
    done = cli("run", "flows.py", "--id", "r", "--input-json", '{"topic": "x"}')
    assert done.returncode == 1
    assert "ValueError: it is broken" in done.stdout
    assert "two: failed (attempt 1)" in done.stderr
    shown = cli("status", "r")
    assert "error       ValueError: it is broken (attempt 1)" in shown.stdout
    assert "Traceback" in cli("log", "r", "--traceback").stdout
    failed = cli("preview", "r")
    assert failed.returncode == 1
    assert "ValueError" in failed.stderr
    assert cli("advance", "r").returncode == 1
    (tmp_path / "w/broken").unlink()
    before = {p: p.read_bytes() for p in (tmp_path / "w/runs").rglob("*") if p.is_file()}
    preview = cli("preview", "r")
    assert preview.returncode == 0
    assert "+++ b/runs/r/two.txt\n@@ -0,0 +1 @@\n+two\n" in preview.stdout
    assert {p: p.read_bytes() for p in (tmp_path / "w/runs").rglob("*") if p.is_file()} == before
    recovered = cli("recover")
    assert "unfinished: r (error at two)" in recovered.stdout
    assert cli("advance", "r", "--json").returncode == 0
    assert json.loads(cli("status", "r", "--json").stdout)["transition_error"] is False
    assert cli("advance", "r").returncode == 2  # it is over
    assert cli("cancel", "r").returncode == 2


def test_recover_drives_unfinished_runs_on(cli, tmp_path):
    code = (
        "import sys; sys.path.insert(0, '.')\nimport os\nfrom flows import flow\nfrom surefoot import Engine\n"
        "e = Engine('w', [flow], resume=False).__enter__()\n"
        "e.start(flow, {'topic': 't'}, run_id='r', source=os.path.abspath('flows.py') + ':flow').wait()\n"
        "os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == -9
    done = cli("recover", "--resume", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["resumed"][0]["state"] == "completed"


BAD = {
    "no colon or wrong suffix": (["run", "flows"], 2, "FILE.py:WORKFLOW"),
    "no such file": (["run", "gone.py:flow"], 2, "no such file"),
    "no such workflow": (["run", "flows.py:other"], 2, "workflows: flow"),
    "not a workflow": (["run", "flows.py:plain"], 2, "plain, a int"),
    "does not import": (["run", "broken.py:flow"], 2, "NameError: name 'undefined' is not defined (line 2)"),
    "syntax error": (["run", "syntax.py:flow"], 2, "SyntaxError"),
    "exits while importing": (["run", "exits.py:flow"], 2, "SystemExit"),
    "two steps of one name": (["run", "twice.py:flow"], 2, "two steps named 'one'"),
    "input of the wrong type": (["run", "flows.py:flow", "-i", "topic=x", "-i", "count=many"], 2, "count"),
    "missing input": (["run", "flows.py:flow"], 2, "topic: Field required"),
    "input that is no pair": (["run", "flows.py:flow", "-i", "topic"], 2, "KEY=VALUE"),
    "input that is no JSON": (["run", "flows.py:flow", "--input-json", "{"], 2, "JSON"),
    "unknown run": (["status", "nope"], 2, "none; there are no runs yet"),
    "unknown run to advance": (["advance", "nope"], 2, "nope"),
    "unknown run to preview": (["preview", "nope"], 2, "nope"),
    "bad run id": (["run", "flows.py:flow", "-i", "topic=x", "--id", "../x"], 2, "run id"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("as_json", [False, True])
def test_bad_input_has_its_own_error_and_code_and_changes_nothing(cli, tmp_path, name, as_json):
    arguments, code, words = BAD[name]
    (tmp_path / "broken.py").write_text("import os\nundefined\n")
    (tmp_path / "syntax.py").write_text("def\n")
    (tmp_path / "exits.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "twice.py").write_text(FLOWS + "flow.step(one.function)\n")
    Workspace(tmp_path / "w", schemas=[__import__("surefoot.schema", fromlist=["SCHEMA"]).SCHEMA]).close()
    done = cli(*arguments, *(["--json"] if as_json else []))
    assert done.returncode == code, done.stderr
    text = json.dumps(json.loads(done.stdout), ensure_ascii=False) if as_json else done.stderr
    assert words in text
    assert "Traceback" not in done.stderr
    assert [p.name for p in (tmp_path / "w").iterdir()] == [".surefoot"]


def test_unusable_workspaces_have_their_own_code(cli, tmp_path):
    (tmp_path / "file").write_text("x")
    for arguments in (["list"], ["run", "flows.py:flow", "-i", "topic=x"], ["recover"]):
        for workspace, words in (("file", "found a file"), ("missing", "ENOENT")):
            done = cli(*arguments, workspace=workspace)
            assert done.returncode == 5
            assert words in done.stderr
    assert cli("list").returncode == 5  # no workspace there yet, and looking makes none
    assert list((tmp_path / "w").iterdir()) == []


def test_commands_work_beside_a_running_engine(cli, tmp_path):
    (tmp_path / "w").mkdir(exist_ok=True)
    with Workspace(tmp_path / "w"):
        assert cli("run", "flows.py:flow", "--id", "r", "-i", "topic=x").returncode == 0
        assert cli("status", "r").returncode == 0
        assert cli("log").returncode == 0
        assert "expected a run that is not over" in cli("advance", "r").stderr


@pytest.mark.parametrize("step", ["def", "async def"])
def test_ctrl_c_ends_at_once_and_the_run_goes_on_later(cli, tmp_path, step):
    body = (
        "import anyio, threading\nfrom pathlib import Path\nfrom surefoot import Workflow\nflow = Workflow('f')\n"
        f"@flow.step\n{step} slow(tx, given):\n    tx.write_text('a.txt', 'a')\n"
        "    if not Path('go').exists():\n        print('started', flush=True)\n        "
        + ("await anyio.sleep_forever()\n" if step != "def" else "threading.Event().wait()\n")
    )
    (tmp_path / "slow.py").write_text(body)
    command = [sys.executable, "-m", "surefoot", "run", "slow.py:flow", "-w", "w", "--id", "r"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - a test in the background ignores it
    )  # fmt: skip
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "interrupted" in shown
    status = json.loads(cli("status", "r", "--json").stdout)
    assert (status["state"], status["transition_error"]) == ("running", False)
    assert not (tmp_path / "w/runs/r/a.txt").exists()
    (tmp_path / "go").touch()
    assert cli("run", "slow.py:flow", "--id", "r").returncode == 0


def test_usage_errors_and_help(cli):
    assert cli("run").returncode == 2
    assert cli("nonsense").returncode == 2
    assert "advance" in cli("--help").stdout
    assert cli("--version").stdout.startswith("surefoot, version ")


def test_a_directory_with_other_files_is_adopted_only_when_asked(cli, tmp_path):
    folder = tmp_path / "w/runs/r"
    folder.mkdir(parents=True)
    (folder / "theirs.txt").write_text("x")
    arguments = ["run", "flows.py:flow", "--id", "r", "-i", "topic=x"]
    refused = cli(*arguments)
    assert refused.returncode == 2
    assert "theirs.txt" in refused.stderr
    assert "--adopt" in refused.stderr
    assert os.listdir(folder) == ["theirs.txt"]
    assert cli(*arguments, "--adopt").returncode == 0
    assert (folder / "theirs.txt").read_text() == "x"
