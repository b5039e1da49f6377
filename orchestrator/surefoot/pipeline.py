"""Pipelines as files: a workflow in TOML or YAML, of ready-made steps that installed packages offer."""

from __future__ import annotations

import json
import os
import tomllib
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Literal, Protocol

from pydantic import BaseModel, Field, ValidationError, create_model

from .declare import Workflow
from .errors import DeclarationError, LoadError
from .retry import Retry
from .steps import Done, Step

GROUP = "surefoot.steps"
SUFFIXES = (".toml", ".yaml", ".yml")
END = "END"
"""Where an outcome leads that ends the branch."""

_TYPES: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "dict": dict}
TypeName = Literal["str", "int", "float", "bool", "list", "dict"]


class Ready(Protocol):
    """A class of ready-made steps, as an entry point offers it: a pydantic model of its options."""

    def from_options(self, workflow: str, name: str, options: dict[str, Any]) -> Any:
        """One of them, with checked options."""

    def model_json_schema(self) -> dict[str, Any]:
        """Of the options."""


class FieldOf(BaseModel, extra="forbid"):
    """A field of the input or of a message."""

    type: TypeName
    default: Any = None


class RetryOf(BaseModel, extra="forbid"):
    """When a failed attempt is repeated; see `Retry`."""

    attempts: int = 1
    initial_s: float = 1.0
    factor: float = 2.0
    max_s: float = 300.0
    jitter: float = 0.1


class StepOf(BaseModel, extra="allow"):
    """A step: what it uses, where it stands, and the options of what it uses."""

    use: str
    after: str | list[str] | None = None
    outcomes: dict[str, str | list[str]] | None = None
    each: str | None = None
    at_once: int | None = None
    reads: list[str] = Field(default_factory=list)
    writes: list[str] | None = None
    retry: RetryOf | None = None
    step_timeout_s: float | None = None
    deadline_s: float | None = None
    visits_max: int | None = None
    locks: list[str] = Field(default_factory=list)


class ScheduleOf(BaseModel, extra="forbid"):
    """When it is started by itself; see `Workflow.schedule`."""

    cron: str
    zone: str = "UTC"
    input: dict[str, Any] | None = None
    catch_up_s: float = 3_600.0
    overlap: Literal["skip", "queue", "cancel", "allow"] = "skip"


class PipelineFile(BaseModel, extra="forbid"):
    """A whole file. Steps follow each other in their order, unless `after` says otherwise."""

    workflow: str
    version: str = ""
    pinned: bool = False
    directory: str = "runs/{run_id}"
    templates: str = "templates"
    deadline_s: float | None = None
    input: dict[str, TypeName | FieldOf] = Field(default_factory=dict)
    signals: dict[str, dict[str, TypeName | FieldOf]] = Field(default_factory=dict)
    schedules: dict[str, ScheduleOf] = Field(default_factory=dict)
    steps: dict[str, StepOf] = Field(min_length=1)


def load_pipeline(path: str) -> Workflow:
    """The workflow that a file declares.

    Raises:
        LoadError: it cannot be read, or is not what its suffix says.
        DeclarationError: a key is unknown, missing or wrong: with its path, what was expected and found.
    """
    document = _document(path)
    try:
        file = PipelineFile.model_validate(document)
    except ValidationError as error:
        raise _wrong(path, error) from error
    workflow = Workflow(
        file.workflow,
        input=_model("Input", file.input),
        directory=file.directory,
        templates=os.path.join(os.path.dirname(os.path.abspath(path)), file.templates),
        version=file.version,
        pinned=file.pinned,
        deadline_s=file.deadline_s,
    )
    for name, fields in file.signals.items():
        workflow.signal(name, _model(name, fields))
    for name, step in file.steps.items():
        _declare(workflow, name, step)
    for name, schedule in file.schedules.items():
        workflow.schedule(name, **schedule.model_dump())
    workflow.check()
    return workflow


def _document(path: str) -> Any:
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise LoadError(
            "load", path, expected="a pipeline file", found=error.strerror or str(error)
        ) from error
    try:
        if path.endswith(".toml"):
            return tomllib.loads(data.decode())
        return _yaml(path, data.decode())
    except LoadError:
        raise
    except Exception as error:
        kind = "TOML" if path.endswith(".toml") else "YAML"
        raise LoadError("load", path, expected=kind, found=str(error)[:200]) from error


