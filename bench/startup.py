"""How long `import surefoot` takes, and a whole one-step run from process start.

    python bench/startup.py [ROUNDS]

Medians over processes, with an interpreter that does nothing beside them.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FLOW = """
from surefoot import Workflow
flow = Workflow("flow")
@flow.step
def only(tx, given):
    tx.write_text("a.txt", "a")
"""


def seconds(command: list[str], folder: str) -> float:
    """With compiled modules, as an installed package has them, whatever this environment says of that."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": f"{folder}/compiled"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    cases = {
        "python -c pass": ["-c", "pass"],
        "import surefoot": ["-c", "import surefoot"],
        "one-step run, new workspace": ["-m", "surefoot", "run", "flow.py:flow", "-w", "new"],
        "one-step run, existing workspace": ["-m", "surefoot", "run", "flow.py:flow", "-w", "old"],
    }
    times: dict[str, list[float]] = {name: [] for name in cases}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "flow.py").write_text(FLOW, encoding="utf-8")
        Path(folder, "old").mkdir()
        for arguments in cases.values():  # compile everything once
            Path(folder, "new").mkdir(exist_ok=True)
            seconds([sys.executable, *arguments], folder)
        for _ in range(rounds):
            for name, arguments in cases.items():
                if "new" in arguments:
                    subprocess.run(["rm", "-rf", "new"], cwd=folder, check=True)
                    Path(folder, "new").mkdir()
                times[name].append(seconds([sys.executable, *arguments], folder))
    for name, values in times.items():
        print(f"{name:<34} {statistics.median(values) * 1e3:6.0f} ms  (goal: import 250, run 500)")


if __name__ == "__main__":
    main()
