"""Three agents work on one repository at the same time; one conflict is caught, one change is approved.

    python examples/agents/three.py [WORKSPACE]

Each of them has a working copy of its own. `docs` writes the manual and lands at once. `style` and `rename` both
change greet.py: whoever is second meets a conflict, and is launched again over what is there by then. `release`
changes the version, and waits until somebody approves exactly that: here by the command line, as a person would.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import anyio
import structlog
from pydantic import BaseModel

from surefoot import Conflict, Done, Engine, Transaction, Workflow

HERE = Path(__file__).resolve()
QUICK = {"poll_s": 0.1, "retry": {"attempts": 1}}


class Task(BaseModel):
    title: str
    script: str  # stands in for a coding agent: any command would do
    ask: bool = False


work = Workflow("work", input=Task, directory="runs/{run_id}")


@work.step(outcomes={"succeeded": "decide", "conflict": "launch"}, visits_max=5)
def launch(tx: Transaction, task: Task) -> Any:
    """The whole repository is copied; the agent's changes are sealed when it is done."""
    tx.write_json("task.json", task)
    return tx.agent(["sh", "-euc", task.script], directory="/", skip=["runs"], **QUICK)


@work.step(after=[], outcomes={"approved": "land", "rejected": "drop", "take": "land"})
def decide(tx: Transaction, task: Task) -> Any:
    """What is approved is the digest of the changes."""
    return tx.ask(f"{task.title}?", work=tx.work()) if task.ask else "take"


@work.step(after=[], outcomes={"landed": Done(), "again": "launch"})
def land(tx: Transaction, task: Task) -> str:
    """All files, the run's status and the approval, in one commit; or, where others were faster, once more."""
    if task.ask:
        tx.approved()
    try:
        tx.take(tx.work())
    except Conflict as error:
        print(f"  {tx.run_id}: conflict: {error.found}")
        return "again"
    return "landed"


@work.step(after=[])
def drop(tx: Transaction, task: Task) -> None:
    """Nobody wanted it."""


TASKS = {
    "docs": Task(title="Write the manual", script="echo 'Say hello: greet.py' > MANUAL.md"),
    "style": Task(title="Tidy up", script="sleep 0.5; sed -i 's/hello/Hello/' greet.py"),
    "rename": Task(title="Greet everybody", script="sleep 0.7; sed -i 's/world/everybody/' greet.py"),
    "release": Task(title="Release 2", script="echo 2 > VERSION", ask=True),
}


def prepare(workspace: Path) -> None:
    """A small repository."""
    workspace.mkdir(parents=True, exist_ok=True)
    (workspace / "greet.py").write_text("print('hello world')\n")
    (workspace / "VERSION").write_text("1\n")
    for command in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "1"],
    ):
        subprocess.run(["git", *command], cwd=workspace, check=True)


def surefoot(*arguments: str) -> Any:
    """The command line, as a person would use it."""
    command = [sys.executable, "-m", "surefoot", *arguments, "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


async def run(engine: Engine, run_id: str, task: Task) -> None:
    (await engine.run(work, task, run_id=run_id)).or_raise()


async def drive(workspace: Path) -> None:
    async with Engine(workspace, [work], agents=3) as engine, anyio.create_task_group() as tasks:
        for run_id, task in TASKS.items():
            tasks.start_soon(run, engine, run_id, task)
        while not (asked := await engine.approvals.requests()):  # noqa: ASYNC110 - the request is a row
            await anyio.sleep(0.1)
        row = (await engine.agents.attempts(run_id="release"))[0]
        print(f"{asked[0].ask.title}\n{await engine.agents.diff(row.id)}", end="")
        answer = lambda: surefoot("approvals", "approve", asked[0].id, "--by", "ann", "-w", str(workspace))  # noqa: E731
        print(f"approved by command: {(await anyio.to_thread.run_sync(answer))['state']}")


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    workspace = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="three-agents-")).resolve()
    prepare(workspace)
    anyio.run(drive, workspace)
    greeting = (workspace / "greet.py").read_text()
    print(f"greet.py: {greeting.strip()}; VERSION: {(workspace / 'VERSION').read_text().strip()}")
    with Engine(workspace, resume=False) as engine:
        states = {run.id: run.state.value for run in engine.runs().wait()}
        attempts = {run_id: len(engine.agents.attempts(run_id=run_id).wait()) for run_id in TASKS}
    print(f"runs: {states}; launched: {attempts}")
    if greeting != "print('Hello everybody')\n" or attempts["style"] + attempts["rename"] != 3:
        sys.exit("the conflict was meant to be caught, and both changes to land")


if __name__ == "__main__":
    main()
