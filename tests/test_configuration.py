"""Configuration in the store: revisions, subscribers, and that the very next use sees an update."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from pydantic import BaseModel, Field

from surefoot import ConfigConflict, DeclarationError, Engine, InputError, InputRefused
from surefoot.cli import main


class Limits(BaseModel):
    at_once: int = Field(default=4, ge=1)
    model: str = "small"


class Required(BaseModel):
    url: str


def opened(root):
    return Engine(root, resume=False)


async def test_an_update_is_durable_and_its_revision_goes_up_over_restarts(root):
    async with opened(root) as engine:
        limits = engine.configuration("limits", Limits)
        assert (await limits.get()).revision == 0
        for revision in range(3):
            updated = await limits.update({"at_once": revision + 1}, based_on=revision, by="ann")
            assert (updated.revision, updated.failures) == (revision + 1, ())
    async with opened(root) as engine:
        limits = engine.configuration("limits", Limits)
        assert await limits.get() == limits.current()
        assert (limits.current().revision, limits.current().value) == (3, Limits(at_once=3))
        await limits.update(Limits(at_once=9, model="large"), based_on=3)
        assert [(h["revision"], h["by"], h["document"]["at_once"]) for h in await limits.history()] == [
            (4, "", 9), (3, "ann", 3), (2, "ann", 2), (1, "ann", 1),
        ]  # fmt: skip


async def test_an_update_of_an_older_revision_is_refused_and_says_what_differs(root):
    async with opened(root) as engine, opened(root) as other:
        mine, theirs = (e.configuration("limits", Limits) for e in (engine, other))
        await theirs.update({"model": "large"}, based_on=0)
        with pytest.raises(ConfigConflict) as caught:
            await mine.update({"at_once": 7}, based_on=0)
        assert caught.value.revision == 1
        assert caught.value.difference == {"at_once": (4, 7)}
        with pytest.raises(ConfigConflict) as caught:
            await mine.update(Limits(model="medium"), based_on=0)
        assert caught.value.difference == {"model": ("large", "medium")}
        assert mine.current().value == Limits(model="large")
        with pytest.raises(ConfigConflict):
            await mine.update({"at_once": 7}, based_on=2)


async def test_of_many_updates_of_one_revision_one_wins(root):
    async with opened(root) as engine, opened(root) as other:
        outcomes = []

        async def update(number):
            configuration = (engine, other)[number % 2].configuration("limits", Limits)
            try:
                outcomes.append((await configuration.update({"at_once": number + 1}, based_on=0)).revision)
            except ConfigConflict:
                outcomes.append("refused")

        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(update, number)
        assert sorted(map(str, outcomes)) == ["1", *["refused"] * 19]


async def test_every_subscriber_is_waited_for_and_none_hides_anothers_failure(root):
    heard = []

    async def slow(revised):
        await anyio.sleep(0.05)
        heard.append(("slow", revised.revision))

    def sync(revised):
        heard.append(("sync", revised.revision))

    async def broken(_revised):
        raise ValueError("no")

    def broken_too(_revised):
        raise OSError("no disk")

    async def endless(_revised):
        await anyio.sleep_forever()

    async with opened(root) as engine:
        limits = engine.configuration("limits", Limits)
        for function in (broken, slow, broken_too, sync):
            limits.subscribe(function)
        limits.subscribe(endless, timeout_s=0.2)
        end = limits.subscribe(lambda _revised: heard.append("ended"))
        end()
        end()
        updated = await engine.configuration("limits", Limits).update({"at_once": 2}, based_on=0)
        assert sorted(heard) == [("slow", 1), ("sync", 1)]
        assert [(name.rsplit(".")[-1], cause) for name, cause in updated.failures] == [
            ("broken", "ValueError: no"), ("broken_too", "OSError: no disk"), ("endless", "TimeoutError"),
        ]  # fmt: skip
        assert limits.current().revision == 1


async def test_it_is_durable_before_any_subscriber_hears_of_it(root):
    seen = []

    def look(revised):
        code = (
            "import sys; from surefoot_storage import ReadOnlyWorkspace\n"
            "with ReadOnlyWorkspace(sys.argv[1]) as w: print(w.query('SELECT max(revision) FROM config')[0][0])"
        )
        done = subprocess.run([sys.executable, "-c", code, root], capture_output=True, text=True, check=True)
        seen.append((revised.revision, int(done.stdout)))

    async with opened(root) as engine:
        limits = engine.configuration("limits", Limits)
        limits.subscribe(look)
        await limits.update({"at_once": 2}, based_on=0)
    assert seen == [(1, 1)]


CONSUMERS = """
import sys, anyio
from surefoot import Engine
from test_configuration import Limits
async def main():
    async with Engine(sys.argv[1], resume=False) as engine:
        consumers = [engine.configuration("limits", Limits) for _ in range(50)]
        print("ready", flush=True)
        while line := await anyio.to_thread.run_sync(sys.stdin.readline):
            seen = []
            async def use(consumer):
                seen.append((await consumer.get()).revision)
            async with anyio.create_task_group() as tasks:
                for consumer in consumers:
                    tasks.start_soon(use, consumer)
            print(sorted(set(seen)), len(seen), flush=True)
