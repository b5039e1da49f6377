"""Ready-made steps that decide what comes next: wait, another workflow, a Python function, a command."""

from __future__ import annotations

import importlib
from datetime import datetime
from typing import Any, ClassVar

from pydantic import Field, PositiveFloat, PositiveInt, PrivateAttr, model_validator

from surefoot import DeclarationError, InputError, Step, Transaction, Workflow
from surefoot.approvals import EXPIRES_S, Ask
from surefoot.loader import load_workflow

from .command import run_command
from .ready import ReadyStep, Values


class Wait(ReadyStep):
    """Waits for a length of time, a moment, or a signal; the run is parked as rows meanwhile."""

    seconds: float | None = Field(default=None, ge=0)
    until: datetime | None = None
    signal: str | None = None
    timeout_s: PositiveFloat | None = None
    _signals: dict[str, Any] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _one_of_them(self) -> Wait:
        if sum(given is not None for given in (self.seconds, self.until, self.signal)) != 1:
            raise ValueError("one of seconds, until and signal")
        if self.until is not None and self.until.tzinfo is None:
            raise ValueError("until with a time zone")
        if self.timeout_s is not None and self.signal is None:
            raise ValueError("timeout_s only with signal")
        return self

    def declare(self, workflow: Workflow, name: str, **options: Any) -> Step[..., Any]:
        """As any step; its signal must be one of the workflow's.

        Raises:
            DeclarationError: it is not.
        """
        if self.signal is not None and self.signal not in workflow.signals:
            known = ", ".join(workflow.signals) or "none"
            raise DeclarationError(
                "declare step", f"{workflow.name}/{name}.signal",
                expected=f"a signal of {workflow.name}: {known}",
                found=self.signal,
            )  # fmt: skip
        self._signals.update(workflow.signals)
        return super().declare(workflow, name, **options)

    def run(self, tx: Transaction, _values: Values) -> Any:
        """Waits."""
        if self.signal is not None:
            return tx.wait_for(self._signals[self.signal], timeout_s=self.timeout_s)
        return tx.sleep(self.seconds) if self.seconds is not None else tx.sleep(until=self.until)


class Approve(ReadyStep):
    """Waits until people have approved what these files hold; see `Transaction.ask`."""

    title: str = Field(min_length=1, max_length=4_000)
    of: list[str] = Field(default_factory=list)
    approvers: list[str] = Field(default_factory=list)
    quorum: PositiveInt = 1
    expires_s: PositiveFloat = EXPIRES_S
    remind_s: float | None = Field(default=None, ge=1)
    escalate_s: float | None = Field(default=None, ge=1)
    escalate_to: list[str] = Field(default_factory=list)
    work: bool = False
    """Of the latest agent's changes, byte for byte."""

    def declare(self, workflow: Workflow, name: str, **options: Any) -> Step[..., Any]:
        """As any step; what nobody could ever answer is refused here.

        Raises:
            DeclarationError: which option, and why.
        """
        subject = f"{workflow.name}/{name}"
        for pattern in self.of:
            workflow.checked_pattern("of", pattern, item=options.get("each") is not None)
        try:
            Ask.from_dict(self.model_dump(exclude={"work"})).check(subject)
        except InputError as error:
            raise DeclarationError(
                "declare step", subject, expected=error.expected, found=error.found, hint=error.hint
            ) from error
        return super().declare(workflow, name, **options)

    def run(self, tx: Transaction, values: Values) -> Any:
        """Asks."""
        return tx.ask(
            self.title, of=[values.fill(pattern) for pattern in self.of], approvers=self.approvers,
            quorum=self.quorum, expires_s=self.expires_s, remind_s=self.remind_s, escalate_s=self.escalate_s,
            escalate_to=self.escalate_to, work=tx.work() if self.work else None,
        )  # fmt: skip


class SubWorkflow(ReadyStep):
    """Starts a run of another workflow (`FILE.py:NAME` or a pipeline file), and waits for its end."""

    workflow: str = Field(min_length=1)
    input: dict[str, Any] = Field(default_factory=dict)
    queue: str = ""
    wait: bool = True
    timeout_s: PositiveFloat | None = None

    def run(self, tx: Transaction, values: Values) -> Any:
        """Starts it, with this step's commit."""
        tx.start(load_workflow(self.workflow), values.deep(self.input), queue=self.queue)
        return tx.wait_for_runs(timeout_s=self.timeout_s) if self.wait else None


class Function(ReadyStep):
    """Calls a Python function, `package.module:name`, with the transaction and the input."""

    call: str = Field(pattern=r"^[\w.]+:\w+$")
    arguments: dict[str, Any] = Field(default_factory=dict)

    def run(self, tx: Transaction, values: Values) -> Any:
        """Calls it; its return value is the step's."""
        module, _, name = self.call.partition(":")
        try:
            function = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise InputError(
                "call", self.call, expected="a function that can be imported", found=str(error)
            ) from error
        return function(tx, values.input, **self.arguments)


class Command(ReadyStep):
    """Runs a command in a scratch directory, and writes the one file that it leaves; see `run_command`."""

    names: ClassVar[tuple[str, ...]] = ("path",)
    argv: list[str] = Field(min_length=1)
    result: str = Field(min_length=1)
    path: str = Field(min_length=1)
    give: dict[str, str] = Field(default_factory=dict)
    timeout_s: PositiveFloat | None = None

    def run(self, tx: Transaction, values: Values) -> None:
        """Runs it; `give` maps names in its directory to files of the run."""
        given = {name: tx.read_bytes(values.fill(path)) for name, path in self.give.items()}
        argv = [values.render(argument) for argument in self.argv]
        done = run_command(tx, argv, result=self.result, give=given, timeout_s=self.timeout_s)
        tx.write_bytes(values.fill(self.path), done.result)
