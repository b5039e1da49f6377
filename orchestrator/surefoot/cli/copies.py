"""Commands for working copies: trying a command, looking at what it has changed, and deciding about that."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import click

from surefoot import rows
from surefoot.agentspec import Work
from surefoot.engine import Engine
from surefoot.errors import ChangesRefused, RunRefused
from surefoot.rows import AgentRow
from surefoot.schema import SCHEMA
from surefoot.tending import copy_name
from surefoot_storage import Commit, ReadOnlyWorkspace

from .agents import follow_log
from .main import cli, shared_options
from .output import EXIT_CONFLICT, EXIT_FAILED, EXIT_UNFINISHED, emit

_id_argument = click.argument("agent_id", metavar="AGENT")


@cli.command("try", context_settings={"ignore_unknown_options": True})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--of", "directory", default="", help="The directory to copy, from the workspace's root.")
@click.option("-y", "--yes", is_flag=True, help="Commit without asking, where the command succeeds.")
@click.option("--keep", is_flag=True, help="Decide later: surefoot workspace commit or discard.")
@click.option("--verify", multiple=True, metavar="COMMAND", help="A shell command that must succeed as well.")
@click.option("--skip", multiple=True, metavar="PATTERN", help="Not copied at all.")
@click.option("--ignore", multiple=True, metavar="PATTERN", help="Copied; its changes are left out.")
@click.option(
    "--confine", type=click.Choice(["auto", "project", "strict", "none"]), default="auto", show_default=True
)
@click.option("--wall", "wall_s", type=float, help="Seconds after which it is stopped.")
@shared_options
def try_(
    command: tuple[str, ...], *, directory: str, yes: bool, keep: bool, verify: tuple[str, ...],
    skip: tuple[str, ...], ignore: tuple[str, ...], confine: str, wall_s: float | None,
    workspace: str, as_json: bool,
) -> int:  # fmt: skip
    """Run any command in a copy, show what it changes, and commit or discard that.

    surefoot try -- make format
    """
    options = {
        "skip": skip, "ignore": ignore, "confine": confine, "limits": {"wall_s": wall_s}, "poll_s": 0.1,
        "verify": [["sh", "-c", one] for one in verify], "retry": {"attempts": 1},
        "pass_env": list(os.environ),
    }  # fmt: skip
    with Engine(workspace, resume=False) as engine, _interruptible() as interrupted:
        row = engine.agents.launch(list(command), directory=directory, **options).wait()
        if not as_json:
            follow_log(
                workspace, row.id, copy_name(row.id), 0, follow=True, as_json=False, enough=interrupted.is_set
            )
        work = _ended(engine, row.id, interrupted)
        return _decide(engine, work, yes=yes, keep=keep, as_json=as_json)


@contextlib.contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """The first Ctrl-C stops the command, and what it has done is shown; the second one leaves at once.

    By a flag: an exception could come anywhere, also where nobody can let it through.
    """
    interrupted = threading.Event()

    def interrupt(_number: int, _frame: object) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def _ended(engine: Engine, agent_id: str, interrupted: threading.Event) -> Work:
    told = False
    while engine.agents.get(agent_id).wait().state != "over":
        if interrupted.wait(0.1) and not told:
            told = True
            with contextlib.suppress(RunRefused):  # it ended by itself meanwhile
                engine.agents.stop(agent_id, "interrupted from the keyboard").wait()
        elif told:
            time.sleep(0.1)
    return engine.agents.wait(agent_id).wait()


def _decide(engine: Engine, work: Work, *, yes: bool, keep: bool, as_json: bool) -> int:
    """What becomes of a try: asked for where somebody is there to answer."""
    if work.digest and not (work.changes or work.blocked):
        engine.agents.discard(work.id).wait()
        return _told(work, "nothing was changed", "unchanged", _code(work), as_json=as_json)
    diff = engine.agents.diff(work.id).wait() if work.digest else ""
    if not as_json:
        click.echo(diff, nl=False)
        _warn(work)
    if yes and work.outcome == "succeeded":
        return _told(work, _committed(engine, work), "committed", 0, as_json=as_json)
    asks = not (yes or keep or as_json) and sys.stdin.isatty()
    answer = "keep"
    if asks:
        answer = click.prompt(
            f"{len(work.changes)} change(s)", type=click.Choice(["commit", "discard", "keep"]), default="keep"
        )
    if answer == "commit":
        return _told(work, _committed(engine, work), "committed", 0, as_json=as_json)
    if answer == "discard":
        engine.agents.discard(work.id).wait()
        return _told(work, "discarded", "discarded", _code(work), as_json=as_json)
    hint = f"kept: surefoot workspace commit {work.id}, or surefoot workspace discard {work.id}"
    return _told(work, hint, "kept", _code(work) or EXIT_UNFINISHED, as_json=as_json)


def _committed(engine: Engine, work: Work) -> str:
    commit = engine.agents.commit(work.id, digest=work.digest).wait()
    return f"committed {len(commit.ops)} change(s): surefoot undo {commit.txid[:12]} takes them back"


def _warn(work: Work) -> None:
    if work.outcome != "succeeded":
        click.echo(f"{work.outcome}: {work.why}", err=True)
    for path, why in work.blocked:
        click.echo(f"cannot be committed: {path}: {why}", err=True)
    for path in work.conflicts:
        click.echo(f"changed by somebody else meanwhile: {path}", err=True)
    confined = work.evidence.get("spawn", {}).get("confined", "none")
    if confined.startswith("none"):
        click.echo(f"not confined ({confined}): it could have written to the workspace itself", err=True)


def _code(work: Work) -> int:
    if work.outcome == "succeeded":
        return 0
    return EXIT_CONFLICT if work.outcome == "conflict" else EXIT_FAILED


def _told(work: Work, text: str, decision: str, code: int, *, as_json: bool) -> int:
    emit({**vars(work), "decision": decision}, text, as_json=as_json)
    return code


@cli.group("workspace")
def workspace_group() -> None:
    """Decide about working copies: what agents and tried commands have changed."""


@workspace_group.command("list")
@click.option("--all", "everything", is_flag=True, help="Also those that are committed or discarded.")
@shared_options
def workspace_list(*, everything: bool, workspace: str, as_json: bool) -> int:
    """Show working copies that nobody has decided about."""
    with ReadOnlyWorkspace(workspace, schemas=[SCHEMA]) as opened:
        found = [row for row in rows.agents(opened) if everything or not row.taken]
    lines = [f"{row.id:<24} {row.outcome or row.state:<11} {_changed(row)}" for row in found]
    emit([row.as_dict() for row in found], "\n".join(lines) or "no working copies", as_json=as_json)
    return 0


def _changed(row: AgentRow) -> str:
    count = row.evidence.get("changes", {}).get("count")
    decided = {"": "", "discarded": "  discarded"}.get(row.taken, f"  committed by {row.taken[:12]}")
    changes = "not sealed" if count is None else f"{count} change(s)"
    return f"{changes} in {row.directory or 'the workspace'}{decided}"


@workspace_group.command("diff")
@_id_argument
@shared_options
def workspace_diff(agent_id: str, *, workspace: str, as_json: bool) -> int:
    """Show what it has changed, against what is in the workspace now."""
    with Engine(workspace, resume=False) as engine:
        changes = engine.agents.changes(agent_id).wait()
        diff = engine.agents.diff(agent_id).wait()
    text = diff + "".join(f"cannot be committed: {path}: {why}\n" for path, why in changes.blocked)
    text += "".join(f"changed by somebody else meanwhile: {path}\n" for path in changes.conflicts)
    text += f"{len(changes.changes)} change(s), {changes.digest[:16]}"
    emit({**changes.as_dict(), "diff": diff}, text, as_json=as_json)
    return 0


@workspace_group.command("verify", context_settings={"ignore_unknown_options": True})
@_id_argument
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@shared_options
def workspace_verify(agent_id: str, command: tuple[str, ...], *, workspace: str, as_json: bool) -> int:
    """Run a command in the copy: surefoot workspace verify AGENT -- pytest -q."""
    with Engine(workspace, resume=False) as engine:
        found = engine.agents.verify(agent_id, list(command)).wait()
    emit(vars(found), f"{found.verdict} {found.why}".rstrip(), as_json=as_json)
    return 0 if found.verdict == "pass" else EXIT_FAILED


@workspace_group.command("commit")
@_id_argument
@click.option("--digest", help="Of what was looked at, or the beginning of it.")
@click.option("--path", "paths", multiple=True, metavar="PATTERN", help="Only these.")
@click.option(
    "--ours", multiple=True, metavar="PATTERN", help="Where both have changed it, its version wins."
)
@click.option("--theirs", multiple=True, metavar="PATTERN", help="… or what is in the workspace stays.")
@shared_options
def workspace_commit(
    agent_id: str, *, digest: str | None, paths: tuple[str, ...], ours: tuple[str, ...],
    theirs: tuple[str, ...], workspace: str, as_json: bool,
) -> int:  # fmt: skip
    """Commit what it has changed, all of it or nothing."""
    with Engine(workspace, resume=False) as engine:
        commit = engine.agents.commit(
            agent_id, digest=digest, paths=paths or None, ours=ours, theirs=theirs
        ).wait()
    text = f"committed {len(commit.ops)} change(s): surefoot undo {commit.txid[:12]} takes them back"
    emit(_facts(commit), text, as_json=as_json)
    return 0


def _facts(commit: Commit) -> dict[str, Any]:
    return {"txid": commit.txid, "files": [op.path for op in commit.ops], "applied": commit.applied}


@workspace_group.command("discard")
@_id_argument
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@shared_options
def workspace_discard(agent_id: str, *, yes: bool, workspace: str, as_json: bool) -> int:
    """Give up what it has changed: that cannot be taken back."""
    with ReadOnlyWorkspace(workspace, schemas=[SCHEMA]) as opened:
        row = rows.get_agent(opened, agent_id)
    if not yes and not sys.stdin.isatty():
        raise ChangesRefused(
            "discard", row.id, expected="--yes, or somebody at the terminal", found="neither",
            hint=f"surefoot workspace discard --yes {row.id}",
        )  # fmt: skip
    if not yes:
        click.confirm(f"give up {_changed(row)}?", abort=True)
    with Engine(workspace, resume=False) as engine:
        engine.agents.discard(row.id).wait()
    emit({"discarded": row.id}, f"{row.id}: discarded", as_json=as_json)
    return 0