anyio.run(main)
"""


def consuming(root):
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    return subprocess.Popen(
        [sys.executable, "-c", CONSUMERS, root], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip


async def test_the_next_use_after_an_update_sees_it_in_every_process_whatever_subscribers_do(root):
    """100 consumers in two processes; every subscriber fails."""

    def broken(_revised):
        raise ValueError("never mind")

    process = consuming(root)
    try:
        assert process.stdout.readline() == "ready\n"
        async with opened(root) as engine:
            consumers = [engine.configuration("limits", Limits) for _ in range(50)]
            for consumer in consumers:
                consumer.subscribe(broken)
            for revision in range(1, 11):
                updated = await consumers[0].update({"at_once": revision}, based_on=revision - 1)
                assert len(updated.failures) == 50
                process.stdin.write("use\n")
                process.stdin.flush()
                here = set()

                async def use(consumer, here=here):
                    here.add((await consumer.get()).revision)

                async with anyio.create_task_group() as tasks:
                    for consumer in consumers:
                        tasks.start_soon(use, consumer)
                assert here == {revision}
                assert process.stdout.readline() == f"[{revision}] 50\n"
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


async def test_what_the_model_does_not_take_is_refused_and_changes_nothing(root):
    async with opened(root) as engine:
        limits = engine.configuration("limits", Limits)
        for wrong in ({"at_once": 0}, {"at_once": "many"}, {"unknown": 1}):
            with pytest.raises(InputRefused):
                await limits.update(wrong, based_on=0)
        for wrong in (None, 7, "text"):
            with pytest.raises(InputError):
                await limits.update(wrong, based_on=0)
        for wrong in (-1, True, "1", None):
            with pytest.raises(InputError):
                await limits.update({"at_once": 1}, based_on=wrong)
        with pytest.raises(InputError):
            await limits.update({"at_once": 1}, based_on=0, by="x" * 300)
        with pytest.raises(InputError):
            limits.subscribe("not a function")
        with pytest.raises(InputError):
            limits.subscribe(print, timeout_s=0)
        assert limits.current().revision == 0
        with pytest.raises(DeclarationError):
            engine.configuration("../x", Limits)
        with pytest.raises(DeclarationError):
            engine.configuration("x", dict)


async def test_without_a_value_and_without_defaults_it_says_so(root):
    async with opened(root) as engine:
        required = engine.configuration("source", Required)
        with pytest.raises(InputRefused, match="url: Field required"):
            await required.get()
        await required.update(Required(url="x"), based_on=0)
        assert (await required.get()).value.url == "x"


async def test_a_document_of_an_older_model_names_what_does_not_fit(root):
    async with opened(root) as engine:
        await engine.configuration("source", Limits).update({"at_once": 2}, based_on=0)
        with pytest.raises(InputRefused, match=r"source \(revision 1\).*url: Field required"):
            await engine.configuration("source", Required).get()


def test_killed_in_an_update_it_is_saved_whole_or_not_at_all(root):
    code = f"""
import os, sys
sys.path[:0] = {sys.path!r}
from surefoot import Engine
from pydantic import BaseModel
class Limits(BaseModel):
    at_once: int = 4
with Engine({str(root)!r}, resume=False) as engine:
    limits = engine.configuration("limits", Limits)
    limits.subscribe(lambda revised: os._exit(9))
    limits.update({{"at_once": 5}}, based_on=0).wait()
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    with opened(root) as engine:
        revised = engine.configuration("limits", Limits).get().wait()
        assert (revised.revision, revised.value.at_once) == (1, 5)
        assert json.loads(revised.value.model_dump_json())["model"] == "small"


def test_the_commands_show_and_change_it(root, tmp_path, capsys):
    (tmp_path / "settings.py").write_text(
        "from pydantic import BaseModel\nclass Limits(BaseModel):\n    at_once: int = 4\n    model: str = 'small'\n"
        "other = 7\n"
    )
    model = f"{tmp_path}/settings.py:Limits"

    def command(*arguments):
        with pytest.raises(SystemExit) as caught:
            main([*arguments, "-w", str(root)])
        captured = capsys.readouterr()
        return caught.value.code, captured.out, captured.err

    with opened(root) as engine:
        engine.cache("rates", lambda _key: [1, 2]).get("eur").wait()
    assert command("config", "list")[1] == "no configuration\n"
    change = ("config", "set", "limits", "at_once=9", "model=large", "--model", model)
    code, out, _ = command(*change, "--based-on", "0", "--by", "ann", "--json")
    assert (code, json.loads(out)["document"]) == (0, {"at_once": 9, "model": "large"})
    code, _, err = command(*change, "--based-on", "0")
    assert code == 1
    assert "found one of revision 0 (with the same values)" in err
    assert command("config", "set", "limits", "at_once=many", "--model", model, "--based-on", "1")[0] == 2
    assert command("config", "set", "limits", "at_once", "--model", model, "--based-on", "1")[0] == 2
    for wrong in (f"{tmp_path}/settings.py:other", f"{tmp_path}/settings.py", "nothing.py:X", "x"):
        assert command("config", "set", "limits", "at_once=1", "--model", wrong, "--based-on", "1")[0] == 2
    assert command("config", "list")[1].split() == ["limits", "revision", "1"]
    assert 'by ann: {"at_once": 9, "model": "large"}' in command("config", "show", "limits")[1]
    assert command("config", "show", "nothing")[0] == 2
    assert command("cache", "list")[1].startswith("rates/eur  ")
