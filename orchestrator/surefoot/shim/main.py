"""Reads what to do from standard input, detaches, and answers once the command is about to run.

Exit codes of the part that the supervisor waits for: 0 started (or ended already), 3 another one has this
folder, 1 it could not be started, with one line that says why.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys

from .watching import Watch

LOCK = "shim.lock"
STARTED, FAILED, TAKEN = 0, 1, 3


def main() -> int:
    """In the process that the supervisor waits for."""
    spec = json.load(sys.stdin)
    os.chdir(spec["folder"])
    answer, tell = os.pipe()
    if os.fork() == 0:
        os.close(answer)
        os.setsid()
        if os.fork() == 0:
            _watch(spec, tell)
        os._exit(0)
    os.close(tell)
    with open(answer, encoding="utf-8") as file:
        said = file.read()
    if said not in ("started", "taken"):
        sys.stderr.write(said or "it died before it could start anything")
        return FAILED
    return STARTED if said == "started" else TAKEN


def _watch(spec: dict[str, object], tell: int) -> None:
    """In the detached process. Never returns."""
    try:
        _detach()
        lock = os.open(LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(tell, "taken")
            os._exit(0)
        if os.path.exists("spawn.json"):  # it ran here before: one folder, one command
            _say(tell, "taken")
            os._exit(0)
        watch = Watch(spec)
        watch.start()
        _say(tell, "started")
        watch.run()
    except BaseException as error:  # noqa: BLE001 - the last place where it can be told
        _say(tell, f"{type(error).__name__}: {error}")
        with open("shim.log", "a", encoding="utf-8") as file:
            file.write(f"{type(error).__name__}: {error}\n")
        os._exit(1)
    os._exit(0)


def _detach() -> None:
    """Nothing of the supervisor's terminal is held open."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


def _say(tell: int, word: str) -> None:
    try:
        os.write(tell, word.encode())
        os.close(tell)
    except OSError:  # the supervisor is gone, or was told already
        pass
