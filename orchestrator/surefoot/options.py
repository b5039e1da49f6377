"""Options of declarations, checked one by one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from . import checks
from .errors import DeclarationError
from .names import checked_name
from .retry import Retry
from .steps import Done, Step

if TYPE_CHECKING:
    from .guards import Guard


def lines(given: object) -> list[Any]:
    """A list that was given.

    Raises:
        DeclarationError: it is none.
    """
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise DeclarationError("declare step", repr(given), expected="a list", found=type(given).__name__)
    return list(given)


def optional_length(subject: str, name: str, value: object) -> float | None:
    """A length of time in seconds, more than 0; None stays None.

    Raises:
        DeclarationError: it is none.
    """
    return None if value is None else checks.seconds("declare step", subject, name, value, above=True)


def checked_retry(subject: str, retry: object) -> Retry:
    """A retry policy.

    Raises:
        DeclarationError: it is none.
    """
    if not isinstance(retry, Retry):
        raise DeclarationError("declare step", subject, expected="retry=Retry(…)", found=repr(retry)[:80])
    return retry


M = TypeVar("M", bound=BaseModel)


def checked_model(what: str, name: str, given: type[M]) -> type[M]:
    """A pydantic model.

    Raises:
        DeclarationError: it is none.
    """
    model: object = given  # untyped code gives anything
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise DeclarationError(f"declare {what}", name, expected="a pydantic model", found=repr(given)[:80])
    return given


def check_each(subject: str, each: object) -> None:
    """What a step can fan out over.

    Raises:
        DeclarationError: it is none.
    """
    if each is not None and not isinstance(each, str) and not callable(each):
        raise DeclarationError(
            "declare step", subject, expected="each= a JSON file's name or a function of (tx, input)",
            found=repr(each)[:80],
        )  # fmt: skip


def outcomes_of(subject: str, outcomes: object) -> dict[str, tuple[str, ...]]:
    """By outcome: the names of the steps that it leads to."""
    if outcomes is None:
        return {}
    if not isinstance(outcomes, Mapping) or not outcomes:
        raise DeclarationError(
            "declare step", subject, expected="outcomes={name: step}", found=repr(outcomes)[:80]
        )
    return {checked_name("outcome", name): _leads(subject, name, leads) for name, leads in outcomes.items()}


def _leads(subject: str, name: str, leads: object) -> tuple[str, ...]:
    given = [leads] if isinstance(leads, str | Step | Done) else leads
    if not isinstance(given, Iterable):
        raise DeclarationError(
            "declare step",
            subject,
            expected=f"outcome {name!r} to lead to a step, or Done()",
            found=repr(leads)[:80],
        )
    names = tuple(one.name if isinstance(one, Step) else one for one in given if not isinstance(one, Done))
    if any(not isinstance(one, str) for one in names):
        raise DeclarationError(
            "declare step",
            subject,
            expected=f"outcome {name!r} to lead to a step, or Done()",
            found=repr(leads)[:80],
        )
    return tuple(dict.fromkeys(names))


def guards_of(subject: str, given: list[Any]) -> tuple[Guard, ...]:
    """Guards that something can meet. What checks them is loaded where there are any.

    Raises:
        GuardConflict: nothing can.
    """
    if not given:
        return ()
    from .guardchecks import checked_guards

    return checked_guards(subject, given)


def checked_result(subject: str, model: object) -> type[BaseModel] | None:
    """A pydantic model, or none.

    Raises:
        DeclarationError: it is something else.
    """
    if model is None or (isinstance(model, type) and issubclass(model, BaseModel)):
        return model
    raise DeclarationError(
        "declare step", subject, expected="result: a pydantic model", found=checks.shown(model)
    )
