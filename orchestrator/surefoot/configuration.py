"""Configuration that lives in the store: validated, with a revision that every use looks at."""

from __future__ import annotations

import inspect
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import anyio
from anyio import to_thread
from pydantic import BaseModel, ValidationError

from surefoot_storage import Conflict, InputError

from . import checks, rows
from .checks import shown
from .errors import ConfigConflict, InputRefused
from .log import logger
from .names import checked_name
from .opened import OpenEngine
from .options import checked_model
from .pending import Pender, Pending

M = TypeVar("M", bound=BaseModel)
SUBSCRIBER_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Revised(Generic[M]):
    """A configuration as it is now. Revision 0: nothing was saved yet, these are the model's defaults."""

    value: M
    revision: int


@dataclass(frozen=True)
class Updated(Generic[M]):
    """What came of an update: it is durable, whatever became of the subscribers."""

    value: M
    revision: int
    failures: tuple[tuple[str, str], ...]  # (subscriber, what went wrong)


Subscriber: TypeAlias = Callable[[Revised[Any]], Awaitable[None] | None]


class Configuration(Generic[M]):
    """One of them, as `engine.configuration(name, Model)` makes it. Those of one name share subscribers."""

    def __init__(self, name: str, model: type[M], engine: Callable[[], OpenEngine], pender: Pender) -> None:
        self.name = checked_name("configuration", name)
        self._model = checked_model("configuration", name, model)
        self._engine = engine
        self._pending = pender
        self._known: Revised[M] | None = None

    def current(self) -> Revised[M]:
        """The newest revision, looked up in the store each time: for sync code, and for steps in threads.

        Raises:
            InputRefused: what is stored is not what the model takes, and which fields.
        """
        workspace = self._engine().workspace
        known = self._known
        found = rows.latest_config(workspace, self.name, known.revision if known is not None else -1)
        if found is None:
            return Revised(self._parsed({}, 0), 0)
        if found.document is None and known is not None:
            return known
        fresh = Revised(self._parsed(json.loads(found.document or "{}"), found.revision), found.revision)
        if self._known is None or self._known.revision < fresh.revision:
            self._known = fresh
        return fresh

    def get(self) -> Pending[Revised[M]]:
        """As `current`, for async code."""
        return self._pending("configuration.get", lambda: to_thread.run_sync(self.current))

    def subscribe(
        self, function: Subscriber, *, timeout_s: float = SUBSCRIBER_TIMEOUT_S
    ) -> Callable[[], None]:
        """Called with each revision that this engine saves, and waited for; returns what ends that.

        Raises:
            InputError: it cannot be called, or the time is not a length.
        """
        if not callable(function):
            raise InputError("subscribe", self.name, expected="a function", found=shown(function))
        length = checks.seconds("subscribe", self.name, "timeout_s", timeout_s, above=True, error=InputError)
        entry = (function, length)
        subscribers = self._engine().subscribers.setdefault(self.name, [])
        subscribers.append(entry)

        def end() -> None:
            if entry in subscribers:
                subscribers.remove(entry)

        return end

    def update(self, change: M | Mapping[str, Any], *, based_on: int, by: str = "") -> Pending[Updated[M]]:
        """Saves a new revision, durably; then waits for every subscriber; then returns.

        Args:
            change: the whole model, or the fields that change.
            based_on: the revision that was looked at.
            by: who it is.

        Raises:
            ConfigConflict: there is a newer revision; `difference` says in what.
            InputRefused: the model does not take it.
        """
        checks.count("update configuration", self.name, "based_on", based_on, least=0, error=InputError)
        checks.text("update configuration", self.name, "by", by, empty=True, error=InputError)

        def save() -> Revised[M]:
            engine = self._engine()
            document, revision = self._stored()
            after = self._changed(document, change, revision)
            if revision != based_on:
                raise self._stale(based_on, after)
            text = after.model_dump_json()
            row = rows.insert_config(self.name, based_on + 1, text, engine.clock.now(), by)
            try:
                engine.workspace.write_rows([row])
            except Conflict as error:
                if error.subject != "rows":
                    raise
                raise self._stale(based_on, after) from error
            return Revised(after, based_on + 1)

        async def operation() -> Updated[M]:
            saved = await to_thread.run_sync(save)
            failures = await self._tell(saved)
            logger(configuration=self.name).info("configuration.saved", revision=saved.revision, by=by)
            return Updated(saved.value, saved.revision, failures)

        return self._pending("configuration.update", operation)

    def history(self) -> Pending[list[dict[str, Any]]]:
        """Every revision, the newest first: when, by whom, and what it was."""

        def work() -> list[dict[str, Any]]:
            found = rows.config_history(self._engine().workspace, self.name)
            return [{**vars(row), "document": json.loads(row.document or "{}")} for row in found]

        return self._pending("configuration.history", lambda: to_thread.run_sync(work))

    # --- how ---

    async def _tell(self, saved: Revised[M]) -> tuple[tuple[str, str], ...]:
        """All of them, each for its own time: none of them hides another's failure."""
        failures: list[tuple[str, str]] = []

        async def one(function: Subscriber, timeout_s: float) -> None:
            name = getattr(function, "__qualname__", repr(function))
            try:
                with anyio.fail_after(timeout_s):
                    await _called(function, saved)
            except Exception as error:  # noqa: BLE001 - it is saved: a subscriber cannot undo that
                cause = f"{type(error).__name__}: {error}".rstrip(": ")
                failures.append((name, cause))
                log = logger(configuration=self.name, revision=saved.revision)
                log.error("configuration.subscriber_failed", subscriber=name, error=cause)  # noqa: TRY400 - structlog, not logging

        async with anyio.create_task_group() as tasks:
            for function, timeout_s in list(self._engine().subscribers.get(self.name, [])):
                tasks.start_soon(one, function, timeout_s)
        return tuple(sorted(failures))

    def _stored(self) -> tuple[dict[str, Any], int]:
        """The document as it is, whether it fits the model or not, and its revision."""
        found = rows.latest_config(self._engine().workspace, self.name)
        return (json.loads(found.document or "{}"), found.revision) if found else ({}, 0)

    def _changed(self, document: dict[str, Any], change: M | Mapping[str, Any], revision: int) -> M:
        if isinstance(change, BaseModel):
            return self._parsed(change.model_dump(mode="json"), revision)
        if not isinstance(change, Mapping):
            raise InputError(
                "update configuration", self.name,
                expected=f"a {self._model.__name__}, or some of its fields",
                found=shown(change),
            )  # fmt: skip
        unknown = sorted(str(key) for key in set(change) - set(self._model.model_fields))
        if unknown:
            raise InputRefused(
                "update configuration", self.name, found=", ".join(unknown),
                expected=f"fields of {self._model.__name__}: {', '.join(self._model.model_fields)}",
            )  # fmt: skip
        return self._parsed({**document, **change}, revision)

    def _parsed(self, document: Mapping[str, Any], revision: int) -> M:
        try:
            return self._model.model_validate(document)
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors()]
            raise InputRefused(
                "read configuration", f"{self.name} (revision {revision})", found="; ".join(problems),
                expected=f"what {self._model.__name__} takes",
                hint="save what is missing: update(…)" if revision == 0 else "update(…) with fields that fit",
            ) from error  # fmt: skip

    def _stale(self, based_on: int, wanted: M) -> ConfigConflict:
        (document, revision), mine = self._stored(), wanted.model_dump(mode="json")
        there = {**mine, **document} if revision else mine
        difference = {key: (there[key], mine[key]) for key in mine if there[key] != mine[key]}
        return ConfigConflict(self.name, based_on=based_on, revision=revision, difference=difference)


async def _called(function: Subscriber, saved: Revised[Any]) -> None:
    if inspect.iscoroutinefunction(function):
        await function(saved)
    else:
        await to_thread.run_sync(function, saved, abandon_on_cancel=True)
