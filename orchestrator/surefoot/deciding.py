"""`engine.approvals`: looking at what waits for people, and answering it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from anyio import to_thread

from surefoot_storage import FileTransaction, InputError

from . import asking, checks, rows
from .approvals import (
    ANYONE,
    TOKEN_PREFIX,
    Approval,
    ApprovalState,
    Event,
    Seat,
    Verdict,
    hash_of,
    names,
    text,
)
from .errors import ApprovalRefused, UnknownApproval
from .log import logger
from .model import Run
from .opened import OpenEngine
from .pending import Pender, Pending
from .recovering import APPROVALS_KEPT_S, clean_approvals
from .rows import DamagedApproval


class Approvals:
    """Of one engine. A request is known by its id, or by the token of one of those who are asked."""

    def __init__(self, engine: Callable[[], OpenEngine], pender: Pender) -> None:
        self._engine = engine
        self._pending = pender

    # --- looking ---

    def requests(
        self, *, states: Sequence[ApprovalState | str] = (ApprovalState.OPEN,), run_id: str | None = None
    ) -> Pending[list[Approval]]:
        """Requests, the latest first: the open ones unless `states` says otherwise (none: all).

        Raises:
            InputError: an unknown state.
        """
        checks.choices("list approvals", "", "states", states, list(ApprovalState), error=InputError)

        def work() -> list[Approval]:
            found = self._read(run_id=run_id)
            return [approval for approval in found if not states or approval.state in states]

        return self._pending("approvals.list", lambda: to_thread.run_sync(work), run_id=run_id)

    def damaged(self) -> Pending[list[DamagedApproval]]:
        """Records that cannot be read and were set aside: see `reissue`."""

        def work() -> list[DamagedApproval]:
            self._read()
            found = rows.approvals(self._engine().workspace)[1]
            return [damaged for damaged in found if not damaged.reissued]

        return self._pending("approvals.damaged", lambda: to_thread.run_sync(work))

    def get(self, reference: str) -> Pending[Approval]:
        """One request, by its id or a token.

        Raises:
            ApprovalRefused: there is none, or its record is damaged.
        """
        return self._pending(
            "approvals.get", lambda: to_thread.run_sync(lambda: self._find("look at", reference)[0])
        )

    def token(self, approval_id: str, person: str = ANYONE) -> Pending[str]:
        """The token of one of those who are asked, for a link to send.

        It is kept nowhere: whoever can open the workspace can have it made again.

        Raises:
            ApprovalRefused: there is no such request, nobody of that name is asked, or the secret is gone.
        """

        def work() -> str:
            approval, _ = self._find("make a token for", approval_id)
            return asking.token(self._engine().workspace, approval, person)

        return self._pending("approvals.token", lambda: to_thread.run_sync(work))

    def figures(self) -> Pending[dict[str, Any]]:
        """How many there are in each state, their size in bytes, and since when the oldest one is open."""
        return self._pending(
            "approvals.figures", lambda: to_thread.run_sync(rows.approval_figures, self._engine().workspace)
        )

    # --- answering ---

    def approve(self, reference: str, *, by: str = "", comment: str = "") -> Pending[Approval]:
        """Somebody approves; durable when this returns, and the run goes on once enough people have.

        Args:
            reference: a token, which says who it is; or the request's id, and then `by`.
            by: who it is: needed where the token is anyone's.
            comment: kept with the answer.

        Raises:
            ApprovalRefused: unknown, over, answered by them already, or what they approve has changed.
        """
        return self._decide("approve", reference, "approved", by, comment)

    def reject(self, reference: str, *, by: str = "", comment: str = "") -> Pending[Approval]:
        """Somebody rejects: one rejection is enough. As `approve`."""
        return self._decide("reject", reference, "rejected", by, comment)

    def delegate(self, reference: str, to: str, *, by: str = "", comment: str = "") -> Pending[Approval]:
        """Somebody else is asked instead; the token of whoever delegates is of no use any more.

        Raises:
            ApprovalRefused: as `approve`; or the other one is asked already.
        """
        text("delegate", _shown(reference), "to", to)

        def change(approval: Approval, seat: Seat, person: str, now: float, run: Run) -> Change:
            del run
            if approval.seat(to) not in (None, seat) or to == person:
                raise _refused("delegate", approval, "somebody who is not asked yet", to)
            new = asking.seat_for(self._engine().workspace, approval.id, to, now, person)
            event = Event(now, "delegated", to, person, comment)
            after = replace(approval, events=(*approval.events, event))
            statements = [
                rows.change_seat(approval.id, seat.person, "delegated"), rows.insert_seat(approval.id, new),
                rows.append_event(approval.id, event), *asking.tell(after, [to], "delegated"),
            ]  # fmt: skip
            return Change(approval.state, statements)

        return self._change("delegate", reference, by, comment, change)

    def reissue(self, approval_id: str) -> Pending[None]:
        """Asks once more in place of a request whose record is damaged; its tokens are of no use any more.

        Raises:
            ApprovalRefused: there is none of that id, or it is not damaged.
        """

        def work() -> str:
            workspace = self._engine().workspace
            found = {damaged.id: damaged for damaged in rows.approvals(workspace)[1] if not damaged.reissued}
            if approval_id not in found:
                raise ApprovalRefused(
                    "reissue", checks.shown(approval_id), found="another one",
                    expected=f"a damaged request: {', '.join(found) or 'there is none'}",
                )  # fmt: skip
            damaged = found[approval_id]
            workspace.write_rows(
                [rows.consume_approval(damaged.id), *rows.wake_visit(damaged.run_id, damaged.visit)]
            )
            return damaged.run_id

        async def operation() -> None:
            self._engine().wake(await to_thread.run_sync(work))

        return self._pending("approvals.reissue", operation)

    def clean(self, *, kept_s: float = APPROVALS_KEPT_S) -> Pending[None]:
        """What has expired ends, and records go that ended longer ago than `kept_s`. Opening does it, too.

        Raises:
            InputError: a negative length.
        """
        checks.seconds("clean approvals", "", "kept_s", kept_s, error=InputError)
        return self._pending("approvals.clean", lambda: clean_approvals(self._engine(), kept_s))

    # --- how ---

    def _decide(
        self, operation: str, reference: str, verdict: Verdict, by: str, comment: str
    ) -> Pending[Approval]:
        def change(approval: Approval, seat: Seat, person: str, now: float, run: Run) -> Change:
            workspace = self._engine().workspace
            if verdict == "approved" and not asking.is_unchanged(workspace, run, approval):
                _, statements = asking.ended(approval, ApprovalState.CHANGED, now)
                return Change(ApprovalState.CHANGED, statements[1:])
            state = approval.after(verdict)
            statements = [rows.append_event(approval.id, Event(now, verdict, seat.person, person, comment))]
            if seat.person != ANYONE:
                statements.append(rows.change_seat(approval.id, seat.person, "voted"))
            if state is not ApprovalState.OPEN:
                statements.append(rows.end_approval(approval.id, state, now))
            return Change(state, statements, check=verdict == "approved")

        return self._change(operation, reference, by, comment, change)

    def _change(
        self, operation: str, reference: str, by: str, comment: str,
        change: Callable[[Approval, Seat, str, float, Run], Change],
    ) -> Pending[Approval]:  # fmt: skip
        text(operation, _shown(reference), "by", by, empty=True)
        if len(checked_comment := str(comment)) > COMMENT_CHARS_MAX or checked_comment != comment:
            raise InputError(
                operation, _shown(reference), expected=f"comment: at most {COMMENT_CHARS_MAX} characters",
                found=checks.shown(comment)[:40],
            )  # fmt: skip
        made: list[tuple[Approval, Change]] = []

        def prepare() -> FileTransaction:
            engine = self._engine()
            now = engine.clock.now()
            approval, asked = self._find(operation, reference)
            seat, person = _seat_of(operation, approval, asked, by)
            _refuse_over(operation, approval, person)
            run = rows.get_run(engine.workspace, approval.run_id)
            changed = change(approval, seat, person, now, run)
            files = engine.workspace.begin(label=f"{run.id}/{operation}", owner=run.id, actor=person)
            if changed.check:
                asking.check(files, run, replace(approval, state=ApprovalState.APPROVED))
            files.statements.append(rows.still_open(approval.id, len(approval.events)))
            files.statements += changed.statements
            files.statements += rows.wake(run.id)
            made[:] = [(approval, changed)]
            return files

        async def operate() -> Approval:
            engine = self._engine()
            commit = await engine.executor.commits.repeat(prepare)
            approval, changed = made[0]
            engine.wake(approval.run_id)
            engine.outbox.notify()
            log = logger(run=approval.run_id, approval=approval.id, txid=commit.txid)
            log.info("approval.answered", operation=operation, state=changed.state.value)
            if changed.state is ApprovalState.CHANGED:
                raise _refused(
                    operation, approval, "what was asked about", "other contents: they have changed since",
                    hint="the request is over, and its run knows: look at what there is now",
                )  # fmt: skip
            return await to_thread.run_sync(lambda: self._find(operation, approval.id)[0])

        return self._pending(f"approvals.{operation}", operate)

    def _read(self, **conditions: Any) -> list[Approval]:
        """In a thread. Damaged records are set aside, and the others are unharmed."""
        engine = self._engine()
        found, damaged = rows.approvals(engine.workspace, **conditions)
        for broken in damaged:
            if not rows.is_set_aside(engine.workspace, broken.id):
                logger(run=broken.run_id).error(
                    "approval.damaged", approval=broken.id, problem=broken.problem
                )
                engine.workspace.write_rows(rows.set_aside(broken.id, broken.problem, engine.clock.now()))
        now = engine.clock.now()
        return [_as_of(approval, now) for approval in found]

    def _find(self, operation: str, reference: str) -> tuple[Approval, str | None]:
        """A request, and whose token it was known by (None: its id)."""
        text(operation, "an approval", "a token or an id", reference)
        workspace, asked, approval_id = self._engine().workspace, None, reference
        if reference.startswith(TOKEN_PREFIX):
            known = rows.approval_with_token(workspace, hash_of(reference))
            approval_id, asked = known if known is not None else ("", None)
        found = self._read(approval_id=approval_id)
        if found:
            return found[0], asked
        damaged = rows.approvals(workspace, approval_id=approval_id)[1]
        raise (ApprovalRefused if damaged else UnknownApproval)(
            operation, _shown(reference), expected="a request for approval",
            found="a damaged record" if damaged else "none of that token or id",
            hint=f"surefoot approvals reissue {approval_id}" if damaged else "surefoot approvals list",
        )  # fmt: skip


class Change:
    """What an answer makes of a request: its next state, and how."""

    def __init__(self, state: ApprovalState, statements: Sequence[Any], *, check: bool = False) -> None:
        self.state = state
        self.statements = list(statements)
        self.check = check  # the commit makes sure that the files are what is approved


COMMENT_CHARS_MAX = 20_000


def _as_of(approval: Approval, now: float) -> Approval:
    late = approval.state is ApprovalState.OPEN and now >= approval.expires_at
    return replace(approval, state=ApprovalState.EXPIRED) if late else approval


def _seat_of(operation: str, approval: Approval, asked: str | None, by: str) -> tuple[Seat, str]:
    """The seat somebody answers from, and who they are."""
    if asked not in (None, ANYONE) and by not in ("", asked):
        raise _refused(operation, approval, f"{asked}, whose token this is", by)
    person = by or asked or ""
    if not person:
        raise _refused(operation, approval, "to know who it is", "nobody's name", hint="by=… (--by NAME)")
    seat = approval.seat(person if asked is None else asked)
    if seat is None:
        raise _refused(operation, approval, f"one of {_asked(approval)}", person)
    return seat, person


def _refuse_over(operation: str, approval: Approval, person: str) -> None:
    votes = [event for event in approval.events if event.event in ("approved", "rejected")]
    said = "; ".join(f"{vote.event} by {vote.by}" for vote in votes)
    if approval.state is not ApprovalState.OPEN:
        raise _refused(
            operation,
            approval,
            "an open request",
            f"one that is {approval.state.value}" + f" ({said})" * bool(said),
        )
    if approval.has_voted(person):
        raise _refused(operation, approval, "each to answer once", f"{person} has answered ({said})")
    seat = approval.seat(person)
    if seat is not None and seat.state == "delegated":
        given = [
            event.person for event in approval.events if event.by == person and event.event == "delegated"
        ]
        raise _refused(
            operation, approval, "whoever is asked now", f"{person}, who has asked {given[-1]} instead"
        )


def _asked(approval: Approval) -> str:
    return names([seat.person for seat in approval.seats])


def _refused(
    operation: str, approval: Approval, expected: str, found: str, hint: str = ""
) -> ApprovalRefused:
    return ApprovalRefused(
        operation, f"{approval.id} ({approval.ask.title})", expected=expected, found=found,
        hint=hint or f"surefoot approvals show {approval.id}",
    )  # fmt: skip


def _shown(reference: object) -> str:
    """A token is never shown whole."""
    text_ = str(reference)
    return f"{text_[:8]}…" if text_.startswith(TOKEN_PREFIX) else text_[:80]
