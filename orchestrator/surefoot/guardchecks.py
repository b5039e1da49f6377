"""Guards that nothing can meet: found when they are declared, with a stable code, names and numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from .errors import GuardConflict
from .guards import (
    DAYS,
    Check,
    Count,
    Guard,
    Hold,
    Pace,
    Paths,
    Range,
    Sizes,
    Window,
    bounds,
    minute_of,
    open_minutes,
)
from .patterns import covers, may_meet
from .schedules import zone_of

_MINUTES = 7 * 24 * 60


def checked_guards(subject: str, guards: Sequence[Guard]) -> tuple[Guard, ...]:
    """Guards that something can meet, each with a name of its own.

    Raises:
        GuardConflict: a limit that is none, or limits that exclude each other; with names and numbers.
    """
    counts: dict[str, int] = {}
    named: list[Guard] = []
    for guard in guards:
        if not isinstance(guard, Guard):
            raise _conflict(subject, "unknown_guard", ("?",), "guards", repr(guard)[:80])
        counts[guard.name] = counts.get(guard.name, 0) + 1
        number = f"#{counts[guard.name]}" if counts[guard.name] > 1 else ""
        named.append(replace(guard, name=f"{guard.name}{number}"))
        _check_alone(subject, named[-1])
    _check_ranges(subject, [guard for guard in named if isinstance(guard, Range)])
    _check_paths(subject, [guard for guard in named if isinstance(guard, Paths)])
    _check_windows(subject, [guard for guard in named if isinstance(guard, Window)])
    return tuple(named)


def _conflict(subject: str, code: str, names: Sequence[str], expected: str, found: str) -> GuardConflict:
    return GuardConflict(f"guard_conflict_{code}", subject, tuple(names), expected=expected, found=found)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_alone(subject: str, guard: Guard) -> None:
    def positive(value: object, code: str, what: str, *, whole: bool = False) -> None:
        good = isinstance(value, int | float) and _is_number(value) and value > 0
        if not good or (whole and not isinstance(value, int)):
            raise _conflict(subject, code, [guard.name], f"{what} above 0", repr(value))

    match guard:
        case Sizes():
            if guard.file_bytes_max is None and guard.total_bytes_max is None:
                raise _conflict(subject, "invalid_size_limit", [guard.name], "a limit", "none")
            for name in ("file_bytes_max", "total_bytes_max"):
                if getattr(guard, name) is not None:
                    positive(getattr(guard, name), "invalid_size_limit", name, whole=True)
        case Count():
            positive(guard.files_max, "invalid_count_limit", "files_max", whole=True)
        case Pace():
            positive(guard.count, "invalid_rate_limit", "count", whole=True)
            positive(guard.per_s, "invalid_rate_limit", "per_s")
        case Hold():
            positive(guard.seconds, "invalid_hold_time", "seconds")
        case Window():
            _check_window(subject, guard)
        case Check():
            if not callable(guard.rule):
                raise _conflict(subject, "invalid_check", [guard.name], "a function", repr(guard.rule)[:80])
        case Paths():
            for patterns in (guard.allow, guard.deny):
                given: list[object] = [patterns] if isinstance(patterns, str) else list(patterns)
                if isinstance(patterns, str) or not all(isinstance(p, str) and p for p in given):
                    raise _conflict(
                        subject, "invalid_paths", [guard.name], "a list of patterns", repr(patterns)
                    )
        case Range():
            _check_range(subject, guard)


def _check_range(subject: str, guard: Range) -> None:
    if guard.otherwise not in ("deny", "clamp"):
        raise _conflict(
            subject, "invalid_range", [guard.name], "otherwise deny or clamp", repr(guard.otherwise)
        )
    for value in (guard.at_least, guard.at_most):
        if value is not None and not _is_number(value):
            raise _conflict(subject, "not_a_number", [guard.name], "numbers", repr(value))
    if guard.at_least is None and guard.at_most is None:
        raise _conflict(subject, "invalid_range", [guard.name], "at_least or at_most", "neither")
    for name in (guard.file, guard.field):
        given: object = name
        if not isinstance(given, str) or not given:
            raise _conflict(subject, "invalid_range", [guard.name], "a file and a field", repr(name))


def _check_window(subject: str, guard: Window) -> None:
    try:
        begin, end = minute_of(guard.begin), minute_of(guard.end)
        zone_of(guard.zone)
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise _conflict(
            subject, "invalid_window", [guard.name], "times as HH:MM in a known zone", str(error)
        ) from error
    unknown = [day for day in guard.days if day not in DAYS]
    if unknown or not guard.days or isinstance(guard.days, str):
        raise _conflict(
            subject, "invalid_window", [guard.name], f"days of {', '.join(DAYS)}", repr(guard.days)
        )
    if begin >= end:
        found = f"{guard.begin} to {guard.end}"
        raise _conflict(subject, "invalid_window", [guard.name], "a beginning before the end", found)


def _check_ranges(subject: str, ranges: Sequence[Range]) -> None:
    for key in dict.fromkeys((guard.file, guard.field) for guard in ranges):
        mine = [guard for guard in ranges if (guard.file, guard.field) == key]
        low, high = bounds(mine)
        if low > high:
            found = f"at least {low:g} and at most {high:g}"
            names = [guard.name for guard in mine]
            raise _conflict(
                subject, "unsatisfiable_range", names, f"a value that {':'.join(key)} can have", found
            )


def _check_paths(subject: str, guards: Sequence[Paths]) -> None:
    for place, one in enumerate(guards):
        if not any(not any(covers(no, yes) for other in guards for no in other.deny) for yes in one.allow):
            raise _conflict(
                subject,
                "exclusive_paths",
                [one.name],
                "a path that may change",
                f"all of {one.allow} is denied",
            )
        for other in guards[place + 1 :]:
            if not any(may_meet(a, b) for a in one.allow for b in other.allow):
                found = f"{', '.join(one.allow)} and {', '.join(other.allow)}"
                raise _conflict(
                    subject, "exclusive_paths", [one.name, other.name], "a path that both allow", found
                )


def _check_windows(subject: str, windows: Sequence[Window]) -> None:
    if len({window.zone for window in windows}) > 1:
        return  # the difference of two zones is not the same all year
    left = set(range(_MINUTES))
    for window in windows:
        left &= open_minutes(window)
        if not left:
            names = [one.name for one in windows]
            found = "; ".join(f"{','.join(w.days)} {w.begin} to {w.end}" for w in windows)
            raise _conflict(subject, "exclusive_windows", names, "a time that all of them allow", found)
