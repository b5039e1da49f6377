"""Declaring workflows: named steps, what they read, where they lead, and how they are retried."""

from __future__ import annotations

import os
import string
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar, overload

from pydantic import BaseModel

from surefoot_storage.paths import normalise

from . import checks
from .errors import DeclarationError
from .graph import VISITS_MAX, Graph
from .names import checked_name
from .options import (
    check_each,
    checked_model,
    checked_result,
    checked_retry,
    guards_of,
    lines,
    optional_length,
    outcomes_of,
)
from .retry import NO_RETRY, Retry
from .schedules import QUEUE, Overlap, Schedule, checked_schedule
from .steps import Done, Step, check_signature
from .telling import Telling
from .waits import M, NoPayload, Signal, parsed

if TYPE_CHECKING:
    from .guards import Guard

P = ParamSpec("P")
R = TypeVar("R")
StepName: TypeAlias = str | Step[..., Any]
Leads: TypeAlias = StepName | Done | Sequence[StepName]

READS_BYTES_MAX = 64 << 20
AT_ONCE = 16


class NoInput(BaseModel, extra="forbid"):
    """The input of workflows that take none."""


class Workflow(Telling):
    """A named graph of steps over one directory.

    Args:
        name: letters, digits, `.`, `_`, `-`.
        input: the pydantic model of what a run is started with.
        directory: each run's own directory, relative to the workspace; `{run_id}` and the input's
            fields are filled in. Steps name files relative to it.
        templates: where templates lie; relative to the file that declares the workflow.
        version: kept with each run. It says nothing by itself: see `pinned`.
        pinned: runs go on only where the workflow has the version that they were started with. Without
            it they go on with the code that is there, and a step that is gone fails its run by name.
        deadline_s: seconds after its start at which a run that is not over fails.
        guards: limits on what each of its transitions may do; see `guards`.
    """

    def __init__(
        self,
        name: str,
        *,
        input: type[BaseModel] = NoInput,  # noqa: A002 - the word that its users would look for
        directory: str = "runs/{run_id}",
        templates: str | os.PathLike[str] = "templates",
        version: str = "",
        pinned: bool = False,
        deadline_s: float | None = None,
        guards: Sequence[Guard] = (),
    ) -> None:
        self.name = checked_name("workflow", name)
        self.input = checked_model("input", name, input)
        self.directory = self.checked_pattern("directory", directory)
        self.version = checks.text("declare workflow", name, "version", version, empty=True)
        self.pinned = bool(pinned)
        if self.pinned and not version:
            raise DeclarationError(
                "declare workflow", name, expected="a version to pin its runs to", found="none",
                hint='Workflow(…, version="1", pinned=True)',
            )  # fmt: skip
        self.deadline_s = optional_length(name, "deadline_s", deadline_s)
        self.guards = guards_of(name, lines(guards))
        self.steps: dict[str, Step[..., Any]] = {}
        self.signals: dict[str, Signal[Any]] = {}
        self._notifier: Callable[..., Any] | None = None
        self.views = {}
        self.schedules: dict[str, Schedule] = {}
        self._graph: Graph | None = None
        declared_in = sys._getframe(1).f_globals.get("__file__")  # noqa: SLF001 - the file that declares the workflow
        base = os.path.dirname(os.path.abspath(declared_in)) if declared_in else os.getcwd()
        self.templates = os.path.join(base, os.fspath(templates))

    # --- declaring ---

    @overload
    def step(self, function: Callable[P, R]) -> Step[P, R]: ...

    @overload
    def step(
        self,
        function: None = None,
        *,
        name: str | None = ...,
        after: StepName | Sequence[StepName] | None = ...,
        outcomes: Mapping[str, Leads] | None = ...,
        each: str | Callable[..., Any] | None = ...,
        at_once: int = ...,
        reads: Iterable[str] = ...,
        workspace_reads: Iterable[str] = ...,
        reads_bytes_max: int = ...,
        writes: Iterable[str] | None = ...,
        templates: Iterable[str] = ...,
        retry: Retry = ...,
        timeout_s: float | None = ...,
        deadline_s: float | None = ...,
        visits_max: int = ...,
        locks: Iterable[str] = ...,
        guards: Sequence[Guard] = ...,
        result: type[BaseModel] | None = ...,
    ) -> Callable[[Callable[P, R]], Step[P, R]]: ...

    def step(
        self,
        function: Callable[..., Any] | None = None,
        *,
        name: str | None = None,
        after: StepName | Sequence[StepName] | None = None,
        outcomes: Mapping[str, Leads] | None = None,
        each: str | Callable[..., Any] | None = None,
        at_once: int = AT_ONCE,
        reads: Iterable[str] = (),
        workspace_reads: Iterable[str] = (),
        reads_bytes_max: int = READS_BYTES_MAX,
        writes: Iterable[str] | None = None,
        templates: Iterable[str] = (),
        retry: Retry = NO_RETRY,
        timeout_s: float | None = None,
        deadline_s: float | None = None,
        visits_max: int = VISITS_MAX,
        locks: Iterable[str] = (),
        guards: Sequence[Guard] = (),
        result: type[BaseModel] | None = None,
    ) -> Any:
        """Declares a step: `def outline(tx: Transaction, brief: Brief) -> None`.

        Args:
            function: the body, where the decorator is used without parentheses.
            name: the step's identity; the function's name unless given.
            after: the step(s) that it follows; the one declared before it unless given. Several steps that
                follow one are parallel branches; a step that follows several starts once nothing that is
                still going on can lead to it. `[]`: it starts with the run.
            outcomes: the body returns one of these names, and what it leads to follows: a step, several,
                or `Done()`. The only way to go back: a loop.
            each: one visit for each item of a list, at the same time: the name of a JSON file in the run's
                directory, or a function of (tx, input). The body takes the item as its third argument.
            at_once: items worked on at the same time.
            reads: files and globs in the run's directory, loaded before the body starts.
            workspace_reads: the same, from the workspace's root.
            reads_bytes_max: refuses to load more than this.
            writes: files and globs in the run's directory that it may write, and no others (`/…` from the
                workspace's root): so that two branches that write one file are refused here.
            templates: checked to exist and compile before the body starts.
            retry: when a failed attempt is repeated.
            timeout_s: seconds for one attempt; its transaction can never commit after that.
            deadline_s: seconds for all attempts together, waits included.
            visits_max: how often one run may come by.
            locks: names; two steps that share one are never worked on at the same time.
            guards: limits on what its transitions may do, besides the workflow's.
            result: the model that the result file of the agent it launches must fit.

        Raises:
            GuardConflict: guards that nothing can meet together.
            DeclarationError: two steps of one name, an unknown predecessor, a wrong pattern or number.
        """
        given = {
            "after": after, "outcomes": outcomes, "each": each, "at_once": at_once, "reads": reads,
            "workspace_reads": workspace_reads, "reads_bytes_max": reads_bytes_max, "writes": writes,
            "templates": templates, "retry": retry, "timeout_s": timeout_s, "deadline_s": deadline_s,
            "visits_max": visits_max, "locks": locks, "guards": guards,
            "result": result,
        }  # fmt: skip

        def declare(body: Callable[..., Any]) -> Step[..., Any]:
            return self._declare(body, getattr(body, "__name__", None) if name is None else name, given)

        return declare if function is None else declare(function)

    def _declare(self, body: Callable[..., Any], name: object, given: Mapping[str, Any]) -> Step[..., Any]:
        what, label = "declare step", checked_name("step", name, self.steps)
        subject, each = f"{self.name}/{label}", given["each"]
        items = each is not None
        check_each(subject, each)
        check_signature(label, body, items=items)
        writes = given["writes"]
        step = Step(
            name=label,
            function=body,
            workflow=self,
            after=self._predecessors(label, given["after"]),
            after_given=given["after"] is not None,
            outcomes=outcomes_of(subject, given["outcomes"]),
            each=self.checked_pattern("each", each) if isinstance(each, str) else each,
            at_once=checks.count(what, subject, "at_once", given["at_once"], most=1_000),
            reads=self._patterns("reads", given["reads"], item=items),
            workspace_reads=self._patterns("workspace_reads", given["workspace_reads"], item=items),
            reads_bytes_max=checks.count(
                what, subject, "reads_bytes_max", given["reads_bytes_max"], least=0, most=1 << 50
            ),
            writes=None if writes is None else self._patterns("writes", writes, item=items),
            templates=tuple(checks.text(what, subject, "templates", t) for t in lines(given["templates"])),
            retry=checked_retry(subject, given["retry"]),
            timeout_s=optional_length(subject, "timeout_s", given["timeout_s"]),
            deadline_s=optional_length(subject, "deadline_s", given["deadline_s"]),
            visits_max=checks.count(what, subject, "visits_max", given["visits_max"]),
            locks=tuple(checks.text(what, subject, "locks", lock) for lock in lines(given["locks"])),
            guards=guards_of(subject, [*self.guards, *lines(given["guards"])]),
            result=checked_result(subject, given["result"]),
        )
        self.steps[label] = step
        self._graph = None
        return step

    @overload
    def signal(self, name: str) -> Signal[NoPayload]: ...

    @overload
    def signal(self, name: str, payload: type[M]) -> Signal[M]: ...

    def signal(self, name: str, payload: type[Any] = NoPayload) -> Signal[Any]:
        """Declares a message that its runs can wait for, with the pydantic model of what it carries.

        A step returns `tx.wait_for(signal)`, somebody calls `engine.send(run_id, signal, …)`, and the step
        after it reads it: `tx.received(signal)`.
        """
        label = checked_name("signal", name, self.signals)
        declared: Signal[Any] = Signal(label, checked_model("signal", label, payload))
        self.signals[label] = declared
        return declared

    def schedule(
        self,
        name: str,
        cron: str,
        *,
        zone: str = "UTC",
        input: Any = None,  # noqa: A002 - the word that its users would look for
        catch_up_s: float = 3_600.0,
        overlap: Overlap = "skip",
        queue: str = QUEUE,
        priority: int = 0,
    ) -> Schedule:
        """Starts the workflow at certain times, as long as an engine that knows it is a worker somewhere.

        The slot and its run are one commit: no slot is started twice, and none is lost within `catch_up_s`.

        Args:
            name: known across restarts; a changed expression begins with its next slot.
            cron: minute, hour, day, month, weekday, as Debian's cron reads them.
            zone: the time zone of these.
            input: what each run is started with.
            catch_up_s: slots that nobody could start are made up for when they are no older than this.
            overlap: what happens to a slot while the run of an earlier one is not over: it is skipped,
                waits for its turn (`queue`), ends the earlier one (`cancel`), or runs beside it (`allow`).
            queue: where its runs wait.
            priority: of its runs; lower goes first.

        Raises:
            DeclarationError, InputRefused: it could never work.
        """
        if name in self.schedules:
            raise DeclarationError(
                "declare schedule", name, expected="a name of its own", found=f"two schedules named {name!r}"
            )
        declared = checked_schedule(
            name, self, cron, zone=zone, given=input, catch_up_s=catch_up_s, overlap=overlap, queue=queue,
            priority=priority,
        )  # fmt: skip
        self.schedules[name] = declared
        return declared

    # --- what was declared ---

    @property
    def graph(self) -> Graph:
        """Which steps follow which."""
        if self._graph is None:
            self._graph = Graph.of(self.name, (step.node for step in self.steps.values()))
        return self._graph

    def check(self) -> None:
        """Refuses a graph that can never work. An engine does this before anything is started.

        Raises:
            DeclarationError: no step, an unknown or unreachable one, a circle that nothing leaves, two
                branches that write one file.
        """
        self.graph.check()

    def parse_input(self, given: Any) -> BaseModel:
        """The validated input; `given` is the model, a dict, or JSON text.

        Raises:
            InputRefused: the model does not take it, and why for each field.
        """
        return parsed(self.input, given, operation="start", subject=self.name)

    def place(
        self, pattern: str, given: BaseModel, run_id: str, *, operation: str = "read", **more: object
    ) -> str:
        """A declared pattern with its fields filled in."""
        values = {name: getattr(given, name) for name in type(given).model_fields}
        return normalise(pattern.format(run_id=run_id, **{**values, **more}), operation=operation)

    # --- checks ---

    def _predecessors(self, name: str, after: StepName | Sequence[StepName] | None) -> tuple[str, ...]:
        if after is None:
            return tuple(list(self.steps)[-1:])
        given = [after] if isinstance(after, str | Step) else lines(after)
        names = tuple(step.name if isinstance(step, Step) else step for step in given)
        for predecessor in names:
            if predecessor not in self.steps:
                raise DeclarationError(
                    "declare step",
                    f"{self.name}/{name}",
                    expected=f"after= one of {', '.join(self.steps) or 'no step yet'}",
                    found=str(predecessor),
                    hint="declare a step below the ones that it follows; go back by outcomes=, or Next(step)",
                )
        return tuple(dict.fromkeys(names))

    def _patterns(self, what: str, patterns: object, *, item: bool) -> tuple[str, ...]:
        return tuple(self.checked_pattern(what, pattern, item=item) for pattern in lines(patterns))

    def checked_pattern(self, what: str, pattern: object, *, item: bool = False) -> str:
        """A declared path, whose fields are known and which stays inside.

        Raises:
            DeclarationError: they are not, or it does not.
        """
        if not isinstance(pattern, str):
            raise DeclarationError(
                f"declare {what}", repr(pattern), expected="text", found=type(pattern).__name__
            )
        try:
            fields = {field for _, field, _, _ in string.Formatter().parse(pattern) if field is not None}
        except ValueError as error:
            raise DeclarationError(f"declare {what}", pattern, found=str(error)) from error
        allowed = {*self.input.model_fields, "run_id", *(("item", "index") if item else ())}
        unknown = fields - allowed
        if unknown:
            raise DeclarationError(
                f"declare {what}",
                pattern,
                expected=f"fields of {self.input.__name__} or run_id",
                found=", ".join(sorted(unknown)) or "an empty {}",
            )
        if ".." in pattern.split("/") or (pattern.startswith("/") and what != "writes"):
            raise DeclarationError(
                f"declare {what}", pattern, expected="a path that stays inside", found=pattern
            )
        return pattern


def checked_workflow(given: object) -> Workflow:
    """A workflow that can work.

    Raises:
        DeclarationError: it is none, or it cannot.
    """
    if not isinstance(given, Workflow):
        raise DeclarationError(
            "open the engine", repr(given)[:80], expected="a Workflow", found=type(given).__name__
        )
    if given.steps:
        given.check()
    return given
