"""The commit point and what comes after it: races, failures, what is reported."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import threading

import apsw
import pytest
from faulty import Hooked, Once, fails

from surefoot_storage import (
    CommitFailed,
    CommitOutcomeUnknown,
    Conflict,
    Policy,
    StageFailed,
    Statement,
    Workspace,
    WorkspaceBlocked,
    WorkspaceBusy,
    WorkspacePoisoned,
)

RECIPES = ["journal", "portable"]


def write(workspace, files):
    tx = workspace.begin()
    for path, data in files.items():
        tx.write_bytes(path, data)
    return workspace.commit(tx)


def conflicts(root):
    folder = root / ".surefoot/conflicts"
    return {name: (folder / name).read_bytes() for name in os.listdir(folder)}


# --- an editor in the window between the last look and the swap ---


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("edit", ["in place", "atomic save"])
def test_bytes_saved_in_the_window_of_the_swap_are_kept_and_reported(root, recipe, edit):
    (root / "a").write_bytes(b"old")

    def editor():
        if edit == "in place":
            (root / "a").write_bytes(b"edited meanwhile")
        else:
            (root / "a.tmp").write_bytes(b"edited meanwhile")
            os.replace(root / "a.tmp", root / "a")

    events = []
    fs = Hooked()
    with Workspace(root, fs=fs, recipe=recipe, observer=lambda e, f: events.append((e, f))) as workspace:
        fs.hook = Once("exchange" if recipe == "journal" else "link", editor, word="a")
        commit = write(workspace, {"a": b"ours", "b": b"ours"})
        assert commit.foreign == ("a",)
        assert (root / "a").read_bytes() == b"ours"
        assert list(conflicts(root).values()) == [b"edited meanwhile"]
        assert [event for event, _ in events] == ["foreign_edit"]
        rows = workspace.query("SELECT path, kept_as FROM foreign_edit")
        assert [(path, kept in conflicts(root)) for path, kept in rows] == [(b"a", True)]


def test_a_foreign_version_that_cannot_be_moved_or_noted_now_is_kept_by_the_checkpoint(root):
    (root / "a").write_bytes(b"old")
    fs = Hooked()
    with Workspace(root, fs=fs, idle_s=3600) as workspace:
        note = workspace._store.database.note_foreign_edit
        workspace._store.database.note_foreign_edit = lambda *_a: (_ for _ in ()).throw(
            CommitFailed("commit", "rows")
        )

        def hook(name, arguments):
            if name == "exchange":
                (root / "a").write_bytes(b"edited meanwhile")
            if name == "rename_over":
                raise OSError(errno.ENOSPC, "full")

        fs.hook = hook
        commit = write(workspace, {"a": b"ours"})
        assert (commit.applied, commit.foreign) == (True, ("a",))
        assert conflicts(root) == {}
        fs.hook = lambda _n, _a: None
        workspace.checkpoint()
        assert list(conflicts(root).values()) == [b"edited meanwhile"]
        workspace._store.database.note_foreign_edit = note


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_file_created_in_the_window_is_kept(root, recipe):
    fs = Hooked()
    with Workspace(root, fs=fs, recipe=recipe) as workspace:
        name = "rename_new" if recipe == "journal" else "link"
        fs.hook = Once(name, lambda: (root / "new").write_bytes(b"theirs"), word="new")
        commit = write(workspace, {"new": b"ours"})
    assert commit.foreign == ("new",)
    assert (root / "new").read_bytes() == b"ours"
    assert list(conflicts(root).values()) == [b"theirs"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_edit_of_a_file_that_is_being_deleted_is_kept(root, recipe):
    (root / "a").write_bytes(b"old")
    fs = Hooked()
    with Workspace(root, fs=fs, recipe=recipe) as workspace:
        name = "rename_new" if recipe == "journal" else "rename_over"
        fs.hook = Once(name, lambda: (root / "a").write_bytes(b"edited"), word="a")
        tx = workspace.begin()
        tx.delete("a")
        workspace.commit(tx)
    assert not (root / "a").exists()
    assert list(conflicts(root).values()) == [b"edited"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_writer_that_holds_the_old_file_open_loses_nothing(root, recipe):
    (root / "a").write_bytes(b"old")
    with Workspace(root, recipe=recipe, idle_s=3600) as workspace, open(root / "a", "ab") as editor:
        write(workspace, {"a": b"ours"})
        editor.write(b" and a late line")
        editor.flush()
        workspace.checkpoint()
    assert (root / "a").read_bytes() == b"ours"
    assert list(conflicts(root).values()) == [b"old and a late line"]


@pytest.mark.parametrize("how", ["open", "mapped", "in a directory"])
def test_what_somebody_writes_after_the_checkpoint_to_a_file_that_was_replaced_is_kept(root, how):
    (root / "d").mkdir()
    (root / "d/a").write_bytes(b"old")
    with Workspace(root, idle_s=3600) as workspace:
        with open(root / "d/a", "r+b") as editor:
            page = mmap.mmap(editor.fileno(), 3) if how == "mapped" else None
            if page is not None:
                editor.close()
            tx = workspace.begin()
            if how == "in a directory":
                tx.rmtree("d")
            else:
                tx.write_bytes("d/a", b"ours")
            workspace.commit(tx)
            workspace.checkpoint()
            if page is not None:
                page[:3] = b"the"
                page.close()
            else:
                editor.write(b"the")
        write(workspace, {"b": b"another"})
        workspace.checkpoint()  # nobody writes to it any more
        assert list(conflicts(root).values()) == [b"the"]
        assert list((root / ".surefoot/stage").iterdir()) == []


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP, errno.ENOLCK, errno.EACCES])
def test_where_nobody_can_tell_who_writes_replaced_files_are_freed_at_the_checkpoint(
    root, monkeypatch, number
):
    real = fcntl.fcntl

    def no_leases(fd, command, *arguments):
        if command == fcntl.F_SETLEASE:
            raise OSError(number, "no leases")
        return real(fd, command, *arguments)

    monkeypatch.setattr("surefoot_storage.fsreuse.fcntl.fcntl", no_leases)
    (root / "a").write_bytes(b"old")
    with Workspace(root, idle_s=3600) as workspace, open(root / "a", "r+b"):
        write(workspace, {"a": b"ours"})
        workspace.checkpoint()
        assert list((root / ".surefoot/stage").iterdir()) == []


def test_a_new_file_in_a_directory_that_is_being_removed_stays(root):
    (root / "d").mkdir()
    fs = Hooked()
    with Workspace(root, fs=fs) as workspace:
        fs.hook = Once("rmdir", lambda: (root / "d/late").write_bytes(b"theirs"))
        tx = workspace.begin()
        tx.rmdir("d")
        assert workspace.commit(tx).foreign == ("d",)
    assert (root / "d/late").read_bytes() == b"theirs"


def test_a_directory_swapped_for_a_symlink_during_the_commit_does_not_lead_outside(root, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a").write_bytes(b"not ours")
    (root / "d").mkdir()
    (root / "d/a").write_bytes(b"old")

    def swap():
        os.rename(root / "d", root / "moved")
        os.symlink(outside, root / "d")

    fs = Hooked()
    with Workspace(root, fs=fs) as workspace:
        fs.hook = Once("exchange", swap)
        commit = write(workspace, {"d/a": b"new", "e": b"new"})
        assert not commit.applied
        assert "symlink" in commit.unapplied[0][1]
        assert (outside / "a").read_bytes() == b"not ours"
        assert (root / "moved/a").read_bytes() == b"old"
        os.unlink(root / "d")
        os.rename(root / "moved", root / "d")
        assert workspace.settle() == ()
    assert (root / "d/a").read_bytes() == b"new"


# --- before the commit point ---


@pytest.mark.parametrize("call", ["create", "write", "chmod", "start_writeback"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES])
def test_a_failure_while_staging_changes_nothing(root, call, number):
    (root / "a").write_bytes(b"old")
    fs = Hooked()
    with Workspace(root, fs=fs) as workspace:
        fs.hook = Once(call, fails(number), nth=2)
        with pytest.raises(StageFailed) as caught:
            write(workspace, {"a": b"new", "b": b"new"})
        assert caught.value.hint
        assert os.listdir(root / ".surefoot/stage") == []
        fs.hook = lambda _n, _a: None
        assert write(workspace, {"a": b"new", "b": b"new"}).applied
    assert (root / "a").read_bytes() == b"new"


def test_rows_and_files_go_together_or_not_at_all(workspace, root):
    workspace.write_rows([Statement("CREATE TABLE note (text TEXT UNIQUE)")])
    tx = workspace.begin()
    tx.write_bytes("a", b"1")
    tx.rows("INSERT INTO note VALUES (:text)", text="one")
    workspace.commit(tx)
    for sql, expected in (
        ("INSERT INTO note VALUES ('one')", CommitFailed),
        ("DELETE FROM note WHERE 0", Conflict),
    ):
        tx = workspace.begin()
        tx.write_bytes("a", b"2")
        tx.rows(sql, expect=1)
        with pytest.raises(expected):
            workspace.commit(tx)
    assert (root / "a").read_bytes() == b"1"
    assert workspace.query("SELECT text FROM note") == [("one",)]
    assert os.listdir(root / ".surefoot/stage") == []


# --- at the commit point ---


class FailingCommit:
    """Stands before apsw's connection and fails COMMIT, after or instead of doing it."""

    def __init__(self, real, *, times, does_it):
        self._real, self._times, self._does_it = real, times, does_it

    def __getattr__(self, name):
        return getattr(self._real, name)

    def execute(self, sql, *values):
        if sql == "COMMIT" and self._times > 0:
            self._times -= 1
            if self._does_it:
                self._real.execute(sql)
            raise apsw.IOError("IOError: disk I/O error")
        return self._real.execute(sql, *values)


