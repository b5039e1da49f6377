"""Declaring workflows: named steps, what they read, how they are retried, and what is told afterwards."""

from __future__ import annotations

import inspect
import os
import re
import string
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, ParamSpec, TypeVar, overload

from pydantic import BaseModel, ValidationError

from surefoot_storage.paths import normalise

from .errors import DeclarationError, InputRefused, StepReturnRefused
from .retry import EFFECT_RETRY, NO_RETRY, Retry

P = ParamSpec("P")
R = TypeVar("R")
EffectFunction = TypeVar("EffectFunction", bound=Callable[..., Any])

READS_BYTES_MAX = 64 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class NoInput(BaseModel, extra="forbid"):
    """The input of workflows that take none."""


@dataclass(frozen=True)
class Next:
    """Returned by a step: the run goes on with this step (loops are allowed)."""

    step: str | Step[..., Any]

    @property
    def name(self) -> str:
        """The step's name."""
        return self.step if isinstance(self.step, str) else self.step.name


@dataclass(frozen=True)
class Done:
    """Returned by a step: the run is complete, whatever was declared after this step."""


@dataclass(frozen=True)
class Effect:
    """Something to tell an external system after the commit."""

    name: str
    function: Callable[..., Any]
    timeout_s: float
    retry: Retry


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
    effects: list[Effect] = field(default_factory=list)

    @property
    def is_async(self) -> bool:
        """Whether the body is a coroutine function."""
        return inspect.iscoroutinefunction(self.function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The plain body, for unit tests: it needs a real `Transaction` as its first argument."""
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
        timeout_s: float = 30.0,
        retry: Retry = EFFECT_RETRY,
    ) -> Any:
        """Declares what to tell others once this step is committed: `async def tell(done: Committed)`.

        Best effort, from a durable outbox: at least once, in order per run, each delivery given
        `timeout_s`, failures repeated by `retry` and then set aside as dead. Never undoes the step.
        """

        def declare(body: Callable[..., Any]) -> Callable[..., Any]:
            name = _checked_name("effect", body.__name__, {effect.name for effect in self.effects})
            self.effects.append(Effect(name, body, timeout_s, retry))
            return body

        return declare if function is None else declare(function)

    def resolve(self, returned: Any) -> str | None:
        """The step that follows; None ends the run.

        Raises:
            StepReturnRefused: it returned something else, or did not choose where it must.
        """
        steps = self.workflow.steps
        if isinstance(returned, Done):
            return None
        if isinstance(returned, Next):
            if returned.name not in steps:
                raise StepReturnRefused(
                    "follow",
                    self.name,
                    expected=f"one of {', '.join(steps)}",
                    found=f"Next({returned.name!r})",
                )
            return returned.name
        followers = [step.name for step in steps.values() if self.name in step.after]
        if returned is not None:
            raise StepReturnRefused(
                "follow",
                self.name,
                expected="None, Next(step) or Done()",
                found=f"{type(returned).__name__} {str(returned)[:80]!r}",
                hint="write what the step produced to a file; its return value says where to go",
            )
        if len(followers) > 1:
            raise StepReturnRefused(
                "follow",
                self.name,
                expected=f"a choice between {', '.join(followers)}",
                found="None",
                hint=f"return Next({followers[0]!r})",
            )
        return followers[0] if followers else None


class Workflow:
    """A named sequence of steps over one directory.

    Args:
        name: letters, digits, `.`, `_`, `-`.
        input: the pydantic model of what a run is started with.
        directory: each run's own directory, relative to the workspace; `{run_id}` and the input's
            fields are filled in. Steps name files relative to it.
        templates: where templates lie; relative to the file that declares the workflow.
    """

    def __init__(
        self,
        name: str,
        *,
        input: type[BaseModel] = NoInput,  # noqa: A002 - the word that its users would look for
        directory: str = "runs/{run_id}",
        templates: str | os.PathLike[str] = "templates",
    ) -> None:
        self.name = _checked_name("workflow", name, set())
        given: object = input  # callers without a type checker
        if not (isinstance(given, type) and issubclass(given, BaseModel)):
            raise DeclarationError(
                "declare workflow", name, expected="a pydantic model as input", found=repr(input)
            )
        self.input = input
        self.directory = self._checked_pattern("directory", directory)
        self.steps: dict[str, Step[..., Any]] = {}
        declared_in = sys._getframe(1).f_globals.get("__file__")  # noqa: SLF001 - the file that declares the workflow
        base = os.path.dirname(os.path.abspath(declared_in)) if declared_in else os.getcwd()
        self.templates = os.path.join(base, os.fspath(templates))

    @overload
    def step(self, function: Callable[P, R]) -> Step[P, R]: ...

    @overload
    def step(
        self,
        function: None = None,
        *,
        name: str | None = ...,
        after: str | Step[..., Any] | Sequence[str | Step[..., Any]] | None = ...,
        reads: Iterable[str] = ...,
        workspace_reads: Iterable[str] = ...,
        reads_bytes_max: int = ...,
        templates: Iterable[str] = ...,
        retry: Retry = ...,
        timeout_s: float | None = ...,
        locks: Iterable[str] = ...,
    ) -> Callable[[Callable[P, R]], Step[P, R]]: ...

    def step(
        self,
        function: Callable[..., Any] | None = None,
        *,
        name: str | None = None,
        after: str | Step[..., Any] | Sequence[str | Step[..., Any]] | None = None,
        reads: Iterable[str] = (),
        workspace_reads: Iterable[str] = (),
        reads_bytes_max: int = READS_BYTES_MAX,
        templates: Iterable[str] = (),
        retry: Retry = NO_RETRY,
        timeout_s: float | None = None,
        locks: Iterable[str] = (),
    ) -> Any:
        """Declares a step: `def outline(tx: Transaction, brief: Brief) -> None`.

        Args:
            function: the body, where the decorator is used without parentheses.
            name: the step's identity; the function's name unless given.
            after: the step(s) that it follows; the one declared before it unless given. A step with
                several followers chooses one by returning `Next(step)`.
            reads: files and globs in the run's directory, loaded before the body starts.
            workspace_reads: the same, from the workspace's root.
            reads_bytes_max: refuses to load more than this.
            templates: checked to exist and compile before the body starts.
            retry: when a failed attempt is repeated.
            timeout_s: seconds for one attempt; its transaction can never commit after that.
            locks: names; two steps that share one are never worked on at the same time.

        Raises:
            DeclarationError: two steps of one name, an unknown predecessor, a wrong pattern.
        """

        def declare(body: Callable[..., Any]) -> Step[..., Any]:
            label = _checked_name("step", name or body.__name__, set(self.steps))
            step = Step(
                name=label,
                function=body,
                workflow=self,
                after=self._predecessors(label, after),
                reads=tuple(self._checked_pattern("reads", pattern) for pattern in reads),
                workspace_reads=tuple(self._checked_pattern("workspace_reads", p) for p in workspace_reads),
                reads_bytes_max=reads_bytes_max,
                templates=tuple(templates),
                retry=retry,
                timeout_s=timeout_s,
                locks=tuple(locks),
            )
            _check_signature(step)
            self.steps[label] = step
            return step

        return declare if function is None else declare(function)

    def _predecessors(
        self, name: str, after: str | Step[..., Any] | Sequence[str | Step[..., Any]] | None
    ) -> tuple[str, ...]:
        if after is None:
            return tuple(list(self.steps)[-1:])
        given = [after] if isinstance(after, str | Step) else list(after)
        names = tuple(step if isinstance(step, str) else step.name for step in given)
        for predecessor in names:
            if predecessor not in self.steps:
                raise DeclarationError(
                    "declare step",
                    f"{self.name}/{name}",
                    expected=f"after= one of {', '.join(self.steps) or 'no step yet'}",
                    found=predecessor,
                    hint="declare a step below the ones that it follows; go back with Next(step)",
                )
        return names

    def _checked_pattern(self, what: str, pattern: object) -> str:
        if not isinstance(pattern, str):
            raise DeclarationError(
                f"declare {what}", repr(pattern), expected="text", found=type(pattern).__name__
            )
        try:
            fields = {field for _, field, _, _ in string.Formatter().parse(pattern) if field is not None}
        except ValueError as error:
            raise DeclarationError(f"declare {what}", pattern, found=str(error)) from error
        unknown = fields - set(self.input.model_fields) - {"run_id"}
        if unknown:
            raise DeclarationError(
                f"declare {what}",
                pattern,
                expected=f"fields of {self.input.__name__} or run_id",
                found=", ".join(sorted(unknown)) or "an empty {}",
            )
        if ".." in pattern.split("/") or pattern.startswith("/"):
            raise DeclarationError(
                f"declare {what}", pattern, expected="a path that stays inside", found=pattern
            )
        return pattern

    @property
    def first_step(self) -> str:
        """Where a run begins.

        Raises:
            DeclarationError: no step is declared.
        """
        if not self.steps:
            raise DeclarationError("run workflow", self.name, expected="at least one step", found="none")
        return next(iter(self.steps))

    def parse_input(self, given: Any) -> BaseModel:
        """The validated input; `given` is the model, a dict, or JSON text.

        Raises:
            InputRefused: the model does not take it, and why for each field.
        """
        try:
            if isinstance(given, self.input):
                return self.input.model_validate(given.model_dump())
            if isinstance(given, str | bytes):
                return self.input.model_validate_json(given)
            return self.input.model_validate({} if given is None else given)
        except ValidationError as error:
            problems = [
                f"{'.'.join(str(part) for part in p['loc']) or 'input'}: {p['msg']}" for p in error.errors()
            ]
            raise InputRefused(
                "start", self.name, expected=f"input for {self.input.__name__}", found="; ".join(problems)
            ) from error

    def place(self, pattern: str, given: BaseModel, run_id: str, *, operation: str = "read") -> str:
        """A declared pattern with its fields filled in."""
        values = {name: getattr(given, name) for name in type(given).model_fields}
        return normalise(pattern.format(run_id=run_id, **values), operation=operation)


def checked_run_id(run_id: object) -> str:
    """The id, where it can be a directory's name.

    Raises:
        InputRefused: it cannot.
    """
    if not isinstance(run_id, str) or not _NAME.fullmatch(run_id):
        raise InputRefused(
            "start",
            repr(run_id),
            expected="a run id of 1 to 128 letters, digits, '.', '_', '-', not led by punctuation",
            found=repr(run_id),
        )
    return run_id


def _checked_name(what: str, name: object, taken: set[str]) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise DeclarationError(
            f"declare {what}", repr(name), expected="letters, digits, '.', '_', '-'", found=repr(name)
        )
    if name in taken:
        raise DeclarationError(
            f"declare {what}",
            name,
            expected="a name of its own",
            found=f"two {what}s named {name!r}",
            hint=f"a {what} is known by its name across restarts: rename one of them",
        )
    return name


def _check_signature(step: Step[..., Any]) -> None:
    try:
        inspect.signature(step.function).bind(None, None)
    except (TypeError, ValueError) as error:
        raise DeclarationError(
            "declare step",
            step.name,
            expected="a function of two arguments: (tx, input)",
            found=f"{step.name}{inspect.signature(step.function)}",
        ) from error
