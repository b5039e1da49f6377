"""How a run moves. Pure: `(run, what happened, when) -> run`; the engine carries it out.

A run is a set of open *visits*: one of each step that is due, parked, waiting for others or in error.
What a person sees of it (its state, its step) is summed up from them by `summary.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .approvals import next_look
from .graph import Graph
from .model import Failure, Placing, Run, RunState, Visit, VisitState
from .summary import summed, with_due_at
from .waits import Wait

INTERRUPTIONS_MAX = 5
"""A step during which the process died this often is not started again by itself."""


@dataclass(frozen=True)
class Choice:
    """Where a visit leads: its outcome, and the steps that follow."""

    outcome: str
    steps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decision:
    """What a body has returned, as far as its run is concerned: where it leads, its items, or its wait."""

    choice: Choice
    items: Sequence[Any] | None = None
    wait: Wait | None = None

    def as_facts(self) -> dict[str, Any]:
        """For JSON."""
        wait = self.wait.to_json() if self.wait else None
        items = None if self.items is None else list(self.items)
        return {
            "outcome": self.choice.outcome,
            "steps": list(self.choice.steps),
            "items": items,
            "wait": wait,
        }

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Decision:
        """From JSON."""
        wait = Wait.from_json(facts["wait"]) if facts["wait"] else None
        return cls(Choice(facts["outcome"], tuple(facts["steps"])), facts["items"], wait)


class LapsExceeded(Exception):
    """A run came by one step more often than the step allows."""

    def __init__(self, step: str, most: int) -> None:
        super().__init__(f"the run came by {step} {most} times, which is its visits_max")
        self.hint = "the loop does not end by itself: mend what it waits for, or raise visits_max"


def created(
    run_id: str,
    graph: Graph,
    payload: str,
    directory: str,
    *,
    source: str,
    at: float,
    version: str = "",
    placing: Placing = Placing(),  # noqa: B008 - a frozen value
) -> Run:
    """A new run, its first step due, or its first steps."""
    run = Run(
        id=run_id, workflow=graph.workflow, input=payload, directory=directory, state=RunState.RUNNING,
        step=None, position=0, failures=0, interruptions=0, next_at=None, revision=0, created_at=at,
        updated_at=at, source=source, version=version, queue=placing.queue, priority=placing.priority,
        lane=placing.lane, dedup=placing.dedup, deadline_at=placing.deadline_at, parent=placing.parent,
        parent_visit=placing.parent_visit,
    )  # fmt: skip
    return _moved(_opened(run, graph.roots, graph, at, first_at=placing.not_before), at)


def begun_at(run: Run, step: str, graph: Graph) -> Run:
    """A new run that begins at another step than others."""
    fresh = replace(run, open=(), visits=0, laps="{}", revision=0)
    return _moved(_opened(fresh, (step,), graph, run.created_at, first_at=0.0), run.created_at)


def unpaused(run: Run) -> Run:
    """Somebody has said how it goes on."""
    return summed(replace(run, paused=False))


def decided(run: Run, number: int, decision: Decision, graph: Graph, at: float) -> Run:
    """A visit's body is committed.

    Raises:
        LapsExceeded: a loop has gone round too often.
    """
    if decision.items is not None:
        return fanned_out(run, number, decision.items, decision.choice, graph, at)
    if decision.wait is not None:
        return parked(run, number, decision.wait, at)
    return stepped(run, number, decision.choice, graph, at)


def stepped(
    run: Run, number: int, choice: Choice, graph: Graph, at: float, *, transition: bool = True
) -> Run:
    """A visit is over, and what follows it is due: the steps of the choice, or what waits for its group.

    Raises:
        LapsExceeded: a loop has gone round too often.
    """
    visit = _visit(run, number)
    rest = tuple(other for other in run.open if other.number != number)
    moved: dict[str, Any] = {"position": run.position + transition, "last_step": visit.step}
    if visit.group is None or not any(other.group == visit.group for other in rest):
        payload = visit.payload if visit.state is VisitState.PARKED else None
        run = _opened(run, choice.steps, graph, at, among=rest, payload=payload, **moved)
    else:
        run = replace(run, open=rest, **moved)
    return _moved(_joined(run, graph), at)


def fanned_out(run: Run, number: int, items: Sequence[Any], choice: Choice, graph: Graph, at: float) -> Run:
    """A visit becomes one for each item; with no item it is over."""
    if not items:
        return stepped(run, number, choice, graph, at)
    visit = _visit(run, number)
    opened = tuple(
        Visit(
            run.visits + 1 + index, visit.step, item=json.dumps(item), index=index, group=number,
            deadline_at=visit.deadline_at, opened=run.revision + 1,
        )
        for index, item in enumerate(items)
    )  # fmt: skip
    rest = tuple(other for other in run.open if other.number != number)
    visits = run.visits + len(opened)
    return _moved(replace(run, open=rest + opened, visits=visits, position=run.position + 1), at)


def parked(run: Run, number: int, wait: Wait, at: float) -> Run:
    """A visit's body is committed, and it waits: as another visit of the same step."""
    visit = _visit(run, number)
    look_at = next_look(wait.ask, at, at, escalated=False) if wait.ask else None
    wait = replace(wait, until=wait.due_at(at), look_at=look_at)
    waiting = Visit(
        run.visits + 1,
        visit.step,
        VisitState.PARKED,
        due_at=_earliest(wait.until, look_at, visit.deadline_at),
        wait=wait.to_json(),
        topic=wait.topic,
        item=visit.item,
        index=visit.index,
        group=visit.group,
        deadline_at=visit.deadline_at,
        opened=run.revision + 1,
    )
    rest = tuple(other for other in run.open if other.number != number)
    run = replace(run, open=(*rest, waiting), visits=run.visits + 1, position=run.position + 1)
    return _moved(replace(run, last_step=visit.step), at)


