"""One attempt of an agent, from its commit to its end: each call looks, does what is due, and writes it down.

Everything here can be done again: whoever takes an attempt over, in this process or the next, goes on from
its row. What a call does is known by its folder (a process is started once in each), by its change set (a
copy is sealed once), or by its row (which only its watcher changes).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any
from urllib.parse import quote, unquote

from pydantic import BaseModel

from surefoot_storage import ChangeSet, Conflict, CopyRefused, SurefootError, Workspace

from . import judging, probing, rows
from .agentspec import Agent, Verified, matcher
from .errors import LaunchFailed
from .launching import RUN, launch
from .log import logger
from .probing import Probe
from .rows import AgentRow

ERRORS_MAX = 5
"""Probes that may fail one after the other, `poll_s` times 1, 2, 3 apart; then the attempt fails."""
RESULT_BYTES_MAX = 16 << 20
GONE_LOOKS = 2
"""Times that a process must be found gone, without an exit record, before it counts as lost."""
NAME_CHARS_MAX = 200


def copy_name(agent_id: str) -> str:
    """The name of an attempt's working copy."""
    name = quote(agent_id, safe="")
    if len(name) <= NAME_CHARS_MAX:
        return name
    import hashlib

    return hashlib.sha256(agent_id.encode()).hexdigest()


def agent_of(name: str) -> str:
    """The attempt that a working copy belongs to; of a name that was too long, none."""
    return unquote(name)


def nonce_of(workspace: Workspace, agent_id: str, folder: str = RUN) -> str:
    """The mark that a launch's processes carry, and that its records name."""
    return f"{workspace.uuid}:{copy_name(agent_id)}:{folder}"


def ignored(spec: Agent) -> Callable[[str], bool]:
    """Which changes in a copy are no part of what an agent has done; `.git` is never committed by files."""
    return matcher([*spec.ignore, ".git"])


def not_copied(spec: Agent) -> Callable[[str], bool]:
    """What a copy does without."""
    return matcher([*spec.skip, *([".git"] if spec.git == "none" else [])])


