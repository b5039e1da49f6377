"""What an agent's end means: its outcome, from the evidence alone. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from .agentspec import Agent, Outcome, Verified

_BY_CAUSE: Mapping[str, tuple[Outcome, str]] = {
    "wall": ("timed_out", "it took longer than limits.wall_s"),
    "idle": ("stalled", "it neither said nor computed anything for limits.idle_s"),
    "memory": ("over_limit", "its processes needed more than limits.memory_bytes"),
    "cpu": ("over_limit", "its processes computed for longer than limits.cpu_s"),
    "output": ("over_limit", "it said more than limits.output_bytes"),
    "disk": ("over_limit", "its copy grew by more than limits.disk_bytes"),
}
_DONE = ("done_line", "done_idle", "done_result")


def judge(exit_: Mapping[str, Any], stop: str) -> tuple[Outcome, str]:
    """(outcome, why) of a process, before its result is looked at."""
    cause = exit_["cause"]
    if cause == "stopped" or (stop and exit_.get("signal") is not None):
        return "cancelled", stop or "its shim was told to stop it"
    if cause in _BY_CAUSE:
        return _BY_CAUSE[cause]
    if cause in _DONE:
        return "succeeded", f"{cause.removeprefix('done_')}: a sign that it is done"
    if exit_.get("error"):
        return "failed", f"it could not be started: {exit_['error']}"
    if exit_.get("signal") is not None:
        return "failed", f"it was killed by signal {exit_['signal']}"
    if exit_["code"] != 0:
        return "failed", f"exit code {exit_['code']}"
    return "succeeded", "exit code 0"


def result_of(spec: Agent, data: bytes | None, model: type[BaseModel] | None) -> tuple[Any, str]:
    """(what its result file says, what is wrong with it)."""
    if spec.result is None:
        return None, ""
    if data is None:
        return None, f"it left no result {spec.result!r}"
    try:
        value = json.loads(data)
        return (value if model is None else model.model_validate(value).model_dump(mode="json")), ""
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"]) or "the whole"
        name = model.__name__ if model is not None else "value"
        return None, f"its result {spec.result!r} is no {name}: {key}: {problem['msg']}"
    except ValueError as error:
        return None, f"its result {spec.result!r} is not JSON: {error}"


def verdict_of(argv: Sequence[str], exit_: Mapping[str, Any]) -> Verified:
    """What a verifying command says. Not to have run is no answer."""
    outcome, why = judge(exit_, "")
    if exit_.get("error"):
        return Verified(tuple(argv), "could not run", str(exit_["error"]))
    if exit_["cause"] == "exited" and exit_.get("code") is not None:
        passed = outcome == "succeeded"
        return Verified(tuple(argv), "pass" if passed else "fail", "" if passed else why)
    return Verified(tuple(argv), "could not run", why)


def verified(all_of: Sequence[Verified]) -> tuple[Outcome, str]:
    """What all of them say together."""
    for one in all_of:
        if one.verdict == "fail":
            return "rejected", f"{' '.join(one.argv)[:80]}: {one.why}"
    for one in all_of:
        if one.verdict == "could not run":
            return "unverified", f"{' '.join(one.argv)[:80]}: {one.why}"
    return "succeeded", f"{len(all_of)} of {len(all_of)} verifying commands passed"
