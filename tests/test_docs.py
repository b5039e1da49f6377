"""The README's code runs, and what it promises by name exists."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import httpx
from click.testing import CliRunner
from serving import served

from surefoot.cli import inspecting
from surefoot.cli.main import cli

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_example_and_its_commands_run(tmp_path):
    hello, _, _, _ = blocks("python")
    (tmp_path / "hello.py").write_text(hello)
    done = subprocess.run(
        [sys.executable, "hello.py"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "published first first/2/publish/tell_tracker" in done.stdout
    assert "completed in demos/first" in done.stdout
    assert (tmp_path / "demos/first/site/index.html").read_text() == "<h1>mountains</h1>"
    assert (tmp_path / "demos/first/demo.status.json").exists()
    commands = [line for line in blocks("sh")[1].splitlines() if line]
    assert len(commands) == 3
    for command in commands:
        arguments = [sys.executable, "-m", "surefoot", *command.split()[1:]]
        done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "second" in done.stdout


def test_the_larger_example_runs(tmp_path):
    _, review, _, _ = blocks("python")
    (tmp_path / "review.py").write_text(review)
    done = subprocess.run(
        [sys.executable, "review.py"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "completed it is completed since" in done.stdout
    text = (tmp_path / "reviews/rivers/published.md").read_text()
    assert text == "# rivers: begin\n# rivers: middle\n# rivers: end\n"


def test_the_example_of_approvals_configuration_caches_and_records_runs(tmp_path):
    _, _, publish, _ = blocks("python")
    (tmp_path / "publish.py").write_text(publish)
    done = subprocess.run(
        [sys.executable, "publish.py"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "completed 800" in done.stdout
    assert "board: rivers started" in done.stdout
    released = json.loads((tmp_path / "articles/rivers/released.json").read_text())
    assert [vote["by"] for vote in released["votes"]] == ["ann", "bob"]


def test_the_example_of_an_agent_runs_and_so_does_a_tried_command(tmp_path):
    *_, translate = blocks("python")
    (tmp_path / "translate.py").write_text(translate)
    done = subprocess.run(
        [sys.executable, "translate.py"], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    assert "+Hallo Welt" in done.stdout
    assert done.stdout.rstrip().endswith("completed")
    assert (tmp_path / "texts/de/text.de.md").read_text() == "Hallo Welt"
    (line,) = [line for block in blocks("sh") for line in block.splitlines() if "surefoot try" in line]
    (tmp_path / "Makefile").write_text("format:\n\techo tidy > tidy.txt\n")
    arguments = [sys.executable, "-m", "surefoot", *line.partition("#")[0].split()[1:]]
    tried = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert (tried.returncode, "+tidy" in tried.stdout) == (3, True)
    assert not (tmp_path / "tidy.txt").exists()


def test_the_served_example_answers_what_the_readme_asks(tmp_path):
    (tmp_path / "hello.py").write_text(blocks("python")[0])
    (block,) = [block for block in blocks("sh") if "surefoot serve" in block]
    asked = block.replace("\\\n", " ").splitlines()[1]
    headers = dict(one.split(": ") for one in re.findall(r"-H '([^']*)'", asked))
    (body,) = re.findall(r"-d '([^']*)'", asked)
    with served(tmp_path, flow=f"{tmp_path}/hello.py:hello") as server:
        url = re.search(r"http://127.0.0.1:8765(\S*)", asked)[1]
        answer = httpx.post(server.url + url, content=body, headers=headers, timeout=20)
        assert (answer.status_code, answer.json()["run_id"]) == (201, "third")
        while httpx.get(f"{server.url}/v1/runs/third").json()["state"] != "completed":
            pass
    assert (tmp_path / "demos/third/site/index.html").read_text() == "<h1>lakes</h1>"
    for picture in re.findall(r"!\[[^]]*\]\(([^)]*)\)", README):
        assert (REPOSITORY / picture).exists()


def test_every_command_is_in_the_readme_and_has_help():
    assert inspecting
    for name, command in cli.commands.items():
        assert re.search(rf"`(surefoot )?{name}\b", README), name
        assert command.help
        assert CliRunner().invoke(cli, [name, "--help"]).exit_code == 0


def test_make_targets_exist():
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in re.findall(r"`make (\w+)", README):
        if target not in ("them", "it"):
            assert f"\n{target}:" in makefile, target
