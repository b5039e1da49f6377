"""Numbers and names that a caller gives: refused at once, with what was expected and found."""

from __future__ import annotations

import math
from collections.abc import Iterable

from surefoot_storage import InputError

from .errors import DeclarationError

SECONDS_MAX = 100 * 366 * 86_400.0
"""A hundred years: whatever is longer was meant as something else."""

SHOWN_MAX = 80


def seconds(
    operation: str, subject: object, name: str, value: object, *, least: float = 0.0, above: bool = False,
    error: type[InputError] = DeclarationError,
) -> float:  # fmt: skip
    """A length of time; at least `least`, or `above` it."""
    bound = f"{'more than' if above else 'at least'} {least:g}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _refused(error, operation, subject, name, f"seconds, {bound}", value)
    if not math.isfinite(value) or value < least or (above and value == least) or value > SECONDS_MAX:
        raise _refused(error, operation, subject, name, f"seconds, {bound} and at most 100 years", value)
    return float(value)


def count(
    operation: str, subject: object, name: str, value: object, *, least: int = 1, most: int = 1_000_000,
    error: type[InputError] = DeclarationError,
) -> int:  # fmt: skip
    """A whole number within limits."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise _refused(error, operation, subject, name, f"a whole number from {least} to {most}", value)
    return value


def choice(
    operation: str, subject: object, name: str, value: object, choices: Iterable[str],
    *, error: type[InputError] = DeclarationError,
) -> str:  # fmt: skip
    """One of a few words."""
    allowed = list(choices)
    if not isinstance(value, str) or value not in allowed:
        raise _refused(error, operation, subject, name, f"one of {', '.join(allowed)}", value)
    return value


def choices(
    operation: str,
    subject: object,
    name: str,
    values: object,
    allowed: Iterable[str],
    *,
    error: type[InputError] = DeclarationError,
) -> list[str]:
    """A list of a few words."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise _refused(error, operation, subject, name, f"a list of {', '.join(allowed)}", values)
    words = list(allowed)
    return [choice(operation, subject, name, value, words, error=error) for value in values]


def text(
    operation: str, subject: object, name: str, value: object, *, most: int = 200, empty: bool = False,
    error: type[InputError] = DeclarationError,
) -> str:  # fmt: skip
    """A short line of text."""
    fits = isinstance(value, str) and len(value) <= most and value.isprintable() and (empty or value != "")
    if not fits:
        raise _refused(error, operation, subject, name, f"a line of 1 to {most} characters", value)
    assert isinstance(value, str)
    return value


def shown(value: object) -> str:
    """A value in a message, however long it is."""
    text = repr(value)
    return text if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]}…"


def _refused(
    error: type[InputError], operation: str, subject: object, name: str, expected: str, value: object
) -> InputError:
    return error(
        operation,
        str(subject),
        expected=f"{name}: {expected}",
        found=shown(value),
    )


def missing(operation: str, extra: str, error: ModuleNotFoundError) -> InputError:
    """What needs an extra that is not installed says which."""
    return InputError(
        operation, "", expected=f"the extra {extra}", found=f"no module {error.name!r}",
        hint=f'pip install "surefoot[{extra}]"',
    )  # fmt: skip
