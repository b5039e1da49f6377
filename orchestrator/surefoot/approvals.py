"""Approvals: what a step asks people, who may answer, and what their answers come to. Pure values."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Literal, TypeAlias

from surefoot_storage import InputError

from . import checks

EXPIRES_S = 7 * 86_400.0
TOKEN_PREFIX = "sfa_"  # noqa: S105 - what tokens begin with
ANYONE = ""
"""The person of a seat that anybody may answer for who has its token."""
PEOPLE_MAX = 100
TEXT_CHARS_MAX = 4_000

Verdict: TypeAlias = Literal["approved", "rejected"]


class ApprovalState(StrEnum):
    """What has become of a request."""

    OPEN = "open"
    APPROVED = "approved"
    REJECTED = "rejected"
    EXPIRED = "expired"
    CHANGED = "changed"  # what was to be approved is not what it was
    WITHDRAWN = "withdrawn"  # its run went another way: cancelled, skipped, undone
    DAMAGED = "damaged"  # its record could not be read, and was set aside


@dataclass(frozen=True)
class Ask:
    """What a step asks for. Made by `Transaction.ask`.

    Attributes:
        title: the question, for people.
        of: paths, directories and globs below the run's directory: what is approved.
        approvers: who may answer; nobody named: whoever has the token, and says who they are.
        quorum: how many have to approve; one rejection rejects.
        expires_s: how long it waits.
        remind_s: those who have not answered are reminded this often.
        escalate_s: after this time `escalate_to` may answer, too.
        escalate_to: who.
        notify: set by the engine.
    """

    title: str
    of: tuple[str, ...] = ()
    approvers: tuple[str, ...] = ()
    quorum: int = 1
    expires_s: float = EXPIRES_S
    remind_s: float | None = None
    escalate_s: float | None = None
    escalate_to: tuple[str, ...] = ()
    notify: bool = False  # the workflow has somebody who tells people
    changes: str = ""  # digest of an agent's sealed changes that are approved, too

    def check(self, subject: str) -> Ask:
        """Itself, where it can be asked.

        Raises:
            InputError: which part of it cannot, and why.
        """
        text("ask", subject, "title", self.title)
        for name in ("approvers", "escalate_to"):
            people = [text("ask", subject, name, person) for person in getattr(self, name)]
            if len(set(people)) != len(people) or len(people) > PEOPLE_MAX:
                raise InputError(
                    "ask", subject, expected=f"{name}: at most {PEOPLE_MAX} different names",
                    found=checks.shown(people),
                )  # fmt: skip
        checks.count("ask", subject, "quorum", self.quorum, most=PEOPLE_MAX, error=InputError)
        answering = len({*self.approvers, *self.escalate_to})
        if self.approvers and self.quorum > answering:
            raise InputError(
                "ask", subject, expected=f"a quorum that {answering} people can reach",
                found=str(self.quorum),
                hint="name more approvers, or lower quorum",
            )  # fmt: skip
        checks.seconds("ask", subject, "expires_s", self.expires_s, above=True, error=InputError)
        for name in ("remind_s", "escalate_s"):
            if getattr(self, name) is not None:
                checks.seconds("ask", subject, name, getattr(self, name), least=1.0, error=InputError)
        if (self.escalate_s is None) != (not self.escalate_to):
            raise InputError(
                "ask", subject, expected="escalate_s and escalate_to, or neither", found="one of them"
            )
        return self

    def to_json(self) -> str:
        """As it is kept."""
        return json.dumps(asdict(self))

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Ask:
        """As it was kept."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in facts.items()}
        return cls(**values)


@dataclass(frozen=True)
class Seat:
    """Somebody who is asked."""

    person: str  # ANYONE: whoever has the token
    state: Literal["open", "voted", "delegated"]
    token_hash: str
    since: float
    via: str  # asked, escalated, or who has delegated it


@dataclass(frozen=True)
class Event:
    """One line of a request's history."""

    at: float
    event: str
    person: str  # who is meant
    by: str  # who did it
    comment: str


