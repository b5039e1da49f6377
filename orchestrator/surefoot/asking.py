"""Asking people: requests are rows of the commit that parks their run, and so is everything that follows.

What is approved is bound by a digest of the files' contents. It is taken in the commit that asks, and taken
again, from files that the commit checks, by each approval and by the commit that lets the run go on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from surefoot_storage import Conflict, FileTransaction, Statement, Workspace

from . import rows
from .approvals import (
    ANYONE,
    Approval,
    ApprovalState,
    Ask,
    Event,
    Seat,
    hash_of,
    next_look,
    token_of,
)
from .files import contents
from .log import logger
from .model import Run, Visit
from .rows import DamagedApproval
from .waits import Ended, Wait


def request(
    workspace: Workspace, files: FileTransaction, run: Run, visit: Visit, ask: Ask, now: float
) -> list[Statement]:
    """A new request of a visit that waits for it, and the messages that tell of it."""
    number = rows.count_requests(workspace, run.id, visit.number) + 1
    approval_id = f"{run.id}/{visit.number}" + (f"/{number}" if number > 1 else "")
    digest = contents(files, run.directory, ask.of, run.status_path)
    people = ask.approvers or (ANYONE,)
    seats = tuple(seat_for(workspace, approval_id, person, now, "asked") for person in people)
    approval = Approval(
        approval_id, run.id, visit.number, visit.step, ask, digest, now, now + ask.expires_s,
        ApprovalState.OPEN, None, seats, (Event(now, "asked", "", "", ""),),
    )  # fmt: skip
    return [*rows.insert_approval(approval), *tell(approval, people, "asked")]


def seat_for(workspace: Workspace, approval_id: str, person: str, now: float, via: str) -> Seat:
    """A person who may answer, known by a token of which only the hash is kept."""
    token = token_of(workspace.secret(), approval_id, person)
    return Seat(person, "open", hash_of(token), now, via)


def tell(approval: Approval, people: Sequence[str], reason: str) -> list[Statement]:
    """Messages to these people, where the workflow has somebody who tells them."""
    if not approval.ask.notify:
        return []
    after = len(approval.events)
    return [
        rows.enqueue_effect(
            f"{approval.id}/{reason}/{after}/{person or '*'}", approval.run_id, approval.step, rows.ASK,
            {"approval": approval.id, "person": person, "reason": reason},
        )
        for person in people
    ]  # fmt: skip


def look(workspace: Workspace, run: Run, visit: Visit, wait: Wait, now: float) -> Ended:
    """What has become of what a parked visit has asked for; reminds and escalates when it is time."""
    assert wait.ask is not None
    latest = rows.latest_approval(workspace, run.id, visit.number)
    approval, consumed = latest if latest is not None else (None, True)
    if isinstance(approval, DamagedApproval) and not consumed:
        return _damaged(approval, wait, now)
    if not isinstance(approval, Approval) or consumed or wait.again or _is_gone(approval):
        return _ask_again(workspace, run, visit, wait, now, instead_of=approval)
    if approval.state is ApprovalState.OPEN and now < approval.expires_at:
        return _remind(workspace, approval, wait, now)
    statements: list[Statement] = []
    if approval.state is ApprovalState.OPEN:
        approval, statements = ended(approval, ApprovalState.EXPIRED, now)
    elif approval.state is ApprovalState.APPROVED and not is_unchanged(workspace, run, approval):
        approval = replace(approval, state=ApprovalState.CHANGED)
    statements.append(rows.consume_approval(approval.id))
    return Ended(
        approval.state.value, json.dumps(approval.decision), statements,
        check=lambda files: check(files, run, approval),
    )  # fmt: skip


def is_unchanged(workspace: Workspace, run: Run, approval: Approval) -> bool:
    """Whether the files are still what was asked about."""
    files = workspace.begin()
    try:
        return contents(files, run.directory, approval.ask.of, run.status_path) == approval.digest
    finally:
        files.fence()


def check(files: FileTransaction, run: Run, approval: Approval) -> None:
    """Inside the commit that lets a run go on.

    Raises:
        Conflict: the files have changed since it was looked at.
    """
    if approval.state is not ApprovalState.APPROVED:
        return
    if contents(files, run.directory, approval.ask.of, run.status_path) != approval.digest:
        raise Conflict(
            "approve", approval.id, expected="files that are what was approved", found="other contents"
        )


def ended(approval: Approval, state: ApprovalState, now: float) -> tuple[Approval, list[Statement]]:
    """It ends without anybody's answer."""
    event = Event(now, state.value, "", "", "")
    statements = [
        rows.still_open(approval.id, len(approval.events)),
        rows.end_approval(approval.id, state, now),
        rows.append_event(approval.id, event),
    ]
    return replace(approval, state=state, events=(*approval.events, event)), statements


def _is_gone(approval: Approval) -> bool:
    return approval.state is ApprovalState.WITHDRAWN


def _ask_again(
    workspace: Workspace, run: Run, visit: Visit, wait: Wait, now: float,
    *, instead_of: Approval | DamagedApproval | None,
) -> Ended:  # fmt: skip
    """Its visit waits once more: after a retry, or an undo."""
    ask = wait.ask
    assert ask is not None
    statements: list[Statement] = []
    if isinstance(instead_of, Approval) and instead_of.state is ApprovalState.OPEN:
        _, statements = ended(instead_of, ApprovalState.WITHDRAWN, now)
    files = workspace.begin()
    try:
        statements += request(workspace, files, run, visit, ask, now)
    finally:
        files.fence()
    look_at = next_look(ask, now, now, escalated=False)
    wait = replace(wait, until=now + ask.expires_s, look_at=look_at, again=False)
    return Ended(None, None, statements, wait=wait)


def _damaged(damaged: DamagedApproval, wait: Wait, now: float) -> Ended:
    """Set aside: the run waits for a person who asks again, or for its time to be over."""
    if wait.until is not None and now >= wait.until:
        return Ended("expired", json.dumps({"approval": damaged.id, "state": "damaged"}))
    logger(run=damaged.run_id).error("approval.damaged", approval=damaged.id, problem=damaged.problem)
    return Ended(None, None, rows.set_aside(damaged.id, damaged.problem, now))


def _remind(workspace: Workspace, approval: Approval, wait: Wait, now: float) -> Ended:
    if wait.look_at is None or now < wait.look_at:
        return Ended()
    ask, statements = approval.ask, [rows.still_open(approval.id, len(approval.events))]
    escalated = any(event.event == "escalated" for event in approval.events)
    if ask.escalate_s is not None and not escalated and now >= approval.asked_at + ask.escalate_s:
        escalated = True
        people = [person for person in ask.escalate_to if person not in [s.person for s in approval.seats]]
        statements += [
            rows.insert_seat(approval.id, seat_for(workspace, approval.id, person, now, "escalated"))
            for person in people
        ]
        statements.append(rows.append_event(approval.id, Event(now, "escalated", ", ".join(people), "", "")))
        statements += tell(approval, people, "escalated")
    last = max(e.at for e in approval.events if e.event in ("asked", "reminded"))
    if ask.remind_s is not None and now >= last + ask.remind_s:
        last = now
        left = [seat.person for seat in approval.seats if seat.state == "open"]
        statements.append(rows.append_event(approval.id, Event(now, "reminded", ", ".join(left), "", "")))
        statements += tell(approval, left, "reminder")
    look_at = next_look(ask, approval.asked_at, last, escalated=escalated)
    return Ended(None, None, statements, wait=replace(wait, look_at=look_at))