def test_a_failed_commit_that_can_be_voided_changed_nothing(workspace, root):
    real = workspace._store.database._db
    workspace._store.database._db = FailingCommit(real, times=1, does_it=False)
    with pytest.raises(CommitFailed):
        write(workspace, {"a": b"new"})
    assert not (root / "a").exists()
    assert os.listdir(root / ".surefoot/stage") == []
    assert write(workspace, {"a": b"new"}).applied


@pytest.mark.parametrize("does_it", [True, False])
def test_an_unknown_outcome_is_settled_by_the_next_open(root, does_it):
    (root / "a").write_bytes(b"old")
    workspace = Workspace(root)
    workspace._store.database._db = FailingCommit(workspace._store.database._db, times=2, does_it=does_it)
    with pytest.raises(CommitOutcomeUnknown) as caught:
        write(workspace, {"a": b"new"})
    assert "open the workspace again" in caught.value.hint
    with pytest.raises(WorkspacePoisoned):
        workspace.begin()
    assert (root / "a").read_bytes() == b"old"
    with Workspace(root) as again:
        assert (root / "a").read_bytes() == (b"new" if does_it else b"old")
        assert again.recovered.completed == (("a",) if does_it else ())
        assert not (root / ".surefoot/database-damaged").exists()
        assert again.query("PRAGMA integrity_check") == [("ok",)]


