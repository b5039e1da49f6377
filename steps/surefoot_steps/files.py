"""Ready-made steps that change files: write, copy, move, delete, render, edit."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, model_validator

from surefoot import InputError, Transaction

from .documents import Document
from .ready import ReadyStep, Values

_CHUNK = 1 << 20


class Write(ReadyStep):
    """Writes a file: a text, in which `{{ field }}` is filled in, or a JSON value."""

    names: ClassVar[tuple[str, ...]] = ("path",)
    path: str = Field(min_length=1)
    text: str | None = None
    value: Any = None
    mode: int | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Write:
        if (self.text is None) == (self.value is None):
            raise ValueError("either text or value")
        return self

    def run(self, tx: Transaction, values: Values) -> None:
        """Writes it."""
        path = values.fill(self.path)
        if self.text is not None:
            tx.write_text(path, values.render(self.text), mode=self.mode)
        else:
            tx.write_json(path, values.deep(self.value), mode=self.mode)


class Copy(ReadyStep):
    """Copies a file, of any size."""

    names: ClassVar[tuple[str, ...]] = ("source", "target")
    source: str = Field(min_length=1)
    target: str = Field(min_length=1)

    def run(self, tx: Transaction, values: Values) -> None:
        """Copies it."""
        with tx.open(values.fill(self.source)) as source, tx.create(values.fill(self.target)) as target:
            while chunk := source.read(_CHUNK):
                target.write(chunk)


class Move(ReadyStep):
    """Renames a file or a directory."""

    names: ClassVar[tuple[str, ...]] = ("source", "target")
    source: str = Field(min_length=1)
    target: str = Field(min_length=1)

    def run(self, tx: Transaction, values: Values) -> None:
        """Renames it."""
        tx.rename(values.fill(self.source), values.fill(self.target))


class Delete(ReadyStep):
    """Deletes a file, or a directory with all that is in it."""

    names: ClassVar[tuple[str, ...]] = ("path",)
    path: str = Field(min_length=1)
    missing_ok: bool = False

    def run(self, tx: Transaction, values: Values) -> None:
        """Deletes it."""
        path = values.fill(self.path)
        if tx.is_dir(path):
            tx.rmtree(path)
        elif not self.missing_ok or tx.exists(path):
            tx.delete(path)


class Render(ReadyStep):
    """Fills in a template of the workflow's folder."""

    names: ClassVar[tuple[str, ...]] = ("path",)
    template: str = Field(min_length=1)
    path: str = Field(min_length=1)
    values: dict[str, Any] = Field(default_factory=dict)

    def run(self, tx: Transaction, values: Values) -> None:
        """Writes it."""
        filled = tx.render(self.template, **{**values.all, **values.deep(self.values)})
        tx.write_text(values.fill(self.path), filled)


class Edit(ReadyStep):
    """Sets and removes fields of a JSON, TOML or YAML file; comments and order stay.

    A field is a path such as `build.targets.0.name`. What is missing above it is made.
    """

    names: ClassVar[tuple[str, ...]] = ("path",)
    path: str = Field(min_length=1)
    set: dict[str, Any] = Field(default_factory=dict)
    remove: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _something_to_do(self) -> Edit:
        if not self.set and not self.remove:
            raise ValueError("set or remove")
        if not self.path.endswith((".json", ".toml", ".yaml", ".yml")):
            raise ValueError("a path that ends with .json, .toml, .yaml or .yml")
        return self

    def run(self, tx: Transaction, values: Values) -> None:
        """Edits it."""
        path = values.fill(self.path)
        document = Document.parse(path, tx.read_text(path))
        for field in self.remove:
            document.remove(field)
        for field, value in self.set.items():
            document.set(field, values.deep(value))
        try:
            tx.write_text(path, document.text())
        except (TypeError, ValueError) as error:
            raise InputError("edit", path, expected="values that it can hold", found=str(error)) from error