class Tending:
    """One attempt, watched by one worker. For worker threads."""

    def __init__(
        self, workspace: Workspace, agent_id: str, now: Callable[[], float], model: type[BaseModel] | None
    ) -> None:
        self._workspace = workspace
        self._copies = workspace.copies
        self._id = agent_id
        self._name = copy_name(agent_id)
        self._now = now
        self._model = model
        self._gone = 0

    def look(self) -> float | None:
        """Does what is due; returns the seconds until the next look, None where it is over.

        Raises:
            Conflict: somebody else watches it now.
        """
        row = rows.get_agent(self._workspace, self._id)
        if row.state == "over":
            return None
        if row.owner != self._workspace.worker:  # it was taken from us while we were frozen
            raise Conflict("watch agent", row.id, expected="to be its watcher", found=row.owner or "nobody")
        try:
            wait_s = self._on(row)
        except (CopyRefused, LaunchFailed) as error:
            return self._failed(row, error)
        except SurefootError:
            raise
        except Exception as error:  # noqa: BLE001 - a disk, or records that anybody may have written
            return self._failed(row, error)
        if row.errors and wait_s is not None:
            self._change(row, errors=0)
        return wait_s

    def _on(self, row: AgentRow) -> float | None:
        match row.state:
            case "running":
                return self._run(row)
            case "sealing":
                return self._seal(row)
            case "verifying":
                return self._verify(row)
        return 0.0

    def _failed(self, row: AgentRow, error: Exception) -> float | None:
        """A look that went wrong says nothing about the agent; too many of them end the attempt."""
        errors = row.errors + 1
        why = (str(error) or type(error).__name__).splitlines()[0]
        logger(run=row.run_id, agent=row.id).warning("agent.probe_failed", errors=errors, error=why)
        if errors < ERRORS_MAX and not isinstance(error, LaunchFailed):
            self._change(row, errors=errors, evidence={**row.evidence, "probe_error": why})
            return row.spec.poll_s * errors
        evidence = {**row.evidence, "probe_error": why, "probe_errors": errors}
        if row.state == "running":
            killed, left = probing.kill_tagged(nonce_of(self._workspace, row.id))
            evidence |= {"killed": killed, "left": left}
            what = "it could not be watched" if row.started_at is not None else "it could not be launched"
            self._change(
                row, state="sealing", errors=0, outcome="failed", why=f"{what}: {why}", evidence=evidence
            )
            return 0.0
        outcome = "unverified" if row.state == "verifying" else "failed"
        said = "verified" if row.state == "verifying" else "sealed"
        return self._end(row, outcome=outcome, why=f"it could not be {said}: {why}", evidence=evidence)

    # --- running ---

    def _run(self, row: AgentRow) -> float | None:
        found = probing.probe(self._copies, self._name, RUN, nonce_of(self._workspace, row.id))
        if found.seen == "exited":
            assert found.exit is not None
            return self._exited(row, found)
        if found.seen == "gone":
            return self._lost(row, found)
        if row.stop:
            return self._stop(row, found)
        if found.seen == "not started":
            self._launch(row)
        elif row.started_at is None and found.spawn is not None:
            self._started(row, found.spawn)
        return row.spec.poll_s

    def _launch(self, row: AgentRow) -> None:
        count = self._copies.prepare(self._name, row.directory, not_copied(row.spec))
        launch(
            self._copies, self._workspace.root, self._name, RUN, row.spec, row.spec.argv,
            nonce_of(self._workspace, row.id), wall_s=row.spec.limits.wall_s,
            extra={"SUREFOOT_AGENT_ID": row.id, "SUREFOOT_RUN": row.run_id, "SUREFOOT_STEP": row.step},
        )  # fmt: skip
        spawn = self._copies.note(self._name, RUN, "spawn.json") or {}
        logger(run=row.run_id, agent=row.id).info(
            "agent.launched", pid=spawn.get("command", {}).get("pid"), confined=spawn.get("confined"),
            entries=count,
        )  # fmt: skip
        self._started(row, spawn)

    def _started(self, row: AgentRow, spawn: Mapping[str, Any]) -> None:
        self._change(
            row, started_at=spawn.get("started_at", self._now()), evidence={**row.evidence, "spawn": spawn}
        )

    def _stop(self, row: AgentRow, found: Probe) -> float | None:
        if found.seen == "not started":
            if self._copies.note(self._name, ".", "base.json") is None:
                return self._end(row, outcome="cancelled", why=row.stop)
            self._change(row, state="sealing", outcome="cancelled", why=row.stop)
            return 0.0
        self._copies.write(self._name, RUN, "stop.json", {"why": row.stop})
        return min(row.spec.poll_s, 0.2)

    def _exited(self, row: AgentRow, found: Probe) -> float:
        assert found.exit is not None
        outcome, why = judging.judge(found.exit, row.stop)
        result = None
        if outcome == "succeeded":
            result, wrong = judging.result_of(row.spec, self._result(row.spec), self._model)
            if wrong:
                outcome, why = "failed", wrong
        evidence = {**row.evidence, "exit": found.exit}
        evidence |= {"spawn": found.spawn} if found.spawn else {}
        self._change(
            row, state="sealing", errors=0, outcome=outcome, why=why, result=result, evidence=evidence,
            started_at=found.exit["started_at"],
        )  # fmt: skip
        return 0.0

    def _result(self, spec: Agent) -> bytes | None:
        if spec.result is None:
            return None
        below, path = (RUN, "stdout") if spec.result == "@stdout" else ("work", spec.result)
        return self._copies.content(self._name, below, path, most=RESULT_BYTES_MAX)

    def _lost(self, row: AgentRow, found: Probe) -> float:
        """Nobody watches it, and it has left no record: its shim was killed, or the machine was."""
        self._gone += 1
        if self._gone < GONE_LOOKS:
            return row.spec.poll_s
        killed, left = probing.kill_tagged(nonce_of(self._workspace, row.id))
        if left:
            raise OSError(f"processes {left} do not end")
        why = "its shim has died without a record of its end"
        self._change(
            row, state="sealing", errors=0, outcome="cancelled" if row.stop else "lost", why=row.stop or why,
            evidence={**row.evidence, "spawn": found.spawn, "killed": killed},
        )  # fmt: skip
        return 0.0

    # --- what it has done ---

    def _seal(self, row: AgentRow) -> float | None:
        killed, left = probing.kill_tagged(nonce_of(self._workspace, row.id))
        if left:
            raise OSError(f"processes {left} do not end, and may still write")
        evidence = {**row.evidence, "killed": killed} if killed else dict(row.evidence)
        if self._copies.note(self._name, ".", "base.json") is None:  # nothing has ever run in it
            return self._end(row, outcome=row.outcome, why=row.why, evidence=evidence)
        changes = self._copies.seal(self._name, ignored(row.spec))
        evidence["changes"] = _shape(changes)
        outcome, why = row.outcome, row.why
        if outcome == "succeeded" and changes.conflicts:
            outcome = "conflict"
            why = f"somebody has changed {changes.conflicts[0]} meanwhile"
        if outcome == "succeeded" and changes.changes and not self._copies.entries_below(self._name):
            outcome, why = "failed", "it has deleted everything in its copy"  # to take that asks for a person
        if outcome == "succeeded" and row.spec.verify:
            self._change(row, state="verifying", errors=0, evidence=evidence, digest=changes.digest)
            return 0.0
        return self._end(row, outcome=outcome, why=why, evidence=evidence, digest=changes.digest)

    def _verify(self, row: AgentRow) -> float | None:
        """The commands one after the other, each under a shim of its own, in the copy that was sealed."""
        done: list[Verified] = []
        for number, argv in enumerate(row.spec.verify):
            folder = f"verify-{number}"
            if row.stop and self._copies.note(self._name, folder, "exit.json") is None:
                if self._copies.note(self._name, folder, "spawn.json") is None:
                    return self._end(row, outcome="cancelled", why=row.stop)
                self._copies.write(self._name, folder, "stop.json", {"why": row.stop})
            found = verify_once(self._workspace, row, folder, argv, row.spec.verify_s)
            if found is None:
                return min(row.spec.poll_s, 0.2)
            done.append(found)
        outcome, why = ("cancelled", row.stop) if row.stop else judging.verified(done)
        evidence = {**row.evidence, "verified": [asdict(one) for one in done]}
        strays = self._copies.strays(self._name)
        if strays:
            evidence["changed_by_verifying"] = strays[:100]
        return self._end(row, outcome=outcome, why=why, evidence=evidence)

    # --- the end ---

    def _end(self, row: AgentRow, **columns: Any) -> float | None:
        """Settled, durably, and whoever waits for it is woken; or the next attempt is wanted instead."""
        now, spec = self._now(), row.spec
        over = rows.change_agent(row, state="over", ended_at=now, **columns)
        statements, outcome = [over], columns["outcome"]
        if row.run_id:
            if not row.stop and outcome in spec.retry.on and row.attempt < spec.retry.attempts:
                wait_s = spec.retry.delay_s(row.attempt)
                statements.append(rows.insert_agent(next_attempt(row, now, now + wait_s)))
                logger(run=row.run_id, agent=row.id).warning(
                    "agent.retried", outcome=outcome, why=columns["why"], retry_in_s=wait_s
                )
            statements += rows.wake(row.run_id)
        self._workspace.write_rows(statements)
        logger(run=row.run_id, agent=row.id).info("agent.over", outcome=outcome, why=columns["why"])
        return None

    def _change(self, row: AgentRow, **columns: Any) -> None:
        self._workspace.write_rows([rows.change_agent(row, **columns)], durable=False)


