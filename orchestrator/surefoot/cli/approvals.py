"""Commands for what waits for people."""

from __future__ import annotations

import time
from collections.abc import Callable

import click

from surefoot import rows
from surefoot.approvals import Approval, ApprovalState, Event, names
from surefoot.deciding import Approvals
from surefoot.engine import Engine
from surefoot.errors import ApprovalRefused
from surefoot.pending import Pending
from surefoot.schema import SCHEMA
from surefoot_storage import ReadOnlyWorkspace

from .main import cli, shared_options
from .output import emit, moment

_reference = click.argument("reference", metavar="TOKEN|ID")
_by_option = click.option("--by", default="", help="Who it is, where the token does not say so.")
_comment_option = click.option("--comment", default="", help="Kept with the answer.")


@cli.group("approvals")
def approvals_group() -> None:
    """Look at what waits for people, and answer it."""


@approvals_group.command("list")
@click.option("--all", "everything", is_flag=True, help="Also those that are over.")
@click.option("--run", "run_id", help="Of one run.")
@shared_options
def approvals_list(*, everything: bool, run_id: str | None, workspace: str, as_json: bool) -> int:
    """Show requests, the latest first: the open ones, and records that are damaged."""
    now = time.time()
    with ReadOnlyWorkspace(workspace, schemas=[SCHEMA]) as opened:
        found, damaged = rows.approvals(opened, run_id=run_id)
    found = [a for a in found if everything or (a.state is ApprovalState.OPEN and now < a.expires_at)]
    lines = [
        f"{a.id:<24} {a.state.value:<9} {a.ask.title}  [{_left(a)}]  until {moment(a.expires_at)}"
        for a in found
    ]
    left = [d for d in damaged if not d.reissued]
    lines += [f"{d.id:<24} DAMAGED   {d.problem}" for d in left]
    facts = [a.as_dict() for a in found] + [{"state": "damaged", **vars(d)} for d in left]
    emit(facts, "\n".join(lines) or "nothing waits for anybody", as_json=as_json)
    return 0


@approvals_group.command("show")
@click.argument("approval_id", metavar="ID")
@shared_options
def approvals_show(approval_id: str, *, workspace: str, as_json: bool) -> int:
    """Show one request: of what, who is asked, and everything that has happened to it."""
    with ReadOnlyWorkspace(workspace, schemas=[SCHEMA]) as opened:
        found, damaged = rows.approvals(opened, approval_id=approval_id)
    if not found:
        raise ApprovalRefused(
            "show", approval_id, expected="a request for approval",
            found=damaged[0].problem if damaged else "none of that id", hint="surefoot approvals list --all",
        )  # fmt: skip
    emit(found[0].as_dict(), "\n".join(_described(found[0])), as_json=as_json)
    return 0


@approvals_group.command("approve")
@_reference
@_by_option
@_comment_option
@shared_options
def approvals_approve(reference: str, *, by: str, comment: str, workspace: str, as_json: bool) -> int:
    """Approve, with the token you were sent, or by the request's id."""
    return _answered(workspace, lambda a: a.approve(reference, by=by, comment=comment), as_json=as_json)


@approvals_group.command("reject")
@_reference
@_by_option
@_comment_option
@shared_options
def approvals_reject(reference: str, *, by: str, comment: str, workspace: str, as_json: bool) -> int:
    """Reject: one rejection is enough."""
    return _answered(workspace, lambda a: a.reject(reference, by=by, comment=comment), as_json=as_json)


@approvals_group.command("delegate")
@_reference
@click.argument("to", metavar="PERSON")
@_by_option
@_comment_option
@shared_options
def approvals_delegate(
    reference: str, to: str, *, by: str, comment: str, workspace: str, as_json: bool
) -> int:
    """Let somebody else be asked instead."""
    return _answered(workspace, lambda a: a.delegate(reference, to, by=by, comment=comment), as_json=as_json)


@approvals_group.command("token")
@click.argument("approval_id", metavar="ID")
@click.option("--person", default="", help="Whose; unless given, the one that anybody may use.")
@shared_options
def approvals_token(approval_id: str, *, person: str, workspace: str, as_json: bool) -> int:
    """Print the token of somebody who is asked, to send it to them. Whoever has it can answer."""
    with Engine(workspace, resume=False) as engine:
        token = engine.approvals.token(approval_id, person).wait()
    emit({"approval": approval_id, "person": person, "token": token}, token, as_json=as_json)
    return 0


@approvals_group.command("reissue")
@click.argument("approval_id", metavar="ID")
@shared_options
def approvals_reissue(approval_id: str, *, workspace: str, as_json: bool) -> int:
    """Ask once more in place of a request whose record is damaged."""
    with Engine(workspace, resume=False) as engine:
        engine.approvals.reissue(approval_id).wait()
    emit({"approval": approval_id}, f"{approval_id}: its run asks once more", as_json=as_json)
    return 0


def _answered(workspace: str, answer: Callable[[Approvals], Pending[Approval]], *, as_json: bool) -> int:
    with Engine(workspace, resume=False) as engine:
        approval = answer(engine.approvals).wait()
    emit(approval.as_dict(), f"{approval.id}: {approval.state.value} ({approval.ask.title})", as_json=as_json)
    return 0


def _left(approval: Approval) -> str:
    return names([seat.person for seat in approval.seats if seat.state == "open"])


def _described(approval: Approval) -> list[str]:
    ask = approval.ask
    until = f"until {moment(approval.expires_at)}"
    lines = [
        f"{approval.id}: {ask.title}",
        f"    {approval.state.value}; asked by {approval.run_id}/{approval.step}, {until}",
        f"    of {', '.join(ask.of) or 'no files'} (digest {approval.digest[:12]})",
        f"    {ask.quorum} must approve",
    ]
    lines += [f"    {names([seat.person])}: {seat.state}, {seat.via}" for seat in approval.seats]
    return lines + [f"    {moment(event.at)} {_told(event)}" for event in approval.events]


def _told(event: Event) -> str:
    who = f" by {event.by}" if event.by else ""
    whom = f" {event.person}" if event.person not in ("", event.by) else ""
    return f"{event.event}{whom}{who}" + (f": {event.comment}" if event.comment else "")