# --- after the commit point ---


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EPERM, errno.EBUSY])
def test_a_swap_that_fails_once_is_finished_from_the_log(root, number):
    (root / "a").write_bytes(b"old")
    fs = Hooked()
    with Workspace(root, fs=fs) as workspace:
        fs.hook = Once("exchange", fails(number))
        assert write(workspace, {"a": b"new", "b": b"new"}).applied
    assert (root / "a").read_bytes() == b"new"


def test_data_that_cannot_be_written_out_goes_to_a_new_file(root):
    (root / "a").write_bytes(b"old")
    fs = Hooked()
    with Workspace(root, fs=fs, idle_s=3600) as workspace:
        staged = []
        fs.hook = lambda name, args: staged.append(args[1]) if name == "create" else None
        fs.hook = Once("wait_writeback", fails(errno.EIO))
        assert write(workspace, {"a": b"new"}).applied
        assert (root / "a").read_bytes() == b"new"
        inode = (root / "a").stat().st_ino
        logged = workspace.query("SELECT stage_ino FROM file_op")[0][0]
        assert inode != logged  # an inode whose write-out failed is never trusted again


def test_committed_but_not_applied_is_said_retried_and_blocks_later_commits(root):
    (root / "a").write_bytes(b"old")
    fs = Hooked()
    workspace = Workspace(root, fs=fs)

    def broken(name, arguments):
        if name in ("exchange", "rename_new", "rename_over") and "a" in arguments:
            raise OSError(errno.EPERM, "immutable")

    fs.hook = broken
    commit = write(workspace, {"a": b"new", "b": b"new"})
    assert not commit.applied
    assert commit.unapplied[0][0] == "a"
    assert "EPERM" in commit.unapplied[0][1]
    assert (root / "a").read_bytes() == b"old"
    assert (root / "b").read_bytes() == b"new"
    with pytest.raises(WorkspaceBlocked) as caught:
        write(workspace, {"c": b"new"})
    assert caught.value.subject == "a"
    assert not (root / "c").exists()
    workspace.close()
    with Workspace(root, fs=fs) as again:  # the cause is still there
        assert again.recovered.unapplied[0][0] == "a"
        fs.hook = lambda _n, _a: None
        assert again.settle() == ()
        assert (root / "a").read_bytes() == b"new"
        assert write(again, {"c": b"new"}).applied
    with Workspace(root) as clean:
        assert clean.unapplied == ()
        assert clean.query("SELECT count(*) FROM txn WHERE status <> 1") == [(0,)]