@dataclass(frozen=True)
class Approval:
    """One request, with whoever is asked and everything that has happened to it."""

    id: str
    run_id: str
    visit: int
    step: str
    ask: Ask
    digest: str  # of what is approved
    asked_at: float
    expires_at: float
    state: ApprovalState
    ended_at: float | None
    seats: tuple[Seat, ...] = ()
    events: tuple[Event, ...] = ()

    @property
    def decision(self) -> dict[str, Any]:
        """What the step after it reads by `tx.received()`."""
        votes = [event for event in self.events if event.event in ("approved", "rejected")]
        return {
            "approval": self.id, "state": self.state.value, "digest": self.digest, "of": list(self.ask.of),
            "changes": self.ask.changes,
            "votes": [{"by": v.by, "decision": v.event, "comment": v.comment, "at": v.at} for v in votes],
        }  # fmt: skip

    def seat(self, person: str) -> Seat | None:
        """The seat of a person, or the one that anybody may take."""
        found = {seat.person: seat for seat in self.seats}
        return found.get(person, found.get(ANYONE))

    def has_voted(self, person: str) -> bool:
        """Whether somebody has answered already."""
        return any(e.by == person for e in self.events if e.event in ("approved", "rejected"))

    def after(self, verdict: Verdict) -> ApprovalState:
        """What one more answer makes of it: one rejection rejects, and `quorum` approvals approve."""
        if verdict == "rejected":
            return ApprovalState.REJECTED
        approved = 1 + sum(event.event == "approved" for event in self.events)
        return ApprovalState.APPROVED if approved >= self.ask.quorum else ApprovalState.OPEN

    def as_dict(self) -> dict[str, Any]:
        """For JSON, without anything that could answer it."""
        facts = asdict(self)
        facts["seats"] = [{k: v for k, v in seat.items() if k != "token_hash"} for seat in facts["seats"]]
        return {**facts, "state": self.state.value}


@dataclass(frozen=True)
class Asked:
    """What a workflow's notifier is told: somebody is asked, reminded, or asked instead of somebody else."""

    approval_id: str
    run_id: str
    step: str
    title: str
    of: tuple[str, ...]
    digest: str
    person: str
    token: str
    reason: str  # asked, reminder, escalated, delegated
    expires_at: float
    key: str  # the same for each attempt at telling it


def text(operation: str, subject: str, name: str, value: object, *, empty: bool = False) -> str:
    """A line of text that a person wrote.

    Raises:
        InputError: it is none, or too long.
    """
    return checks.text(operation, subject, name, value, empty=empty, most=TEXT_CHARS_MAX, error=InputError)


def token_of(secret: bytes, approval_id: str, person: str) -> str:
    """The token of a seat: unguessable, and nowhere kept (HMAC-SHA256 of the seat under a secret)."""
    seat = json.dumps([approval_id, person]).encode()
    mac = hmac.digest(secret, seat, hashlib.sha256)
    return TOKEN_PREFIX + base64.b32encode(mac).decode().rstrip("=").lower()


def hash_of(token: str) -> str:
    """What is kept of it."""
    return hashlib.sha256(token.encode()).hexdigest()


def digest_of(contents: Iterable[tuple[str, str]]) -> str:
    """Of paths and the digests of their contents: what people approve."""
    return hashlib.sha256(json.dumps(sorted(contents)).encode()).hexdigest()


def next_look(ask: Ask, asked_at: float, told_at: float, *, escalated: bool) -> float | None:
    """When somebody is to be reminded, or asked as well."""
    moments: list[float] = []
    if ask.remind_s is not None:
        moments.append(told_at + ask.remind_s)
    if ask.escalate_s is not None and not escalated:
        moments.append(asked_at + ask.escalate_s)
    return min(moments, default=None)


def names(people: Sequence[str]) -> str:
    """For messages."""
    return ", ".join(person or "anyone with the token" for person in people) or "nobody"
