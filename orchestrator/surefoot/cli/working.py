"""Commands that stay: workers, and the supervision of agents."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from typing import Any

import anyio
import click

from surefoot.declare import Workflow
from surefoot.engine import Engine
from surefoot.loader import load_workflow
from surefoot.queues import Queue
from surefoot_storage import InputError

from .main import cli, shared_options

agents_option = click.option(
    "--agents", multiple=True, metavar="N|KIND=N", help="Agents that run at the same time, of each kind."
)


@cli.command()
@click.argument("references", metavar="FILE.py:WORKFLOW", nargs=-1, required=True)
@click.option(
    "--queue",
    "queues",
    multiple=True,
    metavar="NAME",
    help="Serve only this queue; may be given more than once.",
)
@click.option("--at-once", default=16, show_default=True, help="Runs moved on at the same time.")
@agents_option
@shared_options
def work(
    references: tuple[str, ...], *, queues: tuple[str, ...], at_once: int, agents: tuple[str, ...],
    workspace: str, as_json: bool,
) -> int:  # fmt: skip
    """Be a worker: move on queued runs, those whose wait is over, and those whose worker died.

    SIGTERM and Ctrl-C let it finish what it has begun; a second one ends it at once.
    """
    del as_json
    workflows = [load_workflow(reference) for reference in references]
    serving = [Queue(name) for name in queues] if queues else None
    _serve(workspace, workflows, queues=serving, runs_max=at_once, agents=limits_of(agents))
    return 0


@cli.command()
@click.argument("references", metavar="[FILE.py:WORKFLOW]", nargs=-1)
@agents_option
@shared_options
def supervise(references: tuple[str, ...], *, agents: tuple[str, ...], workspace: str, as_json: bool) -> int:
    """Watch agents, and move on the runs that wait for them: the same as work, also without a workflow.

    Agents go on running when it ends, however it ends; the next one watches them again.
    """
    del as_json
    workflows = [load_workflow(reference) for reference in references]
    _serve(workspace, workflows, agents=limits_of(agents))
    return 0


def limits_of(given: Sequence[str]) -> int | Mapping[str, int]:
    """`3`, or `claude=2 codex=1`."""
    limits: dict[str, int] = {}
    for one in given:
        kind, equals, count = one.rpartition("=")
        if not count.isdecimal() or (equals and not kind) or (not equals and len(given) > 1):
            raise InputError(
                "supervise", one, expected="--agents 4, or --agents KIND=4 once or more", found=one
            )
        limits[kind] = int(count)
    return limits.get("", limits) if limits else 4


def _serve(workspace: str, workflows: Sequence[Workflow], **options: Any) -> None:
    async def serve() -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with Engine(workspace, workflows, **options) as engine:
                names = ", ".join(workflow.name for workflow in workflows) or "agents"
                click.echo(f"working in {workspace} on {names}", err=True)
                async for _ in signals:
                    break
                click.echo("finishing what has begun; once more ends at once", err=True)
                async with anyio.create_task_group() as tasks:

                    async def at_second_signal() -> None:
                        async for _ in signals:
                            tasks.cancel_scope.cancel()

                    tasks.start_soon(at_second_signal)
                    await engine.control.drain()
                    tasks.cancel_scope.cancel()

    anyio.run(serve)
