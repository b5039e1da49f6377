"""What can be found out about a command that a shim watches: by its records, its lock, and /proc.

Evidence, the strongest first: the exit record; the shim's lock (somebody watches it); the identity that was
written down before it began (boot, pid, start time). A probe that fails says nothing about the command.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from surefoot_storage import Copies, processes

Seen: TypeAlias = Literal["not started", "running", "exited", "gone"]
BEAT_S = 60.0
"""A shim that has not counted for so long is frozen: that is an error of the probe."""
KILL_S = 5.0


@dataclass(frozen=True)
class Probe:
    """One look."""

    seen: Seen
    spawn: dict[str, Any] | None = None
    exit: dict[str, Any] | None = None
    beat: dict[str, Any] | None = None


def probe(copies: Copies, name: str, folder: str, nonce: str) -> Probe:
    """Where the command in this folder stands.

    Raises:
        OSError, ValueError: it cannot be told.
    """
    held = copies.is_held(name, folder, "shim.lock")
    spawn = copies.note(name, folder, "spawn.json")
    ended = copies.note(name, folder, "exit.json")
    if ended is not None:
        if ended.get("nonce") != nonce:
            raise ValueError(f"exit.json of another launch: {ended.get('nonce')!r}")
        return Probe("exited", spawn, ended)
    if spawn is None:
        return Probe("running" if held else "not started")
    if not held:
        return Probe("gone", spawn)
    beat = copies.note(name, folder, "beat.json")
    if spawn["boot_id"] == processes.boot_id() and beat is not None:
        late_s = time.monotonic() - float(beat["monotonic_s"])
        if late_s > BEAT_S:
            raise ValueError(f"its shim has not counted for {late_s:.0f} s: is it stopped?")
    return Probe("running", spawn, beat=beat)


def tagged(nonce: str) -> list[tuple[int, int]]:
    """(pid, start time) of processes that carry the launch's mark in their environment."""
    mark, found = f"SUREFOOT_AGENT={nonce}\0".encode(), []
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        started = processes.start_time(int(entry))
        with contextlib.suppress(OSError), open(f"/proc/{entry}/environ", "rb") as file:
            if started is not None and mark in file.read() + b"\0":
                found.append((int(entry), started))
    return found


def all_tagged(uuid: str) -> list[tuple[int, str]]:
    """(pid, mark) of every process that any launch of this workspace has left."""
    begin, found = f"SUREFOOT_AGENT={uuid}:".encode(), []
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        with contextlib.suppress(OSError), open(f"/proc/{entry}/environ", "rb") as file:
            marks = [one for one in file.read().split(b"\0") if one.startswith(begin)]
            if marks and processes.state_of(int(entry)) not in ("Z", ""):
                found.append((int(entry), marks[0].decode(errors="replace").partition("=")[2]))
    return found


def kill_tagged(nonce: str) -> tuple[int, list[int]]:
    """Ends everything that still carries the mark; returns (how many there were, pids that did not end)."""
    first = left = tagged(nonce)
    until = time.monotonic() + KILL_S
    while left and time.monotonic() < until:
        for pid, started in left:
            _kill(pid, started)
        time.sleep(0.02)
        left = [one for one in tagged(nonce) if processes.state_of(one[0]) not in ("Z", "")]
    return len(first), [pid for pid, _ in left]


def _kill(pid: int, started: int) -> None:
    """By a descriptor of the process: a pid that was given to somebody else meanwhile is not hit."""
    with contextlib.suppress(OSError):
        fd = os.pidfd_open(pid)
        try:
            if processes.start_time(pid) == started:
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        finally:
            os.close(fd)
