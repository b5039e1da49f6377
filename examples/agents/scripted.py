"""Stand-ins for coding agents: scripts that behave well or badly, as told. Usage: scripted.py MODE [ARGUMENT…]"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path


def good(*names: str) -> None:
    """Reads its prompt, writes a draft (or the files it is told), and leaves a result."""
    prompt = Path("prompt.md").read_text() if Path("prompt.md").exists() else "nothing"
    for name in names or ("draft.md",):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(f"{prompt.strip()}, done\n")
    print(f"wrote {', '.join(names) or 'draft.md'}", flush=True)
    Path("result.json").write_text(json.dumps({"ok": True, "files": list(names)}))


def slow(seconds: str = "2") -> None:
    """Works for a while, and says so."""
    for number in range(int(float(seconds) * 10)):
        print(f"step {number}", flush=True)
        Path("progress.txt").write_text(f"{number}\n")
        time.sleep(0.1)
    good()


def crash(how: str = "3") -> None:
    """Changes something, then ends with an exit code, or by killing itself."""
    Path("half.txt").write_text("half done\n")
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.exit(int(how))


def hang(*first: str) -> None:
    """Says what it is told, and then nothing any more; does not listen to SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path("begun.txt").write_text("begun\n")
    print(*first, flush=True)
    while True:
        time.sleep(60)


def fork(path: str = "written.txt") -> None:
    """Leaves a process behind that has detached itself, and goes on writing."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in range(100_000):
                with open(path, "a") as file:
                    file.write(f"{number}\n")
                time.sleep(0.005)
        os._exit(0)
    while not os.path.exists(path):
        time.sleep(0.01)
    good()


def many(count: str = "500") -> None:
    """Edits many files."""
    for number in range(int(count)):
        folder = Path(f"many/{number % 10}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.txt").write_text(f"file {number}\n")


def vandal() -> None:
    """Deletes the directory that it works in."""
    import shutil

    shutil.rmtree(os.getcwd(), ignore_errors=True)


if __name__ == "__main__":
    {f.__name__: f for f in (good, slow, crash, hang, fork, many, vandal)}[sys.argv[1]](*sys.argv[2:])
