"""Undo and revert: files, run state and unsent effects go back together, or not at all."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import anyio
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from surefoot import Done, Engine, InputError, Next, Retry, RunState, UndoRefused, Workflow, rows
from surefoot_storage import Retention, Workspace


def tree(root, folder="d"):
    """Everything in the run's directory but its status: path to content and mode."""
    found = {}
    for path in sorted((root / folder).rglob("*")):
        if path.name != "demo.status.json":
            mode = path.stat().st_mode & 0o777
            found[str(path.relative_to(root / folder))] = (
                path.read_bytes() if path.is_file() else None,
                mode,
            )
    return found


def workflow(sent=None):
    flow = Workflow("f", directory="d")

    @flow.step
    def one(tx, _given):
        tx.write_text("a.txt", "one\n")
        tx.write_text("sub/b.txt", "b\n", mode=0o600)
        tx.write_text("was-file", "a file\n")
        tx.write_text("was-dir/inner.txt", "inner\n")

    @flow.step
    def two(tx, _given):
        tx.write_text("a.txt", "two\n")
        tx.rmtree("sub")
        tx.write_bytes("new/big.bin", b"B" * 3_000_000)
        tx.delete("was-file")
        tx.write_text("was-file/now.txt", "a directory\n")
        tx.rmtree("was-dir")
        tx.write_text("was-dir", "a file\n")

    @two.effect
    def tell(done):
        if sent is None:
            raise RuntimeError("down")
        sent.append(done.key)

    @flow.step
    def three(tx, _given):
        tx.write_text("a.txt", "three\n")
        tx.write_bytes("new/big.bin", b"C" * 3_000_000)
        tx.chmod("was-dir", 0o640)

    return flow


class Story:
    """A run that has done all its steps, and what its directory was after each."""

    def __init__(self, root, engine, flow):
        self.root, self.engine = root, engine
        engine.start(flow, run_id="r").wait()
        self.trees, self.txids = [tree(root)], []
        for _ in flow.steps:
            self.txids.append(engine.advance("r").wait().or_raise().txid)
            self.trees.append(tree(root))

    @property
    def run(self):
        return self.engine.get("r").wait()

    def check_status(self):
        run = self.run
        assert (self.root / "d/demo.status.json").read_text() == run.status
        assert json.loads(run.status)["state"] == run.state
        assert (run.revision, run.status) == self.engine._the_open.workspace.query(
            "SELECT revision, status FROM audit ORDER BY id DESC LIMIT 1"
        )[0]


@pytest.fixture
def story(root):
    with Engine(root, [flow := workflow()], resume=False) as engine:
        yield Story(root, engine, flow)


def test_files_and_state_go_back_to_what_they_were(story):
    done = story.engine.undo(story.txids[2]).wait()
    assert tree(story.root) == story.trees[2]
    assert (done.undone, done.state, done.step) == ((story.txids[2],), "paused", "three")
    assert (story.run.state, story.run.step, story.run.last_step) == (RunState.PAUSED, "three", "two")
    story.check_status()
    story.engine.undo(story.txids[1]).wait()
    assert tree(story.root) == story.trees[1]
    story.engine.undo(story.txids[0]).wait()
    assert tree(story.root) == story.trees[0] == {}
    assert (story.run.step, story.run.last_step) == ("one", None)


def test_the_undone_step_is_done_again_when_somebody_says_so_and_not_before(story):
    story.engine.undo(story.txids[2]).wait()
    assert story.engine.resume("r").wait().state is RunState.PAUSED
    assert tree(story.root) == story.trees[2]
    result = story.engine.retry("r").wait()
    assert result.state is RunState.COMPLETED
    assert tree(story.root) == story.trees[3]


def test_a_restarted_engine_does_not_do_it_again_by_itself(story, root):
    story.engine.undo(story.txids[2]).wait()
    with Engine(root, [workflow()]) as again:
        assert again.get("r").wait().state is RunState.PAUSED
    assert tree(root) == story.trees[2]


