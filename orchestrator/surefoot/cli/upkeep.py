"""Commands that look after the workspace itself: decisions, room, backups."""

from __future__ import annotations

import os
from typing import Any, Literal

import click

from surefoot import rows
from surefoot.schema import SCHEMA
from surefoot_storage import ForeignEdit, Retention, Workspace, restore

from .main import cli, shared_options
from .output import emit, moment

_DEFAULTS = Retention()


def _open(workspace: str, *, adopt: bool = False) -> Workspace:
    return Workspace(workspace, schemas=[SCHEMA], adopt=adopt)


@cli.command()
@click.option("--all", "everything", is_flag=True, help="Decided ones too.")
@shared_options
def conflicts(*, everything: bool, workspace: str, as_json: bool) -> int:
    """List edits by others that met a commit: which version is in place, and where the other one is."""
    with _open(workspace) as opened:
        edits = opened.upkeep.conflicts(unresolved_only=not everything)
    emit(
        [edit.as_dict() for edit in edits],
        "\n".join(_edit_text(edit) for edit in edits) or "no conflicts",
        as_json=as_json,
    )
    return 0


def _edit_text(edit: ForeignEdit) -> str:
    in_place = "theirs" if edit.kept == "ours" else "ours"
    kept = f".surefoot/conflicts/{edit.kept_as}" if edit.kept_as else "the log"
    state = f"in place: {in_place}; {edit.kept} is in {kept}"
    if edit.resolution:
        state = f"decided: {edit.resolution}"
    return f"{edit.id:>4}  {moment(edit.at)}  {edit.path}: {edit.found}; {state}"


@cli.command()
@click.argument("number", type=int)
@click.option(
    "--use", type=click.Choice(["ours", "theirs"]), required=True, help="Whose version it shall be."
)
@shared_options
def resolve(number: int, use: Literal["ours", "theirs"], *, workspace: str, as_json: bool) -> int:
    """Decide a conflict: the committed version (ours) or the edit (theirs)."""
    with _open(workspace) as opened:
        edit = opened.upkeep.resolve(number, use)
        left = opened.unapplied
    facts = {**edit.as_dict(), "resolution": use, "unapplied": [path for path, _ in left]}
    emit(facts, f"{edit.path}: {use}", as_json=as_json)
    return 0


@cli.command()
@shared_options
def adopt(*, workspace: str, as_json: bool) -> int:
    """Take over a store that is not what it was: a copy, an older database, or none at all.

    It gets a new identity. What it had not put in place yet is not carried out: files stay as they are.
    """
    with _open(workspace, adopt=True) as opened:
        unfinished = [run.id for run in rows.list_runs(opened) if not run.state.is_over]
        uuid = opened.uuid
    text = f"adopted as {uuid}"
    if unfinished:
        text += f"\nunfinished runs, now this workspace's: {', '.join(unfinished)}"
        text += "\nhint: cancel those that still run where it was copied from: surefoot cancel RUN"
    emit({"uuid": uuid, "unfinished": unfinished}, text, as_json=as_json)
    return 0


@cli.command()
@click.argument("target", metavar="DIR")
@shared_options
def backup(target: str, *, workspace: str, as_json: bool) -> int:
    """Copy the store (database, old versions, conflicts) to a new directory, while work goes on.

    The files of the workspace itself are not in it.
    """
    with _open(workspace) as opened:
        facts = opened.upkeep.backup(os.path.abspath(target))
    emit(facts, f"backed up to {target}: the database and {facts['files']} file(s)", as_json=as_json)
    return 0


@cli.command("restore")
@click.argument("source", metavar="DIR")
@shared_options
def restore_(source: str, *, workspace: str, as_json: bool) -> int:
    """Put a backup in the place of the store; the old store is moved aside, files are not touched.

    Nobody may have the workspace open.
    """
    moved = restore(os.path.abspath(source), os.path.abspath(workspace))
    with _open(workspace, adopt=True) as opened:
        uuid = opened.uuid
    text = f"restored from {source}" + (f"; the old store is in {moved}" if moved else "")
    emit({"uuid": uuid, "moved": moved}, text, as_json=as_json)
    return 0


@cli.command()
@shared_options
def du(*, workspace: str, as_json: bool) -> int:
    """Show what the store uses on the disk."""
    with _open(workspace) as opened:
        usage = opened.upkeep.usage()
    lines = [
        f"{facts['size_bytes'] / 1024:>12,.0f} KiB  {facts['files']:>6} file(s)  {what.replace('_', ' ')}"
        for what, facts in usage.items()
    ]
    emit(usage, "\n".join(lines), as_json=as_json)
    return 0


@cli.command()
@click.option("--days", type=float, default=_DEFAULTS.days, show_default=True, help="Keep younger ones.")
@click.option(
    "--transactions",
    type=int,
    default=_DEFAULTS.transactions_max,
    show_default=True,
    help="Keep so many of each run.",
)
@click.option(
    "--size", type=int, default=_DEFAULTS.size_bytes_max, show_default=True, help="Bytes to keep in all."
)
@click.option("--dry-run", is_flag=True, help="Say what would go; change nothing.")
@shared_options
def gc(*, days: float, transactions: int, size: int, dry_run: bool, workspace: str, as_json: bool) -> int:
    """Let old versions go that are past the retention, and files that nothing refers to."""
    with _open(workspace) as opened:
        pruned = opened.upkeep.collect(retention=Retention(days, transactions, size), dry_run=dry_run)
    would = "would let go of" if dry_run else "let go of"
    text = (
        f"{would} {pruned.contents} old version(s), {pruned.size_bytes} bytes, of {pruned.transactions}"
        " transaction(s): they cannot be undone any more"
    )
    facts: dict[str, Any] = {**pruned.__dict__, "done": not dry_run}
    emit(facts, text if pruned.contents or pruned.transactions else "nothing to let go of", as_json=as_json)
    return 0


@cli.command()
@click.argument("path")
@click.option("--yes", is_flag=True, help="Do it; without it, only say what would be done.")
@shared_options
def forget(path: str, *, yes: bool, workspace: str, as_json: bool) -> int:
    """Remove every kept content of PATH (a secret, say) from the log, the old versions and the conflicts.

    The file itself stays as it is.
    """
    with _open(workspace) as opened:
        gone = opened.upkeep.forget(path) if yes else opened.upkeep.forgettable(path)
    done = "removed" if yes else "would remove"
    text = f"{done} {gone.contents} kept version(s) and {gone.conflicts} conflict(s) of {path}"
    if gone.also:
        text += f"\nthe same content was also in: {', '.join(gone.also)}"
    if not yes:
        text += "\nhint: surefoot forget --yes does it; it cannot be undone"
    emit({**gone.__dict__, "done": yes}, text, as_json=as_json)
    return 0
