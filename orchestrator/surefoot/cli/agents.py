"""Commands for agents: looking at them, stopping them, launching them again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import click

from surefoot import rows
from surefoot.agentlooks import evidence_of, said
from surefoot.drivers import drivers
from surefoot.engine import Engine
from surefoot.rows import AgentRow
from surefoot.schema import SCHEMA
from surefoot.tending import copy_name
from surefoot_storage import Copies, FsOps, InputError, ReadOnlyWorkspace

from .main import cli, engine_for, shared_options
from .output import EXIT_FAILED, emit, moment, run_code

_id_argument = click.argument("agent_id", metavar="AGENT")


@cli.group("agent")
def agent_group() -> None:
    """Look at agents, stop them, launch them again."""


@agent_group.command("list")
@click.option("--run", "run_id", help="Of one run.")
@click.option("--all", "everything", is_flag=True, help="Also those that are over.")
@click.option("--limit", default=100, show_default=True, help="The latest ones.")
@shared_options
def agent_list(*, run_id: str | None, everything: bool, limit: int, workspace: str, as_json: bool) -> int:
    """Show agents, the latest first: what each is doing, or how it ended and why."""
    states = () if everything else ("wanted", "running", "sealing", "verifying")
    with ReadOnlyWorkspace(workspace, schemas=[SCHEMA]) as opened:
        found = rows.agents(opened, run_id=run_id, states=states, limit=limit)
    lines = [f"{row.id:<24} {row.outcome or row.state:<11} {_since(row):<10} {_what(row)}" for row in found]
    nothing = "no agents" if everything else "no agent is at work; --all shows those that are over"
    emit([row.as_dict() for row in found], "\n".join(lines) or nothing, as_json=as_json)
    return 0


@agent_group.command("show")
@_id_argument
@shared_options
def agent_show(agent_id: str, *, workspace: str, as_json: bool) -> int:
    """Show one: its command, where it stands, what confines it, what it has used and changed."""
    with ReadOnlyWorkspace(workspace, schemas=[SCHEMA]) as opened:
        row = rows.get_agent(opened, agent_id)
    copies = Copies(FsOps(), workspace)
    emit(row.as_dict(), "\n".join(_described(row, copies)), as_json=as_json)
    return 0


@agent_group.command("evidence")
@_id_argument
@shared_options
def agent_evidence(agent_id: str, *, workspace: str, as_json: bool) -> int:
    """Show everything that an outcome rests on, as JSON."""
    del as_json
    with ReadOnlyWorkspace(workspace, schemas=[SCHEMA]) as opened:
        facts = evidence_of(rows.get_agent(opened, agent_id))
    emit(facts, "", as_json=True)
    return 0


@agent_group.command("logs")
@_id_argument
@click.option("-f", "--follow", is_flag=True, help="Go on until it is over.")
@click.option("--from", "offset", default=0, help="From this offset in bytes.")
@shared_options
def agent_logs(agent_id: str, *, follow: bool, offset: int, workspace: str, as_json: bool) -> int:
    """Print what it has said, as far as it is kept."""
    with ReadOnlyWorkspace(workspace, schemas=[SCHEMA]) as opened:
        name = copy_name(rows.get_agent(opened, agent_id).id)
    follow_log(workspace, agent_id, name, offset, follow=follow, as_json=as_json)
    return 0


def follow_log(
    workspace: str, agent_id: str, name: str, offset: int, *, follow: bool, as_json: bool,
    enough: Callable[[], bool] = lambda: False,
) -> None:  # fmt: skip
    """Prints what there is, and what comes until the agent is over, or somebody has seen `enough`."""
    copies = Copies(FsOps(), workspace)
    is_over = not follow
    while not enough():
        text, begin, following = said(copies, name, offset)
        if as_json:
            click.echo(json.dumps({"offset": begin, "next_offset": following, "text": text}))
        elif text:
            click.echo(text, nl=False)
        if following == offset and is_over:
            return
        if following == offset:
            time.sleep(0.2)
        offset = following
        if not is_over:
            with ReadOnlyWorkspace(workspace, schemas=[SCHEMA]) as opened:
                is_over = rows.get_agent(opened, agent_id).state not in ("wanted", "running")


@agent_group.command("stop")
@click.argument("agent_id", metavar="[AGENT]", required=False)
@click.option("--all", "everything", is_flag=True, help="All of them, and launch none: restarts included.")
@click.option("--why", default="somebody has stopped it", help="Kept with the outcome.")
@shared_options
def agent_stop(agent_id: str | None, *, everything: bool, why: str, workspace: str, as_json: bool) -> int:
    """End an agent with everything that it has started; what it has done is sealed."""
    if (agent_id is None) == (not everything):
        raise InputError(
            "stop agent", agent_id or "", expected="one of AGENT and --all", found="both or none"
        )
    with Engine(workspace, resume=False) as engine:
        if agent_id is None:
            count = engine.agents.stop_all(why).wait()
            text = f"{count} agent(s) are to end, and none is launched: surefoot agent start-again"
            emit({"stopped": count, "why": why}, text, as_json=as_json)
            return 0
        engine.agents.stop(agent_id, why).wait()
    emit({"stopped": agent_id, "why": why}, f"{agent_id} is to end", as_json=as_json)
    return 0


@agent_group.command("start-again")
@shared_options
def agent_start_again(*, workspace: str, as_json: bool) -> int:
    """Let agents be launched again, after stop --all."""
    with Engine(workspace, resume=False) as engine:
        engine.agents.start_again().wait()
    emit({"stopped": False}, "agents may be launched again", as_json=as_json)
    return 0


@agent_group.command("retry")
@_id_argument
@click.option("--from", "reference", metavar="FILE.py:WORKFLOW", help="Where its workflow is now.")
@shared_options
def agent_retry(agent_id: str, *, reference: str | None, workspace: str, as_json: bool) -> int:
    """Launch it once more over what is there now; of a run, drive that run on."""
    with ReadOnlyWorkspace(workspace, schemas=[SCHEMA]) as opened:
        row = rows.get_agent(opened, agent_id)
    if row.run_id:
        with engine_for(workspace, row.run_id, reference) as engine:
            result = engine.retry(row.run_id).wait()
        emit(result.as_dict(), f"{row.run_id}: {result.state.value}", as_json=as_json)
        return run_code(result)
    with Engine(workspace, resume=False) as engine:
        again = engine.agents.launch(row.spec, directory=row.directory).wait()
        work = engine.agents.wait(again.id).wait()
    emit(vars(work), f"{work.id}: {work.outcome}: {work.why}", as_json=as_json)
    return 0 if work.outcome == "succeeded" else EXIT_FAILED


@agent_group.command("doctor")
@shared_options
def agent_doctor(*, workspace: str, as_json: bool) -> int:
    """Say what is wrong: agents that nobody watches, processes and copies that are left, undecided work."""
    with Engine(workspace, resume=False) as engine:
        found = engine.agents.doctor().wait()
    lines = [
        f"{one['agent'] or '-'}: {one['problem']}" + (f"\n    hint: {one['hint']}" if one["hint"] else "")
        for one in found
    ]
    emit(found, "\n".join(lines) or "nothing is wrong with agents", as_json=as_json)
    return EXIT_FAILED if found else 0


@agent_group.command("drivers")
@shared_options
def agent_drivers(*, workspace: str, as_json: bool) -> int:
    """Show the presets for command lines of coding agents: a few options each, to copy or to name."""
    del workspace
    lines = []
    for name, options in drivers().items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in options.items()]
        lines.append("")
    emit(drivers(), "\n".join(lines).rstrip(), as_json=as_json)
    return 0


def _since(row: AgentRow) -> str:
    begun = row.started_at or row.created_at
    return f"{(row.ended_at or time.time()) - begun:.1f} s"


def _what(row: AgentRow) -> str:
    command = " ".join(row.spec.argv)[:60]
    return f"{row.why}  ({command})" if row.why else command


def _described(row: AgentRow, copies: Copies) -> list[str]:
    spawn, exit_ = row.evidence.get("spawn", {}), row.evidence.get("exit", {})
    lines = [
        f"{row.id}: {row.outcome or row.state}" + f": {row.why}" * bool(row.why),
        f"command: {' '.join(row.spec.argv)}", f"kind: {row.kind}", f"of: {row.directory or 'the workspace'}",
        f"copy: {copies.path(copy_name(row.id))}",
        f"wanted {moment(row.created_at)}, began {moment(row.started_at)}, over {moment(row.ended_at)}",
    ]  # fmt: skip
    if row.run_id:
        lines.append(f"run: {row.run_id}, step {row.step}, attempt {row.attempt}")
    if spawn:
        lines.append(f"process: {spawn['command']['pid']}, confined: {spawn['confined']}")
    if exit_:
        peak = exit_["peak_rss_bytes"] / (1 << 20)
        lines.append(f"used: {exit_['cpu_s']:.2f} s of CPU, {peak:.0f} MiB at most, {exit_['wall_s']:.1f} s")
    checked = row.evidence.get("verified", ())
    lines += [f"verify {' '.join(v['argv'])}: {v['verdict']} {v['why']}".rstrip() for v in checked]
    changes = row.evidence.get("changes")
    if changes:
        decided = f", {'given up' if row.taken == 'discarded' else 'committed'}" if row.taken else ""
        lines.append(f"changes: {changes['count']}{decided}: surefoot workspace diff {row.id}")
        lines += [f"  cannot be committed: {path}: {why}" for path, why in changes["blocked"]]
        lines += [f"  changed by somebody else meanwhile: {path}" for path in changes["conflicts"]]
        if changes["left_out"]:
            lines.append(f"  left out: {changes['left_out']} ({changes['left_out_bytes']} bytes)")
    return lines
