"""Commands that only look: they work beside a running engine, and on a read-only disk."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from surefoot import rows
from surefoot.facts import history_facts, line_of, run_facts
from surefoot.model import Run, RunState
from surefoot.schema import SCHEMA
from surefoot_storage import ReadOnlyWorkspace

from .main import cli, shared_options, workspace_option
from .output import PAUSED_HINT, emit, moment


@cli.command()
@click.argument("run_id", metavar="RUN")
@shared_options
def status(run_id: str, *, workspace: str, as_json: bool) -> int:
    """Show where a run stands."""
    with ReadOnlyWorkspace(workspace, schemas=[SCHEMA]) as opened:
        run = rows.get_run(opened, run_id)
        facts = run_facts(opened, run_id)
    emit(facts, _status_text(run, facts), as_json=as_json)
    return 0


def _status_text(run: Run, facts: dict[str, Any]) -> str:
    lines = [
        f"run         {run.id} ({run.workflow})",
        f"state       {run.state.value}" + (f", next attempt {moment(run.next_at)}" if run.next_at else ""),
        f"step        {run.step or '-'} (last: {run.last_step or '-'})",
        *([f"waits for   {facts['waits_for']}"] if facts.get("waits_for") else []),
        *(f"branch      {_branch_text(branch)}" for branch in facts.get("branches", ())),
        f"directory   {run.directory}",
        f"updated     {moment(run.updated_at)}, revision {run.revision}",
    ]
    if facts["effects_pending"] or facts["effects_dead"]:
        lines.append(f"effects     {facts['effects_pending']} waiting, {facts['effects_dead']} dead")
    if run.failure is not None:
        lines.append(
            f"error       {run.failure.error}: {run.failure.message} (attempt {run.failure.attempt})"
        )
        if run.failure.hint:
            lines.append(f"hint: {run.failure.hint}")
    if run.state is RunState.PAUSED:
        lines.append(PAUSED_HINT)
    lines += [f"not in place yet: {entry['cause']}" for entry in facts["unapplied_transactions"]]
    return "\n".join(lines)


def _branch_text(branch: dict[str, Any]) -> str:
    item = f" (item {branch['item']})" if "item" in branch else ""
    waits = f", waits for {branch['waits_for']}" if "waits_for" in branch else ""
    return f"{branch['step']}{item}: {branch['state']}{waits}"


@cli.command("list")
@click.option(
    "--state", "states", multiple=True, type=click.Choice(list(RunState)), help="Only in this state."
)
@click.option("--workflow", help="Only runs of this workflow.")
@click.option("--queue", help="Only runs of this queue.")
@click.option("--limit", default=1_000, show_default=True, type=click.IntRange(1), help="At most so many.")
@shared_options
def list_runs(
    *,
    states: tuple[str, ...],
    workflow: str | None,
    queue: str | None,
    limit: int,
    workspace: str,
    as_json: bool,
) -> int:
    """Show runs, the latest change first."""
    with ReadOnlyWorkspace(workspace, schemas=[SCHEMA]) as opened:
        runs = rows.list_runs(opened, states=states, workflow=workflow, queue=queue, limit=limit + 1)
    more, runs = len(runs) > limit, runs[:limit]
    facts = [line_of(run) for run in runs]
    width = max([len(run.id) for run in runs], default=0)
    lines = [
        f"{run.id:<{width}}  {run.state.value:<9}  {run.step or '-'}  {moment(run.updated_at)}"
        for run in runs
    ]
    lines += [f"… and more: --limit, --state, --workflow, --queue (the first {limit} are shown)"] * more
    emit(facts, "\n".join(lines) or "no runs", as_json=as_json)
    return 0


@cli.command()
@click.argument("run_id", metavar="RUN", required=False)
@click.option("--traceback", "with_traceback", is_flag=True, help="Show tracebacks of failures.")
@shared_options
def log(run_id: str | None, *, with_traceback: bool, workspace: str, as_json: bool) -> int:
    """Show the history of one run, or of all: every status change, and the files it changed."""
    with ReadOnlyWorkspace(workspace, schemas=[SCHEMA]) as opened:
        entries = history_facts(opened, run_id)
    text = "\n".join(_entry_text(entry, with_traceback=with_traceback) for entry in entries)
    emit(entries, text or "no history", as_json=as_json)
    return 0


def _entry_text(entry: dict[str, Any], *, with_traceback: bool) -> str:
    what = entry["event"] + (f" {entry['step']}" if entry["step"] else "")
    head = f"{moment(entry['at'])}  {entry['run_id']}  {what} -> {entry['status']['state']}"
    lines = [f"{head}  {entry['txid'] or ''}".rstrip()]
    lines += [f"    undoes {txid}" for txid in entry["undoes"]]
    lines += [f"    {line}" for line in entry["files"]]
    for edit in entry["foreign_edits"]:
        kept = f".surefoot/conflicts/{edit['kept_as']}" if edit["kept_as"] else "in its place"
        lines.append(f"    ! {edit['path']}: {edit['found']}; kept: {kept}")
    if entry["failure"] and entry["event"] in ("failed", "interrupted"):
        lines.append(f"    {entry['failure']['error']}: {entry['failure']['message']}")
        if with_traceback:
            lines += [f"    | {line}" for line in entry["failure"]["traceback"].splitlines()]
    return "\n".join(lines)


@cli.command()
@click.argument("run_id", metavar="RUN", required=False)
@click.option("--after", type=click.IntRange(min=0), default=0, help="The id of the last line one has.")
@workspace_option
def audit(run_id: str | None, *, after: int, workspace: str) -> int:
    """Print every change of status as a JSON line, oldest first."""
    with ReadOnlyWorkspace(workspace, schemas=[SCHEMA]) as opened:
        if run_id is not None:
            rows.get_run(opened, run_id)
        while lines := rows.audit_lines(opened, run_id=run_id, after=after, limit=1_000):
            for line in lines:
                click.echo(json.dumps(line))
            after = lines[-1]["id"]
    return 0


@cli.command()
@click.option("--workflow", help="Of one workflow.")
@click.option("--hours", type=click.FloatRange(min=0), help="Of the last hours; unless given, of all time.")
@shared_options
def stats(*, workflow: str | None, hours: float | None, workspace: str, as_json: bool) -> int:
    """Show runs by workflow and attempts by step: how many, and how long they took."""
    since = time.time() - hours * 3_600 if hours is not None else 0.0
    with ReadOnlyWorkspace(workspace, schemas=[SCHEMA]) as opened:
        facts = rows.analytics(opened, since=since, workflow=workflow)
    lines = [
        f"{w['workflow']}: {w['created']} created, {w['finished']} finished, {w['failed']} failed,"
        f" {w['cancelled']} cancelled; {_lengths(w)}"
        for w in facts["workflows"]
    ]
    lines += [
        f"    {s['workflow']}/{s['step']}: {', '.join(f'{n} {o}' for o, n in s['attempts'].items())};"
        f" {_lengths(s)}"
        for s in facts["steps"]
    ]
    emit(facts, "\n".join(lines) or "nothing has happened", as_json=as_json)
    return 0


def _lengths(facts: dict[str, Any]) -> str:
    if facts["mean_s"] is None:
        return "none has ended"
    mean_s, p50_s, p95_s = (facts[name] for name in ("mean_s", "p50_s", "p95_s"))
    return f"mean {mean_s:.2f} s, half within {p50_s:.2f} s, 95 % within {p95_s:.2f} s"
