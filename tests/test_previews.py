"""A preview is kept under its digest: committing it does what was seen, byte for byte, and runs nothing again."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import anyio
import pytest

from surefoot import Engine, Next, Workflow
from surefoot.errors import RunRefused
from surefoot_storage import Conflict, InputError, sealing

LARGE = bytes(range(256)) * 5000


def flow_that_asks(answers, told=None):
    """A step whose answer is another one each time."""
    flow = Workflow("f", directory="runs/{run_id}")

    @flow.step
    def ask(tx, _given):
        tx.write_text("answer.txt", f"{next(answers)} after {tx.workspace.read_text('question.txt')}")
        return Next("then")

    @flow.step
    def then(tx, _given):
        tx.write_text("then.txt", "x")

    @ask.effect
    def tell(done):
        (told if told is not None else []).append(done.key)

    return flow


@pytest.fixture
def asked(root):
    (root / "question.txt").write_text("why")
    return root


async def test_what_was_seen_is_committed_and_no_step_runs_again(asked):
    answers, told = itertools.count(1), []
    flow = flow_that_asks(answers, told)
    async with Engine(asked, [flow], resume=False) as engine:
        await engine.start(flow, run_id="r")
        first, second = await engine.preview("r"), await engine.preview("r")
        assert "1 after why" in first.diff
        assert first.digest != second.digest
        assert not (asked / "runs/r/answer.txt").exists()
    async with Engine(asked, [flow], resume=False) as engine:  # it outlives the process
        result = await engine.commit(first.digest[:8])
        assert (result.outcome, result.step, result.next_step) == ("committed", "ask", "then")
        assert (asked / "runs/r/answer.txt").read_text() == "1 after why"
        assert next(answers) == 3  # nobody has asked meanwhile
        await engine.deliver("r")
        assert told == ["r/1/ask/tell"]
        run = await engine.get("r")
        assert (run.state, run.step, run.position) == ("running", "then", 1)
        assert json.loads((asked / "runs/r/demo.status.json").read_bytes()) == json.loads(run.status)
        attempts = engine._the_open.workspace.query("SELECT step, outcome FROM attempt")
        assert attempts == [("ask", "committed")]
        with pytest.raises(InputError, match="that has not moved since, found none"):
            await engine.commit(second.digest)
        assert (await engine.undo(result.txid)).state == "paused"


def every_kind(tx, _given):
    tx.write_text("made/in/new.txt", "made", mode=0o600)
    tx.write_text("old.txt", "after")
    tx.delete("gone.txt")
    tx.rmtree("tree")
    tx.chmod("mode.txt", 0o640)
    tx.rename("large.bin", "moved.bin")
    tx.swap("site")
    tx.write_text("site/a", "new")
    tx.delete("was-file")
    tx.write_text("was-file/now", "below")
    tx.mkdir("hollow", mode=0o700)
    with tx.create("streamed.bin") as out:
        out.write(LARGE)
        out.write(b"end")


def fill(folder):
    for name, text in {"old.txt": "before", "gone.txt": "x", "tree/a/b": "y", "mode.txt": "m", "site/a": "old",
                       "site/same": "same", "was-file": "f"}.items():  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "large.bin").write_bytes(LARGE[::-1])


def look(folder):
    return {
        str(p.relative_to(folder)): (p.read_bytes() if p.is_file() else None, p.stat().st_mode & 0o777)
        for p in folder.rglob("*") if p.name != "demo.status.json"
    }  # fmt: skip


def test_every_kind_of_change_is_the_same_as_if_the_step_had_run(root):
    flow = Workflow("f", directory="runs/{run_id}")
    flow.step(every_kind)
    for run_id in ("seen", "run"):
        (root / "runs" / run_id).mkdir(parents=True)
        fill(root / "runs" / run_id)
    with Engine(root, [flow], resume=False) as engine:
        for run_id in ("seen", "run"):
            engine.start(flow, run_id=run_id, adopt=True).wait()
        before = look(root / "runs/seen")
        digest = engine.preview("seen").wait().digest
        assert look(root / "runs/seen") == before
        assert list((root / ".surefoot/stage").iterdir()) == []  # what was streamed lies in the store
        assert engine.commit(digest).wait().ok
        assert engine.advance("run").wait().ok
    assert look(root / "runs/seen") == look(root / "runs/run") != before
    assert (root / "runs/seen/streamed.bin").read_bytes() == LARGE + b"end"


@pytest.mark.parametrize(
    "path", ["old.txt", "gone.txt", "tree/a/more", "mode.txt", "large.bin", "site/same", "made"]
)
def test_what_was_looked_at_has_changed_and_nothing_is_committed(root, path):
    flow = Workflow("f", directory="runs/{run_id}")
    flow.step(every_kind)
    (root / "runs/r").mkdir(parents=True)
    fill(root / "runs/r")
    with Engine(root, [flow], resume=False) as engine:
        engine.start(flow, run_id="r", adopt=True).wait()
        digest = engine.preview("r").wait().digest
        (root / "runs/r" / path).write_text("somebody else's")
        before = look(root / "runs/r")
        with pytest.raises(Conflict, match="as it was seen") as caught:
            engine.commit(digest).wait()
        assert "surefoot preview" in caught.value.hint
        assert look(root / "runs/r") == before
        assert engine.get("r").wait().position == 0
        if path != "made":  # where the step cannot go on either
            assert engine.preview("r").wait().digest != digest
        assert list((root / ".surefoot/stage").iterdir()) == []


async def test_the_same_preview_has_the_same_digest_and_the_newest_are_kept(asked):
    flow = flow_that_asks(itertools.repeat("always"))
    other = flow_that_asks(itertools.count())
    async with Engine(asked, [flow], resume=False) as engine:
        await engine.start(flow, run_id="r")
        assert (await engine.preview("r")).digest == (await engine.preview("r")).digest
    async with Engine(asked, [other], resume=False) as engine:
        digests = [(await engine.preview("r")).digest for _ in range(sealing.EACH_MAX + 1)]
        with pytest.raises(InputError):
            await engine.commit(digests[0])
        assert (await engine.commit(digests[1])).ok


async def test_of_two_who_commit_it_at_once_one_does(asked):
    flow = flow_that_asks(itertools.count())
    async with Engine(asked, [flow], resume=False) as first, Engine(asked, [flow], resume=False) as second:
        await first.start(flow, run_id="r")
        digest = (await first.preview("r")).digest
        outcomes = []

        async def commit(engine):
            try:
                outcomes.append((await engine.commit(digest)).outcome)
            except (RunRefused, InputError) as error:
                outcomes.append(type(error).__name__)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(commit, first)
            tasks.start_soon(commit, second)
        assert sorted(outcomes)[1] == "committed"
        assert (await first.get("r")).position == 1
    assert (asked / "runs/r/answer.txt").read_text() == "0 after why"


async def test_an_undone_transition_is_previewed_and_committed_again(asked):
    flow = flow_that_asks(itertools.count())
    async with Engine(asked, [flow], resume=False) as engine:
        await engine.start(flow, run_id="r")
        done = await engine.commit((await engine.preview("r")).digest)
        await engine.undo(done.txid)
        again = await engine.commit((await engine.preview("r")).digest)
        assert again.ok
        assert (asked / "runs/r/answer.txt").read_text() == "1 after why"
        assert (await engine.get("r")).step == "then"


@pytest.mark.parametrize(
    ("digest", "words"),
    [
        ("", "1 to 1000 characters"),
        ("abc", "6 or more"),
        ("xyzxyzxyz", "6 or more"),
        ("ABCDEF0", "lower case"),
        ("0" * 64, "none"),
    ],
)
async def test_a_digest_that_is_none_is_refused(asked, digest, words):
    async with Engine(asked, resume=False) as engine:
        with pytest.raises(InputError, match=words):
            await engine.commit(digest)


async def test_a_run_that_was_cancelled_or_whose_workflow_is_another_one_is_refused(asked):
    flow = flow_that_asks(itertools.count())
    async with Engine(asked, [flow], resume=False) as engine:
        await engine.start(flow, run_id="r")
        digest = (await engine.preview("r")).digest
    changed = Workflow("f", directory="runs/{run_id}")

    @changed.step
    def ask(tx, _given):
        pass

    async with Engine(asked, [changed], resume=False) as engine:
        with pytest.raises(RunRefused, match="the workflow that was previewed"):
            await engine.commit(digest)
        await engine.cancel("r")
        with pytest.raises(InputError, match="none"):
            await engine.commit(digest)


async def test_what_is_too_large_is_shown_and_says_that_it_cannot_be_committed(asked, monkeypatch):
    monkeypatch.setattr(sealing, "CONTENTS_BYTES_MAX", 5)
    flow = flow_that_asks(itertools.count())
    async with Engine(asked, [flow], resume=False) as engine:
        await engine.start(flow, run_id="r")
        shown = await engine.preview("r")
        assert "0 after why" in shown.diff
        assert shown.digest == ""
        assert "at most 5 bytes" in shown.not_kept


async def test_a_secret_that_is_forgotten_is_in_no_preview_either(asked):
    flow = flow_that_asks(itertools.count())
    async with Engine(asked, [flow], resume=False) as engine:
        await engine.start(flow, run_id="r")
        digest = (await engine.preview("r")).digest
        engine.upkeep.forget("question.txt")
        with pytest.raises(InputError, match="none"):
            await engine.commit(digest)


def test_by_command(tmp_path):
    (tmp_path / "flow.py").write_text(
        "import random\nfrom surefoot import Workflow\nflow = Workflow('f', directory='demos/{run_id}')\n"
        "@flow.step\ndef one(tx, _given):\n    tx.write_text('a.txt', f'{random.random()}\\n')\n"
        "    tx.write_text('fail', 'x' if tx.attempt > 1 else 1/0)\n"
    )
    (tmp_path / "w").mkdir()

    def run(*arguments, code=0):
        command = [sys.executable, "-m", "surefoot", *arguments, "-w", "w", "--json"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True)
        assert done.returncode == code, done.stdout + done.stderr
        return json.loads(done.stdout)

    run("run", "flow.py:flow", "--id", "r", code=1)  # the first attempt fails
    shown = run("preview", "r")
    answer = next(c["diff"] for c in shown["changes"] if c["path"].endswith("a.txt"))
    assert run("commit", "abcdef123", code=2)["code"] == "unknown"
    done = run("commit", shown["digest"][:10])
    assert (done["outcome"], done["state"]) == ("committed", "completed")
    assert f"+{(tmp_path / 'w/demos/r/a.txt').read_text()}" in answer
    assert run("commit", shown["digest"], code=2)["found"] == "none"