def test_an_undo_can_be_undone_and_so_can_that(story):
    first = story.engine.undo(story.txids[2]).wait()
    second = story.engine.undo(first.txid).wait()
    assert tree(story.root) == story.trees[3]
    assert story.run.state is RunState.COMPLETED
    story.engine.undo(second.txid).wait()
    assert tree(story.root) == story.trees[2]
    story.check_status()


def test_what_later_ones_build_on_is_refused_and_they_are_named(story):
    with pytest.raises(UndoRefused) as caught:
        story.engine.undo(story.txids[0]).wait()
    assert story.txids[1][:12] in str(caught.value)
    assert story.txids[2][:12] in str(caught.value)
    assert tree(story.root) == story.trees[3]
    undone = story.engine.undo(story.txids[2]).wait()
    with pytest.raises(UndoRefused, match=f"undone already, by {undone.txid[:12]}"):
        story.engine.undo(story.txids[2]).wait()
    story.engine.undo(story.txids[1]).wait()
    with pytest.raises(UndoRefused, match="what came later: others undone since"):
        story.engine.undo(undone.txid).wait()


def test_revert_goes_back_over_several_as_one(story):
    done = story.engine.revert(story.txids[0]).wait()
    assert done.undone == tuple(story.txids[1:])
    assert tree(story.root) == story.trees[1]
    assert story.run.step == "two"
    assert story.engine._the_open.workspace.query("SELECT count(*) FROM txn")[0][0] == 5
    story.engine.undo(done.txid).wait()
    assert tree(story.root) == story.trees[3]


def test_revert_to_the_start_and_past_an_earlier_undo(story):
    story.engine.undo(story.txids[2]).wait()
    start = story.engine.history.of("r")[0].txid
    done = story.engine.revert(start).wait()
    assert done.undone == tuple(story.txids[:2])
    assert tree(story.root) == {}
    with pytest.raises(UndoRefused, match="nothing after it that stands"):
        story.engine.revert(start).wait()


def test_a_file_that_was_changed_since_is_never_overwritten_unless_asked(story):
    (story.root / "d/a.txt").write_text("mine\n")
    (story.root / "d/new/big.bin").unlink()
    with pytest.raises(UndoRefused) as caught:
        story.engine.undo(story.txids[2]).wait()
    assert set(caught.value.paths) == {"d/a.txt", "d/new/big.bin"}
    assert (story.root / "d/a.txt").read_text() == "mine\n"
    assert story.run.state is RunState.COMPLETED
    done = story.engine.undo(story.txids[2], force=True).wait()
    assert tree(story.root) == story.trees[2]
    assert set(done.overwritten) == {"d/a.txt", "d/new/big.bin"}
    (mine,) = [c.before for c in story.engine.history.find(done.txid).changes if c.path == "d/a.txt"]
    assert story.engine.history.read(mine, "d/a.txt") == b"mine\n"


@pytest.mark.parametrize("what", ["symlink", "mode", "directory"])
def test_other_kinds_of_changes_are_noticed_too(story, what):
    path = story.root / "d/a.txt"
    if what == "mode":
        path.chmod(0o600)
    else:
        path.unlink()
        path.symlink_to("/etc/passwd") if what == "symlink" else path.mkdir()
    with pytest.raises(UndoRefused, match=r"d/a\.txt"):
        story.engine.undo(story.txids[2]).wait()
    if what == "symlink":
        with pytest.raises(UndoRefused, match="a link or device"):
            story.engine.undo(story.txids[2], force=True).wait()
        assert path.is_symlink()
    else:
        story.engine.undo(story.txids[2], force=True).wait()
        assert tree(story.root) == story.trees[2]


def test_a_file_that_is_already_as_it_was_is_no_obstacle(story):
    (story.root / "d/a.txt").write_text("two\n")
    done = story.engine.undo(story.txids[2]).wait()
    assert "d/a.txt" not in done.files
    assert tree(story.root) == story.trees[2]


