"""Steps as they are declared, and what they may return."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

from pydantic import BaseModel

from . import checks
from .errors import AgentFailed, DeclarationError, StepReturnRefused
from .graph import VISITS_MAX, Node
from .machine import Choice
from .names import checked_name
from .retry import EFFECT_RETRY, Retry
from .waits import GOOD, OUTCOMES, Wait

if TYPE_CHECKING:
    from .declare import Workflow
    from .guards import Guard

P = ParamSpec("P")
R = TypeVar("R")
EffectFunction = TypeVar("EffectFunction", bound=Callable[..., Any])
PartFunction = TypeVar("PartFunction", bound=Callable[..., Any])


@dataclass(frozen=True)
class Next:
    """Returned by a step: the run goes on with this step, and with no other that follows it."""

    step: str | Step[..., Any]

    @property
    def name(self) -> str:
        """The step's name."""
        return self.step if isinstance(self.step, str) else self.step.name


@dataclass(frozen=True)
class Done:
    """Returned by a step, or where an outcome leads: nothing follows it, whatever was declared."""


EFFECT_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Effect:
    """Something to tell an external system after the commit."""

    name: str
    function: Callable[..., Any]
    timeout_s: float
    retry: Retry


@dataclass(frozen=True)
class Part:
    """A named piece of a step: its changes are the step's, and land with them."""

    name: str
    function: Callable[..., Any]
    reads: tuple[str, ...]


