"""Work of many tasks in one thread: results, errors, cancellation, and patience with a slow disk."""

from __future__ import annotations

import threading

import anyio
import pytest

from surefoot.pump import Pump, each


async def test_each_gets_its_own_result_or_error(anyio_backend):
    async with anyio.create_task_group() as tasks:
        pump = Pump(tasks, each(lambda n: 10 // n))
        assert await pump.run(5) == 2
        with pytest.raises(ZeroDivisionError):
            await pump.run(0)
        assert await pump.run(2) == 5


async def test_what_queues_meanwhile_goes_together(anyio_backend):
    batches, release = [], threading.Event()

    def work(items):
        batches.append(items)
        if len(batches) == 1:
            release.wait(20)
        return items

    async with anyio.create_task_group() as tasks:
        pump = Pump(tasks, work)
        async with anyio.create_task_group() as callers:
            callers.start_soon(pump.run, 0)
            while not batches:
                await anyio.sleep(0.001)
            for n in range(1, 6):
                callers.start_soon(pump.run, n)
            while len(pump._waiting) < 5:
                await anyio.sleep(0.001)
            release.set()
    assert [sorted(batch) for batch in batches] == [[0], [1, 2, 3, 4, 5]]


async def test_a_cancelled_caller_does_not_stop_the_work(anyio_backend):
    done, release = [], threading.Event()

    def work(items):
        release.wait(20)
        done.extend(items)
        return items

    async with anyio.create_task_group() as tasks:
        pump = Pump(tasks, work)
        with anyio.move_on_after(0.01):
            threading.Timer(0.1, release.set).start()
            await pump.run("x")
        assert done == ["x"]
        assert await pump.run("y") == "y"


async def test_a_worker_that_fails_whole_tells_everybody(anyio_backend):
    def work(_items):
        raise OSError(5, "gone")

    async with anyio.create_task_group() as tasks:
        pump = Pump(tasks, work)
        for _ in range(2):
            with pytest.raises(OSError, match="gone"):
                await pump.run(1)


async def test_on_a_slow_disk_those_about_to_come_are_waited_for_but_not_for_long(anyio_backend):
    batches = []

    def work(items):
        batches.append(len(items))
        return items

    async with anyio.create_task_group() as tasks:
        expected = 3
        pump = Pump(tasks, work, expected=lambda: expected, patience_s=lambda: 5.0)
        async with anyio.create_task_group() as callers:
            for n in range(3):
                callers.start_soon(pump.run, n)
                await anyio.sleep(0.005)
        assert batches == [3]
        pump._patience_s = lambda: 0.02
        assert await pump.run("alone") == "alone"
        assert batches == [3, 1]