def test_a_directory_with_something_new_in_it_stays(story):
    story.engine.undo(story.txids[2]).wait()
    (story.root / "d/new/notes.txt").write_text("mine\n")
    done = story.engine.undo(story.txids[1]).wait()
    assert done.left == ("d/new",)
    assert (story.root / "d/new/notes.txt").read_text() == "mine\n"
    assert not (story.root / "d/new/big.bin").exists()


def test_only_some_files_leave_the_run_where_it_is(story):
    done = story.engine.undo(story.txids[1], paths=["d/sub"]).wait()
    assert set(done.files) == {"d/sub", "d/sub/b.txt"}
    assert (story.root / "d/sub/b.txt").read_text() == "b\n"
    assert story.run.state is RunState.COMPLETED
    story.check_status()
    with pytest.raises(InputError, match="a path that the transaction changed"):
        story.engine.undo(story.txids[2], paths=["d/sub"]).wait()
    story.engine.undo(done.txid).wait()
    assert tree(story.root) == story.trees[3]


def test_what_it_would_do_is_said_and_nothing_is_done(story):
    names = [os.listdir(story.root / ".surefoot" / folder) for folder in ("stage", "keep")]
    seen = story.engine.undo(story.txids[2], dry_run=True).wait()
    assert seen.txid is None
    assert {change.path: change.kind for change in seen.changes} == {
        "d/a.txt": "changed", "d/new/big.bin": "changed", "d/was-dir": "mode", "d/demo.status.json": "changed",
    }  # fmt: skip
    assert "-three\n+two\n" in "".join(change.diff for change in seen.changes)
    assert tree(story.root) == story.trees[3]
    assert [os.listdir(story.root / ".surefoot" / folder) for folder in ("stage", "keep")] == names
    assert story.run.state is RunState.COMPLETED


def test_effects_that_were_sent_are_listed_and_others_are_withdrawn(root):
    with Engine(root, [flow := workflow()], resume=False, effects_grace_s=0.0) as engine:
        story = Story(root, engine, flow)
    with Engine(root, resume=False) as engine:  # which knows no workflow: nobody sends anything meanwhile
        done = engine.undo(story.txids[2]).wait()
        assert (done.sent, done.withdrawn) == ((), ())
        done = engine.undo(story.txids[1]).wait()
        assert (done.sent, done.withdrawn) == ((), ("r/2/two/tell",))
        back = engine.undo(done.txid).wait()
        assert engine._the_open.workspace.query("SELECT state FROM outbox") == [("pending",)]
        assert back.withdrawn == ()
    sent = []
    with Engine(root, [workflow(sent)], resume=False) as engine:
        while engine.deliver().wait():
            pass
        done = engine.undo(story.txids[1]).wait()
        assert sent == ["r/2/two/tell"]
        assert done.sent == ("r/2/two/tell",)
        engine.retry("r").wait()
        while engine.deliver().wait():
            pass
        assert sent == ["r/2/two/tell", "r/7/two/tell"]


def test_a_message_that_stands_again_is_sent_at_once(root):
    flow, is_up, told = Workflow("f", directory="d"), threading.Event(), threading.Event()

    @flow.step
    def one(tx, _given):
        tx.write_text("a", "one")

    @one.effect(retry=Retry(attempts=9, initial_s=3600.0))
    def tell(_done):
        if not is_up.is_set():
            raise RuntimeError("down")
        told.set()

    with Engine(root, [flow], resume=False) as engine:
        txid = engine.run(flow, run_id="r").wait().transitions[0].txid
        while not (effect := rows.effects_of(engine._the_open.workspace, [txid])[0])["attempts"]:
            engine.deliver().wait()
        assert effect["state"] == "pending"
        undone = engine.undo(txid).wait()
        assert undone.withdrawn == ("r/1/one/tell",)
        is_up.set()
        engine.undo(undone.txid).wait()
        assert told.wait(20)


