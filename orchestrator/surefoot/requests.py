"""What somebody wants started, checked: a new run, as a value. Pure."""

from __future__ import annotations

from typing import Any

from . import checks, machine
from .declare import Workflow
from .errors import InputRefused
from .model import Placing, Run
from .names import checked_name, checked_run_id


def requested(
    workflow: Workflow,
    given: Any,
    *,
    run_id: str,
    now: float,
    source: str = "",
    queue: str = "",
    priority: int = 0,
    lane: str | None = None,
    dedup: str | None = None,
    delay_s: float = 0.0,
    deadline_s: float | None = None,
    parent: str | None = None,
    parent_visit: int = 0,
) -> Run:
    """The new run. Nothing is changed yet.

    Raises:
        InputRefused, DeclarationError: what was given does not fit.
    """
    if not isinstance(workflow, Workflow):
        raise InputRefused("start", repr(workflow)[:80], expected="a Workflow", found=type(workflow).__name__)
    workflow.check()
    model = workflow.parse_input(given)
    checked_run_id(run_id)
    if queue != "":
        checked_name("queue", queue)
    checks.text("start", run_id, "source", source, most=4_096, empty=True, error=InputRefused)
    delay_s = checks.seconds("start", run_id, "delay_s", delay_s, error=InputRefused)
    if deadline_s is None:
        deadline_s = workflow.deadline_s
    else:
        checks.seconds("start", run_id, "deadline_s", deadline_s, above=True, error=InputRefused)
    for name, word in (("lane", lane), ("dedup", dedup)):
        if word is not None:
            checks.text("start", run_id, name, word, error=InputRefused)
    placing = Placing(
        queue=queue,
        priority=checks.count("start", run_id, "priority", priority, least=-1_000_000, error=InputRefused),
        lane=lane,
        dedup=dedup,
        not_before=now + delay_s if delay_s else 0.0,
        deadline_at=None if deadline_s is None else now + delay_s + deadline_s,
        parent=parent,
        parent_visit=parent_visit,
    )
    return machine.created(
        run_id,
        workflow.graph,
        model.model_dump_json(),
        workflow.place(workflow.directory, model, run_id, operation="start"),
        source=source,
        at=now,
        version=workflow.version,
        placing=placing,
    )
