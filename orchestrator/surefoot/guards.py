"""Guards: declared limits on what a transition may do. Pure: same limits, same proposal, same verdict.

Guards of a workflow and of its step are combined by intersection, and the combination is looked at when it is
declared: limits that nothing can meet are refused there, with a stable code.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, time
from typing import Any, Literal, TypeAlias

from .errors import GuardDenied
from .patterns import matches
from .schedules import zone_of

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


# --- what can be declared ---


@dataclass(frozen=True)
class Paths:
    """Only these paths may change, and not those; patterns relative to the workspace or the run's directory.

    A pattern that begins with `/` starts at the workspace's root.
    """

    allow: Sequence[str] = ("**",)
    deny: Sequence[str] = ()
    name: str = "paths"


@dataclass(frozen=True)
class Sizes:
    """No file larger than this, and not more in all."""

    file_bytes_max: int | None = None
    total_bytes_max: int | None = None
    name: str = "sizes"


@dataclass(frozen=True)
class Count:
    """No more files than this in one transition."""

    files_max: int
    name: str = "count"


@dataclass(frozen=True)
class Range:
    """A number in a JSON file that the step writes; `field` is a path such as `total` or `items.0.price`.

    A value outside is denied, or set to the nearest that all guards together allow (`otherwise="clamp"`).
    """

    file: str
    field: str
    at_least: float | None = None
    at_most: float | None = None
    otherwise: Literal["deny", "clamp"] = "deny"
    name: str = "range"


@dataclass(frozen=True)
class Pace:
    """At most `count` transitions of the step within `per_s` seconds, over all runs of the workflow."""

    count: int
    per_s: float
    name: str = "pace"


@dataclass(frozen=True)
class Hold:
    """Not before the run has been as it is for so many seconds."""

    seconds: float
    name: str = "hold"


@dataclass(frozen=True)
class Window:
    """Only at certain times of the week, `begin` (included) to `end` (excluded)."""

    days: Sequence[str] = DAYS
    begin: str = "00:00"
    end: str = "24:00"
    zone: str = "UTC"
    name: str = "window"


@dataclass(frozen=True)
class Check:
    """Any other rule: a function of the `Proposal` that returns None, or why not."""

    rule: Callable[[Proposal], str | None]
    name: str = "check"


Guard: TypeAlias = Paths | Sizes | Count | Range | Pace | Hold | Window | Check


# --- what is judged ---


@dataclass(frozen=True)
class Proposal:
    """What a transition would do."""

    workflow: str
    step: str
    directory: str  # of the run, relative to the workspace
    sizes: Mapping[str, int | None]  # by path: bytes that would be written; None: it would be gone
    read: Callable[[str], bytes | None]  # what a path would hold; None: nothing, or what was streamed
    at: float
    held_s: float  # since the run's status last changed
    taken: Callable[[float], int]  # transitions of the step since a moment


@dataclass(frozen=True)
class Note:
    """What a guard has done to a transition: which, why (a stable code), and the numbers."""

    guard: str
    code: str
    subject: str
    found: Any
    became: Any = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dict(vars(self))


@dataclass(frozen=True)
class Verdict:
    """What is allowed: new contents of files whose values were clamped, and what was done."""

    writes: Mapping[str, bytes] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()


def judge(guards: Sequence[Guard], proposal: Proposal) -> Verdict:
    """Whether the transition may happen, and with which values.

    Raises:
        GuardDenied: it may not; with the guard and the numbers.
    """
    for guard in guards:
        why = _judged(guard, proposal)
        if why is not None:
            raise why
    return _judge_ranges([guard for guard in guards if isinstance(guard, Range)], proposal)


def _judged(guard: Guard, proposal: Proposal) -> GuardDenied | None:
    match guard:
        case Paths():
            for path in proposal.sizes:
                denied = any(_names(pattern, path, proposal) for pattern in guard.deny)
                if denied or not any(_names(pattern, path, proposal) for pattern in guard.allow):
                    rule = (
                        f"none of {', '.join(guard.deny)}" if denied else f"one of {', '.join(guard.allow)}"
                    )
                    return _denied(guard, "path", proposal, rule, path)
        case Sizes():
            total = sum(size or 0 for size in proposal.sizes.values())
            for path, size in proposal.sizes.items():
                if guard.file_bytes_max is not None and (size or 0) > guard.file_bytes_max:
                    return _denied(
                        guard,
                        "file_size",
                        proposal,
                        f"at most {guard.file_bytes_max} bytes",
                        f"{path}: {size}",
                    )
            if guard.total_bytes_max is not None and total > guard.total_bytes_max:
                return _denied(
                    guard, "total_size", proposal, f"at most {guard.total_bytes_max} bytes in all", str(total)
                )
        case Count():
            if len(proposal.sizes) > guard.files_max:
                found = str(len(proposal.sizes))
                return _denied(guard, "file_count", proposal, f"at most {guard.files_max} files", found)
        case Pace():
            taken = proposal.taken(proposal.at - guard.per_s)
            if taken >= guard.count:
                rule = f"at most {guard.count} transitions in {guard.per_s:g} s"
                return _denied(guard, "rate", proposal, rule, f"{taken} already")
        case Hold():
            if proposal.held_s < guard.seconds:
                rule = f"the run to have been as it is for {guard.seconds:g} s"
                return _denied(guard, "hold_time", proposal, rule, f"{proposal.held_s:g} s")
        case Window():
            moment = datetime.fromtimestamp(proposal.at, zone_of(guard.zone))
            if _minute(moment) not in open_minutes(guard):
                rule = f"{','.join(guard.days)} {guard.begin} to {guard.end} ({guard.zone})"
                return _denied(guard, "time_window", proposal, rule, f"{moment:%a %H:%M}")
        case Check():
            why = guard.rule(proposal)
            if why is not None:
                return _denied(guard, "check", proposal, "the rule to be met", str(why)[:200])
        case Range():
            pass  # together, below
    return None


def _denied(guard: Guard, code: str, proposal: Proposal, expected: str, found: str) -> GuardDenied:
    return GuardDenied(
        guard.name,
        f"guard_denied_{code}",
        f"{proposal.workflow}/{proposal.step}",
        expected=expected,
        found=found,
    )


def _names(pattern: str, path: str, proposal: Proposal) -> bool:
    whole = pattern[1:] if pattern.startswith("/") else f"{proposal.directory}/{pattern}"
    return pattern == "**" or matches(whole, path)


# --- values ---


def _judge_ranges(ranges: Sequence[Range], proposal: Proposal) -> Verdict:
    writes: dict[str, bytes] = {}
    notes: list[Note] = []
    for file in dict.fromkeys(guard.file for guard in ranges):
        path = file[1:] if file.startswith("/") else f"{proposal.directory}/{file}"
        if proposal.sizes.get(path) is None:
            continue  # not written by this transition
        mine = [guard for guard in ranges if guard.file == file]
        document = _document(mine[0], path, proposal)
        changed = False
        for name in dict.fromkeys(guard.field for guard in mine):
            note = _judge_field([guard for guard in mine if guard.field == name], document, proposal)
            if note is not None:
                notes.append(note)
                changed = True
        if changed:
            writes[path] = (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
    return Verdict(writes, tuple(notes))


def _document(guard: Range, path: str, proposal: Proposal) -> Any:
    data = proposal.read(path)
    try:
        if data is not None:
            return json.loads(data)
        found = "a file that was streamed"
    except ValueError as error:
        found = str(error)
    raise _denied(guard, "not_json", proposal, f"{path} to be JSON, so that {guard.field} can be read", found)


def _judge_field(guards: Sequence[Range], document: Any, proposal: Proposal) -> Note | None:
    holder, key = _find(document, guards[0].field)
    if holder is None:
        return None
    value = holder[key]
    subject = f"{guards[0].file}:{guards[0].field}"
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _denied(guards[0], "not_a_number", proposal, f"{subject} to be a number", repr(value)[:80])
    low, high = bounds(guards)
    for guard in guards:
        below = guard.at_least is not None and value < guard.at_least
        above = guard.at_most is not None and value > guard.at_most
        if not (below or above):
            continue
        if guard.otherwise == "deny":
            raise _denied(guard, "range", proposal, f"{subject} from {low:g} to {high:g}", f"{value:g}")
        kept = type(value)(min(max(value, low), high))
        if not low <= kept <= high:  # a whole number that was rounded away
            kept = min(max(value, low), high)
        holder[key] = kept
        return Note(guard.name, "guard_clamped_range", subject, value, kept)
    return None


def bounds(guards: Sequence[Range]) -> tuple[float, float]:
    """What all of them allow."""
    low = max((guard.at_least for guard in guards if guard.at_least is not None), default=-math.inf)
    high = min((guard.at_most for guard in guards if guard.at_most is not None), default=math.inf)
    return low, high


def _find(document: Any, name: str) -> tuple[Any, Any]:
    """(object or list, key) of a field; (None, None) where there is none."""
    holder: Any = None
    key: Any = None
    here = document
    for part in name.split("."):
        holder, key = here, part
        if isinstance(here, list) and part.isdigit() and int(part) < len(here):
            key = int(part)
        elif not (isinstance(here, dict) and part in here):
            return None, None
        here = here[key]
    return holder, key


# --- times of the week ---


def _minute(moment: datetime) -> int:
    return (moment.weekday() * 24 + moment.hour) * 60 + moment.minute


def open_minutes(guard: Window) -> set[int]:
    """Of the week, from Monday's first on."""
    begin, end = minute_of(guard.begin), minute_of(guard.end)
    return {DAYS.index(day) * 1440 + minute for day in guard.days for minute in range(begin, end)}


def minute_of(text: str) -> int:
    """Of the day, from `HH:MM`; `24:00` is its end.

    Raises:
        ValueError: it is no such text.
    """
    if text == "24:00":
        return 1440
    moment = time.fromisoformat(text)
    return moment.hour * 60 + moment.minute
