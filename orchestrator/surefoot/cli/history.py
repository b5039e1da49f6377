"""Commands for what was committed: look at it, take it back, and see whether the disk still agrees."""

from __future__ import annotations

import sys
from typing import Any

import click

from surefoot import rows
from surefoot.diffs import FileChange, file_change
from surefoot.engine import Engine
from surefoot.errors import InputRefused
from surefoot.schema import SCHEMA
from surefoot.undo import Undone, standing_of
from surefoot_storage import Change, File, History, LogEntry, ReadOnlyWorkspace, net
from surefoot_storage.history import describe
from surefoot_storage.states import State

from .main import cli, shared_options
from .output import EXIT_COMMIT, EXIT_CONFLICT, emit, moment

_SHOWN_BYTES_MAX = 1 << 20


@cli.command()
@click.argument("txid", metavar="TX")
@shared_options
def show(txid: str, *, workspace: str, as_json: bool) -> int:
    """Show one transaction: who, when, which step, each file before and after, effects, whether it stands."""
    with ReadOnlyWorkspace(workspace, schemas=[SCHEMA]) as opened:
        entry = opened.history.find(txid)
        standing = standing_of(opened, entry.owner)
        effects = rows.effects_of(opened, [entry.txid])
    mine = next((event for event in standing.events if event.txid == entry.txid), None)
    facts: dict[str, Any] = {
        "txid": entry.txid,
        "sequence": entry.seq,
        "run_id": entry.owner,
        "label": entry.label,
        "actor": entry.actor,
        "at": entry.at,
        "event": mine.event if mine else "",
        "step": mine.step if mine else None,
        "undoes": list(mine.undoes) if mine else [],
        "undone_by": standing.undone_by(entry.txid) if mine else None,
        "contents_kept": not entry.pruned,
        "changes": [change.as_dict() for change in entry.changes],
        "effects": effects,
    }
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
        history = opened.history
        first = history.find(txid)
        entries = [first]
        if other is not None:
            last = history.find(other)
            _refuse_apart(first, last)
            entries = history.of(first.owner, after=first.seq, upto=last.seq)
        changes = [_file_change(history, change) for change in net(entries)]
    text = "".join(change.diff for change in changes).rstrip("\n")
    emit([change.as_dict() for change in changes], text or "no difference", as_json=as_json)
    return 0


def _refuse_apart(first: LogEntry, last: LogEntry) -> None:
    if first.owner != last.owner or first.seq > last.seq:
        raise InputRefused(
            "diff",
            f"{first.txid[:12]} {last.txid[:12]}",
            expected="two transactions of one run, the earlier one first",
            found="the later one first" if first.owner == last.owner else "two runs",
        )


def _file_change(history: History, change: Change) -> FileChange:
    return file_change(
        change.path,
        change.before,
        change.after,
        _content(history, change.before, change.path),
        _content(history, change.after, change.path),
    )


def _content(history: History, state: State, path: str) -> bytes | None:
    if not isinstance(state, File):
        return b""
    if state.size > _SHOWN_BYTES_MAX or not history.holds(state, path):
        return None
    return history.read(state, path)


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
        history = opened.history
        state = history.state_at(path, history.find(txid))
        if not isinstance(state, File):
            raise InputRefused("cat", what, expected="a file", found=describe(state))
        if as_json:
            facts = {"path": path, "size_bytes": state.size, "mode": f"{state.mode:o}"}
            content = history.read(state, path).decode("utf-8", "surrogateescape")
            emit({**facts, "sha256": state.digest.hex(), "content": content}, "", as_json=True)
            return 0
        for chunk in history.chunks(state, path):
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