def test_an_interrupt_in_the_middle_of_the_apply_loses_nothing(root):
    def interrupt():
        raise KeyboardInterrupt

    for name in "abc":
        (root / name).write_bytes(b"old")
    fs = Hooked()
    workspace = Workspace(root, fs=fs)
    fs.hook = Once("exchange", interrupt, nth=2)
    with pytest.raises(KeyboardInterrupt):
        write(workspace, dict.fromkeys("abc", b"new"))
    fs.hook = lambda _n, _a: None
    write(workspace, {"d": b"new"})
    assert {(root / name).read_bytes() for name in "abcd"} == {b"new"}
    workspace.close()


# --- the checkpoint ---


def test_a_file_that_fails_to_flush_is_written_again_to_a_new_inode(root):
    fs = Hooked()
    with Workspace(root, fs=fs, idle_s=3600) as workspace:
        write(workspace, {"a": b"new"})
        inode = (root / "a").stat().st_ino
        fs.hook = Once("sync", fails(errno.EIO))
        workspace.checkpoint()
        assert (root / "a").stat().st_ino != inode
        assert (root / "a").read_bytes() == b"new"
        assert workspace.query("SELECT checkpointed_seq FROM workspace") == [(1,)]


def test_a_checkpoint_that_fails_keeps_the_log(root):
    fs = Hooked()
    events = []
    with Workspace(root, fs=fs, idle_s=3600, observer=lambda e, _f: events.append(e)) as workspace:
        write(workspace, {"a": b"new"})
        fs.hook = lambda name, _a: fails(errno.EIO)() if name in ("sync", "sync_data") else None
        with pytest.raises(OSError, match="Input/output"):
            workspace.checkpoint()
        assert workspace.query("SELECT checkpointed_seq FROM workspace") == [(0,)]
    assert events == ["checkpoint_failed"]
    with Workspace(root) as again:
        assert again.query("SELECT checkpointed_seq FROM workspace") == [(1,)]


def test_the_background_checkpoint_empties_the_stage_when_it_is_quiet(root):
    done = threading.Event()
    fs = Hooked(lambda name, _a: done.set() if name == "unlink" and ".0." in _a[1] else None)
    (root / "a").write_bytes(b"old")
    with Workspace(root, fs=fs, idle_s=0.01) as workspace:
        write(workspace, {"a": b"new"})
        assert done.wait(10)


def test_commits_go_on_past_every_limit_of_the_backlog(root):
    with Workspace(root, idle_s=3600) as workspace:
        for n in range(600):  # more than one checkpoint, more than one log reset
            write(workspace, {"a": b"%d" % n * 4000, "b": b"%d" % n})
    assert (root / "b").read_bytes() == b"599"
    assert os.listdir(root / ".surefoot/stage") == []
    assert (root / ".surefoot/surefoot.db-wal").stat().st_size < 24 << 20


# --- what a filesystem says that is not so, and what changes between two looks ---


@pytest.mark.parametrize("what", ["file", "directory", "tree"])
def test_a_name_that_is_said_to_be_gone_is_looked_for(root, what):
    (root / "x").write_bytes(b"old") if what == "file" else (root / "x").mkdir()
    if what == "tree":
        (root / "x/in").write_bytes(b"in")
    fs = Hooked()
    with Workspace(root, fs=fs, recipe="journal", idle_s=3600) as workspace:
        tx = workspace.begin()
        {"file": tx.delete, "directory": tx.rmdir, "tree": tx.rmtree}[what]("x")
        fs.hook = Once("rmdir" if what == "directory" else "rename_new", fails(errno.ENOENT), word="x")
        done = workspace.commit(tx)
        assert done.applied  # the log has finished it
        assert not (root / "x").exists()


