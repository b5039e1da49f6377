"""Commands for who may come in by HTTP or MCP, who is told of changes, and what could not be told."""

from __future__ import annotations

import click

from surefoot import rows
from surefoot.access import SCOPES
from surefoot.engine import Engine
from surefoot.schema import SCHEMA
from surefoot_storage import ReadOnlyWorkspace

from .main import cli, shared_options
from .output import emit, moment


@cli.group("token")
def token_group() -> None:
    """Make and revoke tokens for those who come in by HTTP or MCP."""


@token_group.command("create")
@click.argument("name", metavar="NAME")
@click.option(
    "--scope", "scopes", multiple=True, type=click.Choice(list(SCOPES)), required=True, help="Good for what."
)
@click.option("--run", "run_id", default="", help="Only for this run.")
@click.option("--days", type=click.FloatRange(min=0, min_open=True), help="How long; for ever unless given.")
@shared_options
def token_create(
    name: str, *, scopes: tuple[str, ...], run_id: str, days: float | None, workspace: str, as_json: bool
) -> int:
    """Make a token and print it: this once, only its hash is kept."""
    expires_s = None if days is None else days * 86_400
    with Engine(workspace, resume=False) as engine:
        token, row = engine.access.create(name, scopes, run_id=run_id, expires_s=expires_s).wait()
    emit({**row.as_dict(), "token": token}, token, as_json=as_json)
    return 0


@token_group.command("list")
@shared_options
def token_list(*, workspace: str, as_json: bool) -> int:
    """Show all that were ever made."""
    with ReadOnlyWorkspace(workspace, schemas=[SCHEMA]) as opened:
        found = rows.tokens(opened)
    lines = [
        f"{t.id}  {t.name:<20} {' '.join(sorted(t.scopes))}"
        + (f"  run {t.run_id}" if t.run_id else "")
        + (f"  until {moment(t.expires_at)}" if t.expires_at else "")
        + (f"  REVOKED {moment(t.revoked_at)}" if t.revoked_at else "")
        for t in found
    ]
    emit([token.as_dict() for token in found], "\n".join(lines) or "no tokens", as_json=as_json)
    return 0


@token_group.command("revoke")
@click.argument("token_id", metavar="ID")
@shared_options
def token_revoke(token_id: str, *, workspace: str, as_json: bool) -> int:
    """Let a token open nothing any more, in no process."""
    with Engine(workspace, resume=False) as engine:
        engine.access.revoke(token_id).wait()
    emit({"revoked": token_id}, f"{token_id}: revoked", as_json=as_json)
    return 0


@cli.group("webhook")
def webhook_group() -> None:
    """Say who is told of changes of status by a signed POST."""


@webhook_group.command("add")
@click.argument("url", metavar="URL")
@click.option("--event", "events", multiple=True, help="Only this one; every one unless given.")
@click.option("--workflow", default="", help="Only of its runs.")
@shared_options
def webhook_add(url: str, *, events: tuple[str, ...], workflow: str, workspace: str, as_json: bool) -> int:
    """Tell somebody from now on; prints the secret that its messages are signed with."""
    with Engine(workspace, resume=False) as engine:
        secret, hook = engine.webhooks.add(url, events=events, workflow=workflow).wait()
    emit({**hook.as_dict(), "secret": secret}, f"{hook.id}\nsecret: {secret}", as_json=as_json)
    return 0


@webhook_group.command("list")
@shared_options
def webhook_list(*, workspace: str, as_json: bool) -> int:
    """Show who is told."""
    with ReadOnlyWorkspace(workspace, schemas=[SCHEMA]) as opened:
        found = rows.webhooks(opened)
    lines = [f"{h.id}  {h.url}  {' '.join(h.events) or 'every event'}  {h.workflow}".rstrip() for h in found]
    emit([hook.as_dict() for hook in found], "\n".join(lines) or "nobody is told", as_json=as_json)
    return 0


@webhook_group.command("remove")
@click.argument("hook_id", metavar="ID")
@shared_options
def webhook_remove(hook_id: str, *, workspace: str, as_json: bool) -> int:
    """Tell it nothing more."""
    with Engine(workspace, resume=False) as engine:
        engine.webhooks.remove(hook_id).wait()
    emit({"removed": hook_id}, f"{hook_id}: removed", as_json=as_json)
    return 0


@cli.group("effects")
def effects_group() -> None:
    """Look at messages that could not be delivered, and send them again."""


@effects_group.command("list")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1), help="The latest ones.")
@shared_options
def effects_list(*, limit: int, workspace: str, as_json: bool) -> int:
    """Show dead letters: what, how often it was tried, why it failed."""
    with ReadOnlyWorkspace(workspace, schemas=[SCHEMA]) as opened:
        found = rows.dead_letters(opened, limit=limit)
    lines = [f"{m['id']:>6}  {m['key']}  {m['attempts']} attempt(s): {m['last_error']}" for m in found]
    emit(found, "\n".join(lines) or "no dead letters", as_json=as_json)
    return 0


@effects_group.command("retry")
@click.argument("message_id", metavar="ID", type=int)
@shared_options
def effects_retry(message_id: int, *, workspace: str, as_json: bool) -> int:
    """Let a dead letter be tried again, by an engine that knows its workflow."""
    with Engine(workspace, resume=False) as engine:
        engine.control.redeliver(message_id).wait()
    emit({"retried": message_id}, f"{message_id}: will be tried again", as_json=as_json)
    return 0
