"""Random sequences of transactions, foreign edits, checkpoints and reopenings against a dictionary."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from surefoot_storage import Conflict, InputError, Workspace

NAMES = st.sampled_from(["a", "b", "d/x", "d/y", "d/e/z"])
DATA = st.binary(max_size=40) | st.just(b"large")


def grown(data: bytes) -> bytes:
    """Large contents travel another way; a short name keeps the failing examples readable."""
    return b"big" * 100_000 if data == b"large" else data


class Machine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="surefoot-machine-"))
        self.model: dict[str, bytes] = {}
        self.workspace = Workspace(self.root, idle_s=3600)
        self.left_open = None
        self.seen: dict[str, bytes | None] = {}

    def teardown(self):
        self.workspace.close()
        shutil.rmtree(self.root)

    @rule(writes=st.dictionaries(NAMES, DATA | st.none(), min_size=1, max_size=4))
    def commit(self, writes):
        tx = self.workspace.begin()
        after = dict(self.model)
        for path, data in writes.items():
            if data is None:
                if path in after:
                    tx.delete(path)
                    del after[path]
            else:
                tx.write_bytes(path, grown(data))
                after[path] = grown(data)
            assert tx.exists(path) == (path in after)
        self.workspace.commit(tx)
        self.model = after

    @rule(path=NAMES, data=DATA)
    def refused(self, path, data):
        tx = self.workspace.begin()
        tx.write_bytes(path, data)
        try:
            tx.mkdir(path)
        except InputError:
            return
        raise AssertionError("a path cannot be both")

    @rule(path=NAMES)
    def begin_reading(self, path):
        self.left_open = self.workspace.begin()
        self.seen = {path: self.model.get(path)}
        if path in self.model:
            assert self.left_open.read_bytes(path) == self.model[path]
        else:
            assert not self.left_open.exists(path)

    @rule(path=NAMES, data=DATA)
    def commit_what_was_read_before(self, path, data):
        if self.left_open is None:
            return
        tx, self.left_open = self.left_open, None
        tx.write_bytes(path, grown(data))
        ((read, content),) = self.seen.items()
        try:
            self.workspace.commit(tx)
        except Conflict as conflict:
            named = conflict.subject
        else:
            named = None
        if named is not None:
            assert named in (read, path)
            return
        assert self.model.get(read) == content
        self.model[path] = grown(data)

    @rule(path=NAMES, data=st.binary(min_size=1, max_size=40))
    def editor(self, path, data):
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        self.model[path] = data

    @rule()
    def checkpoint(self):
        self.workspace.checkpoint()
        assert os.listdir(self.root / ".surefoot/stage") == []
        assert os.listdir(self.root / ".surefoot/keep") == []

    @rule()
    def reopen(self):
        self.workspace.close()
        self.left_open = None
        self.workspace = Workspace(self.root, idle_s=3600)
        assert self.workspace.unapplied == ()

    @invariant()
    def files_are_the_model(self):
        found = {
            str(p.relative_to(self.root)): p.read_bytes()
            for p in self.root.rglob("*")
            if p.is_file() and ".surefoot" not in p.parts
        }
        assert found == self.model
        assert os.listdir(self.root / ".surefoot/conflicts") == []


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, derandomize=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
