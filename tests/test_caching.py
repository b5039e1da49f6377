"""Answers of fallible sources: fresh, stale only where the source fails, one load for all who want it."""

from __future__ import annotations

import os
import subprocess
import sys

import anyio
import pytest
import structlog

from surefoot import Cached, Engine, InputError, NothingCached
from surefoot.testing import FakeClock
from surefoot_storage import FsOps


class Source:
    """Answers with how often it was asked, or fails."""

    def __init__(self):
        self.asked, self.fails = 0, False

    async def __call__(self, key):
        self.asked += 1
        await anyio.sleep(0.01)
        if self.fails:
            raise ConnectionError("down")
        return {"key": key, "answer": self.asked}

    def sync(self, key):
        self.asked += 1
        if self.fails:
            raise ConnectionError("down")
        return [self.asked, key]


def opened(root, clock=None, **more):
    return Engine(root, resume=False, clock=clock or FakeClock(auto=False), **more)


@pytest.fixture
def said(monkeypatch):
    heard = []

    class Log:
        def __init__(self, **bound):
            self.bound = bound

        def __getattr__(self, level):
            return lambda event, **facts: heard.append((level, event, {**self.bound, **facts}))

    monkeypatch.setattr("surefoot.caching.logger", Log)
    return heard


async def test_fresh_answers_are_given_at_once_for_five_minutes(root):
    clock, source = FakeClock(auto=False), Source()
    async with opened(root, clock) as engine:
        cache = engine.cache("rates", source.__call__)
        first = await cache.get("eur")
        assert first == Cached({"key": "eur", "answer": 1}, is_stale=False, age_s=0.0)
        clock.advance(299)
        assert await cache.get("eur") == Cached({"key": "eur", "answer": 1}, is_stale=False, age_s=299.0)
        assert source.asked == 1
        clock.advance(1)
        assert (await cache.get("eur")).data["answer"] == 2
        assert (await cache.get("usd")).data == {"key": "usd", "answer": 3}
        assert await cache.figures() == {
            "fresh": 1, "loaded": 3, "source_failed": 0, "stale_used": 0, "nothing": 0,
        }  # fmt: skip


async def test_stale_data_is_used_only_where_the_source_fails_and_is_never_deleted(root, said):
    clock, source = FakeClock(auto=False), Source()
    async with opened(root, clock) as engine:
        cache = engine.cache("rates", source.sync)
        await cache.get()
        source.fails = True
        clock.advance(10 * 365 * 86_400)
        stale = await cache.get()
        assert (stale.data, stale.is_stale, stale.age_s) == ([1, ""], True, 10 * 365 * 86_400)
        level, event, facts = said[-1]
        assert (level, event, facts["age_s"], facts["cache"]) == (
            "warning", "cache.stale", 10 * 365 * 86_400, "rates",
        )  # fmt: skip
        assert "ConnectionError: down" in facts["error"]
        source.fails = False
        assert (await cache.get()).is_stale is False
        assert (await cache.figures())["stale_used"] == 1


async def test_a_cold_start_without_its_source_is_an_error_and_no_made_up_value(root, said):
    source = Source()
    source.fails = True
    async with opened(root) as engine:
        cache = engine.cache("rates", source.__call__)
        with pytest.raises(NothingCached, match=r"rates/eur.*failed \(ConnectionError: down\)") as caught:
            await cache.get("eur")
        assert caught.value.hint
        assert isinstance(caught.value.__cause__, ConnectionError)
        assert said[-1][:2] == ("error", "cache.nothing")
        source.fails = False
        assert (await cache.get("eur")).data["answer"] == 2


async def test_another_process_finds_what_one_has_loaded(root):
    clock, source = FakeClock(auto=False), Source()
    async with opened(root, clock) as engine:
        await engine.cache("rates", source.__call__).get()
    source.fails = True
    async with opened(root, clock) as engine:
        cache = engine.cache("rates", source.__call__)
        assert (await cache.get()).is_stale is False
        assert source.asked == 1
        clock.advance(301)
        assert (await cache.get()).is_stale is True
        assert (await cache.figures())["loaded"] == 1


