"""How a wait has ended: decided by what is there when its run looks, in a worker thread."""

from __future__ import annotations

import json
from typing import Any

from surefoot_storage import Workspace

from . import asking, rows
from .errors import InputRefused
from .log import logger
from .model import Run, RunState, Visit
from .waits import Ended, Signal, Wait


def look(source: Workspace, run: Run, visit: Visit, signals: dict[str, Signal[Any]], now: float) -> Ended:
    """What has ended the wait of a parked visit."""
    wait = Wait.from_json(visit.wait or "")
    if wait.kind == "approval":
        return asking.look(source, run, visit, wait, now)
    ended = Ended()
    if wait.kind == "message":
        _receive(source, run, visit, signals.get(wait.name), wait, ended)
    if wait.kind == "runs":
        _count_runs(source, run, wait, ended)
    if ended.outcome is None and wait.until is not None and now >= wait.until:
        ended.outcome = "elapsed" if wait.kind == "time" else "timeout"
    return ended


def _receive(
    source: rows.Source,
    run: Run,
    visit: Visit,
    signal: Signal[Any] | None,
    wait: Wait,
    ended: Ended,
) -> None:
    """The oldest message that its signal takes; those before it that it does not are set aside."""
    for message in rows.waiting_messages(source, run.id, wait.name):
        try:
            payload = message.payload if signal is None else signal.parse(message.payload).model_dump_json()
        except InputRefused as error:
            logger(run=run.id, step=visit.step).warning(
                "message.refused", signal=wait.name, message=message.id, found=error.found
            )
            ended.statements.append(rows.refuse_message(message, error.found))
            continue
        ended.outcome, ended.payload = "received", payload
        ended.statements.append(rows.consume(message, visit.number))
        return


def _count_runs(source: rows.Source, run: Run, wait: Wait, ended: Ended) -> None:
    children = rows.children_of(source, run.id, wait.of)
    states = {RunState(child["state"]) for child in children}
    if wait.errors and RunState.ERROR in states:
        ended.outcome = "error"
    elif all(state.is_over for state in states):
        ended.outcome = "cancelled" if RunState.CANCELLED in states else "completed"
    ended.payload = json.dumps([{"run_id": child["id"], "state": child["state"]} for child in children])
