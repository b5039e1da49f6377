"""Random sequences of transactions, foreign edits, checkpoints and reopenings against a dictionary.

Two workspace objects take turns, as two processes would; one is forked; an old database is put back.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from surefoot_storage import Conflict, InputError, Workspace, WorkspacePoisoned, WorkspaceUnusable

NAMES = st.sampled_from(["a", "b", "d/x", "d/y", "d/e/z"])
FOLDERS = st.sampled_from(["d", "d/e", "f"])
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
        self.other = Workspace(self.root, idle_s=3600)
        self.left_open = None
        self.seen: dict[str, bytes | None] = {}

    def teardown(self):
        self.workspace.close()
        self.other.close()
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

    def below(self, folder):
        return {path for path in self.model if path.startswith(f"{folder}/")}

    @rule()
    def the_other_one(self):
        self.workspace, self.other = self.other, self.workspace
        self.left_open = None

    @rule(folder=FOLDERS)
    def remove_a_tree(self, folder):
        tx = self.workspace.begin()
        if not tx.is_dir(folder):
            return
        tx.rmtree(folder)
        assert not tx.exists(folder)
        self.workspace.commit(tx)
        for path in self.below(folder):
            del self.model[path]
        assert not (self.root / folder).exists()

    @rule(folder=FOLDERS, new=FOLDERS)
    def rename_a_tree(self, folder, new):
        tx = self.workspace.begin()
        if not tx.is_dir(folder) or tx.exists(new) or new.startswith(f"{folder}/"):
            return
        tx.rename(folder, new)
        self.workspace.commit(tx)
        for path in self.below(folder):
            self.model[new + path[len(folder) :]] = self.model.pop(path)

    @rule(folder=FOLDERS, writes=st.dictionaries(st.sampled_from(["x", "y", "e/z", "n/m"]), DATA, max_size=3))
    def swap_a_tree(self, folder, writes):
        tx = self.workspace.begin()
        if not tx.is_dir(folder):
            return
        tx.swap(folder)
        for leaf, data in writes.items():
            if tx.is_dir(f"{folder}/{leaf}") or (leaf == "e/z" and f"{folder}/e" in self.model):
                continue
            tx.write_bytes(f"{folder}/{leaf}", grown(data))
            self.model[f"{folder}/{leaf}"] = grown(data)
        self.workspace.commit(tx)

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
            named = conflict.subject if conflict.subject in (read, path) else path  # or its directory is gone
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
        self.other.checkpoint()
        assert os.listdir(self.root / ".surefoot/stage") == []
        assert os.listdir(self.root / ".surefoot/keep") == []

    @rule()
    def reopen(self):
        self.workspace.close()
        self.left_open = None
        self.workspace = Workspace(self.root, idle_s=3600)
        assert self.workspace.unapplied == ()

    @rule(path=NAMES, data=DATA)
    def an_old_database_is_put_back(self, path, data):
        """Refused, untouched; with the newest one in its place again everything goes on."""
        self.workspace.close()
        self.other.close()
        self.left_open = None
        old = self.database()
        with Workspace(self.root, idle_s=3600) as workspace:
            tx = workspace.begin()
            tx.write_bytes(path, grown(data) + b"newer")
            workspace.commit(tx)
        self.model[path] = grown(data) + b"newer"
        newest = self.database()
        self.put_back(old)
        with pytest.raises(WorkspaceUnusable, match="restored from a backup"):
            Workspace(self.root)
        self.put_back(newest)
        self.workspace, self.other = (Workspace(self.root, idle_s=3600) for _ in range(2))

    def database(self):
        return {p.name: p.read_bytes() for p in (self.root / ".surefoot").glob("surefoot.db*")}

    def put_back(self, files):
        for path in (self.root / ".surefoot").glob("surefoot.db*"):
            path.unlink()
        for name, data in files.items():
            (self.root / ".surefoot" / name).write_bytes(data)

    @rule()
    def fork(self):
        """The child is refused; the parent goes on."""
        child = os.fork()
        if child == 0:
            try:
                self.workspace.begin()
            except WorkspacePoisoned:
                os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0

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