def _yaml(path: str, text: str) -> Any:
    try:
        from ruamel.yaml import YAML
    except ImportError as error:
        raise LoadError(
            "load", path, expected="ruamel.yaml to be installed", found="it is not",
            hint='pip install "surefoot[steps]", or write it as TOML',
        ) from error  # fmt: skip
    return YAML(typ="safe", pure=True).load(text)


def _wrong(path: str, error: ValidationError) -> DeclarationError:
    problem = error.errors()[0]
    key = ".".join(
        str(part) for part in problem["loc"] if not str(part).startswith(("function-", "literal["))
    )
    return DeclarationError(
        "load pipeline", f"{path}: {key or 'the whole file'}", expected=problem["msg"],
        found=repr(problem["input"])[:80], hint="surefoot schema prints what a pipeline file may hold",
    )  # fmt: skip


def _model(name: str, fields: dict[str, Any]) -> type[BaseModel]:
    """A pydantic model of the fields; one without a default is required."""
    definitions: dict[str, Any] = {}
    for field, given in fields.items():
        if isinstance(given, str):
            definitions[field] = (_TYPES[given], ...)
        elif "default" in given.model_fields_set:
            definitions[field] = (_TYPES[given.type], given.default)
        else:
            definitions[field] = (_TYPES[given.type], ...)
    try:
        return create_model(name, __config__={"extra": "forbid", "validate_default": True}, **definitions)
    except Exception as error:
        raise DeclarationError("load pipeline", name, expected="names of fields", found=str(error)) from error


def _declare(workflow: Workflow, name: str, given: StepOf) -> Step[..., Any]:
    options: dict[str, Any] = {"reads": given.reads, "writes": given.writes, "locks": given.locks}
    options |= {"after": given.after, "timeout_s": given.step_timeout_s, "deadline_s": given.deadline_s}
    for key in ("each", "at_once", "visits_max"):
        if getattr(given, key) is not None:
            options[key] = getattr(given, key)
    if given.retry is not None:
        options["retry"] = Retry(**given.retry.model_dump())
    if given.outcomes is not None:
        options["outcomes"] = {outcome: _leads(leads) for outcome, leads in given.outcomes.items()}
    ready = ready_steps().get(given.use)
    if ready is None:
        raise DeclarationError(
            "load pipeline", f"{workflow.name}/{name}.use", expected=f"one of {', '.join(ready_steps())}",
            found=given.use, hint=f"packages offer steps by the entry point group {GROUP!r}",
        )  # fmt: skip
    step: Step[..., Any] = ready.from_options(workflow.name, name, given.model_extra or {}).declare(
        workflow, name, **options
    )
    return step


def _leads(leads: str | list[str]) -> Any:
    names = [leads] if isinstance(leads, str) else leads
    return [Done() if name == END else name for name in names]


@cache
def ready_steps() -> dict[str, Ready]:
    """By name: the classes of ready-made steps that installed packages offer."""
    return {point.name: point.load() for point in sorted(entry_points(group=GROUP), key=lambda p: p.name)}


def json_schema() -> dict[str, Any]:
    """What a pipeline file may hold, as a JSON Schema: with the options of each step that is installed."""
    schema = PipelineFile.model_json_schema()
    common = schema["$defs"]["StepOf"]
    common.pop("additionalProperties", None)
    variants = []
    for name, ready in ready_steps().items():
        options = ready.model_json_schema()
        schema["$defs"].update(options.pop("$defs", {}))
        own = {key: value for key, value in common["properties"].items() if key != "use"}
        variants.append(
            {
                "title": name,
                "description": options.get("description", ""),
                "type": "object",
                "properties": {"use": {"const": name}, **own, **options["properties"]},
                "required": ["use", *options.get("required", [])],
                "additionalProperties": False,
            }
        )
    schema["$defs"]["StepOf"] = {"description": common["description"], "oneOf": variants}
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.loads(json.dumps(schema))  # type: ignore[no-any-return]
