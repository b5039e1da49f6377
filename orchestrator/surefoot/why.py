"""Why does a run not go on? One sentence, the evidence for it, and the command that helps. Without a lock."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from surefoot_storage import Checkup

from . import rows
from .approvals import Approval, names
from .model import Run, RunState, Visit, VisitState
from .summary import foremost
from .waits import Wait


@dataclass(frozen=True)
class Answer:
    """Why a run is where it is."""

    run_id: str
    kind: str  # a word for programs
    sentence: str
    evidence: tuple[str, ...] = ()
    remedy: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def why(source: rows.Source, checkup: Checkup, run_id: str, *, now: float) -> Answer:
    """The one thing that a run waits for, or what has stopped it.

    Raises:
        UnknownRun: there is none.
    """
    run = rows.get_run(source, run_id)
    front = foremost(run)
    if run.state.is_over or front is None:
        return Answer(run.id, "over", f"it is {run.state.value} since {_moment(run.updated_at)}")
    blocked = rows.blocked_transactions(source)
    if blocked:
        return Answer(
            run.id, "blocked", f"a committed transaction ({blocked[0]['label']}) is not all in its place",
            tuple(entry["cause"] for entry in blocked), "surefoot recover",
        )  # fmt: skip
    if run.owner:
        return _of_owner(source, checkup, run, front)
    if run.state is RunState.PAUSED:
        return _paused(source, run)
    if run.state is RunState.ERROR:
        return _in_error(run)
    if run.due_at is not None and run.due_at <= now:
        return _of_queue(source, checkup, run, front, now)
    return _waiting(source, run, front)


def _of_owner(source: rows.Source, checkup: Checkup, run: Run, front: Visit) -> Answer:
    workers = {worker.id: worker for worker in checkup.workers()}
    worker = workers.get(run.owner)
    tries = tuple(_attempt(a) for a in rows.attempts_of(source, run.id) if a["ended_at"] is None)
    if worker is None or worker.pid is None:
        return Answer(
            run.id, "worker-died",
            f"the process that worked on {front.step} has died; the next worker takes it over",
            tries, f"surefoot work, or surefoot advance {run.id} --all",
        )  # fmt: skip
    if worker.is_stopped:
        return Answer(
            run.id, "worker-stopped",
            f"process {worker.pid} works on {front.step}, and is stopped by a signal",
            tries, f"kill -CONT {worker.pid}; or end it: other workers take the run when its lease is over",
        )  # fmt: skip
    return Answer(run.id, "working", f"process {worker.pid} is working on {front.step}", tries)


def _attempt(attempt: Mapping[str, Any]) -> str:
    return f"attempt {attempt['number']} at {attempt['step']} began {_moment(attempt['started_at'])}"


def _paused(source: rows.Source, run: Run) -> Answer:
    event = rows.audit_log(source, run.id)[-1]
    undone = event["event"] == "undo"
    what = "a transition was undone" if undone else "somebody has paused it"
    remedy = f"surefoot advance {run.id} does the step again" if undone else f"surefoot unpause {run.id}"
    return Answer(run.id, "paused", f"{what}, {_moment(event['at'])}", (), remedy)


def _in_error(run: Run) -> Answer:
    failed = [visit for visit in run.open if visit.state is VisitState.ERROR and visit.failure is not None]
    causes = tuple(f"{v.step}: {v.failure.error}: {v.failure.message}" for v in failed if v.failure)
    first = failed[0]
    assert first.failure is not None
    times = f"after {first.failures} attempt(s)" if first.failures else "at once"
    more = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
    return Answer(
        run.id, "error", f"{first.step} failed for good {times}{more}", causes,
        first.failure.hint or f"surefoot advance {run.id} tries again; surefoot skip {run.id} goes on",
    )  # fmt: skip


def _of_queue(source: rows.Source, checkup: Checkup, run: Run, front: Visit, now: float) -> Answer:
    """It is due, and nobody has taken it."""
    paused = rows.paused_queues(source)
    for name in (run.queue, rows.EVERY):
        if name in paused:
            what = "every queue" if name == rows.EVERY else f"queue {name!r}"
            reason = (paused[name],) if paused[name] else ()
            return Answer(
                run.id, "queue-paused", f"{what} is paused", reason, f"surefoot queue resume {name}"
            )
    ahead = rows.ahead_in_lane(source, run)
    if ahead:
        return Answer(
            run.id, "lane", f"run {ahead[0]} of the same lane ({run.lane}) goes first",
            (f"{len(ahead)} run(s) are ahead",), f"surefoot why {ahead[0]}",
        )  # fmt: skip
    living = [worker for worker in checkup.workers() if worker.pid is not None]
    if not living:
        return Answer(
            run.id, "no-worker", f"{front.step} is due, and no engine has the workspace open", (),
            f"surefoot advance {run.id} --all" if not run.queue else f"surefoot work --queue {run.queue}",
        )  # fmt: skip
    facts = {fact["queue"]: fact for fact in rows.queue_facts(source, now)}.get(run.queue, {})
    evidence = tuple(f"process {worker.pid} has the workspace open" for worker in living)
    if not run.queue:
        return Answer(
            run.id, "nobody-drives", f"{front.step} is due, and nobody drives it: it is in no queue",
            evidence,
            f"surefoot advance {run.id} --all",
        )  # fmt: skip
    counts = f"queue {run.queue!r}: {facts.get('running', 0)} running, {facts.get('ready', 0)} ready"
    return Answer(
        run.id, "queued", f"{front.step} is due, and no worker has taken it from queue {run.queue!r} yet",
        (counts, *evidence), f"is there a worker that serves it, and knows workflow {run.workflow!r}?",
    )  # fmt: skip


def _waiting(source: rows.Source, run: Run, front: Visit) -> Answer:
    if front.state is VisitState.PARKED:
        return _parked(source, run, front)
    if front.failure is not None:
        failure = front.failure
        return Answer(
            run.id, "retry",
            f"{front.step} failed {front.failures} time(s), and is tried again {_moment(front.due_at)}",
            (f"{failure.error}: {failure.message}",), f"surefoot advance {run.id} tries it now",
        )  # fmt: skip
    return Answer(
        run.id, "delayed", f"{front.step} shall not begin before {_moment(front.due_at)}", (),
        f"surefoot advance {run.id} begins it now",
    )  # fmt: skip


def _parked(source: rows.Source, run: Run, front: Visit) -> Answer:
    wait = Wait.from_json(front.wait or "")
    until = "" if wait.until is None else f", until {_moment(wait.until)}"
    if wait.kind == "time":
        return Answer(run.id, "sleeping", f"{front.step} sleeps{until}")
    if wait.kind == "runs":
        left = [c for c in rows.children_of(source, run.id, wait.of) if not RunState(c["state"]).is_over]
        names = tuple(f"{child['id']}: {child['state']} at {child['step']}" for child in left)
        sentence = f"{front.step} waits for {len(left)} run(s) that it has started{until}"
        return Answer(run.id, "runs", sentence, names, f"surefoot why {left[0]['id']}" if left else "")
    if wait.kind == "approval":
        return _asking(source, run, front, until)
    if wait.kind == "agent":
        return _agent(source, run, front)
    sent = _refused(rows.messages_of(source, run.id), wait.name)
    return Answer(
        run.id, "signal", f"{front.step} waits for signal {wait.name!r}{until}", sent,
        f"surefoot send {run.id} {wait.name}",
    )  # fmt: skip


def _asking(source: rows.Source, run: Run, front: Visit, until: str) -> Answer:
    latest = rows.latest_approval(source, run.id, front.number)
    approval = latest[0] if latest else None
    if not isinstance(approval, Approval):
        problem = (approval.problem,) if approval else ()
        hint = f"surefoot approvals reissue {approval.id}" if approval else f"surefoot resume {run.id}"
        return Answer(run.id, "approval", f"{front.step} asks with a record that is damaged", problem, hint)
    left = names([seat.person for seat in approval.seats if seat.state == "open"])
    answered = tuple(
        f"{event.event} by {event.by} at {_moment(event.at)}" + f": {event.comment}" * bool(event.comment)
        for event in approval.events
        if event.by
    )
    sentence = f"{front.step} asks {left}: {approval.ask.title}{until}"
    return Answer(run.id, "approval", sentence, answered, f"surefoot approvals show {approval.id}")


def _agent(source: rows.Source, run: Run, front: Visit) -> Answer:
    found = rows.agents(source, run_id=run.id, visit=front.number, limit=1)
    if not found:
        return Answer(run.id, "agent", f"{front.step} waits for an agent that is about to be wanted")
    row = found[0]
    stopped = rows.paused_queues(source).get(rows.STOPPED)
    if row.state == "wanted" and stopped is not None:
        return Answer(
            run.id, "agents-stopped", f"{front.step} waits for an agent, and none is launched",
            (stopped,), "surefoot agent start-again",
        )  # fmt: skip
    evidence = [f"command: {' '.join(row.spec.argv)[:80]}"]
    if row.errors:
        evidence.append(f"{row.errors} looks at it have failed: {row.evidence.get('probe_error')}")
    if row.state == "wanted":
        sentence = f"{front.step} waits for agent {row.id}, which nobody has launched yet"
        return Answer(
            run.id, "agent", sentence, tuple(evidence), "surefoot supervise; or others of its kind run"
        )
    since = _moment(row.started_at)
    sentence = f"{front.step} waits for agent {row.id}: {row.state}" + f" since {since}" * bool(since)
    return Answer(run.id, "agent", sentence, tuple(evidence), f"surefoot agent logs {row.id}")


def _refused(messages: Sequence[Mapping[str, Any]], name: str) -> tuple[str, ...]:
    refused = [m for m in messages if m["topic"] == name and m["refused"]]
    return tuple(f"a message of {_moment(m['at'])} was refused: {m['refused']}" for m in refused)


def _moment(seconds: float | None) -> str:
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