def verify_once(
    workspace: Workspace, row: AgentRow, folder: str, argv: Sequence[str], wall_s: float
) -> Verified | None:
    """A verifying command in an attempt's copy: started where it was not, and what it says once it has ended.

    Raises:
        OSError, ValueError, LaunchFailed, CopyRefused: that cannot be told now.
    """
    copies, name, nonce = workspace.copies, copy_name(row.id), nonce_of(workspace, row.id, folder)
    found = probing.probe(copies, name, folder, nonce)
    if found.seen == "not started":
        extra = {"SUREFOOT_AGENT_ID": row.id}
        launch(copies, workspace.root, name, folder, row.spec, argv, nonce, wall_s=wall_s, extra=extra)
        return None
    if found.seen == "running":
        return None
    if found.exit is None:
        probing.kill_tagged(nonce)
        return Verified(tuple(argv), "could not run", "its shim has died")
    return judging.verdict_of(argv, found.exit)


def next_attempt(row: AgentRow, now: float, at: float) -> AgentRow:
    """The same once more, in a copy of its own."""
    number = row.attempt + 1
    return AgentRow(
        attempt_id(row.run_id, row.visit, number), row.run_id, row.visit, row.step, number, row.kind,
        row.directory, row.spec, row.reads_digest, "wanted", at, created_at=now,
    )  # fmt: skip


def attempt_id(run_id: str, visit: int, attempt: int) -> str:
    """`RUN/VISIT`, and from the second attempt on which one it is."""
    return f"{run_id}/{visit}" + (f"/{attempt}" if attempt > 1 else "")


def _shape(changes: ChangeSet) -> dict[str, Any]:
    return {
        "count": len(changes.changes), "blocked": [list(pair) for pair in changes.blocked[:20]],
        "conflicts": list(changes.conflicts[:20]), "left_out": len(changes.left_out),
        "left_out_bytes": sum(size for _, size in changes.left_out),
    }  # fmt: skip


def summary_of(row: AgentRow) -> str:
    """What a run that waits for it is told, as JSON."""
    return json.dumps({
        "agent": row.id, "outcome": row.outcome, "why": row.why, "digest": row.digest, "result": row.result,
        "attempt": row.attempt,
    })  # fmt: skip