@dataclass(eq=False)
class Step(Generic[P, R]):
    """A declared step. Made by `Workflow.step`."""

    name: str
    function: Callable[P, R]
    workflow: Workflow
    after: tuple[str, ...]
    reads: tuple[str, ...]
    workspace_reads: tuple[str, ...]
    reads_bytes_max: int
    templates: tuple[str, ...]
    retry: Retry
    timeout_s: float | None
    locks: tuple[str, ...]
    after_given: bool = True
    writes: tuple[str, ...] | None = None
    outcomes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    each: str | Callable[..., Any] | None = None
    at_once: int = 1
    deadline_s: float | None = None
    visits_max: int = VISITS_MAX
    guards: tuple[Guard, ...] = ()  # the workflow's included
    result: type[BaseModel] | None = None  # what the result file of its agent must be
    effects: list[Effect] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)

    @property
    def is_async(self) -> bool:
        """Whether the body is a coroutine function."""
        return inspect.iscoroutinefunction(self.function)

    @property
    def node(self) -> Node:
        """Its place in the workflow's graph."""
        return Node(
            self.name, self.after, explicit=self.after_given, outcomes=self.outcomes,
            writes=self.writes or (),
            fans_out=self.each is not None and self.at_once > 1, visits_max=self.visits_max,
            deadline_s=self.deadline_s,
        )  # fmt: skip

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The plain body, for unit tests and for steps that are made of others: it needs a `Transaction`."""
        from .transaction import Transaction  # the other way round at import time

        if not args or not isinstance(args[0], Transaction):
            raise DeclarationError(
                "call step",
                self.name,
                expected="a Transaction as the first argument",
                found=type(args[0]).__name__ if args else "nothing",
                hint="steps run in an engine: engine.run(workflow, …); called directly they protect nothing",
            )
        return self.function(*args, **kwargs)

    # --- what belongs to it ---

    @overload
    def effect(self, function: EffectFunction) -> EffectFunction: ...

    @overload
    def effect(
        self, function: None = None, *, timeout_s: float = ..., retry: Retry = ...
    ) -> Callable[[EffectFunction], EffectFunction]: ...

    def effect(
        self,
        function: Callable[..., Any] | None = None,
        *,
        timeout_s: float = EFFECT_TIMEOUT_S,
        retry: Retry = EFFECT_RETRY,
    ) -> Any:
        """Declares what to tell others once this step is committed: `async def tell(done: Committed)`.

        Best effort, from a durable outbox: at least once, in order per run, each delivery given
        `timeout_s`, failures repeated by `retry` and then set aside as dead. Never undoes the step.
        """
        checks.seconds("declare effect", self.name, "timeout_s", timeout_s, above=True)

        def declare(body: Callable[..., Any]) -> Callable[..., Any]:
            name = checked_name("effect", body.__name__, {effect.name for effect in self.effects})
            self.effects.append(Effect(name, body, timeout_s, retry))
            return body

        return declare if function is None else declare(function)

    @overload
    def part(self, function: PartFunction) -> PartFunction: ...

    @overload
    def part(
        self, function: None = None, *, reads: tuple[str, ...] | list[str] = ...
    ) -> Callable[[PartFunction], PartFunction]: ...

    def part(self, function: Callable[..., Any] | None = None, *, reads: Any = ()) -> Any:
        """Declares a sub-step: it runs after the body and the parts before it, in the same transaction.

        It takes what the body takes and returns nothing; whatever fails, nothing of the step has happened,
        and the error names the part.
        """

        def declare(body: Callable[..., Any]) -> Callable[..., Any]:
            name = checked_name("part", body.__name__, {part.name for part in self.parts})
            if inspect.iscoroutinefunction(body) != self.is_async:
                raise DeclarationError(
                    "declare part", f"{self.name}/{name}",
                    expected="an async function, as the step is" if self.is_async else "a plain function",
                    found="the other kind",
                )  # fmt: skip
            check_signature(f"{self.name}/{name}", body, items=self.each is not None)
            patterns = tuple(
                self.workflow.checked_pattern("reads", p, item=self.each is not None) for p in reads
            )
            self.parts.append(Part(name, body, patterns))
            return body

        return declare if function is None else declare(function)

    # --- where it leads ---

    def resolve(self, returned: Any) -> Choice:
        """Where what the body returned leads.

        Raises:
            StepReturnRefused: it returned something else, or did not choose where it must.
        """
        if self.each is not None and returned is not None:
            raise self._refused("None from each item", returned, "a step after it can choose")
        if self.outcomes:
            return self._chosen(returned)
        if isinstance(returned, Done):
            return Choice("done", ())
        if isinstance(returned, Next):
            if returned.name not in self.workflow.steps:
                raise self._refused(f"one of {', '.join(self.workflow.steps)}", returned)
            return Choice(f"next:{returned.name}", (returned.name,))
        if returned is not None:
            hint = "write what the step produced to a file; its return value says where to go"
            raise self._refused("None, Next(step), Done() or a wait", returned, hint)
        return Choice("committed", self.workflow.graph.followers[self.name])

    def _chosen(self, returned: Any) -> Choice:
        names = ", ".join(self.outcomes)
        if not isinstance(returned, str) or returned not in self.outcomes:
            raise self._refused(
                f"one of its outcomes: {names}", returned, f"return {next(iter(self.outcomes))!r}"
            )
        return Choice(returned, self.outcomes[returned])

    def resolve_wait(self, wait: Wait, outcome: str, why: str = "") -> Choice:
        """Where the outcome of a wait leads.

        Raises:
            StepReturnRefused: the step does not say, and it is not what the wait was for.
            AgentFailed: the same of an agent, with `why`.
        """
        if outcome in self.outcomes:
            return Choice(outcome, self.outcomes[outcome])
        if not self.outcomes and outcome == GOOD[wait.kind]:
            return Choice(outcome, self.workflow.graph.followers[self.name])
        if wait.kind == "agent":
            raise AgentFailed(
                "run", why, expected="it to succeed, or outcomes= to say what follows", found=outcome,
                hint="surefoot agent show says more; surefoot advance launches it again",
            )  # fmt: skip
        raise StepReturnRefused(
            "follow", self.name,
            expected=f"its wait for {wait} to end as {GOOD[wait.kind]!r}, or outcomes= to say what follows",
            found=f"{outcome!r}",
            hint=f"declare outcomes={{{outcome!r}: step}} (of {', '.join(OUTCOMES[wait.kind])}), then retry",
        )  # fmt: skip

    def choice(self, outcome: str | None) -> Choice:
        """Where an outcome leads that a person gives, None what comes by itself: for a step that is skipped.

        Raises:
            StepReturnRefused: it has no such outcome, or needs one.
        """
        if outcome is None and not self.outcomes:
            return Choice("skipped", self.workflow.graph.followers[self.name])
        if outcome in self.outcomes:
            return Choice(str(outcome), self.outcomes[str(outcome)])
        if not self.outcomes and outcome in self.workflow.steps:
            return Choice(f"next:{outcome}", (str(outcome),))
        known = self.outcomes or self.workflow.steps
        raise StepReturnRefused(
            "skip", self.name, expected=f"an outcome of {', '.join(known)}", found=repr(outcome)
        )

    def _refused(self, expected: str, returned: Any, hint: str = "") -> StepReturnRefused:
        found = f"Next({returned.name!r})" if isinstance(returned, Next) else repr(returned)[:80]
        if not isinstance(returned, Next | Done | None):
            found = f"{type(returned).__name__} {str(returned)[:80]!r}"
        return StepReturnRefused("follow", self.name, expected=expected, found=found, hint=hint)


def check_signature(name: str, function: Callable[..., Any], *, items: bool) -> None:
    """A body takes the transaction and the input; of a fan-out, the item as well.

    Raises:
        DeclarationError: it does not.
    """
    given = (None, None, None) if items else (None, None)
    try:
        signature = inspect.signature(function)
        signature.bind(*given)
    except (TypeError, ValueError) as error:
        wanted = "three arguments: (tx, input, item)" if items else "two arguments: (tx, input)"
        raise DeclarationError(
            "declare step", name, expected=f"a function of {wanted}", found=f"{name}{signature}"
        ) from error
