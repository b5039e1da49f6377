"""The order of calls that makes the protocol safe: take one away, or swap two, and a line here is red."""

from __future__ import annotations

import pytest
from faulty import Hooked

from surefoot_storage import Workspace


class Trace:
    """What one commit and one checkpoint do, in order; the log's COMMIT among it."""

    def __init__(self, root, recipe, files, old=()):
        for path, data in dict(old).items():
            (root / path).write_bytes(data)
        self.calls = []
        self.fs = Hooked(self.note)
        self.names = {}
        with Workspace(root, fs=self.fs, recipe=recipe, idle_s=3600) as workspace:
            real = workspace._store.database.commit
            marked = workspace._store.database.mark_checkpointed
            workspace._store.database.commit = lambda *a, **k: (
                real(*a, **k),
                self.calls.append(("COMMIT", "")),
            )[0]
            workspace._store.database.mark_checkpointed = lambda *a: (
                self.calls.append(("MARK", "")),
                marked(*a),
            )[1]
            self.folders = {
                workspace._store.layout.stage: "stage", workspace._store.layout.keep: "keep", workspace._store.root: "root"
            }  # fmt: skip
            self.calls.clear()
            tx = workspace.begin()
            for path, data in files.items():
                tx.write_bytes(path, data)
            workspace.commit(tx)
            self.applied = len(self.calls)
            workspace.checkpoint()

    def note(self, name, arguments):
        if name in ("create", "open_file", "open_dir", "opened_dir"):
            self.last = str(arguments[1])
        subject = ""
        if name in ("start_writeback", "wait_writeback", "sync_data", "sync", "dup"):
            subject = self._name_of(arguments[0])
        elif name in ("exchange", "rename_new", "rename_over", "link"):
            subject = f"{arguments[1]} -> {arguments[3]}"
        elif name == "unlink":
            subject = str(arguments[1])
        self.calls.append((name, subject))

    def _name_of(self, fd):
        import os

        return os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))

    def first(self, name, word=""):
        return next(i for i, (n, s) in enumerate(self.calls) if n == name and word in s)

    def all(self, name, word=""):
        return [i for i, (n, s) in enumerate(self.calls) if n == name and word in s]


OLD = {"a": b"old a", "b": b"old b"}
NEW = {"a": b"new a", "b": b"new b", "c": b"new c"}


def test_journal_data_is_on_the_device_before_any_name_is_swapped(root):
    trace = Trace(root, "journal", NEW, OLD)
    swaps = trace.all("exchange", "-> ") + trace.all("rename_new", "-> c")
    assert len(swaps) == 3
    assert len(trace.all("start_writeback")) == 3
    waits = trace.all("wait_writeback")
    assert len(waits) == 3
    assert max(trace.all("start_writeback")) < trace.first("COMMIT") < min(waits)
    assert max(waits) < min(swaps)


def test_portable_data_is_flushed_before_the_commit_point(root):
    trace = Trace(root, "portable", NEW, OLD)
    before = [i for i in trace.all("sync_data") if i < trace.applied]
    assert len(before) == 3
    assert max(before) < trace.first("COMMIT") < trace.first("rename_over")
    for name in OLD:  # the old version has a second name before the new one takes its place
        assert trace.first("link", f"{name} -> ") < trace.first("rename_over", f"-> {name}")


@pytest.mark.parametrize("recipe", ["journal", "portable", "memory"])
def test_nothing_that_people_see_changes_before_the_commit_point(root, recipe):
    trace = Trace(root, recipe, NEW, OLD)
    visible = [
        i
        for name in ("exchange", "rename_new", "rename_over", "link")
        for i in trace.all(name)
        if i < trace.applied
    ]
    assert visible
    assert min(visible) > trace.first("COMMIT")


def test_large_contents_are_durable_under_a_second_name_before_the_commit_point(root):
    big = b"x" * 300_000
    trace = Trace(root, "journal", {"a": big}, {"a": b"y" * 300_000})
    commit = trace.first("COMMIT")
    second_name = trace.first("link")
    assert trace.first("sync_data") < second_name < commit
    assert second_name < trace.first("sync", "keep") < commit
    assert trace.first("sync", "stage") < commit
    # the old version is a file of its own, flushed with its name, before the commit point
    assert [s for i, (n, s) in enumerate(trace.calls) if n == "sync" and i < commit].count("blobs") == 1
    assert len([i for i in trace.all("sync_data") if i < commit]) == 2


@pytest.mark.parametrize("recipe", ["journal", "portable"])
def test_old_versions_are_freed_only_after_the_checkpoint_is_recorded(root, recipe):
    trace = Trace(root, recipe, NEW, OLD)
    mark = trace.first("MARK")
    flushed = [s for i, (n, s) in enumerate(trace.calls) if n == "sync" and trace.applied < i < mark]
    assert {"a", "b", "c"} <= set(flushed)  # each file
    assert root.name in flushed  # their directory
    assert "stage" in flushed
    freed = [i for i in trace.all("unlink", ".") if i > trace.applied and ".json" not in trace.calls[i][1]]
    assert len(freed) == 2
    assert min(freed) > mark


def test_many_files_are_flushed_by_one_call(root):
    trace = Trace(root, "journal", {f"f{i}": b"x" for i in range(70)})
    assert len(trace.all("sync_filesystem")) == 1
    assert trace.applied <= trace.first("sync_filesystem") < trace.first("MARK")