async def test_concurrent_misses_share_one_load(root):
    source = Source()
    async with opened(root) as one, opened(root) as two:
        caches = [engine.cache("rates", source.__call__) for engine in (one, two)]
        found = []

        async def get(cache):
            found.append((await cache.get("eur")).data["answer"])

        async with anyio.create_task_group() as tasks:
            for number in range(100):
                tasks.start_soon(get, caches[number % 2])
        assert (found, source.asked) == ([1] * 100, 1)
        found.clear()
        source.fails = True
        with pytest.raises(BaseExceptionGroup) as caught:
            async with anyio.create_task_group() as tasks:
                for _ in range(20):
                    tasks.start_soon(usd, caches[0])
        assert source.asked == 2
        assert all(isinstance(error, NothingCached) for error in caught.value.exceptions)


async def usd(cache):
    await cache.get("usd")


async def test_each_of_them_gets_a_value_of_its_own(root):
    async with opened(root) as engine:
        cache = engine.cache("lists", lambda _key: {"list": []})
        (await cache.get()).data["list"].append("mine")
        assert (await cache.get()).data == {"list": []}


async def test_a_source_that_takes_too_long_has_failed(root):
    async def endless(_key):
        await anyio.sleep_forever()

    async with opened(root) as engine:
        with pytest.raises(NothingCached, match="TimeoutError"):
            await engine.cache("slow", endless, timeout_s=0.1).get()


@pytest.mark.parametrize("answer", [{1, 2}, float("nan"), object()])
async def test_an_answer_that_json_cannot_hold_is_a_failure_of_the_source(root, answer):
    async with opened(root) as engine:
        with pytest.raises(NothingCached):
            await engine.cache("odd", lambda _key: answer).get()


async def test_somebody_is_told_when_it_has_been_stale_for_an_hour(root):
    clock, source, told = FakeClock(auto=False), Source(), []
    async with opened(root, clock) as engine:
        cache = engine.cache("rates", source.__call__, on_alert=lambda key, age_s: told.append((key, age_s)))
        await cache.get("eur")
        source.fails = True
        clock.advance(3_600)
        assert (await cache.get("eur")).is_stale
        assert told == []
        clock.advance(1)
        await cache.get("eur")
        assert told == [("eur", 3_601.0)]


async def test_where_a_load_is_cancelled_somebody_else_asks(root):
    begun, asked, found = anyio.Event(), [], []

    async def source(_key):
        asked.append(1)
        if len(asked) == 1:
            begun.set()
            await anyio.sleep_forever()
        return len(asked)

    async with opened(root) as engine:
        cache = engine.cache("rates", source)

        async def first(scope):
            with scope:
                await cache.get()

        async def second():
            found.append((await cache.get()).data)

        async with anyio.create_task_group() as tasks:
            scope = anyio.CancelScope()
            tasks.start_soon(first, scope)
            await begun.wait()
            for _ in range(5):
                tasks.start_soon(second)
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
    assert (asked, found) == ([1, 1], [2] * 5)


async def test_an_answer_that_the_disk_does_not_take_is_given_all_the_same(root, said):
    class Full(FsOps):
        full = False

    source = Source()
    async with opened(root) as engine:
        cache = engine.cache("rates", source.__call__)
        real = engine._the_open.workspace.write_rows

        def refuse(*_given, **_more):
            from surefoot_storage import CommitFailed

            raise CommitFailed("commit", "", found="ENOSPC")

        engine._the_open.workspace.write_rows = refuse
        assert (await cache.get()).is_stale is False
        assert said[-1][:2] == ("error", "cache.not_kept")
        engine._the_open.workspace.write_rows = real


def test_a_process_that_dies_while_it_asks_holds_nobody_up(root):
    code = f"""
import os, sys
sys.path[:0] = {sys.path!r}
from surefoot import Engine
with Engine({str(root)!r}, resume=False) as engine:
    engine.cache("rates", lambda key: os._exit(9)).get().wait()
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, env=os.environ).returncode == 9
    with Engine(root, resume=False) as engine:
        assert engine.cache("rates", lambda _key: 7).get().wait().data == 7


async def test_what_it_cannot_take_is_refused(root):
    async with opened(root) as engine:
        for wrong in ({"fresh_s": -1}, {"timeout_s": 0}, {"alert_after_s": "1h"}, {"on_alert": 7}):
            with pytest.raises(InputError):
                engine.cache("rates", print, **wrong)
        with pytest.raises(InputError):
            engine.cache("rates", "not a function")
        for key in (7, None, "x" * 300, "a\nb"):
            with pytest.raises(InputError):
                engine.cache("rates", print).get(key)
    assert structlog is not None
