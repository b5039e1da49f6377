"""Commands for what was committed: look at it, take it back, and see whether the disk still agrees."""

from __future__ import annotations

import sys
from typing import Any

import click

from surefoot import rows
from surefoot.engine import Engine
from surefoot.errors import InputRefused
from surefoot.facts import content_at, diff_of, transaction_facts
from surefoot.schema import SCHEMA
from surefoot.undo import Undone, standing_of
from surefoot_storage import ReadOnlyWorkspace

from .main import cli, shared_options
from .output import EXIT_COMMIT, EXIT_CONFLICT, emit, moment


@cli.command()
@click.argument("txid", metavar="TX")
@shared_options
def show(txid: str, *, workspace: str, as_json: bool) -> int:
    """Show one transaction: who, when, which step, each file before and after, effects, whether it stands."""
    with ReadOnlyWorkspace(workspace, schemas=[SCHEMA]) as opened:
        facts = transaction_facts(opened, txid)
    emit(facts, _show_text(facts), as_json=as_json)
    return 0


def _show_text(facts: dict[str, Any]) -> str:
    what = f"{facts['event']} {facts['step'] or ''}".strip() or facts["label"] or "-"
    lines = [
        f"transaction {facts['txid']}",
        f"what        {what}" + (f" of run {facts['run_id']}" if facts["run_id"] else ""),
        f"who         {facts['actor'] or 'not recorded'}, {moment(facts['at'])}",
    ]
    if facts["undoes"]:
        lines.append(f"undoes      {', '.join(facts['undoes'])}")
    if facts["undone_by"]:
        lines.append(f"undone by   {facts['undone_by']}")
    if not facts["contents_kept"]:
        lines.append("contents    some old versions were let go: it may not be possible to undo it")
    lines += [f"    {_change_text(change)}" for change in facts["changes"]]
    lines += [f"    effect {e['key']}: {e['state']}" for e in facts["effects"]]
    return "\n".join(lines)


def _change_text(change: dict[str, Any]) -> str:
    def short(state: dict[str, Any] | None) -> str:
        if state is None:
            return "nothing"
        content = f"{state['sha256'][:12]} {state['size_bytes']} bytes" if "sha256" in state else "directory"
        return f"{content} {state['mode']}"

    return f"{change['kind']:<8} {change['path']}: {short(change['before'])} -> {short(change['after'])}"


@cli.command()
@click.argument("txid", metavar="TX")
@click.argument("other", metavar="OTHER", required=False)
@shared_options
def diff(txid: str, other: str | None, *, workspace: str, as_json: bool) -> int:
    """Show what TX changed; with OTHER, what its run changed from after TX until after OTHER."""
    with ReadOnlyWorkspace(workspace, schemas=[SCHEMA]) as opened:
        changes = diff_of(opened.history, txid, other)
    text = "".join(change.diff for change in changes).rstrip("\n")
    emit([change.as_dict() for change in changes], text or "no difference", as_json=as_json)
    return 0


@cli.command()
@click.argument("what", metavar="PATH@TX")
@shared_options
def cat(what: str, *, workspace: str, as_json: bool) -> int:
    """Write the content that PATH had right after TX to stdout."""
    path, at, txid = what.rpartition("@")
    if not at or not path:
        raise InputRefused(
            "cat", what, expected="PATH@TX", found=what, hint="surefoot log shows transactions"
        )
    with ReadOnlyWorkspace(workspace, schemas=[SCHEMA]) as opened:
        state, chunks = content_at(opened.history, path, txid)
        if as_json:
            facts = {"path": path, "size_bytes": state.size, "mode": f"{state.mode:o}"}
            content = b"".join(chunks).decode("utf-8", "surrogateescape")
            emit({**facts, "sha256": state.digest.hex(), "content": content}, "", as_json=True)
            return 0
        for chunk in chunks:
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
    return 0