def received(run: Run, number: int, payload: str | None) -> Run:
    """What a parked visit waited for is there. The first half of its end: see `stepped`."""
    return _with(run, replace(_visit(run, number), payload=payload))


def still_waiting(run: Run, number: int, wait: Wait | None = None) -> Run:
    """A parked visit was woken, and waits on. Not a change of status."""
    visit = _visit(run, number)
    wait = wait or Wait.from_json(visit.wait or "")
    due_at = _earliest(wait.until, wait.look_at, visit.deadline_at)
    return with_due_at(_with(run, replace(visit, due_at=due_at, wait=wait.to_json())))


def due_now(run: Run, now: float) -> Run:
    """What has become due is due at once, so that the run counts as running. Not a change of status."""
    late = [
        v for v in run.open if v.state is VisitState.DUE and v.due_at is not None and 0.0 < v.due_at <= now
    ]
    for visit in late:
        run = _with(run, replace(visit, due_at=0.0))
    return with_due_at(run) if late else run


def woken(run: Run, numbers: Sequence[int]) -> Run:
    """What these parked visits wait for may be there. Not a change of status."""
    visits = (replace(visit, due_at=0.0) if visit.number in numbers else visit for visit in run.open)
    return with_due_at(replace(run, open=tuple(visits)))


def failed(run: Run, number: int, failure: Failure, retry_at: float | None, at: float) -> Run:
    """An attempt failed; tried again at `retry_at`, or not by itself."""
    visit = _visit(run, number)
    state = VisitState.ERROR if retry_at is None else visit.state
    after = replace(visit, state=state, failures=visit.failures + 1, due_at=retry_at, failure=failure)
    return _moved(_with(run, after), at)


def interrupted(run: Run, number: int, failure: Failure, at: float) -> Run:
    """The process died during an attempt. It is simply done again, unless that keeps happening."""
    visit = _visit(run, number)
    count = visit.interruptions + 1
    if count < INTERRUPTIONS_MAX:
        after = _with(run, replace(visit, interruptions=count))
        return replace(after, interruptions=count)  # not a change of status
    dead = replace(visit, state=VisitState.ERROR, interruptions=count, due_at=None, failure=failure)
    return _moved(_with(run, dead), at)


def retried(run: Run, at: float, *, number: int | None = None) -> Run:
    """Somebody wants what failed tried now, with all its attempts and no deadline, or that one visit only."""
    visits = (_again(visit, at) if number in (None, visit.number) else visit for visit in run.open)
    return _moved(replace(run, paused=False, deadline_at=None, open=tuple(visits)), at)


def _again(visit: Visit, at: float) -> Visit:
    if visit.state is VisitState.ERROR and visit.wait:  # it waits once more, as long as before
        wait = Wait.from_json(visit.wait)
        anew = wait.kind in ("approval", "agent")  # people are asked, and agents launched, once more: at once
        wait = replace(wait, until=wait.due_at(at), again=anew)
        due_at = 0.0 if anew else wait.until
        return replace(
            visit, state=VisitState.PARKED, failures=0, interruptions=0, due_at=due_at, wait=wait.to_json(),
            deadline_at=None,
        )  # fmt: skip
    if visit.state in (VisitState.ERROR, VisitState.DUE):
        return replace(visit, state=VisitState.DUE, failures=0, interruptions=0, due_at=0.0, deadline_at=None)
    return visit


def paused(run: Run, at: float) -> Run:
    """Nothing of it goes on before somebody says so."""
    return _moved(replace(run, paused=True), at)


def resumed(run: Run, at: float) -> Run:
    """It goes on where it was."""
    return _moved(replace(run, paused=False), at)


def cancelled(run: Run, at: float) -> Run:
    """The run ends here."""
    return _moved(replace(run, open=(), last_step=run.step, paused=False), at, state=RunState.CANCELLED)


