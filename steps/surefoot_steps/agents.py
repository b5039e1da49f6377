"""Ready-made steps for commands and agents that change files: in a working copy, and landing as a whole."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from surefoot import (
    Agent,
    AgentDone,
    AgentRetry,
    DeclarationError,
    Files,
    InputError,
    Limits,
    Step,
    Transaction,
    Workflow,
)

from .ready import ReadyStep, Values


class RunCommand(ReadyStep):
    """Runs a command in a copy of the run's directory; what it changes is the step's: `Transaction.run`."""

    argv: list[str] = Field(min_length=1)
    directory: str = ""
    stdin: str | None = None
    env: dict[str, str] = Field(default_factory=dict)
    secrets: dict[str, str] = Field(default_factory=dict)
    limits: Limits = Limits()
    skip: list[str] = Field(default_factory=list)
    ignore: list[str] = Field(default_factory=list)
    confine: str = "auto"
    writable: list[str] = Field(default_factory=list)

    def declare(self, workflow: Workflow, name: str, **options: Any) -> Step[..., Any]:
        """As any step; options that no agent can have are refused here.

        Raises:
            DeclarationError: which option, and why.
        """
        _checked(f"{workflow.name}/{name}", self.model_dump(exclude={"directory"}))
        return super().declare(workflow, name, **options)

    def run(self, tx: Transaction, values: Values) -> None:
        """Runs it."""
        options = self.model_dump(exclude={"argv", "directory"}, exclude_defaults=True)
        tx.run(
            [values.render(argument) for argument in self.argv],
            directory=values.fill(self.directory), **options,
        )  # fmt: skip


class RunAgent(ReadyStep):
    """Launches an agent in a copy of the run's directory, and waits for it; `use = "take"` follows.

    `text` is written to `prompt` first, as a template. See `Transaction.agent`.
    """

    argv: list[str] = Field(default_factory=list)
    driver: str = ""
    kind: str = "agent"
    directory: str = ""
    prompt: str | None = None
    text: str | None = None
    stdin: str | None = None
    result: str | None = None
    env: dict[str, str] = Field(default_factory=dict)
    pass_env: list[str] | None = None
    secrets: dict[str, str] = Field(default_factory=dict)
    limits: Limits = Limits()
    done: AgentDone = AgentDone()
    retry: AgentRetry = AgentRetry()
    skip: list[str] = Field(default_factory=list)
    ignore: list[str] = Field(default_factory=list)
    git: str = "copy"
    reads: list[str] = Field(default_factory=list)
    verify: list[list[str]] = Field(default_factory=list)
    verify_s: float = 600.0
    confine: str = "auto"
    writable: list[str] = Field(default_factory=list)

    def declare(self, workflow: Workflow, name: str, **options: Any) -> Step[..., Any]:
        """As any step; options that no agent can have are refused here.

        Raises:
            DeclarationError: which option, and why.
        """
        _checked(f"{workflow.name}/{name}", self._options())
        if self.text is not None and self.prompt is None and not self.driver:
            raise DeclarationError(
                "declare step", f"{workflow.name}/{name}.text", expected="prompt, the file that it goes to",
                found="none",
            )  # fmt: skip
        return super().declare(workflow, name, **options)

    def _options(self) -> dict[str, Any]:
        facts = self.model_dump(exclude={"directory", "text"}, exclude_defaults=True)
        return {**facts, "argv": self.argv} if self.argv else facts

    def run(self, tx: Transaction, values: Values) -> Any:
        """Writes its prompt, and wants it launched with this step's commit."""
        if self.text is not None:
            path = self.prompt or "prompt.md"
            place = values.fill(self.directory)
            view: Files = tx
            if place.startswith("/"):
                view, place = tx.workspace, place.strip("/")
            view.write_text(f"{place}/{path}".lstrip("/"), values.render(self.text))
        options = self._options()
        options.pop("argv", None)
        argv = [values.render(argument) for argument in self.argv] or None
        return tx.agent(argv, directory=values.fill(self.directory), **options)


class TakeWork(ReadyStep):
    """Takes what the run's latest agent has changed into this step. See `Transaction.take`."""

    step: str | None = None
    paths: list[str] | None = None
    ours: list[str] = Field(default_factory=list)
    theirs: list[str] = Field(default_factory=list)
    approved: bool = False

    def run(self, tx: Transaction, _values: Values) -> None:
        """Takes it; with `approved`, only what the approval before this step was of."""
        if self.approved:
            tx.approved()
        tx.take(tx.work(self.step), paths=self.paths, ours=self.ours, theirs=self.theirs)


def _checked(subject: str, options: dict[str, Any]) -> None:
    try:
        Agent.parse(None, subject, **options)
    except InputError as error:
        raise DeclarationError(
            "declare step", error.subject, expected=error.expected, found=error.found, hint=error.hint
        ) from error