def test_a_directory_that_is_removed_before_the_check_is_a_conflict(root):
    (root / "d").mkdir()
    fs = Hooked()
    with Workspace(root, fs=fs, idle_s=3600) as workspace:
        tx = workspace.begin()
        tx.write_bytes("d/a", b"ours")
        fs.hook = Once(
            "start_writeback" if workspace.recipe.name == "journal" else "create", (root / "d").rmdir
        )
        with pytest.raises(Conflict, match="it was removed"):
            workspace.commit(tx)
        assert list((root / ".surefoot/stage").iterdir()) == []


@pytest.mark.parametrize("how", ["mode", "file"])
def test_a_directory_that_is_not_what_it_was_is_a_conflict(root, how):
    (root / "d").mkdir(mode=0o755)
    with Workspace(root, idle_s=3600) as workspace:
        tx = workspace.begin()
        tx.chmod("d", 0o700)
        tx.load("d")
        if how == "mode":
            (root / "d").chmod(0o711)
        else:
            (root / "d").rmdir()
            (root / "d").write_bytes(b"a file now")
        with pytest.raises(Conflict):
            workspace.commit(tx)
    assert (root / "d").stat().st_mode & 0o777 != 0o700


def test_a_file_that_has_become_a_link_is_a_conflict(root):
    (root / "a").write_bytes(b"old")
    (root / "other").write_bytes(b"old")
    fs = Hooked()
    with Workspace(root, fs=fs, idle_s=3600, recipe="flush") as workspace:
        tx = workspace.begin()
        tx.read_bytes("a")
        tx.write_bytes("b", b"from a")

        def link():
            (root / "a").unlink()
            (root / "a").symlink_to("other")

        fs.hook = Once("sync_data", link)
        with pytest.raises(Conflict, match="a symlink"):
            workspace.commit(tx)
    assert not (root / "b").exists()


def test_a_file_where_a_directory_is_being_made_stays_and_is_said(root):
    fs = Hooked()
    with Workspace(root, fs=fs, idle_s=3600) as workspace:
        tx = workspace.begin()
        tx.mkdir("d")
        tx.chmod("d", 0o711)
        tx.write_bytes("x", b"x")
        fs.hook = _once_before("d", lambda: (root / "d").write_bytes(b"theirs"))
        workspace.commit(tx)
        assert (root / "d").read_bytes() == b"theirs"
        assert [edit.path for edit in workspace.upkeep.conflicts()] == ["d"]


def _once_before(name, act):
    """Before the first call that makes or moves something to this name."""
    done = []

    def hook(call, arguments):
        if not done and call in ("mkdir", "rename_new", "exchange") and name in arguments:
            done.append(call)
            act()

    return hook


def test_a_directory_that_resists_its_removal_for_a_moment_is_removed(root):
    (root / "d").mkdir()
    fs = Hooked()
    with Workspace(root, fs=fs, idle_s=3600) as workspace:
        tx = workspace.begin()
        tx.rmdir("d")
        fs.hook = Once("rmdir", fails(errno.EACCES), word="d")
        done = workspace.commit(tx)
        assert (done.applied, done.foreign) == (True, ())
    assert not (root / "d").exists()


@pytest.mark.parametrize("edited", [False, True])
def test_without_hard_links_an_edit_that_races_the_commit_is_not_overwritten(root, edited):
    (root / "a").write_bytes(b"old")
    fs = Hooked()
    with Workspace(root, fs=fs, recipe="portable", idle_s=3600) as workspace:
        tx = workspace.begin()
        tx.write_bytes("a", b"ours")

        def no_links(name, arguments):
            if name == "link" and "a" in arguments:
                if edited:
                    (root / "a").write_bytes(b"theirs!")
                raise OSError(errno.EPERM, "no links here")

        fs.hook = no_links
        done = workspace.commit(tx)
        assert done.applied
        assert (root / "a").read_bytes() == (b"theirs!" if edited else b"ours")
        assert [edit.path for edit in workspace.upkeep.conflicts()] == ["a"] * edited


