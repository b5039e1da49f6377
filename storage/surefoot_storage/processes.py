"""Who is who on this host: a process is named by boot, pid and start time, never by pid alone."""

from __future__ import annotations

import os
import time
from typing import Any


def boot_id() -> str:
    """Different after each boot."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def user() -> str:
    """user@host, as people know them."""
    import pwd

    try:
        name = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container's user without an entry
        name = str(os.geteuid())
    return f"{name}@{os.uname().nodename}"


def start_time(pid: int) -> int | None:
    """Clock ticks from boot to the process's start; None where there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return int(file.read().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def command_of(pid: int) -> str:
    """The command line, for people."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read(400).replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "?"


def state_of(pid: int) -> str:
    """`T` is stopped, `Z` dead, `R` and `S` at work; "" where there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def started_at(pid: int) -> float | None:
    """Seconds since 1970; None where there is no such process."""
    ticks = start_time(pid)
    if ticks is None:
        return None
    with open("/proc/stat", encoding="ascii") as file:
        booted = next((int(line.split()[1]) for line in file if line.startswith("btime ")), 0)
    return booted + ticks / os.sysconf("SC_CLK_TCK")


def describe(pid: int) -> str:
    """`process 123 (python job.py), started …`, and whether it is stopped."""
    who = "this process itself" if pid == os.getpid() else f"process {pid}"
    state, started = state_of(pid), started_at(pid)
    words = {"T": ", stopped", "t": ", stopped by a debugger", "Z": ", dead", "D": ", waiting for the disk"}
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(started)) if started else "?"
    return f"{who} ({command_of(pid)}), started {since}{words.get(state, '')}"


def myself() -> dict[str, Any]:
    """What a holder writes about itself."""
    pid = os.getpid()
    return {"boot_id": boot_id(), "pid": pid, "start_time": start_time(pid), "command": command_of(pid)}


def lock_holder(found: os.stat_result) -> int | None:
    """The pid that holds a flock on this inode, by the kernel's own list; None from another pid namespace."""
    device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    try:
        with open("/proc/locks", encoding="ascii") as file:
            lines = [line.split() for line in file]
    except OSError:
        return None
    for fields in lines:
        if "->" not in fields and fields[1:2] == ["FLOCK"] and device in fields:
            return int(fields[4])
    return None