@cli.command()
@shared_options
def verify(*, workspace: str, as_json: bool) -> int:
    """Compare the disk with the store: every file that was ever committed, every kept content, the database.

    Differences are not repaired: a file that somebody has edited since is one of them.
    """
    with ReadOnlyWorkspace(workspace, schemas=[SCHEMA]) as opened:
        found = list(opened.history.verify())
    facts = [{"path": d.path, "expected": d.expected, "found": d.found} for d in found]
    text = "\n".join(f"{d.path}: expected {d.expected}, found {d.found}" for d in found)
    emit(facts, text or "everything is as it was committed", as_json=as_json)
    return EXIT_CONFLICT if found else 0


_force = click.option("--force", is_flag=True, help="Also where files were changed since; those are kept.")
_path = click.option("--path", "paths", multiple=True, metavar="PATH", help="Only this file or directory.")
_dry_run = click.option("--dry-run", is_flag=True, help="Say what it would do; change nothing.")


@cli.command("undo")
@click.argument("what", metavar="TX|RUN")
@_force
@_path
@_dry_run
@shared_options
def undo_(
    what: str, *, force: bool, paths: tuple[str, ...], dry_run: bool, workspace: str, as_json: bool
) -> int:
    """Take a transition back, by a new one: its files, the run's state, the effects not sent yet.

    TX is a transaction that stands last in its run, or an undo; RUN means its last transition that stands.
    """
    with Engine(workspace, resume=False) as engine:
        txid = _last_standing(engine, what)
        done = engine.undo(txid, force=force, paths=paths, dry_run=dry_run).wait()
        unapplied = engine.settle().wait() if not dry_run else ()
    return _told(done, unapplied, as_json=as_json)


@cli.command()
@click.argument("txid", metavar="TX")
@_force
@_path
@_dry_run
@shared_options
def revert(
    txid: str, *, force: bool, paths: tuple[str, ...], dry_run: bool, workspace: str, as_json: bool
) -> int:
    """Go back to right after TX: everything that its run has done since is undone as one."""
    with Engine(workspace, resume=False) as engine:
        done = engine.revert(txid, force=force, paths=paths, dry_run=dry_run).wait()
        unapplied = engine.settle().wait() if not dry_run else ()
    return _told(done, unapplied, as_json=as_json)


def _last_standing(engine: Engine, what: str) -> str:
    workspace = engine._the_open.workspace  # noqa: SLF001 - a command is the engine's own edge
    if rows.find_run(workspace, what) is None:
        return what
    standing = standing_of(workspace, what).now
    if not standing:
        raise InputRefused(
            "undo", what, expected="a run with a transition that stands", found="none", hint="surefoot log"
        )
    return standing[-1]


def _told(done: Undone, unapplied: tuple[tuple[str, str], ...], *, as_json: bool) -> int:
    verb = "undone" if done.txid else "would undo"
    lines = [change.diff.rstrip("\n") for change in done.changes if change.diff]
    lines.append(f"{verb}: {', '.join(txid[:12] for txid in done.undone)} ({len(done.files)} path(s))")
    if done.run_id:
        lines.append(f"run {done.run_id}: {done.state}" + (f" at {done.step}" if done.step else ""))
    lines += [f"changed since, now an old version: {path}" for path in done.overwritten]
    lines += [f"left, something else is in it: {path}" for path in done.left]
    lines += [f"sent already, cannot be taken back: {key}" for key in done.sent]
    lines += [f"will not be sent: {key}" for key in done.withdrawn]
    lines += [f"not in place yet: {path}: {cause}" for path, cause in unapplied]
    if done.txid and done.state == "paused":
        lines.append(f"hint: surefoot advance {done.run_id} does the step again")
        lines.append(f"hint: surefoot undo {done.txid[:12]} takes this back")
    emit({**done.as_dict(), "unapplied": [path for path, _ in unapplied]}, "\n".join(lines), as_json=as_json)
    return EXIT_COMMIT if unapplied else 0
