"""The order of calls that makes the protocol safe: take one away, or swap two, and a line here is red."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import subprocess
import sys

import pytest
from faulty import Hooked

from surefoot_storage import Workspace, restore
from surefoot_storage.log import Log


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
        elif name in ("unlink", "create"):
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


def test_many_large_files_are_made_durable_by_one_call_before_the_commit_point(root):
    trace = Trace(root, "journal", {f"f{i}": bytes([i]) * 300_000 for i in range(16)})
    first = trace.first("sync_filesystem")
    assert len([i for i in trace.all("link") if i < first]) == 16  # under their second names, too
    assert first < trace.first("COMMIT")


def test_a_note_is_whole_before_it_has_its_name_and_durable_before_anything_builds_on_it(root):
    trace = Trace(root, "journal", NEW, OLD)
    made = trace.first("create", "workspace.json.new")
    data = next(i for i in trace.all("sync_data", "workspace.json.new") if i > made)
    named = trace.first("rename_over", "-> workspace.json")
    written = next(i for i in trace.all("write") if i > made)
    assert made < written < data < named < trace.first("sync", ".surefoot")


def test_a_new_workspace_and_its_name_are_durable_when_it_opens(root):
    seen = []

    def note(name, arguments):
        if name == "mkdir" and arguments[1] == ".surefoot":
            seen.append("made")
        elif name == "sync" and os.path.samestat(os.fstat(arguments[0]), root.stat()):
            seen.append("flushed")

    with Workspace(root, fs=Hooked(note), idle_s=3600):
        assert seen == ["made", "flushed"]


def test_what_is_written_again_after_a_failed_flush_has_its_name_durably_before_the_log_forgets_it(root):
    failed = []

    class Failing(Trace):
        def note(self, name, arguments):
            super().note(name, arguments)
            if name == "sync" and self.calls[-1][1] == "a" and not failed:
                failed.append(name)
                raise OSError(errno.EIO, "no")

    trace = Failing(root, "journal", NEW, OLD)
    again = trace.first("exchange", ".again -> a")
    assert again < next(i for i in trace.all("sync", root.name) if i > again) < trace.first("MARK")


def test_a_damaged_database_is_on_new_blocks_before_the_note_about_it_goes(root):
    with Workspace(root) as workspace:
        tx = workspace.begin()
        tx.write_bytes("a", b"1")
        workspace.commit(tx)
    (root / ".surefoot/database-damaged").write_text("{}")
    calls = []

    def note(name, arguments):
        if name in ("sync", "sync_data", "sync_filesystem"):
            calls.append(f"flush {os.path.basename(os.readlink(f'/proc/self/fd/{arguments[0]}'))}")
        elif name in ("rename_over", "unlink"):
            calls.append(f"{name} {arguments[-1]}")

    with Workspace(root, fs=Hooked(note)) as workspace:
        assert workspace.query("SELECT count(*) FROM txn") == [(1,)]
    order = [
        "flush surefoot.db.fresh", "rename_over database-damaged", "flush .surefoot", "unlink surefoot.db-wal",
        "flush .surefoot", "rename_over surefoot.db", "flush .surefoot", "unlink database-damaged", "flush .surefoot",
    ]  # fmt: skip
    rest = iter(calls)
    assert all(call in rest for call in order), calls


def test_moving_to_new_blocks_may_be_interrupted_anywhere(tmp_path):
    for number in range(1, 40):
        root = tmp_path / str(number)
        root.mkdir()
        with Workspace(root) as workspace:
            tx = workspace.begin()
            tx.write_bytes("a", b"1")
            workspace.commit(tx)
        (root / ".surefoot/database-damaged").write_text("{}")
        left = number

        def interrupt(name, _arguments):
            nonlocal left
            if name in ("sync", "sync_data", "rename_over", "unlink", "write", "create"):
                left -= 1
                if left == 0:
                    raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            Workspace(root, fs=Hooked(interrupt)).close()
        with Workspace(root) as workspace:
            assert workspace.query("SELECT count(*) FROM txn") == [(1,)]
            assert workspace.query("PRAGMA integrity_check") == [("ok",)]
        assert not (root / ".surefoot/database-damaged").exists()
    assert left > 0  # it was interrupted at every call there is


def test_a_backup_and_what_is_restored_from_it_are_durable_when_the_call_returns(root, tmp_path):
    flushed = []

    def note(name, arguments):
        if name == "sync_filesystem":
            flushed.append(os.readlink(f"/proc/self/fd/{arguments[0]}"))

    with Workspace(root, fs=Hooked(note)) as workspace:
        tx = workspace.begin()
        tx.write_bytes("a", b"1")
        workspace.commit(tx)
        flushed.clear()
        workspace.upkeep.backup(tmp_path / "backup")
    assert flushed
    flushed.clear()
    again = tmp_path / "again"
    again.mkdir()
    restore(tmp_path / "backup", again, fs=Hooked(note))
    assert flushed


def test_a_conflict_on_another_filesystem_is_copied_durably_before_the_original_goes(root):
    trace = Hooked()
    with Workspace(root, fs=trace, recipe="journal", idle_s=3600) as workspace:
        (root / "a").write_bytes(b"old")
        tx = workspace.begin()
        tx.write_bytes("a", b"ours")
        calls = []

        def note(name, arguments):
            if name == "exchange":
                (root / "a").write_bytes(b"theirs")
            elif name == "rename_over" and str(arguments[3]).endswith(".a"):
                raise OSError(errno.EXDEV, "another filesystem")
            elif name in ("copy", "sync_data", "sync", "unlink"):
                calls.append(name)

        trace.hook = note
        workspace.commit(tx)
        del calls[: calls.index("copy")]
        assert calls[:4] == ["copy", "sync_data", "unlink", "sync"]
        (edit,) = workspace.upkeep.conflicts()
        assert workspace.upkeep.read_conflict(edit) == b"theirs"


def test_what_recovery_has_removed_stays_removed_before_the_log_forgets_it(root, monkeypatch):
    """A second power cut would bring staged files back, and nobody would know any more whose they are."""
    code = f"""
