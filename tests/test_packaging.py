"""The built wheel in an empty environment, beside a user's own `steps/` and `storage.py`; and the demo."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

USER = """
import steps.mine, storage
from surefoot import Engine, Workflow
from surefoot_steps import run_command
flow = Workflow("flow")
@flow.step
def one(tx, given):
    out = run_command(tx, ["sh", "-c", "cat in.txt > out.txt"], give={"in.txt": storage.TEXT}, result="out.txt")
    tx.write_bytes("a.txt", out.result)
    tx.write_text("b.txt", steps.mine.shout("done"))
if __name__ == "__main__":
    with Engine("w", [flow]) as engine:
        print(engine.run(flow, run_id="r").wait().or_raise().state.value)
"""


@pytest.mark.long
def test_the_wheel_works_in_an_empty_environment_beside_a_users_own_packages(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "dist", REPOSITORY],
        check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = (tmp_path / "dist").iterdir()
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env/bin/python"
    install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", wheel]
    subprocess.run(install, check=True, capture_output=True)
    project = tmp_path / "project"
    (project / "steps").mkdir(parents=True)
    (project / "w").mkdir()
    (project / "steps/__init__.py").touch()
    (project / "steps/mine.py").write_text("def shout(text):\n    return text.upper()\n")
    (project / "storage.py").write_text("TEXT = 'from my own storage.py'\n")
    (project / "main.py").write_text(USER)
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([python, "main.py"], cwd=project, env=env, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["completed"], done.stderr
    assert (project / "w/runs/r/a.txt").read_text() == "from my own storage.py"
    assert (project / "w/runs/r/b.txt").read_text() == "DONE"
    command = [tmp_path / "env/bin/surefoot", "run", "main.py:flow", "-w", "w", "--id", "s"]
    done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True)
    assert done.stdout == "s: completed\n", done.stderr
    for name, extra in (("serve", "http"), ("mcp", "mcp")):  # doors that need more say so
        command = [tmp_path / "env/bin/surefoot", name, "main.py:flow", "-w", "w"]
        done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True)
        assert (done.returncode, f'hint: pip install "surefoot[{extra}]"' in done.stderr) == (2, True)
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
    assert {"surefoot/http/static/htmx.min.js", "surefoot/http/templates/parts/run.html"} <= names


@pytest.mark.long
def test_the_demo_publishes_is_killed_and_recovers(tmp_path):
    done = subprocess.run(
        [sys.executable, REPOSITORY / "examples/site/demo.py", tmp_path / "w"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "none torn or empty" in done.stdout
    assert "all v2" in done.stdout
    assert len(list((tmp_path / "w/site").glob("*.html"))) > 50
    broken = [
        sys.executable,
        REPOSITORY / "examples/site/demo.py",
        tmp_path / "x",
        "--",
        "sh",
        "-c",
        "exit 3",
    ]
    done = subprocess.run(broken, capture_output=True, text=True)
    assert done.returncode != 0
    assert "exit code 3" in done.stderr
