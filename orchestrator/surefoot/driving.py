"""Who moves a run on, and whether a run that is there is the one that was asked for."""

from __future__ import annotations

import anyio

from .errors import RunRefused
from .model import Run, RunResult


class Driver:
    """The one task that moves a run on, and what others wait for."""

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self.cancelled = anyio.Event()  # whoever cancelled the scope has settled the run
        self.done = anyio.Event()
        self.result: RunResult | None = None


def same_run(there: Run, new: Run, on_exists: str) -> Run:
    """The run that is there, where starting it again is the same.

    Raises:
        RunRefused: it is another one, or `on_exists` is `refuse`.
    """
    same = (there.workflow, there.input) == (new.workflow, new.input)
    if same and on_exists == "return":
        return there
    raise RunRefused(
        "start",
        new.id,
        expected="a new id" if same else "the workflow and input that the run was started with",
        found=f"a run of {there.workflow} that is {there.state.value}"
        + ("" if same else ", with other input"),
        hint="choose another id, or drop on_exists='refuse'" if same else "choose another id",
    )
