"""What can be seen of agents from outside: what they say, have changed, and what is wrong. Read-only."""

from __future__ import annotations

import os
from typing import Any, Protocol

from surefoot_storage import Absent, ChangeSet, Copies, Directory, File, PathChange, Version
from surefoot_storage.states import State

from . import probing, rows
from .diffs import file_change
from .rows import AgentRow
from .rows.source import Source
from .scratch import PREFIX
from .tending import copy_name

STATES = ("wanted", "running", "sealing", "verifying", "over")
LOG_BYTES_MAX = 1 << 20  # of one answer
SHOWN_BYTES_MAX = 1 << 20
_LOG = "log."


class Place(Source, Protocol):
    """A workspace that is open, or only looked at."""

    root: str

    @property
    def uuid(self) -> str:
        """Its identity."""

    @property
    def copies(self) -> Copies:
        """Its working copies."""

    def is_alive(self, worker: str) -> bool:
        """Whether a worker's process lives."""


def said(copies: Copies, name: str, offset: int, folder: str = "run") -> tuple[str, int, int]:
    """(text, its offset, the next offset) of what a command has said, as far as it is kept."""
    starts = sorted(int(n.removeprefix(_LOG)) for n in copies.entries(name, folder) if n.startswith(_LOG))
    starts = [start for start in starts if start <= offset][-1:] + [s for s in starts if s > offset]
    if not starts:
        return "", offset, offset
    begin, data = max(offset, starts[0]), b""
    for start in starts:
        piece = copies.content(name, folder, f"{_LOG}{start:020d}", most=1 << 40) or b""
        if start + len(piece) > begin and start <= begin + len(data):
            data += piece[begin + len(data) - start :]
        if len(data) >= LOG_BYTES_MAX:
            break
    data = data[:LOG_BYTES_MAX]
    if len(data) == LOG_BYTES_MAX:  # not in the middle of a line, where that can be
        data = data[: data.rfind(b"\n") + 1] or data
    return data.decode(errors="replace"), begin, begin + len(data)


def diff_of(place: Place, name: str, changes: ChangeSet) -> str:
    """All changes as one unified diff, against what is in the workspace now."""
    return "".join(_diff(place, name, changes.directory, change) for change in changes.changes)


def _diff(place: Place, name: str, directory: str, change: PathChange) -> str:
    path = os.path.join(directory, change.path)
    before = _live(os.path.join(place.root, path), change.old)
    after = b"" if change.new is None or change.new.is_directory else None
    if change.new is not None and not change.new.is_directory and change.new.size <= SHOWN_BYTES_MAX:
        after = place.copies.read(name, change.new.sha256)
    return file_change(path, _state(change.old), _state(change.new), before, after).diff


def _live(path: str, old: Version | None) -> bytes | None:
    if old is None or old.is_directory:
        return b""
    try:
        with open(path, "rb") as file:
            data = file.read(SHOWN_BYTES_MAX + 1)
    except OSError:
        return None
    import hashlib

    return data if hashlib.sha256(data).hexdigest() == old.sha256 else None


def _state(version: Version | None) -> State:
    if version is None:
        return Absent()
    if version.is_directory:
        return Directory(version.mode)
    return File(bytes.fromhex(version.sha256), version.size, version.mode)


def findings(place: Place) -> list[dict[str, str]]:
    """What is wrong with agents, or nobody has decided about; each with what helps."""
    found = rows.agents(place)
    copies, known = place.copies, {copy_name(row.id): row for row in found}
    result = [_finding(row, problem, hint) for row in found for problem, hint in _of_row(place, row)]
    for name in copies.names():
        row = known.get(name)
        if name.startswith(PREFIX):
            continue  # of a step's body: it removes it, or the next engine does
        if row is None:
            result.append(
                {"agent": "", "problem": f"working copy {name!r} belongs to no agent",
                 "hint": f"look at {copies.path(name)}, then remove it"}
            )  # fmt: skip
        elif row.state == "over" and row.taken != "discarded" and (unsealed := copies.unsealed(name)):
            problem = f"its copy has {len(unsealed)} changes that are not sealed, as {unsealed[0]!r}"
            hint = f"look at {copies.path(name)}; surefoot workspace discard {row.id} gives them up"
            result.append(_finding(row, problem, hint if row.digest else f"surefoot workspace diff {row.id}"))
    for pid, nonce in probing.all_tagged(place.uuid):
        owner = known.get(nonce.split(":")[1] if nonce.count(":") > 1 else "")
        if owner is None or owner.state == "over":
            text = f"process {pid} is left of {owner.id if owner else 'an agent that is not known any more'}"
            result.append({"agent": owner.id if owner else "", "problem": text, "hint": f"kill {pid}"})
    stopped = rows.paused_queues(place).get(rows.STOPPED)
    if stopped is not None:
        result.append({"agent": "", "problem": f"no agent is launched: {stopped}",
                       "hint": "surefoot agent start-again"})  # fmt: skip
    return result


def _of_row(place: Place, row: AgentRow) -> list[tuple[str, str]]:
    result: list[tuple[str, str]] = []
    if row.state != "over" and row.owner and not place.is_alive(row.owner):
        result.append(("nobody watches it: its watcher has died", "surefoot supervise"))
    if row.state != "over" and row.errors:
        result.append((f"{row.errors} looks at it have failed: {row.evidence.get('probe_error')}", ""))
    changes = row.evidence.get("changes", {})
    if row.state == "over" and not row.taken and row.digest and changes.get("count"):
        problem = f"{row.outcome}: {changes['count']} changes that nobody has decided about"
        if row.run_id == "" or row.outcome != "succeeded":
            result.append((problem, f"surefoot workspace diff {row.id}; then commit or discard"))
    if changes.get("left_out"):
        text = f"{changes['left_out']} changes ({changes['left_out_bytes']} bytes) are no part of its work"
        if row.state == "over" and not row.taken:
            result.append((text, "by its ignore=[…]"))
    return result


def _finding(row: AgentRow, problem: str, hint: str) -> dict[str, str]:
    return {"agent": row.id, "problem": problem, "hint": hint}


def evidence_of(row: AgentRow) -> dict[str, Any]:
    """Everything that its outcome rests on."""
    facts = row.as_dict()
    return {key: facts[key] for key in ("id", "state", "outcome", "why", "evidence", "result", "digest")}
