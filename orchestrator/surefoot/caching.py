"""Answers of slow or fallible sources, kept in the store: stale ones are used only where the source fails."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import anyio
from anyio import to_thread

from surefoot_storage import InputError, NamedLock, Statement, SurefootError

from . import checks, rows
from .checks import shown
from .errors import NothingCached
from .log import logger
from .names import checked_name
from .opened import OpenEngine
from .pending import Pender, Pending

_LOOK_S = 0.05  # between looks at whether another process has loaded it

Load: TypeAlias = Callable[[str], Any | Awaitable[Any]]


@dataclass(frozen=True)
class Cached:
    """An answer: `is_stale` where the source failed, and this is what it said `age_s` seconds ago."""

    data: Any
    is_stale: bool
    age_s: float


class _Load:
    """One load that is under way: everybody who wants it waits for it."""

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.text = ""  # JSON: each of them gets a value of its own
        self.error: Exception | None = None
        self.cancelled = True  # until it has come to an end: somebody else asks then


class Cache:
    """Of one source. Made by `engine.cache`."""

    def __init__(
        self, name: str, load: Load, engine: Callable[[], OpenEngine], pender: Pender, *,
        fresh_s: float, timeout_s: float, alert_after_s: float, on_alert: Callable[[str, float], None],
    ) -> None:  # fmt: skip
        self.name = checked_name("cache", name)
        for what, function in (("load", load), ("on_alert", on_alert)):
            if not callable(function):
                raise InputError("open cache", name, expected=f"{what}: a function", found=shown(function))
        lengths = {"fresh_s": fresh_s, "timeout_s": timeout_s, "alert_after_s": alert_after_s}
        for what, value in lengths.items():
            checks.seconds("open cache", name, what, value, above=what == "timeout_s", error=InputError)
        self._load = load
        self._engine = engine
        self._pending = pender
        self._fresh_s, self._timeout_s, self._alert_after_s = fresh_s, timeout_s, alert_after_s
        self._on_alert = on_alert
        self._loading: dict[str, _Load] = {}
        self._counts: Counter[str] = Counter()  # not written yet

    def get(self, key: str = "") -> Pending[Cached]:
        """What the source says about a key: at most `fresh_s` old, or stale because the source fails.

        Raises:
            NothingCached: the source fails, and it has never answered.
        """
        checks.text("read cache", self.name, "key", key, empty=True, error=InputError)
        return self._pending("cache.get", lambda: self._get(key))

    def figures(self) -> Pending[dict[str, int]]:
        """How often since the store was made: `fresh`, `loaded`, `source_failed`, `stale_used`, `nothing`."""

        def work() -> dict[str, int]:
            found = rows.meters(self._engine().workspace, FIGURES)
            stored = {name: found[self.name, name].count for name in FIGURES if (self.name, name) in found}
            return {name: stored.get(name, 0) + self._counts[name] for name in FIGURES}

        return self._pending("cache.figures", lambda: to_thread.run_sync(work))

    async def _get(self, key: str) -> Cached:
        kept = await to_thread.run_sync(self._kept, key)
        if kept is not None and kept.age_s < self._fresh_s:
            self._counts["fresh"] += 1
            return kept
        while (load := self._loading.get(key)) is not None:
            await load.done.wait()
            if not load.cancelled:
                break
        else:
            load = self._loading[key] = _Load()
            try:
                await self._fill(load, key)
            finally:
                del self._loading[key]
                load.done.set()
        if load.error is None:
            return Cached(json.loads(load.text), is_stale=False, age_s=0.0)
        return await self._fall_back(key, load.error)

    def _kept(self, key: str) -> Cached | None:
        engine = self._engine()
        found = rows.find_cached(engine.workspace, self.name, key)
        if found is None:
            return None
        age_s = max(0.0, engine.clock.now() - found[1])
        return Cached(json.loads(found[0]), is_stale=age_s >= self._fresh_s, age_s=age_s)

    async def _fill(self, load: _Load, key: str) -> None:
        """From the source, or from another process that is asking it at this moment."""
        lock = None
        try:
            with anyio.fail_after(self._timeout_s):
                lock = await self._turn(key)
                kept = await to_thread.run_sync(self._kept, key)
                if kept is not None and kept.age_s < self._fresh_s:
                    load.text = json.dumps(kept.data)
                else:
                    load.text = json.dumps(await self._asked(key), allow_nan=False)
                    self._counts["loaded"] += 1
                    await self._keep(key, load.text)
        except Exception as error:  # noqa: BLE001 - whatever a source raises
            self._counts["source_failed"] += 1
            load.error = error
        finally:
            if lock is not None:
                lock.release()
        load.cancelled = False

    async def _keep(self, key: str, text: str) -> None:
        """For later. The source has answered: a disk that does not take it changes nothing about that."""
        engine = self._engine()
        keep = rows.keep_cached(self.name, key, text, engine.clock.now())
        try:
            await to_thread.run_sync(lambda: engine.workspace.write_rows([keep, *self._counted()]))
        except SurefootError as error:
            logger(cache=self.name, key=key).error("cache.not_kept", error=str(error))

    async def _turn(self, key: str) -> NamedLock:
        """One process asks at a time."""
        workspace, name = self._engine().workspace, f"cache/{self.name}/{key}"
        while True:
            lock = await to_thread.run_sync(workspace.try_named_lock, name)
            if lock is not None:
                return lock
            await anyio.sleep(_LOOK_S)

    async def _asked(self, key: str) -> Any:
        if inspect.iscoroutinefunction(self._load):
            return await self._load(key)
        return await to_thread.run_sync(self._load, key, abandon_on_cancel=True)

    async def _fall_back(self, key: str, error: Exception) -> Cached:
        kept = await to_thread.run_sync(self._kept, key)
        cause = f"{type(error).__name__}: {error}".rstrip(": ")
        log = logger(cache=self.name, key=key)
        if kept is None:
            self._counts["nothing"] += 1
            log.error("cache.nothing", error=cause)
            raise NothingCached(
                "read cache", f"{self.name}/{key}" if key else self.name,
                expected="an answer of the source, or one from before",
                found=f"it failed ({cause}), and none",
                hint="there is no value to go on with: mend the source",
            ) from error  # fmt: skip
        self._counts["stale_used"] += 1
        log.warning("cache.stale", age_s=round(kept.age_s, 1), error=cause)
        if kept.age_s > self._alert_after_s:
            self._on_alert(key, kept.age_s)
        await to_thread.run_sync(self._write_counts)
        return Cached(kept.data, is_stale=True, age_s=kept.age_s)

    def _write_counts(self) -> None:
        self._engine().workspace.write_rows(self._counted(), durable=False)

    def _counted(self) -> list[Statement]:
        counts, self._counts = self._counts, Counter()
        return [rows.measure(self.name, name, float(n), n) for name, n in counts.items()]


FIGURES = ("fresh", "loaded", "source_failed", "stale_used", "nothing")