def test_a_mode_of_a_large_file_whose_flush_fails_is_written_again_from_the_file_itself(root):
    content = bytes(range(256)) * 2000
    (root / "big").write_bytes(content)
    fs = Hooked()
    with Workspace(root, fs=fs, recipe="journal", idle_s=3600) as workspace:
        tx = workspace.begin()
        tx.chmod("big", 0o600)
        workspace.commit(tx)
        before = (root / "big").stat().st_ino
        fs.hook = Once("sync", fails(errno.EIO))
        workspace.checkpoint()
        found = (root / "big").stat()
        assert (found.st_ino != before, found.st_mode & 0o777) == (True, 0o600)
        assert (root / "big").read_bytes() == content
        assert workspace.unapplied == ()


def test_a_large_file_that_changes_while_its_old_version_is_kept_is_not_kept_half(root):
    (root / "big").write_bytes(b"old" * 200_000)
    fs = Hooked()
    with Workspace(root, fs=fs, recipe="journal", idle_s=3600) as workspace:
        tx = workspace.begin()
        tx.write_bytes("big", b"ours")
        tx.read_bytes("big")
        fs.hook = Once("copy", lambda: (root / "big").write_bytes(b"NEW" * 200_000))
        with pytest.raises((Conflict, StageFailed)):
            workspace.commit(tx)
    assert (root / "big").read_bytes() == b"NEW" * 200_000
    assert [p for p in (root / ".surefoot/blobs").rglob("*") if p.is_file()] == []


def test_finishing_a_change_does_not_overwrite_what_came_meanwhile(root):
    fs = Hooked()
    with Workspace(root, fs=fs, recipe="portable", idle_s=3600) as workspace:
        tx = workspace.begin()
        tx.write_bytes("a", b"ours")
        first = Once("link", fails(errno.EIO), word="a")
        then = Once("create", lambda: (root / "a").write_bytes(b"theirs"), word="again")

        def both(name, arguments):
            first(name, arguments)
            then(name, arguments)

        fs.hook = both
        workspace.commit(tx)
        assert (root / "a").read_bytes() == b"theirs"


def test_a_file_that_is_written_over_in_place_is_flushed_before_the_commit_returns(root):
    (root / "a").write_bytes(b"old")
    os.link(root / "a", root / "b")
    calls = []
    fs = Hooked()
    with Workspace(root, fs=fs, idle_s=3600, policy=Policy(hard_links="in_place")) as workspace:
        tx = workspace.begin()
        tx.write_bytes("a", b"ours")
        fs.hook = lambda name, _arguments: calls.append(name)
        workspace.commit(tx)
    after = calls[calls.index("open_to_overwrite") :]
    assert after.index("chmod") < after.index("sync") < after.index("close")
    assert (root / "b").read_bytes() == b"ours"


def test_a_checkpoint_that_waits_for_another_one_in_vain_says_so(root):
    with Workspace(root, idle_s=3600) as first, Workspace(root, idle_s=3600) as second:
        write(second, {"a": b"1"})
        second._parts.checkpoint._alone._wait_s = 0.05
        said = []

        def wait_in_vain():
            try:
                second.checkpoint()
            except WorkspaceBusy as error:
                said.append(error)

        with first._parts.checkpoint.alone():
            thread = threading.Thread(target=wait_in_vain)
            thread.start()
            thread.join()
        assert len(said) == 1
        second.checkpoint()


def test_putting_ours_back_does_not_touch_a_link(root):
    (root / "a").write_bytes(b"old")
    with Workspace(root, idle_s=3600) as workspace:
        tx = workspace.begin()
        tx.delete("a")
        done = workspace.commit(tx)
        (root / "a").symlink_to("elsewhere")
        with pytest.raises(FileExistsError):
            workspace._parts.forward.put_ours(done.seq, done.ops[0])
    assert (root / "a").is_symlink()


def test_putting_ours_back_is_not_said_to_be_done_where_it_cannot_be_flushed(root):
    fs = Hooked()
    with Workspace(root, fs=fs, idle_s=3600) as workspace:
        done = write(workspace, {"a": b"ours"})
        (root / "a").write_bytes(b"theirs")
        fs.hook = _fails_for_files("sync")
        with pytest.raises(OSError, match="could not be flushed"):
            workspace._parts.forward.put_ours(done.seq, done.ops[0])


def _fails_for_files(call):
    def hook(name, arguments):
        if name == call and stat.S_ISREG(os.fstat(arguments[0]).st_mode):
            raise OSError(errno.EIO, "no")

    return hook
