"""Which transitions of a run stand, and which may be undone. Pure: from the run's lines of history alone.

They lie on top of one another. An undo is a line of history like any other and can itself be undone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from surefoot_storage import InputError, UndoRefused

SOME_FILES = "undo of files"
"""The event of an undo that took back some files only and left the run where it was."""


@dataclass(frozen=True)
class Event:
    """One line of a run's history: a transition, an undo, or a change of status alone."""

    txid: str
    seq: int
    event: str
    step: str | None
    undoes: tuple[str, ...]
    status: Mapping[str, Any]  # afterwards
    visit: int | None = None

    @property
    def is_step(self) -> bool:
        """A committed transition: of a step's body, or of the end of its wait."""
        return self.event in ("step", "woken", "skipped")

    def __str__(self) -> str:
        return f"{'undo' if self.undoes else self.step} ({self.txid[:12]})"


@dataclass(frozen=True)
class Target:
    """What is to be undone, and where that leaves the run."""

    events: tuple[Event, ...]  # oldest first; none of them stands afterwards
    status: Mapping[str, Any]  # before the first of them
    renewed: tuple[str, ...] = ()  # transitions that stand again


@dataclass(frozen=True)
class Standing:
    """A run's history, and after each of its lines the transitions that stood then, the oldest first."""

    events: tuple[Event, ...]
    before: Mapping[str, tuple[str, ...]]  # by transaction
    after: Mapping[str, tuple[str, ...]]
    now: tuple[str, ...]

    @classmethod
    def of(cls, events: Sequence[Event]) -> Standing:
        """Replays it: a transition is put on top, an undo takes what lies there, its undo puts it back."""
        kinds = {event.txid: event for event in events}
        now: tuple[str, ...] = ()
        before, after = {}, {}
        for event in events:
            before[event.txid] = now
            if event.is_step:
                now = (*now, event.txid)
            elif event.undoes:
                first = event.undoes[0]
                now = now[: -len(event.undoes)] if kinds[first].is_step else before[first]
            after[event.txid] = now
        return cls(tuple(events), before, after, now)

    def undone_by(self, txid: str) -> str | None:
        """The undo because of which a transition does not stand, or which an undo was undone by."""
        if txid in self.now:
            return None
        return next((event.txid for event in reversed(self.events) if txid in event.undoes), None)

    def _find(self, txid: str) -> int:
        for place, event in enumerate(self.events):
            if event.txid == txid:
                return place
        raise InputError("undo", txid[:12], expected="a transaction of this run", found="another one")

    def files_of(self, txid: str) -> Target:
        """A transition of which only some files go back: nothing builds on those but other files."""
        event = self.events[self._find(txid)]
        return Target((event,), event.status)

    def undo(self, txid: str) -> Target:
        """One transition, or one undo: what stood after it must be what stands now.

        Raises:
            UndoRefused: it does not stand, or something that builds on it has happened since.
            InputError: it is neither.
        """
        place = self._find(txid)
        event = self.events[place]
        if event.event == SOME_FILES:
            return self.files_of(txid)
        if not (event.is_step or event.undoes):
            hint = "surefoot cancel ends a run" if event.event == "started" else "surefoot log shows them"
            found = f"{event.event!r} of the run"
            raise InputError(
                "undo", txid[:12], expected="a step's transition, or an undo", found=found, hint=hint
            )
        if self.after[txid] != self.now:
            raise self._not_the_last(event)
        back = tuple(t for t in self.before[txid] if t not in self.now)
        return Target((event,), self.events[place - 1].status, back)

    def _not_the_last(self, event: Event) -> UndoRefused:
        if event.is_step and event.txid not in self.now:
            by = (self.undone_by(event.txid) or "")[:12]
            return _refused(event, f"undone already, by {by}", f"surefoot undo {by} brings it back")
        later = [str(e) for e in self.events if e.txid in self.now and e.txid not in self.after[event.txid]]
        since = ", ".join(later) or "others undone since"
        hint = "undo those first, the last one before the others; or go back further: surefoot revert"
        return _refused(event, f"what came later: {since}", hint)

    def revert(self, txid: str) -> Target:
        """Everything that stands after a transition, or after the start.

        Raises:
            UndoRefused: it does not stand itself, or nothing comes after it.
            InputError: it is no transition of the run.
        """
        event = self.events[self._find(txid)]
        if not (event.is_step or event.event == "started"):
            raise InputError(
                "revert to",
                txid[:12],
                expected="a step's transition, or the run's start",
                found=repr(event.event),
            )
        if event.is_step and txid not in self.now:
            raise self._not_the_last(event)
        place = self.now.index(txid) + 1 if event.is_step else 0
        gone = self.now[place:]
        if not gone:
            raise _refused(event, "nothing after it that stands", "")
        return Target(tuple(e for e in self.events if e.txid in gone), event.status)


def _refused(event: Event, found: str, hint: str) -> UndoRefused:
    return UndoRefused("undo", str(event), expected="the last transition that stands", found=found, hint=hint)