def test_old_contents_that_are_gone_are_said_before_anything_is_done(story):
    workspace = story.engine._the_open.workspace
    workspace.upkeep._pruner._grace_ns = 0
    workspace.upkeep.collect(retention=Retention(days=0))
    with pytest.raises(UndoRefused, match="none any more") as caught:
        story.engine.undo(story.txids[2], dry_run=True).wait()
    assert set(caught.value.paths) == {"d/a.txt", "d/new/big.bin"}
    assert tree(story.root) == story.trees[3]


@pytest.mark.parametrize(
    ("txid", "found"), [("zzzzz", "none"), ("", "''"), ("abc", "'abc'"), ("%", "'%'"), ("' OR 1=1", "none")]
)
def test_an_id_that_names_no_single_transaction_is_refused(story, txid, found):
    with pytest.raises(InputError, match=found):
        story.engine.undo(txid).wait()


def test_the_start_and_mere_changes_of_status_cannot_be_undone(story):
    start = story.engine.history.of("r")[0].txid
    with pytest.raises(InputError, match="surefoot cancel"):
        story.engine.undo(start).wait()


def test_a_transaction_of_no_run_is_undone_by_its_files(root):
    with Engine(root, resume=False) as engine:
        workspace = engine._the_open.workspace
        tx = workspace.begin()
        tx.write_bytes("x/y", b"data")
        txid = workspace.commit(tx).txid
        done = engine.undo(txid).wait()
        assert (done.run_id, done.files) == ("", ("x", "x/y"))
        assert not (root / "x").exists()
        engine.undo(done.txid).wait()
        assert (root / "x/y").read_bytes() == b"data"


async def test_an_undo_waits_for_nobody_and_a_revert_stops_what_is_going_on(root, anyio_backend):
    started, go_on = anyio.Event(), anyio.Event()
    flow = Workflow("f", directory="d")

    @flow.step
    async def first(tx, _given):
        tx.write_text("a", "first")

    @flow.step
    async def second(tx, _given):
        tx.write_text("a", "second")
        started.set()
        await go_on.wait()

    async with Engine(root, [flow], resume=False) as engine:
        await engine.start(flow, run_id="r")
        txid = (await engine.advance("r")).txid
        start = (await anyio.to_thread.run_sync(engine.history.of, "r"))[0].txid
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_resume, engine)
            await started.wait()
            with pytest.raises(UndoRefused, match="second, which is being worked on"):
                await engine.undo(txid)
            done = await engine.revert(start)
            assert done.undone == (txid,)
        run = await engine.get("r")
        assert (run.state, run.step) == (RunState.PAUSED, "first")
    assert not (root / "d/a").exists()


async def _resume(engine):
    assert (await engine.resume("r")).state is RunState.PAUSED


def test_a_step_in_another_process_that_was_reverted_under_it_changes_nothing(root):
    """The run's revision fences it."""
    flow = Workflow("f", directory="d")

    @flow.step
    def first(tx, _given):
        tx.write_text("a", "first")

    @flow.step
    def second(tx, _given):
        tx.write_text("a", "second")
        with Engine(root, resume=False) as other:
            other.revert(other.history.of("r")[0].txid).wait()

    with Engine(root, [flow], resume=False) as engine:
        engine.start(flow, run_id="r").wait()
        engine.advance("r").wait().or_raise()
        result = engine.advance("r").wait()
        assert result.outcome == "overtaken"
        assert engine.get("r").wait().state is RunState.PAUSED
    assert not (root / "d/a").exists()


@pytest.mark.parametrize("count", [1, 40, 5000])
def test_any_number_of_files_goes_back_in_one_transaction(root, count):
    flow = Workflow("f", directory="d")

    @flow.step
    def make(tx, _given):
        for n in range(count):
            tx.write_text(f"{n % 50}/{n}", f"old {n}\n")

    @flow.step
    def change(tx, _given):
        for n in range(count):
            tx.write_text(f"{n % 50}/{n}", f"new {n}\n")

    with Engine(root, [flow], resume=False) as engine:
        story = Story(root, engine, flow)
        done = engine.undo(story.txids[1]).wait()
        assert len(done.files) == count
        assert tree(root) == story.trees[1]
        engine.undo(done.txid).wait()
        assert tree(root) == story.trees[2]


