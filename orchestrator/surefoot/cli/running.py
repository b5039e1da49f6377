"""Commands for runs that wait, fail or queue: and the worker that moves them on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import click

from surefoot import rows
from surefoot.control import Control
from surefoot.engine import Engine
from surefoot.errors import InputRefused
from surefoot.loader import load_workflow
from surefoot.model import Run
from surefoot.pending import Pending
from surefoot.pipeline import json_schema
from surefoot.schema import SCHEMA
from surefoot.why import why as why_of
from surefoot_storage import ReadOnlyWorkspace

from .main import cli, engine_for, shared_options
from .output import emit, moment

_from_option = click.option(
    "--from", "reference", metavar="FILE.py:WORKFLOW", help="Where the workflow is now."
)


@cli.command()
@click.argument("run_id", metavar="RUN")
@shared_options
def why(run_id: str, *, workspace: str, as_json: bool) -> int:
    """Say in one sentence why a run is where it is, how one sees it, and what helps. Changes nothing."""
    with ReadOnlyWorkspace(workspace, schemas=[SCHEMA]) as opened:
        answer = why_of(opened, opened.checkup, run_id, now=time.time())
    lines = [f"{run_id}: {answer.sentence}", *(f"    {line}" for line in answer.evidence)]
    lines += [f"hint: {answer.remedy}"] if answer.remedy else []
    emit(answer.as_dict(), "\n".join(lines), as_json=as_json)
    return 0


@cli.command()
@click.argument("run_id", metavar="RUN")
@click.argument("signal_name", metavar="SIGNAL")
@click.argument("payload", metavar="[JSON]", required=False)
@click.option("--key", help="Sent twice with one key, it is one message.")
@_from_option
@shared_options
def send(
    run_id: str,
    signal_name: str,
    payload: str | None,
    *,
    key: str | None,
    reference: str | None,
    workspace: str,
    as_json: bool,
) -> int:
    """Send a run a message; JSON is its payload, @FILE reads it from a file."""
    workflows = [load_workflow(reference)] if reference else []
    if payload is not None and payload.startswith("@"):
        payload = _file(payload[1:])
    with Engine(workspace, workflows, resume=False) as engine:
        new = engine.send(run_id, signal_name, payload, key=key, sender="command line").wait()
    text = (
        f"{run_id}: {signal_name} sent" if new else f"{run_id}: {signal_name} was sent before with that key"
    )
    emit({"run_id": run_id, "signal": signal_name, "new": new}, text, as_json=as_json)
    return 0


def _file(name: str) -> str:
    try:
        with open(name, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise InputRefused("read payload", name, expected="a JSON file", found=str(error)) from error


@cli.command()
@click.argument("run_id", metavar="RUN")
@shared_options
def pause(run_id: str, *, workspace: str, as_json: bool) -> int:
    """Let nothing of a run begin any more; what is being worked on is finished."""
    with Engine(workspace, resume=False) as engine:
        run = engine.pause(run_id).wait()
    return _shown(run, "paused", as_json=as_json)


@cli.command()
@click.argument("run_id", metavar="RUN")
@shared_options
def unpause(run_id: str, *, workspace: str, as_json: bool) -> int:
    """Let a paused run go on."""
    with Engine(workspace, resume=False) as engine:
        run = engine.unpause(run_id).wait()
    return _shown(run, run.state.value, as_json=as_json)


@cli.command()
@click.argument("run_id", metavar="RUN")
@click.option("--step", help="Which step, where several are open.")
@click.option("--outcome", help="One that the step declares, or the step that shall follow.")
@_from_option
@shared_options
def skip(
    run_id: str,
    *,
    step: str | None,
    outcome: str | None,
    reference: str | None,
    workspace: str,
    as_json: bool,
) -> int:
    """End a step that failed, waits or is due, without running it; what follows it is due."""
    with engine_for(workspace, run_id, reference) as engine:
        run = engine.skip(run_id, step=step, outcome=outcome).wait()
    return _shown(run, f"skipped {run.last_step}, next: {run.step or 'end'}", as_json=as_json)


@cli.command()
@click.argument("run_id", metavar="RUN")
@click.argument("step", metavar="STEP")
@click.option("--id", "new_id", help="The new run's id.")
@click.option("--queue", default="", help="Let workers of this queue move it on.")
@_from_option
@shared_options
def fork(
    run_id: str,
    step: str,
    *,
    new_id: str | None,
    queue: str,
    reference: str | None,
    workspace: str,
    as_json: bool,
) -> int:
    """Make a new run that begins at STEP, with the files as they were when RUN came there."""
    with engine_for(workspace, run_id, reference) as engine:
        run = engine.fork(run_id, step, new_id=new_id, queue=queue).wait()
    return _shown(run, f"begins at {step} in {run.directory}", as_json=as_json)


def _shown(run: Run, what: str, *, as_json: bool) -> int:
    emit({**json.loads(run.status), "directory": run.directory}, f"{run.id}: {what}", as_json=as_json)
    return 0


@cli.command()
@click.argument("action", type=click.Choice(["retry", "cancel", "pause", "unpause", "skip"]))
@click.option(
    "--state", "states", multiple=True, help="Only runs in this state; may be given more than once."
)
@click.option("--workflow", help="Only runs of this workflow.")
@click.option("--queue", help="Only runs of this queue.")
@click.option("--limit", default=1_000, show_default=True, help="At most so many.")
@click.option("--per-second", type=float, help="No faster than this.")
@click.option("--dry-run", is_flag=True, help="Only say which runs it would be.")
@click.option(
    "--from", "references", multiple=True, metavar="FILE.py:WORKFLOW", help="Where the workflows are."
)
@shared_options
def bulk(
    action: Any,
    *,
    states: tuple[str, ...],
    workflow: str | None,
    queue: str | None,
    limit: int,
    per_second: float | None,
    dry_run: bool,
    references: tuple[str, ...],
    workspace: str,
    as_json: bool,
) -> int:
    """Do the same to many runs: retry, cancel, pause, unpause or skip them."""
    workflows = [load_workflow(reference) for reference in references]
    with Engine(workspace, workflows, resume=False) as engine:
        done = engine.bulk(
            action,
            states=states,
            workflow=workflow,
            queue=queue,
            limit=limit,
            per_s=per_second,
            dry_run=dry_run,
        ).wait()
    word = "would be" if dry_run else "done"
    lines = [f"{run_id}: {word}" for run_id in done.done]
    lines += [f"{run_id}: refused: {cause}" for run_id, cause in done.refused]
    emit(done.as_dict(), "\n".join(lines) or "no such runs", as_json=as_json)
    return 1 if done.refused else 0


@cli.command()
@shared_options
def schema(*, workspace: str, as_json: bool) -> int:
    """Print the JSON Schema of pipeline files, with the options of each step that is installed."""
    del workspace
    facts = json_schema()
    emit(facts, json.dumps(facts, indent=2), as_json=as_json)
    return 0


# --- workers, queues, schedules ---


def _switch(
    workspace: str,
    what: str,
    name: str,
    change: Callable[[Control], Pending[None]],
    *,
    paused: bool,
    as_json: bool,
) -> int:
    with Engine(workspace, resume=False) as engine:
        change(engine.control).wait()
    text = f"{what} {name} {'is paused' if paused else 'goes on'}"
    emit({what: name, "paused": paused}, text, as_json=as_json)
    return 0


@cli.group("queue")
def queue_group() -> None:
    """Look at queues; pause and resume them."""


@queue_group.command("list")
@shared_options
def queue_list(*, workspace: str, as_json: bool) -> int:
    """Show each queue: ready, running, waiting, in error, and whether it is paused."""
    with ReadOnlyWorkspace(workspace, schemas=[SCHEMA]) as opened:
        facts = rows.queues_shown(opened, time.time())
    lines = [
        f"{fact['queue'] or '(none)':<20} {fact['ready']} ready, {fact['running']} running,"
        f" {fact['waiting']} waiting, {fact['error']} in error"
        + (f", waited {fact['wait_mean_s']:.1f} s" if fact["waits"] else "")
        + (f", worked on for {fact['run_mean_s']:.1f} s" if fact["runs"] else "")
        + (f", {fact['lock_failures']} lock failures" if fact["lock_failures"] else "")
        + (f"  PAUSED {fact['reason']}".rstrip() if fact["paused"] else "")
        for fact in facts
    ]
    emit(facts, "\n".join(lines) or "no unfinished runs", as_json=as_json)
    return 0


@queue_group.command("pause")
@click.argument("name", metavar="NAME")
@click.option("--reason", default="", help="Shown to whoever asks why.")
@shared_options
def queue_pause(name: str, *, reason: str, workspace: str, as_json: bool) -> int:
    """Let workers take nothing from a queue any more; * means all of them, restarts included."""
    return _switch(
        workspace,
        "queue",
        name,
        lambda control: control.pause_queue(name, reason),
        paused=True,
        as_json=as_json,
    )


@queue_group.command("resume")
@click.argument("name", metavar="NAME")
@shared_options
def queue_resume(name: str, *, workspace: str, as_json: bool) -> int:
    """Let workers take from a queue again."""
    return _switch(
        workspace, "queue", name, lambda control: control.resume_queue(name), paused=False, as_json=as_json
    )


@cli.group("schedule")
def schedule_group() -> None:
    """Look at schedules; pause and resume them."""


@schedule_group.command("list")
@shared_options
def schedule_list(*, workspace: str, as_json: bool) -> int:
    """Show each schedule that a worker has declared."""
    with ReadOnlyWorkspace(workspace, schemas=[SCHEMA]) as opened:
        facts = rows.list_schedules(opened)
    lines = [
        f"{fact['name']:<20} {fact['cron']} ({fact['zone']}) starts {fact['workflow']},"
        f" dealt with up to {moment(fact['last_slot'])}" + ("  PAUSED" if fact["paused"] else "")
        for fact in facts
    ]
    emit(facts, "\n".join(lines) or "no schedules", as_json=as_json)
    return 0


@schedule_group.command("pause")
@click.argument("name", metavar="NAME")
@shared_options
def schedule_pause(name: str, *, workspace: str, as_json: bool) -> int:
    """Let a schedule start nothing any more."""
    return _switch(
        workspace,
        "schedule",
        name,
        lambda control: control.pause_schedule(name),
        paused=True,
        as_json=as_json,
    )


@schedule_group.command("resume")
@click.argument("name", metavar="NAME")
@shared_options
def schedule_resume(name: str, *, workspace: str, as_json: bool) -> int:
    """Let a schedule start its slots again, from now on."""
    return _switch(
        workspace,
        "schedule",
        name,
        lambda control: control.resume_schedule(name),
        paused=False,
        as_json=as_json,
    )