def undone(
    run: Run, earlier: Mapping[str, Any], open_then: Sequence[Visit] | None, graph: Graph | None, at: float
) -> Run:
    """Back to an earlier status. What would go on by itself waits: or the step would simply be done again.

    `position` and the numbers of visits do not go back: they make the keys of effects, and what is done
    again tells of it anew. `open_then` is None where only the status knows what was open.
    """
    state = RunState(earlier["state"])
    if open_then is None:
        open_then = [Visit(0, earlier["step"])] if earlier["step"] and not state.is_over else []
    if state is RunState.ERROR and earlier["error"]:
        open_then = [_in_error(visit, earlier) for visit in open_then]
    there = {visit.number: visit for visit in run.open}
    opened: list[Visit] = []
    number = run.visits
    for visit in open_then:
        if visit.number not in there:
            number += 1
            fresh = replace(visit, number=number, interruptions=0, opened=run.revision + 1)
            if visit.joins:  # whether it still waits is found out below
                fresh = replace(fresh, state=VisitState.JOINING, due_at=None)
            elif visit.state is VisitState.DUE:
                fresh = replace(fresh, due_at=0.0)
            opened.append(fresh)
        else:
            opened.append(there[visit.number])
    pause = state.is_due or state is RunState.PAUSED
    after = replace(run, open=tuple(opened), visits=number, paused=pause, last_step=earlier["last_step"])
    return _moved(_joined(after, graph), at, state=state if state.is_over else None)


def _in_error(visit: Visit, earlier: Mapping[str, Any]) -> Visit:
    failure = Failure(**earlier["error"])
    if visit.step != failure.step:
        return visit
    return replace(visit, state=VisitState.ERROR, due_at=None, failure=failure)


def noted(run: Run, at: float) -> Run:
    """Nothing about it has changed but its files."""
    return _moved(run, at, state=run.state if run.state.is_over else None)


# --- visits ---


def _visit(run: Run, number: int) -> Visit:
    visit = run.visit(number)
    assert visit is not None, f"{run.id} has no open visit {number}"
    return visit


def _with(run: Run, visit: Visit) -> Run:
    return replace(run, open=tuple(visit if v.number == visit.number else v for v in run.open))


def _opened(
    run: Run,
    steps: Sequence[str],
    graph: Graph,
    at: float,
    *,
    among: tuple[Visit, ...] = (),
    payload: str | None = None,
    first_at: float | None = None,
    **changes: Any,
) -> Run:
    """With these steps open besides others; `first_at` is when the first ones of a run are due."""
    laps: dict[str, int] = json.loads(run.laps)
    opened = list(among)
    number = run.visits
    for step in steps:
        node = graph.nodes.get(step)
        if step in graph.joins and _merge(opened, step, payload):
            continue
        _count_lap(laps, step, graph)
        number += 1
        deadline = None if node is None or node.deadline_s is None else at + node.deadline_s
        joining = step in graph.joins and first_at is None
        opened.append(
            Visit(
                number, step, VisitState.JOINING if joining else VisitState.DUE,
                due_at=None if joining else first_at or 0.0, payload=payload, deadline_at=deadline,
                joins=joining, opened=run.revision + 1,
            )
        )  # fmt: skip
    return replace(run, open=tuple(opened), visits=number, laps=json.dumps(laps), **changes)


def _merge(opened: list[Visit], step: str, payload: str | None) -> bool:
    """A second branch arrives at a join: True where the first one is waiting there."""
    for place, visit in enumerate(opened):
        if visit.step == step and visit.state is VisitState.JOINING:
            if payload is not None:
                opened[place] = replace(visit, payload=payload)
            return True
    return False


def _count_lap(laps: dict[str, int], step: str, graph: Graph) -> None:
    """So that a loop that never ends is noticed."""
    most = graph.nodes[step].visits_max if step in graph.nodes else None
    laps[step] = laps.get(step, 0) + 1
    if most is not None and laps[step] > most:
        raise LapsExceeded(step, most)


def _joined(run: Run, graph: Graph | None) -> Run:
    """Joins go on once nothing else that is open can still lead to them.

    Where only joins are left that wait for each other, the one that was declared first goes on. Without the
    workflow at hand, anything may lead to them.
    """
    waiting = [visit for visit in run.open if visit.state is VisitState.JOINING]
    if not waiting:
        return run
    order = list(graph.nodes) if graph else []
    waiting.sort(key=lambda visit: order.index(visit.step) if visit.step in order else -1)
    free = [visit for visit in waiting if not _is_awaited(visit, run, graph)]
    if not free and len(waiting) == len(run.open):
        free = waiting[:1]
    for visit in free:
        run = _with(run, replace(visit, state=VisitState.DUE, due_at=0.0))
    return run


def _is_awaited(join: Visit, run: Run, graph: Graph | None) -> bool:
    return any(
        graph is None or join.step in graph.leads_to.get(other.step, ())
        for other in run.open
        if other.number != join.number and other.step != join.step
    )


def _earliest(*moments: float | None) -> float | None:
    return min((moment for moment in moments if moment is not None), default=None)


def _moved(run: Run, at: float, *, state: RunState | None = None) -> Run:
    return summed(run, state=state, revision=run.revision + 1, updated_at=at)
