"""Kills and failures at every call, in the real process. Started with the shim preloaded; prints JSON.

    LD_PRELOAD=shim.so python sweep.py FOLDER WORLD MODE [RECIPE]

MODE is one of
    kill             SIGKILL before every state-changing call of one transition, then reopen and check
    recovery         the same, and then SIGKILL before every call of each recovery that had work to do
    ERRNO,ERRNO,…    each call fails, once and from then on; then reopen without faults and retry
    count            how many calls and flushes one transition in steady state takes
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import structlog
import worlds
from shim import Shim

from surefoot import Engine, rows
from surefoot_storage import Workspace

structlog.configure(
    wrapper_class=structlog.make_filtering_bound_logger(50),
    logger_factory=structlog.PrintLoggerFactory(sys.stderr),
)


def copy(source: Path, target: Path) -> None:
    """With its hard links: a directory that is being swapped shares its unchanged files with the old one."""
    subprocess.run(["cp", "-a", source, target], check=True)


class Sweep:
    def __init__(self, folder: Path, world: worlds.World, recipe: Any) -> None:
        self.world = world
        self.recipe = recipe
        self.template = folder / "template"
        self.root = folder / "world"
        self.shim = Shim()
        self.stride = int(os.environ.get("SWEEP_STRIDE", "1"))  # recovers from every n-th crash only
        self.problems: list[str] = []
        self.cases = 0
        self.names: list[str] = []  # the calls of the run without a kill
        self.seen: Counter[str] = Counter()
        worlds.make(world, self.template, recipe)

    def fresh(self, source: Path | None = None) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        copy(source or self.template, self.root)
        worlds.restamp(self.root)

    def in_child(self, work: Any, **arm: Any) -> tuple[int, dict[str, Any]]:
        """(exit status, what it reported) of `work` in a forked child, the shim armed."""
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._child(work, write_end, arm)
        os.close(write_end)
        with os.fdopen(read_end, "rb") as pipe:
            data = pipe.read()
        _, status = os.waitpid(pid, 0)
        return status, pickle.loads(data) if data else {}

    def _child(self, work: Any, write_end: int, arm: dict[str, Any]) -> None:
        report: dict[str, Any] = {}
        self.arm_now = lambda: self.shim.arm(**arm)
        if not (work == self.change and self.world.spares):  # which arms when it is ready
            self.arm_now()
        try:
            result = work()
            report["result"] = result
        except BaseException as error:
            report["raised"] = type(error).__name__
            report["trace"] = traceback.format_exc()[-3000:]
        self.shim.disarm()
        report["calls"] = self.shim.count
        report["names"] = self.shim.names()
        os.write(write_end, pickle.dumps(report))
        os._exit(0)

    def change(self) -> dict[str, Any]:
        result = worlds.change(self.world, self.root, self.recipe, self.arm_now)
        return {"outcome": result.outcome, "failure": result.failure and result.failure.error}

    def reopen(self) -> dict[str, Any]:
        with Workspace(self.root, recipe=self.recipe):
            return {}

    def check(self, case: str) -> dict[str, Any]:
        self.cases += 1
        torn = worlds.torn(self.world, self.root)
        self.problems += [f"{case}: torn before recovery: {path}" for path in torn]
        return self.check_after(case)

    def check_after(self, case: str) -> dict[str, Any]:
        try:
            verdict = worlds.verdict(self.world, self.root, self.recipe)
        except Exception:
            self.problems.append(f"{case}: reopening failed: {traceback.format_exc()[-1500:]}")
            return {"which": "?"}
        self.problems += [f"{case}: {problem}" for problem in verdict["problems"]]
        self.seen[verdict["which"]] += 1
        return verdict

    def finish(self, case: str, *, failed: bool = False) -> None:
        """The run keeps the cause of a failure, and can be driven to its end afterwards."""
        try:
            with Engine(self.root, [self.world.workflow()], resume=False, recipe=self.recipe) as engine:
                run = engine.get("r").wait()
                tried = len(rows.attempts_of(engine._the_open.workspace, "r")) > 1
                if failed and tried and run.failure is None and not run.interruptions:
                    self.problems.append(f"{case}: the run does not say that its transition failed")
                result = engine.retry("r").wait() if engine.get("r").wait().step else None
        except Exception:
            self.problems.append(f"{case}: retry failed: {traceback.format_exc()[-1500:]}")
            return
        if result is not None and not result.ok:
            self.problems.append(f"{case}: retry ended as {result.state}: {result.failure}")
        if worlds.read_tree(self.root) != self.world.tree("new"):
            self.problems.append(f"{case}: not new after the retry")

    # --- modes ---

    def kill(self, *, recovery: bool) -> None:
        baseline = self.calls_of_idle_recovery() if recovery else 0
        kill_at = 0
        while True:
            kill_at += 1
            self.fresh()
            status, report = self.in_child(self.change, kill_at=kill_at)
            if status == 0:
                self.names = report["names"]
                if "raised" in report:
                    self.problems.append(f"without a kill: {report['trace']}")
                break
            assert os.WTERMSIG(status) == signal.SIGKILL, status
            if recovery:
                if kill_at % self.stride == 0:
                    self.kill_recovery(kill_at, baseline)
            else:
                verdict = self.check(f"kill before call {kill_at}")
                if verdict["which"] in ("old", "new") and kill_at % 3 == 0:
                    self.finish(f"kill before call {kill_at}")

    def calls_of_idle_recovery(self) -> int:
        self.fresh()
        _, report = self.in_child(self.reopen)
        return int(report["calls"])

    def kill_recovery(self, kill_at: int, baseline: int) -> None:
        crashed = self.root.with_name("crashed")
        shutil.rmtree(crashed, ignore_errors=True)
        copy(self.root, crashed)
        _, report = self.in_child(self.reopen)
        calls = int(report["calls"])
        if calls <= baseline:
            return
        for second in range(1, calls + 1):
            self.fresh(crashed)
            status, _ = self.in_child(self.reopen, kill_at=second)
            if status != 0:
                self.check(f"kill before call {kill_at}, then before call {second} of recovery")

    def fail(self, number: int, *, from_then_on: bool) -> None:
        fail_at = 0
        while True:
            fail_at += 1
            self.fresh()
            status, report = self.in_child(
                self.change, fail_at=fail_at, error=number, from_then_on=from_then_on
            )
            if report.get("calls", 0) < fail_at:
                break
            name = (report["names"][fail_at - 1 :] or ["?"])[0]
            case = f"{errno.errorcode[number]} {'from' if from_then_on else 'at'} call {fail_at} ({name})"
            if status != 0:
                self.problems.append(f"{case}: the process died: {status}")
            self.judge(case, report)

    def judge(self, case: str, report: dict[str, Any]) -> None:
        verdict = self.check(case)
        outcome = report.get("result", {}).get("outcome")
        if outcome in ("committed", "unapplied") and verdict["which"] != self.world.after:
            self.problems.append(f"{case}: reported {outcome}, but it is {verdict['which']}")
        if outcome in ("failed", "retrying") and verdict["which"] != self.world.before:
            self.problems.append(f"{case}: reported {outcome}, but it is {verdict['which']}")
        if report.get("raised") not in (
            None, "CommitOutcomeUnknown", "WorkspaceUnusable", "WorkspacePoisoned", "CommitFailed", "StageFailed",
            "WorkspaceBlocked",
        ):  # fmt: skip
            self.problems.append(f"{case}: raised {report['raised']}: {report['trace']}")
        self.seen[f"outcome {outcome or report.get('raised')}"] += 1
        if verdict["which"] in ("old", "new"):
            self.finish(case, failed=outcome == "failed")

    def count(self) -> dict[str, Any]:
        """Calls and flushes of later transitions of one open engine: the first after a log reset apart."""
        self.fresh()
        from surefoot import Workflow

        flow = Workflow("steady", directory="steady")
        contents = list(self.world.new.items())

        @flow.step
        def again(tx: Any, _given: Any) -> Any:
            from surefoot import Next

            old = int(tx.read_text("n.txt", default="0"))
            tx.write_text("n.txt", str(old + 1))
            for path, data in contents[1:]:
                tx.write_bytes(path, data + str(old).encode())
            return Next("again")

        flushes, calls = [], []
        with Engine(self.root, [flow], resume=False, recipe=self.recipe) as engine:
            engine.start(flow, run_id="s").wait()
            for _ in range(6):
                self.shim.arm()
                engine.advance("s").wait().or_raise()
                self.shim.disarm()
                flushes.append(self.shim.flushes)
                calls.append(self.shim.count)
            engine._the_open.workspace._store.database.checkpoint_log()
            after_reset = []
            for _ in range(2):
                self.shim.arm()
                engine.advance("s").wait().or_raise()
                self.shim.disarm()
                after_reset.append(self.shim.flushes)
            recipe = engine._the_open.workspace.recipe.name
        return {"flushes": flushes, "calls": calls, "flushes_after_reset": after_reset, "recipe": recipe}


def main() -> None:
    folder, world, mode = Path(sys.argv[1]), worlds.WORLDS[sys.argv[2]], sys.argv[3]
    sweep = Sweep(folder, world, sys.argv[4] if len(sys.argv) > 4 else None)
    extra: dict[str, Any] = {}
    if mode in ("kill", "recovery"):
        sweep.kill(recovery=mode == "recovery")
    elif mode == "count":
        extra = sweep.count()
    else:
        for name in mode.split(","):
            for from_then_on in (False, True):
                sweep.fail(getattr(errno, name), from_then_on=from_then_on)
    print(
        json.dumps(
            {
                "cases": sweep.cases,
                "seen": sweep.seen,
                "problems": sweep.problems,
                "names": sorted({*sweep.names}),
                **extra,
            }
        )
    )


if __name__ == "__main__":
    main()