class Undoing(RuleBasedStateMachine):
    """Against a model: what a run's directory was after each transaction, and which of them stand."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root
        self.plan: list = []
        flow = Workflow("f", directory="d")

        @flow.step
        def act(tx, _given):
            for path, data in self.plan:
                if data is not None:
                    tx.write_text(path, data)
                elif tx.exists(path):
                    tx.delete(path)
            return Next("act")

        @flow.step
        def never(_tx, _given):
            return Done()

        self.engine = Engine(root, [flow], resume=False)
        self.engine.__enter__()
        self.engine.start(flow, run_id="r").wait()
        self.stack: list = []  # (txid, tree before, what it undoes) of what stands
        self.undos: list = []  # the same of undos that stand, latest last

    def teardown(self):
        assert tree(self.root) == self.last_tree() if self.stack or self.undos else True
        self.engine.__exit__(None, None, None)

    def last_tree(self):
        return tree(self.root)

    @rule(
        plan=st.lists(
            st.tuples(st.sampled_from(["a", "b", "s/c", "s/t/d"]), st.none() | st.text("xy", max_size=3)),
            max_size=4,
        )
    )
    def step(self, plan):
        self.plan = plan
        before = tree(self.root)
        result = self.engine.advance("r").wait().or_raise()
        self.stack.append((result.txid, before))
        self.undos = []

    @precondition(lambda self: self.stack)
    @rule()
    def undo_the_last(self):
        txid, before = self.stack.pop()
        after = tree(self.root)
        done = self.engine.undo(txid).wait()
        assert tree(self.root) == before
        self.undos.append((done.txid, after, [(txid, before)]))

    @precondition(lambda self: len(self.stack) > 1)
    @rule(data=st.data())
    def revert(self, data):
        place = data.draw(st.integers(0, len(self.stack) - 2))
        after, gone = tree(self.root), self.stack[place + 1 :]
        done = self.engine.revert(self.stack[place][0]).wait()
        assert done.undone == tuple(txid for txid, _ in gone)
        assert tree(self.root) == gone[0][1]
        del self.stack[place + 1 :]
        self.undos.append((done.txid, after, gone))

    @precondition(lambda self: self.undos)
    @rule()
    def redo(self):
        txid, after, again = self.undos.pop()
        self.engine.undo(txid).wait()
        assert tree(self.root) == after
        self.stack += again

    @precondition(lambda self: len(self.stack) > 1)
    @rule()
    def not_the_one_before_the_last(self):
        with pytest.raises(UndoRefused):
            self.engine.undo(self.stack[-2][0]).wait()

    @rule()
    def the_disk_agrees(self):
        assert list(self.engine.history.verify()) == []


def test_any_order_of_steps_undos_and_reverts(tmp_path):
    count = iter(range(10_000))

    def machine():
        root = tmp_path / str(next(count))
        root.mkdir()
        return Undoing(root)

    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=15, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_the_history_of_a_workspace_without_an_engine(root):
    with Workspace(root) as workspace:
        tx = workspace.begin(label="first", actor="somebody")
        tx.write_bytes("a", b"1")
        first = workspace.commit(tx).txid
        tx = workspace.begin()
        tx.write_bytes("a", b"22")
        tx.delete("a")
        tx.write_bytes("b", b"333")
        second = workspace.commit(tx).txid
        history = workspace.history
        entry = history.find(first[:8])
        assert (entry.label, entry.actor, entry.txid) == ("first", "somebody", first)
        assert "@" in history.find(second).actor
        assert history.read(history.state_at("a", entry), "a") == b"1"
        with pytest.raises(InputError, match="no change of it"):
            history.state_at("b", entry)
        (root / "b").write_bytes(b"edited")
        (different,) = history.verify()
        assert different.path == "b"
