"""Random sequences of commits, undos, edits, failures, kills and power cuts on the simulated disk.

The disk and the log are those of the crash lab (`tests/crash/simdisk.py`); what must be there afterwards is a
dictionary. A power cut takes what one of the lab's models lets it take.
"""

from __future__ import annotations

import errno
import random

import models
import pytest
import simulate
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from record import Record
from simlog import State

from surefoot_storage import Conflict, StageFailed, SurefootError

NAMES = st.sampled_from(["a", "b", "c", "d/x", "d/y"])
DATA = st.binary(min_size=1, max_size=30) | st.just(b"large")
ERRNOS = st.sampled_from([errno.EIO, errno.ENOSPC, errno.EACCES, errno.EBUSY])
CALLS = {
    "create", "write", "write_at", "chmod", "start_writeback", "wait_writeback", "sync_data", "exchange", "rename_new",
    "rename_over", "link", "unlink", "mkdir", "rmdir", "commit",
}  # fmt: skip


class Killed(BaseException):
    """The process is gone from here on."""


def grown(data: bytes) -> bytes:
    return b"large" * 40 if data == b"large" else data


class DiskMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.small = pytest.MonkeyPatch()
        for module, name, value in simulate.SMALL:
            self.small.setattr(module, name, value)
        self.model: dict[str, bytes] = {}
        self.before: list[dict[str, bytes]] = []  # what each committed transaction has replaced
        self.epoch = self.worker = 0
        self.recipe = "journal"
        self.open(simulate.empty_disk(), State())

    def teardown(self):
        self.small.undo()

    # --- the process ---

    def open(self, inodes, state):
        """A new process: recovers, and is recorded from then on."""
        self.worker += 1
        self.record = Record()
        self.base = {number: inode.copy() for number, inode in inodes.items()}
        self.state = state.copy()
        machine = simulate.Machine(
            inodes, state, self.recipe, f"boot {self.epoch}", f"w{self.worker}", self.record
        )
        outcome = machine.parts.recover()
        assert not outcome.foreign
        assert not outcome.unapplied
        assert not machine.seen
        self.machine = machine

    def count(self, act):
        """Calls `act(name)` before each call that changes something."""
        fs, log = self.machine.fs, self.machine.log
        for target, names in ((fs, CALLS - {"commit"}), (log, {"commit"})):
            for name in names:
                real = getattr(target, name)

                def call(*arguments, _name=name, _real=real, **options):
                    act(_name)
                    return _real(*arguments, **options)

                setattr(target, name, call)

    def uncount(self):
        for target in (self.machine.fs, self.machine.log):
            for name in CALLS & vars(target).keys():
                delattr(target, name)

    # --- transactions ---

    def write(self, writes):
        after = dict(self.model)

        def act(tx):
            for path, data in writes.items():
                if data is None and path in after:
                    tx.delete(path)
                    del after[path]
                elif data is not None:
                    tx.write_bytes(path, grown(data))
                    after[path] = grown(data)

        return act, after

    def committed(self, after):
        self.before.append(self.model)
        self.model = after

    @rule(writes=st.dictionaries(NAMES, DATA | st.none(), min_size=1, max_size=3))
    def commit(self, writes):
        act, after = self.write(writes)
        self.machine.commit(act)
        self.committed(after)

    @precondition(lambda self: self.before)
    @rule()
    def undo(self):
        then = self.before[-1]
        act, after = self.write({**dict.fromkeys(self.model), **{p: d for p, d in then.items() if d}})
        self.machine.commit(act)
        assert after == {p: grown(d) for p, d in then.items()}
        self.committed(after)

    @rule(path=NAMES, data=st.binary(min_size=1, max_size=30))
    def conflict(self, path, data):
        """Somebody saves, and flushes, between the read and the commit."""
        before = dict(self.model)

        def act(tx):
            tx.exists(path)
            tx.write_bytes("e", b"from what was read")
            self.editor(path, data)

        try:
            self.machine.commit(act)
        except Conflict:
            assert before.get(path) != data or path in before
            return
        assert before.get(path) == data
        self.committed({**self.model, "e": b"from what was read"})

    @rule(path=NAMES, data=st.binary(min_size=1, max_size=30))
    def editor(self, path, data):
        """Saves atomically, as most do."""
        fs = self.machine.fs
        top = fs.open_root("/")
        if "/" in path and fs.lstat(top, "d") is None:
            fs.mkdir(top, "d", 0o755)
            fs.sync(top)
        folder = fs.open_dir(top, "d" if "/" in path else "")
        fd = fs.create(folder, "editor.tmp")
        fs.write(fd, data)
        fs.chmod(fd, 0o644)
        fs.sync(fd)
        fs.rename_over(folder, "editor.tmp", folder, path.rpartition("/")[2])
        fs.sync(folder)
        for opened in (fd, folder, top):
            fs.close(opened)
        self.model = {**self.model, path: data}

    @rule()
    def checkpoint(self):
        self.machine.checkpoint()

    # --- what goes wrong ---

    def interrupted(self, writes, at, act):
        """A commit (and a checkpoint after it) in which `act` happens before the `at`-th call."""
        work, after = self.write(writes)
        calls = 0

        def count(_name):
            nonlocal calls
            calls += 1
            if calls == at:
                act()

        self.count(count)
        acknowledged = False
        try:
            self.machine.commit(work)
            acknowledged = True
            self.machine.checkpoint()
        except (Killed, SurefootError, OSError) as error:
            return after, acknowledged, error
        finally:
            self.uncount()
        return after, acknowledged, None

    def kill(self):
        raise Killed

    def recovered(self, after, *, acknowledged):
        """Whether it happened is what the log says; all of it, or nothing."""
        happened = len(self.machine.log.state.txns) > len(self.before)
        assert happened or not acknowledged
        if happened:
            self.committed(after)

    WRITES = st.dictionaries(NAMES, DATA | st.none(), min_size=1, max_size=3)

    @rule(writes=WRITES, at=st.integers(1, 40))
    def killed(self, writes, at):
        after, acknowledged, _ = self.interrupted(writes, at, self.kill)
        self.open(self.machine.fs.inodes, self.machine.log.state)
        self.recovered(after, acknowledged=acknowledged)

    @rule(
        writes=WRITES,
        at=st.integers(1, 40),
        seed=st.integers(0, 1000),
        model=st.sampled_from(["weak", "ordered"]),
    )
    def power_cut(self, writes, at, seed, model):
        after, acknowledged, _ = self.interrupted(writes, at, self.kill)
        record = self.record
        story = models.Story(record)
        point = models.Point(len(record.changes), len(record.events))
        rng = random.Random(seed)
        found = rng.choice(list(models.MODELS[model](story, point, rng, 8)))
        state = self.state.copy()
        for step in self.machine.log.steps[: found.logged]:
            step(state)
        self.epoch += 1
        self.open(models.assemble(self.base, record, found), state)
        self.recovered(after, acknowledged=acknowledged)

    @rule(writes=WRITES, at=st.integers(1, 40), number=ERRNOS)
    def failure(self, writes, at, number):
        def fail():
            raise OSError(number, "injected")

        after, acknowledged, error = self.interrupted(writes, at, fail)
        if isinstance(error, StageFailed):
            assert not acknowledged
        self.recovered(after, acknowledged=acknowledged)
        self.machine.parts.progress.settle()
        assert not self.machine.parts.progress.blocked

    @rule()
    def reopen(self):
        self.open(self.machine.fs.inodes, self.machine.log.state)

    @rule(recipe=st.sampled_from(["journal", "flush"]))
    def another_filesystem(self, recipe):
        """All of it durable, as if it had been copied there."""
        self.machine.checkpoint()
        self.recipe = recipe
        self.epoch += 1
        self.open(self.machine.fs.inodes, self.machine.log.state)

    # --- always ---

    @invariant()
    def files_are_the_model(self):
        found = {
            p: data for p, (data, _) in simulate.user_tree(self.machine.fs.inodes).items() if data is not None
        }
        assert found == self.model

    @invariant()
    def nothing_was_taken_for_an_edit(self):
        assert self.machine.seen == []


TestDiskMachine = DiskMachine.TestCase
TestDiskMachine.settings = settings(
    max_examples=300, stateful_step_count=25, deadline=None, derandomize=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
