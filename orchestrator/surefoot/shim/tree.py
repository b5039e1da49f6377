"""The processes below this one: who they are, what they use, and their end.

This process is a sub-reaper (`prctl(2)`): a descendant whose parent dies becomes its child, so that nobody
escapes by forking twice, and a pid that it signals cannot be somebody else's: it has not been reaped yet.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from dataclasses import dataclass

_PR_SET_CHILD_SUBREAPER = 36
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def become_subreaper() -> None:
    """Orphans among the descendants become children of this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


@dataclass
class Use:
    """What all living descendants use together."""

    cpu_s: float
    rss_bytes: int
    count: int


def fields_of(pid: int) -> list[str]:
    """/proc/<pid>/stat after the name; [] where there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def start_time(pid: int) -> int:
    """Clock ticks from boot to its start; 0 where there is no such process."""
    fields = fields_of(pid)
    return int(fields[19]) if fields else 0


def descendants() -> list[int]:
    """All processes below this one, dead ones that nobody has reaped included."""
    parents: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal() and (fields := fields_of(int(name))):
            parents.setdefault(int(fields[1]), []).append(int(name))
    found, left = [], [os.getpid()]
    while left:
        children = parents.get(left.pop(), [])
        found += children
        left += children
    return found


def use() -> Use:
    """Of everybody who is alive now."""
    cpu, rss, count = 0.0, 0, 0
    for pid in descendants():
        fields = fields_of(pid)
        if fields and fields[0] != "Z":
            cpu += (int(fields[11]) + int(fields[12])) / _TICKS
            rss += int(fields[21]) * _PAGE
            count += 1
    return Use(cpu, rss, count)


def send(number: int) -> int:
    """A signal to every living descendant; returns how many there were."""
    alive = [pid for pid in descendants() if (fields := fields_of(pid)) and fields[0] != "Z"]
    for pid in alive:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
    return len(alive)


def reap() -> dict[int, int]:
    """(pid: wait status) of children that have ended."""
    ended: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended[pid] = status
    return ended


def stop_all() -> None:
    """SIGKILL, which nobody can refuse."""
    send(signal.SIGKILL)
