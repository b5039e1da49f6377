"""What all ready-made steps share: options that are a validated model, and names with fields in them.

A step of one's own is a subclass of `ReadyStep`, found by the entry point group `surefoot.steps`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError

from surefoot import Committed, DeclarationError, Step, Transaction, Workflow


class ReadyStep(BaseModel):
    """A step that is declared by its options alone: `Write(path="a.txt", text="…").declare(flow, "write")`.

    Names of files may hold fields of the input, `{run_id}`, and in a fan-out `{item}` and `{index}`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    names: ClassVar[tuple[str, ...]] = ()
    """Which options are names of files: looked at when it is declared."""

    @classmethod
    def from_options(cls, workflow: str, name: str, options: dict[str, Any]) -> ReadyStep:
        """From the options of a file.

        Raises:
            DeclarationError: an option is unknown, missing or wrong, and which.
        """
        try:
            return cls.model_validate(options)
        except ValidationError as error:
            problem = error.errors()[0]
            key = ".".join(str(part) for part in problem["loc"])
            raise DeclarationError(
                "declare step", f"{workflow}/{name}.{key}", expected=problem["msg"],
                found=repr(problem["input"])[:80], hint=f"options: {', '.join(cls.model_fields)}",
            ) from error  # fmt: skip

    def declare(self, workflow: Workflow, name: str, **options: Any) -> Step[..., Any]:
        """Declares it; `options` are those of `Workflow.step`.

        Raises:
            DeclarationError: they do not fit.
        """
        item = options.get("each") is not None
        for field in self.names:
            if getattr(self, field) is not None:
                workflow.checked_pattern(field, getattr(self, field), item=item)
        if item:
            body: Any = lambda tx, given, item: self.run(tx, Values(tx, given, item))  # noqa: E731
        else:
            body = lambda tx, given: self.run(tx, Values(tx, given))  # noqa: E731
        step: Step[..., Any] = workflow.step(name=name, **options)(body)
        if type(self).tell is not ReadyStep.tell:
            step.effect(self._tell(name))
        return step

    def _tell(self, name: str) -> Any:
        def tell(done: Committed) -> None:
            self.tell(done)

        tell.__name__ = name
        return tell

    def run(self, tx: Transaction, values: Values) -> Any:
        """What it does in its transaction; returns what a step may return."""
        raise NotImplementedError

    def tell(self, done: Committed) -> None:
        """What it tells others after the commit; a step that does not define it has no effect."""
        raise NotImplementedError


class Values:
    """What can be filled into names and texts."""

    def __init__(self, tx: Transaction, given: BaseModel, item: Any = None) -> None:
        self._tx = tx
        self.input = given
        self.given = {name: getattr(given, name) for name in type(given).model_fields}
        self.all = {**self.given, "run_id": tx.run_id, "item": item, "index": tx.index}

    def fill(self, pattern: str) -> str:
        """A name with its fields."""
        return pattern.format(**self.all)

    def render(self, text: str) -> str:
        """A text as a template: `{{ topic }}`."""
        return self._tx.render_text(text, **self.all)

    def deep(self, value: Any) -> Any:
        """A value whose texts are templates, however deep."""
        if isinstance(value, str):
            return self.render(value)
        if isinstance(value, dict):
            return {key: self.deep(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.deep(inner) for inner in value]
        return value
