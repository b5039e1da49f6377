"""A workflow with one agent, for tests in this process and in others that are killed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from surefoot import Agent, Engine, Transaction, Workflow

SCRIPT = str(Path(__file__).parents[2] / "examples/agents/scripted.py")
QUICK = {"poll_s": 0.05, "retry": {"attempts": 1}}


class Result(BaseModel):
    ok: bool
    files: list[str] = []


def scripted(*arguments: str) -> list[str]:
    """The command of a scripted agent."""
    return [sys.executable, SCRIPT, *arguments]


def drafting(
    argv: list[str], *, outcomes: Any = None, model: Any = None, take: Any = None, **options: Any
) -> Workflow:
    """Launches one agent, and takes what it has done."""
    flow = Workflow("drafting", directory="demos/{run_id}")

    @flow.step(result=model, outcomes=outcomes)
    def draft(tx: Transaction, _given: Any) -> Any:
        tx.write_text("prompt.md", "write a draft\n")
        tx.write_text("old.txt", "old\n")
        return tx.agent(argv, **{**QUICK, **options})

    @flow.step(after=[] if outcomes else None)
    def keep(tx: Transaction, _given: Any) -> None:
        tx.take(tx.work(), **(take or {}))

    if outcomes:

        @flow.step(after=[])
        def other(tx: Transaction, _given: Any) -> None:
            tx.write_json("other.json", tx.received())

    return flow


def spec(*arguments: str, **options: Any) -> Agent:
    """Of an agent that belongs to nobody's run."""
    return Agent(argv=tuple(scripted(*arguments)), **{**QUICK, **options})


def counted(path: Path) -> list[str]:
    """Says in a file outside that it was begun, then changes two files."""
    return ["sh", "-c", f"echo begun >> {path}; echo one > one.txt; echo two > two.txt"]


def main() -> None:
    """A supervisor that is going to be killed: `agentflow.py ROOT RUN MODE…`, or at a call of the preloaded shim."""
    import os

    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    root, run_id, *mode = sys.argv[1:]
    argv = counted(Path(mode[1])) if mode[0] == "counted" else scripted(*mode)
    with Engine(root, [flow := drafting(argv, confine="none")], resume=False) as engine:
        print("open", flush=True)
        if "KILL_AT" in os.environ:
            from shim import Shim

            Shim().arm(kill_at=int(os.environ["KILL_AT"]))
        engine.run(flow, run_id=run_id).wait()
        if "KILL_AT" in os.environ:
            print(Shim().count, flush=True)


if __name__ == "__main__":
    main()
