"""Foreign edits by policy and by decision; durability levels; what is kept and for how long."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from faulty import Hooked, Once, fails

from surefoot_storage import (
    InputError,
    Policy,
    Retention,
    Statement,
    Workspace,
    WorkspaceBlocked,
    WorkspaceUnusable,
    processes,
    restore,
)

DAY_S = 86_400


def write(workspace, contents, **how):
    tx = workspace.begin(**how)
    for path, data in contents.items():
        tx.write_bytes(path, data)
    return workspace.commit(tx)


def raced(root, policy):
    """A workspace in which an edit of `a` lands in the middle of a commit."""
    (root / "a").write_bytes(b"old")
    fs = Hooked()
    workspace = Workspace(root, fs=fs, policy=policy, recipe="journal", idle_s=3600)
    fs.hook = Once("exchange", lambda: (root / "a").write_bytes(b"theirs"), word="a")
    return workspace, write(workspace, {"a": b"ours", "b": b"ours"})


# --- foreign edits ---


@pytest.mark.parametrize(("on_race", "in_place"), [("ours", b"ours"), ("theirs", b"theirs")])
@pytest.mark.parametrize("decision", ["ours", "theirs"])
def test_a_race_is_settled_by_policy_and_can_be_decided_otherwise(root, on_race, in_place, decision):
    workspace, commit = raced(root, Policy(on_race=on_race))
    with workspace:
        assert commit.foreign == ("a",)
        assert (root / "a").read_bytes() == in_place
        (edit,) = workspace.upkeep.conflicts()
        assert (edit.path, edit.kept) == ("a", "theirs" if on_race == "ours" else "ours")
        assert workspace.upkeep.read_conflict(edit) == (b"theirs" if on_race == "ours" else b"ours")
        workspace.upkeep.resolve(edit.id, decision)
        assert (root / "a").read_bytes() == decision.encode()
        assert workspace.upkeep.conflicts() == []
        with pytest.raises(InputError, match="undecided"):
            workspace.upkeep.resolve(edit.id, decision)
    with Workspace(root) as again:
        assert again.recovered.completed == ()
    assert (root / "a").read_bytes() == decision.encode()


@pytest.mark.parametrize("decision", ["ours", "theirs"])
def test_a_race_can_block_until_somebody_decides(root, decision):
    workspace, commit = raced(root, Policy(on_race="block"))
    with workspace:
        assert [path for path, _ in commit.unapplied] == ["a"]
        assert (root / "a").read_bytes() == b"theirs"
        assert (root / "b").read_bytes() == b"ours"
        with pytest.raises(WorkspaceBlocked, match="surefoot conflicts"):
            write(workspace, {"c": b"x"})
        edit = workspace.upkeep.conflicts()[0]
        workspace.upkeep.resolve(edit.id, decision)
        assert (root / "a").read_bytes() == decision.encode()
        assert workspace.unapplied == ()
        assert write(workspace, {"c": b"x"}).applied
    Workspace(root).close()
    assert (root / "a").read_bytes() == decision.encode()


CRASH = (
    "import os, sys; from surefoot_storage import Workspace\n"
    "w = Workspace(sys.argv[1], idle_s=3600); t = w.begin()\n"
    "t.write_bytes('a', b'ours'); t.write_bytes('b', b'ours'); w.commit(t); os._exit(9)"
)


@pytest.mark.parametrize("power_cut", [False, True])
@pytest.mark.parametrize("policy", ["theirs", "ours", "block"])
def test_an_edit_after_a_crash_is_settled_by_policy(root, policy, power_cut, monkeypatch):
    (root / "a").write_bytes(b"old")
    subprocess.run([sys.executable, "-c", CRASH, root], check=False)
    (root / "a").write_bytes(b"edited since")
    if power_cut:
        monkeypatch.setattr(processes, "boot_id", lambda: "another boot")
    else:
        (root / ".surefoot/applied").unlink()
    with Workspace(root, policy=Policy(on_recovery=policy), idle_s=3600) as workspace:
        found = workspace.upkeep.conflicts()
        if policy == "ours":
            assert (root / "a").read_bytes() == b"ours"
            assert workspace.upkeep.read_conflict(found[0]) == b"edited since"
            return
        assert (root / "a").read_bytes() == b"edited since"
        assert workspace.upkeep.read_conflict(found[0]) == b"ours"
        if policy == "block":
            with pytest.raises(WorkspaceBlocked):
                write(workspace, {"c": b"x"})
        workspace.upkeep.resolve(found[0].id, "ours")
        assert (root / "a").read_bytes() == b"ours"
        assert write(workspace, {"c": b"x"}).applied


# --- durability ---


@pytest.mark.parametrize(("level", "flushes"), [("full", 1), ("batched", 0), ("none", 0)])
def test_barriers_on_the_commit_path_by_level(shim_library, root, level, flushes):
    code = (
        "import sys; sys.path.insert(0, sys.argv[3])\nfrom shim import Shim\nfrom surefoot_storage import Workspace\n"
        "shim = Shim()\nw = Workspace(sys.argv[1], durability=sys.argv[2], idle_s=3600, window_s=3600)\n"
        "def go(n):\n    t = w.begin(); t.write_bytes('a', b'%d' % n); t.write_bytes('b', b'%d' % n); w.commit(t)\n"
        "go(0); shim.arm(); go(1); shim.disarm(); print(shim.flushes, shim.names().count('sync_file_range'))\n"
        "shim.arm(); w.flush(); shim.disarm(); print(shim.flushes)"
    )
    support = os.path.join(os.path.dirname(__file__), "support")
    env = {**os.environ, "LD_PRELOAD": str(shim_library)}
    done = subprocess.run(
        [sys.executable, "-c", code, root, level, support], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    committed, flushed = done.stdout.splitlines()
    assert committed.split()[0] == str(flushes)
    if level == "none":
        assert committed.split()[1] == "0"
    assert int(flushed) == 1
    with Workspace(root) as workspace:  # a kill forgets nothing at any level
        assert workspace.query("SELECT count(*), max(level) FROM txn") == [(2, level)]


def test_a_batched_commit_is_flushed_within_its_window(root):
    import threading

    flushed = threading.Event()
    with Workspace(root, durability="batched", window_s=0.01, idle_s=3600) as workspace:
        harden = workspace._store.database.harden
        workspace._store.database.harden = lambda: (harden(), flushed.set())
        write(workspace, {"a": b"x"})
        assert flushed.wait(10)


# --- a full disk ---


def test_the_ballast_lets_a_decided_commit_be_finished(root):
    fs = Hooked()
    (root / "a").write_bytes(b"old")
    with Workspace(root, fs=fs, recipe="journal") as workspace:
        assert (root / ".surefoot/ballast").stat().st_size > 0

        def full(name, arguments):
            again = name == "create" and ".again" in str(arguments[1])
            if (root / ".surefoot/ballast").exists() and (name == "exchange" or again):
                raise OSError(28, "No space left on device")

        fs.hook = full
        commit = write(workspace, {"a": b"new"})
        assert commit.applied
        assert (root / "a").read_bytes() == b"new"
        assert not (root / ".surefoot/ballast").exists()
        fs.hook = lambda _n, _a: None
        workspace.checkpoint()
        assert (root / ".surefoot/ballast").exists()


def test_rows_that_must_be_written_use_the_ballast(root, monkeypatch):
    with Workspace(root) as workspace:
        real = workspace._store.database.commit
        refused = []

        def commit(members, **how):
            if (root / ".surefoot/ballast").exists():
                import apsw

                from surefoot_storage.sqlite import commit_failed

                refused.append(members)
                cause = apsw.FullError("full")
                raise commit_failed("rows", cause) from cause
            return real(members, **how)

        monkeypatch.setattr(workspace._store.database, "commit", commit)
        workspace.write_rows([Statement("UPDATE workspace SET epoch = epoch")])
        assert len(refused) == 1


# --- retention, usage, forgetting ---


def aged(root, clock, count=6):
    workspace = Workspace(root, clock=lambda: clock[0], idle_s=3600)
    for n in range(count):
        write(workspace, {"a": b"%d" % n * 1000, "big": b"%d" % n * 400_000}, owner=f"run{n % 2}")
        clock[0] += DAY_S
    workspace.checkpoint()
    return workspace


@pytest.mark.parametrize(
    ("retention", "left"),
    [
        (Retention(days=2.5), 2),
        (Retention(transactions_max=1), 2),
        (Retention(size_bytes_max=900_000), 2),
        (Retention(), 6),
    ],
)
def test_old_versions_go_by_age_number_and_size(root, retention, left):
    clock = [1_000_000_000.0]
    with aged(root, clock) as workspace:
        workspace.upkeep._pruner._grace_ns = -1
        before = workspace.upkeep.usage()["old_versions"]["files"]
        planned = workspace.upkeep.collect(retention=retention, dry_run=True)
        assert workspace.upkeep.usage()["old_versions"]["files"] == before
        done = workspace.upkeep.collect(retention=retention)
        assert done == planned
        assert done.transactions == 6 - left
        kept = workspace.query("SELECT count(*) FROM txn WHERE pruned = 0")
        assert kept == [(left,)]
        assert workspace.query("SELECT count(*) FROM txn") == [(6,)]
        needed = workspace.query(
            "SELECT DISTINCT old_digest FROM file_op JOIN txn USING (seq) WHERE pruned = 0 AND old_digest NOT NULL"
        )
        for (digest,) in needed:
            assert workspace.read_blob(digest)
        assert workspace.upkeep.usage()["old_versions"]["files"] <= left


def test_pruning_happens_by_itself(root):
    with Workspace(root, retention=Retention(transactions_max=3), idle_s=3600) as workspace:
        for n in range(300):
            write(workspace, {"a": b"%d" % n})
        workspace.checkpoint()
        assert workspace.query("SELECT count(*) FROM txn WHERE pruned = 0")[0][0] < 60


def test_pruning_leaves_what_a_commit_has_just_asked_for(root):
    clock = [1_000_000_000.0]
    with aged(root, clock) as workspace:
        keep = Retention(days=0)
        done = workspace.upkeep.collect(retention=keep)
        assert done.contents > 0
        assert workspace.upkeep.usage()["old_versions"]["files"] == 5  # all younger than the grace


def test_what_is_forgotten_is_nowhere(root):
    secret = b"hunter2-" * 50
    with Workspace(root, idle_s=3600) as workspace:
        write(workspace, {"s": secret, "other": b"x", "copy": secret})
        write(workspace, {"s": b"gone", "other": b"y", "big": secret * 1000})
        write(workspace, {"big": b"small"})
        assert workspace.upkeep.forgettable("s").contents == 2
        gone = workspace.upkeep.forget("s")
        assert (gone.contents, gone.also) == (2, ("copy",))
        assert workspace.upkeep.forget("big").contents == 2
        write(workspace, {"other": b"z"})
        workspace.checkpoint()
        assert workspace.upkeep.forgettable("other").contents > 0
    (root / "copy").unlink()
    for path in (root / ".surefoot").rglob("*"):
        if path.is_file():
            assert b"hunter2-hunter2" not in path.read_bytes(), path


@pytest.mark.parametrize("times", [1, 99])
def test_what_is_committed_again_while_it_is_forgotten_is_not_taken_from_the_log(root, times):
    with Workspace(root, idle_s=3600) as workspace:
        write(workspace, {"s": b"secret 0"})
        run, left = workspace._parts.checkpoint.run, [times]

        def checkpoint(**how):
            run(**how)
            if left[0]:
                left[0] -= 1
                write(workspace, {"s": b"secret %d" % left[0] * 2})

        workspace._parts.checkpoint.run = checkpoint
        if times == 1:
            assert workspace.upkeep.forget("s").contents == 2
        else:
            with pytest.raises(WorkspaceUnusable, match="new commits of it"):
                workspace.upkeep.forget("s")
        workspace._parts.checkpoint.run = run
        for _, ops in workspace._store.database.unchecked_ops():
            for op in ops:
                assert workspace.read_blob(op.new.digest)  # still there for a power cut


# --- backup, restore, the wrong store ---


def test_a_backup_of_a_live_workspace_can_be_restored(root, tmp_path):
    with Workspace(root, idle_s=3600) as workspace:
        write(workspace, {"a": b"1", "big": b"1" * 400_000})
        write(workspace, {"a": b"2", "big": b"2" * 400_000})
        (old,) = workspace.query("SELECT old_digest FROM file_op WHERE path = ? AND seq = 2", (b"big",))[0]
        facts = workspace.upkeep.backup(str(tmp_path / "backup"))
        assert facts["files"] == 1
        write(workspace, {"a": b"3"})
        with pytest.raises(WorkspaceUnusable, match="in use"):
            restore(str(tmp_path / "backup"), str(root))
        with pytest.raises(InputError, match="does not exist yet"):
            workspace.upkeep.backup(str(tmp_path / "backup"))
    with pytest.raises(InputError, match="made by surefoot backup"):
        restore(str(root), str(root))
    moved = restore(str(tmp_path / "backup"), str(root))
    assert os.path.exists(os.path.join(moved, "surefoot.db"))
    with Workspace(root, adopt=True) as workspace:
        assert workspace.query("SELECT count(*) FROM txn") == [(2,)]
        assert workspace.recovered.completed == ()
        assert workspace.read_blob(old) == b"1" * 400_000
        assert (root / "a").read_bytes() == b"3"  # files are not touched
        assert write(workspace, {"a": b"4"}).applied
    Workspace(root).close()
    restore(str(tmp_path / "backup"), str(tmp_path / "elsewhere")) if (
        tmp_path / "elsewhere"
    ).mkdir() else None


def unchanged(root):
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in root.rglob("*") if "-shm" not in p.name}


@pytest.mark.parametrize("case", ["deleted", "older", "another's", "copied", "nested"])
def test_the_wrong_store_is_refused_untouched_and_can_be_adopted(root, tmp_path, case):
    import shutil

    with Workspace(root, idle_s=3600) as workspace:
        write(workspace, {"a": b"1"})
        workspace.upkeep.backup(str(tmp_path / "early"))
        write(workspace, {"a": b"2"})
    database, wrong = root / ".surefoot/surefoot.db", root
    if case == "deleted":
        for suffix in ("", "-wal", "-shm"):
            database.with_name(f"surefoot.db{suffix}").unlink(missing_ok=True)
    elif case == "older":
        database.with_name("surefoot.db-wal").unlink()
        shutil.copy(tmp_path / "early/surefoot.db", database)
    elif case == "another's":
        (tmp_path / "x").mkdir()
        with Workspace(tmp_path / "x") as other:
            for n in range(5):
                write(other, {"a": b"%d" % n})
            other.upkeep.backup(str(tmp_path / "others"))
        database.with_name("surefoot.db-wal").unlink()
        shutil.copy(tmp_path / "others/surefoot.db", database)
    elif case == "copied":
        wrong = tmp_path / "copy"
        shutil.copytree(root, wrong)
    else:
        wrong = root / "inner"
        wrong.mkdir()
    before = unchanged(wrong)
    with pytest.raises(WorkspaceUnusable) as caught:
        Workspace(wrong)
    words = {"deleted": "its history is gone", "older": "an older one, which ends at 1",
             "another's": "the database of another workspace", "copied": "a copy of it",
             "nested": f"one inside the workspace {root}"}  # fmt: skip
    assert words[case] in caught.value.found
    assert case == "nested" or "surefoot adopt" in caught.value.hint
    assert unchanged(wrong) == before
    if case == "nested":
        return
    with Workspace(wrong, adopt=True) as workspace:
        assert (wrong / "a").read_bytes() == b"2"
        assert write(workspace, {"a": b"3"}).applied
    Workspace(wrong).close()


def test_a_workspace_that_is_moved_goes_on(root, tmp_path):
    with Workspace(root) as workspace:
        write(workspace, {"a": b"1"})
    root.rename(tmp_path / "moved")
    with Workspace(tmp_path / "moved") as workspace:
        assert write(workspace, {"a": b"2"}).applied


def test_a_decided_commit_that_meets_a_full_disk_is_finished_later(root):
    fs = Hooked()
    (root / "a").write_bytes(b"old")
    with Workspace(root, fs=fs, recipe="journal") as workspace:

        def full(name, arguments):
            if name == "exchange" or (name == "create" and ".again" in str(arguments[1])):
                fails(28)()

        fs.hook = full
        commit = write(workspace, {"a": b"new"})
        assert [path for path, _ in commit.unapplied] == ["a"]
        fs.hook = lambda _n, _a: None
        assert workspace.settle() == ()
        assert (root / "a").read_bytes() == b"new"
