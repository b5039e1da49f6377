"""What an agent is told: a command, its limits, signs of completion, the rules of its copy. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from surefoot_storage import InputError

ARGUMENTS_MAX = 4_000
TEXT_CHARS_MAX = 100_000
YEAR_S = 366 * 86_400.0
MEBI = 1 << 20
KIND = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

Outcome: TypeAlias = Literal[
    "succeeded", "failed", "timed_out", "stalled", "over_limit", "lost", "cancelled", "rejected",
    "unverified", "conflict",
]  # fmt: skip
OUTCOMES: tuple[Outcome, ...] = (
    "succeeded", "failed", "timed_out", "stalled", "over_limit", "lost", "cancelled", "rejected",
    "unverified", "conflict",
)  # fmt: skip
TRANSIENT: tuple[Outcome, ...] = ("lost", "stalled")
"""What is tried again unless it is said otherwise: the agent itself has not failed."""


class _Strict(BaseModel):
    # `import surefoot` is fast: what a model needs is made when it is first used
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


class Limits(_Strict):
    """How much an agent may take. What is None is not limited.

    Attributes:
        wall_s: seconds from its start to its end.
        idle_s: seconds without a word and without computing; silence alone of a busy agent is none.
        grace_s: between SIGTERM and SIGKILL.
        memory_bytes: of all its processes together, measured twice a second.
        cpu_s: of all its processes together.
        log_bytes: of what it says are kept; older output is let go.
        output_bytes: of output, after which it is stopped.
        disk_bytes: that its working copy may grow by.
    """

    wall_s: float | None = Field(default=3_600.0, gt=0, le=YEAR_S)
    idle_s: float | None = Field(default=None, ge=1, le=YEAR_S)
    grace_s: float = Field(default=10.0, ge=0, le=3_600)
    memory_bytes: int | None = Field(default=None, ge=MEBI)
    cpu_s: float | None = Field(default=None, gt=0, le=YEAR_S)
    log_bytes: int = Field(default=16 * MEBI, ge=64 << 10)
    output_bytes: int | None = Field(default=None, ge=1)
    disk_bytes: int | None = Field(default=None, ge=1)


class Done(_Strict):
    """Signs that an agent is done though it has not ended: it is stopped then, and what it made counts.

    Attributes:
        line: a line of its output that matches this whole pattern.
        idle_s: it neither says nor computes anything for so long.
        result_s: its result file is there, and has not changed for so long.
    """

    line: str | None = None
    idle_s: float | None = Field(default=None, ge=1, le=YEAR_S)
    result_s: float | None = Field(default=None, ge=0, le=YEAR_S)

    @field_validator("line")
    @classmethod
    def _compiles(cls, line: str | None) -> str | None:
        if line is not None:
            try:
                re.compile(line.encode())
            except re.error as error:
                raise ValueError(f"no regular expression: {error}") from error
        return line


class AgentRetry(_Strict):
    """When an agent is launched again by itself.

    Attributes:
        attempts: in all.
        on: outcomes worth another try; what it has done in the failed one is kept aside.
        initial_s, factor, max_s: the wait before the second attempt, and how it grows.
    """

    attempts: int = Field(default=2, ge=1, le=1_000)
    on: tuple[Outcome, ...] = TRANSIENT
    initial_s: float = Field(default=5.0, ge=0, le=YEAR_S)
    factor: float = Field(default=2.0, ge=1, le=1_000)
    max_s: float = Field(default=600.0, ge=0, le=YEAR_S)

    @field_validator("on")
    @classmethod
    def _never_what_went_well(cls, on: tuple[Outcome, ...]) -> tuple[Outcome, ...]:
        if "succeeded" in on or "cancelled" in on:
            raise ValueError("what has succeeded or was cancelled is not tried again")
        return on

    def delay_s(self, failures: int) -> float:
        """Seconds to wait after that many attempts."""
        wait = self.initial_s
        for _ in range(failures - 1):
            wait = min(wait * self.factor, self.max_s)
        return min(wait, self.max_s)


Confine: TypeAlias = Literal["auto", "project", "strict", "none"]


class Agent(_Strict):
    """One launch of a command in a working copy. Paths are relative to the directory that is copied.

    Attributes:
        argv: the command; `{prompt}` in it is the prompt's path in the copy, `{copy}` the copy's own.
        driver: a preset that fills in what is not given here: see `surefoot agent drivers`.
        kind: agents of one kind share a limit of how many run at once.
        prompt: the file that tells it what to do; also its standard input where `stdin` says so.
        stdin: a file for its standard input.
        result: the JSON file that it must leave; "@stdout" takes what it printed on standard output.
        env: environment variables.
        pass_env: names of this process's own variables that it gets as well; nothing else is passed on.
        secrets: variables by where their value comes from, `env:NAME` or `file:/path`; never stored, and
            shown as [secret] in logs.
        limits, done, retry: see there.
        skip: patterns of what is not copied at all; `ignore`: of what is copied, and whose changes are
            no part of what it has done. `node_modules` stands for all that is in it.
        git: `copy` takes `.git` along (its own index and references), `none` hides it; its changes are
            never committed file by file.
        reads: patterns from the workspace's root: where these files have changed when its changes are
            taken, that is a conflict, too.
        verify: commands that must succeed in the copy once it is done; each is a list of arguments.
        verify_s: seconds that each of them may take.
        confine: `project` keeps it from writing to the workspace itself, `strict` from writing anywhere but
            to its copy, `writable` and a directory for temporary files; `auto` is `project` where the
            system can, `none` nothing. What was reached is recorded.
        writable: paths that it may write to all the same, `~` included.
        poll_s: seconds between two looks at it.
    """

    argv: tuple[str, ...] = ()
    driver: str = ""
    kind: str = Field(default="agent", pattern=KIND)
    prompt: str | None = None
    stdin: str | None = None
    result: str | None = None
    env: dict[str, str] = {}
    pass_env: tuple[str, ...] = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TERM", "TZ")
    secrets: dict[str, str] = {}
    limits: Limits = Limits()
    done: Done = Done()
    retry: AgentRetry = AgentRetry()
    skip: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    git: Literal["copy", "none"] = "copy"
    reads: tuple[str, ...] = ()
    verify: tuple[tuple[str, ...], ...] = ()
    verify_s: float = Field(default=600.0, gt=0, le=YEAR_S)
    confine: Confine = "auto"
    writable: tuple[str, ...] = ()
    poll_s: float = Field(default=0.5, ge=0.05, le=3_600)

    @field_validator("argv")
    @classmethod
    def _fits(cls, argv: tuple[str, ...]) -> tuple[str, ...]:
        if len(argv) > ARGUMENTS_MAX or any("\0" in a or len(a) > TEXT_CHARS_MAX for a in argv):
            raise ValueError(f"at most {ARGUMENTS_MAX} arguments of {TEXT_CHARS_MAX} characters without NUL")
        return argv

    @field_validator("prompt", "stdin", "result")
    @classmethod
    def _inside(cls, path: str | None) -> str | None:
        if path is not None and (path.startswith("/") or "\0" in path or ".." in path.split("/") or not path):
            raise ValueError("a file below the directory that is copied")
        return path

    @field_validator("secrets")
    @classmethod
    def _known_source(cls, secrets: dict[str, str]) -> dict[str, str]:
        for name, source in secrets.items():
            if not source.startswith(("env:", "file:")):  # the value itself would be stored
                raise ValueError(f"{name}: env:NAME or file:/path, not the secret itself")
        return secrets

    @field_validator("env", "secrets")
    @classmethod
    def _names(cls, variables: dict[str, str]) -> dict[str, str]:
        for name, value in variables.items():
            if not name or "=" in name or "\0" in name + value:
                raise ValueError(f"{name!r} is no environment variable")
        return variables

    @model_validator(mode="after")
    def _whole(self) -> Agent:
        if not self.argv and not self.driver:
            raise ValueError("argv or driver is needed")
        if any(not command for command in self.verify):
            raise ValueError("an empty command in verify")
        if self.done.result_s is not None and self.result in (None, "@stdout"):
            raise ValueError("done.result_s needs result, the name of a file")
        return self

    @classmethod
    def parse(cls, given: Any, subject: str, **options: Any) -> Agent:
        """From an Agent, a list of arguments, or keywords.

        Raises:
            InputError: which option is wrong, and why.
        """
        if isinstance(given, Agent):
            given = given.model_dump()
        elif given is None:
            given = {}
        elif isinstance(given, str) or not isinstance(given, Iterable):
            raise InputError(
                "launch agent", subject, expected="a list of arguments, or an Agent",
                found=repr(given)[:80],
                hint='tx.agent(["my-agent", "--fast"]); no shell is involved',
            )  # fmt: skip
        else:
            given = {"argv": list(given)}
        try:
            return cls.model_validate({**given, **options})
        except ValidationError as error:
            problem = error.errors()[0]
            key = ".".join(str(part) for part in problem["loc"]) or "argv"
            raise InputError(
                "launch agent", f"{subject}: {key}", expected=problem["msg"],
                found=repr(problem["input"])[:80], hint=f"options: {', '.join(cls.model_fields)}",
            ) from error  # fmt: skip


def matcher(patterns: Iterable[str]) -> Callable[[str], bool]:
    """Whether a pattern names a path, or a directory that it lies in: `*` within a name, `**` across."""
    wholes = [f"(?:{_expression(pattern)})(?:/.*)?" for pattern in patterns]
    if not wholes:
        return lambda _path: False
    found = re.compile("|".join(wholes), re.DOTALL).fullmatch
    return lambda path: found(path) is not None


def _expression(pattern: str) -> str:
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern.rstrip("/"))
    words = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(words.get(part, re.escape(part)) for part in parts)


@dataclass(frozen=True)
class Verified:
    """What became of one verifying command."""

    argv: tuple[str, ...]
    verdict: Literal["pass", "fail", "could not run"]
    why: str = ""


@dataclass(frozen=True)
class Work:
    """What an agent run has come to: an attempt with its sealed changes.

    Attributes:
        id: of the attempt; `surefoot agent show ID`.
        outcome: see `OUTCOMES`.
        why: in a few words.
        directory: that was copied, from the workspace's root.
        digest: of its changes: what an approval is bound to.
        changes: (action, path) of each.
        conflicts: paths that somebody had changed in the workspace meanwhile.
        blocked: (path, why) of changes that cannot be committed.
        result: what its result file held.
        evidence: exit record, identity, verification, limits.
        reads, reads_digest: the files it was declared to read, and what they were.
    """

    id: str
    run_id: str
    step: str
    attempt: int
    outcome: str
    why: str
    directory: str
    digest: str
    changes: tuple[tuple[str, str], ...] = ()
    conflicts: tuple[str, ...] = ()
    blocked: tuple[tuple[str, str], ...] = ()
    result: Any = None
    evidence: dict[str, Any] = field(default_factory=dict)
    reads: tuple[str, ...] = ()
    reads_digest: str = ""