import os, sys
sys.path[:0] = {sys.path!r}
from surefoot_storage import Workspace
w = Workspace({str(root)!r}, recipe="journal", idle_s=3600)
tx = w.begin()
tx.write_bytes("a", b"ours")
w.commit(tx)
os._exit(9)
"""
    (root / "a").write_bytes(b"old")
    subprocess.run([sys.executable, "-c", code], check=False)
    calls = []

    def note(name, arguments):
        if name in ("unlink", "sync"):
            calls.append((name, os.path.basename(os.readlink(f"/proc/self/fd/{arguments[0]}"))))

    real = Log.mark_checkpointed
    monkeypatch.setattr(
        Log, "mark_checkpointed", lambda self, *given: (calls.append(("MARK", "")), real(self, *given))[1]
    )
    monkeypatch.setattr("surefoot_storage.processes.boot_id", lambda: "another boot")
    with Workspace(root, fs=Hooked(note), recipe="journal", idle_s=3600):
        pass
    mark = calls.index(("MARK", ""))
    removed = max(i for i, call in enumerate(calls[:mark]) if call == ("unlink", "stage"))
    assert ("sync", "stage") in calls[removed:mark]


def test_directories_that_are_swapped_in_have_their_modes_before_they_are_flushed(root):
    (root / "site/sub").mkdir(parents=True)
    (root / "site/sub").chmod(0o750)
    (root / "site/sub/same").write_bytes(b"same")
    calls = []

    def note(name, arguments):
        if name in ("chmod", "sync") and stat.S_ISDIR(os.fstat(arguments[0]).st_mode):
            calls.append((name, os.path.basename(os.readlink(f"/proc/self/fd/{arguments[0]}"))))

    fs = Hooked()
    with Workspace(root, fs=fs, recipe="journal", idle_s=3600) as workspace:
        tx = workspace.begin()
        tx.swap("site")
        tx.write_bytes("site/new", b"new")
        fs.hook = note
        workspace.commit(tx)
    assert calls.index(("chmod", "sub")) < calls.index(("sync", "sub"))
    top = [name for call, name in calls if call == "chmod"][-1]
    assert calls.index(("chmod", top)) < calls.index(("sync", top))
    assert (root / "site/sub").stat().st_mode & 0o777 == 0o750
