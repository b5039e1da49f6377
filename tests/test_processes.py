"""Several processes, and several threads, over one workspace: who waits, who helps, who is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from faulty import Hooked, Once

from surefoot_storage import (
    CommitOutcomeUnknown,
    Conflict,
    Statement,
    Workspace,
    WorkspaceBusy,
    WorkspacePoisoned,
    locking,
)
from surefoot_storage.mark import AppliedMark

CHILD = """
import os, signal, sys
sys.path.insert(0, {support!r})
from faulty import Hooked, Once
from surefoot_storage import Workspace
fs = Hooked()
workspace = Workspace({root!r}, fs=fs, idle_s=3600)
tx = workspace.begin()
for name in "abc":
    tx.write_bytes(name, b"theirs")
def stop():
    print("there", flush=True)
    os.kill(os.getpid(), signal.{signal})
fs.hook = Once({call!r}, stop, nth={nth})
workspace.commit(tx)
print("went on", flush=True)
"""


@pytest.fixture
def child():
    """Starts a process that gets a signal at a call of its commit."""
    started = []

    def start(root, signal_name, call, nth=1):
        started.append(start_child(root, signal_name, call, nth))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def start_child(root, signal_name, call, nth):
    support = os.path.join(os.path.dirname(__file__), "support")
    code = CHILD.format(support=support, root=str(root), signal=signal_name, call=call, nth=nth)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    return process


def write(workspace, contents):
    tx = workspace.begin()
    for path, data in contents.items():
        tx.write_bytes(path, data)
    return workspace.commit(tx)


@pytest.fixture
def abc(root):
    for name in "abc":
        (root / name).write_bytes(b"old")
    return root


# --- a holder that dies ---


@pytest.mark.parametrize("helper", ["commit", "query", "open"])
def test_what_a_dead_process_left_half_done_is_finished_by_a_living_one(abc, helper, child):
    with Workspace(abc, idle_s=3600) as workspace:
        assert child(abc, "SIGKILL", "exchange", nth=2).wait() == -signal.SIGKILL
        assert [(abc / name).read_bytes() for name in "abc"] == [b"theirs", b"old", b"old"]
        if helper == "commit":
            assert write(workspace, {"d": b"ours"}).seq == 2
        elif helper == "query":
            assert workspace.query("SELECT count(*) FROM txn") == [(1,)]
        else:
            with Workspace(abc) as other:
                assert other.recovered.completed == ("b", "c")
        assert [(abc / name).read_bytes() for name in "abc"] == [b"theirs"] * 3
        assert workspace.query("SELECT count(*) FROM foreign_edit") == [(0,)]
    assert os.listdir(abc / ".surefoot/stage") == []


def test_a_query_waits_for_nobody_where_files_and_rows_agree(abc):
    with Workspace(abc, idle_s=3600) as workspace:
        write(workspace, {"a": b"new"})
        with Workspace(abc) as other:
            held, release = threading.Event(), threading.Event()

            def hold():
                with other._section():
                    held.set()
                    release.wait(20)

            thread = threading.Thread(target=hold)
            thread.start()
            assert held.wait(20)
            assert workspace.query("SELECT count(*) FROM txn") == [(1,)]
            release.set()
            thread.join()


def test_what_another_process_commits_during_a_checkpoint_is_made_durable_by_the_next_one(root):
    """It is in no list of this process: counted as durable without a flush, a power cut would take it."""
    synced, fs = [], Hooked()
    with Workspace(root, idle_s=3600) as other, Workspace(root, fs=fs, idle_s=3600) as workspace:
        write(workspace, {"mine": b"one"})
        fs.hook = Once("sync", lambda: write(other, {"theirs": b"one"}))
        workspace.checkpoint()
        write(workspace, {"mine": b"two"})

        def note(name, arguments):
            if name == "sync":
                synced.append(os.fstat(arguments[0]).st_ino)

        fs.hook = note
        workspace.checkpoint()
        assert {(root / name).stat().st_ino for name in ("mine", "theirs")} <= set(synced)


def test_before_the_commit_point_a_dead_process_leaves_nothing(abc, child):
    with Workspace(abc, idle_s=3600) as workspace:
        assert child(abc, "SIGKILL", "start_writeback", nth=2).wait() == -signal.SIGKILL
        write(workspace, {"d": b"ours"})
        assert (abc / "a").read_bytes() == b"old"
        Workspace(abc).close()  # opening sweeps what dead workers staged
        assert [n for n in os.listdir(abc / ".surefoot/stage") if not n.startswith(workspace.worker)] == []


def test_opening_leaves_alone_what_living_workers_have_staged(abc):
    with Workspace(abc, idle_s=3600) as workspace:
        tx = workspace.begin()
        tx.write_bytes("a", b"new")
        tx.seal()
        staged = workspace._committer.stage(tx)
        Workspace(abc).close()
        assert os.listdir(abc / ".surefoot/stage") == [op.stage for op in staged.ops]
        workspace._committer.drop(staged)


# --- a holder that is frozen ---


def test_a_frozen_holder_is_named_and_never_overrun(abc, monkeypatch, child):
    monkeypatch.setattr(locking, "_WARN_AFTER_S", 0.05)
    events = []
    with Workspace(
        abc, lock_wait_s=0.3, observer=lambda event, facts: events.append((event, facts))
    ) as workspace:
        process = child(abc, "SIGSTOP", "exchange", nth=2)
        with pytest.raises(WorkspaceBusy) as caught:
            write(workspace, {"d": b"ours"})
        assert f"process {process.pid} (" in caught.value.found
        assert caught.value.found.endswith(", stopped")
        assert "kill -CONT" in caught.value.hint
        assert [event for event, _ in events] == ["lock_waiting"]
        assert str(process.pid) in events[0][1]["text"]
        assert not (abc / "d").exists()
        assert os.listdir(abc / ".surefoot/stage") != []  # its files, not ours
        with pytest.raises(WorkspaceBusy):
            workspace.query("SELECT 1")  # its rows are ahead of its files
        process.send_signal(signal.SIGCONT)
        assert process.wait() == 0
        write(workspace, {"d": b"ours"})
        assert [(abc / name).read_bytes() for name in "abcd"] == [b"theirs"] * 3 + [b"ours"]


def test_killing_a_frozen_holder_frees_the_lock_at_once(abc, child):
    with Workspace(abc, lock_wait_s=20) as workspace:
        process = child(abc, "SIGSTOP", "exchange", nth=3)
        threading.Timer(0.1, process.kill).start()
        write(workspace, {"d": b"ours"})
        assert process.wait() == -signal.SIGKILL
        assert (abc / "c").read_bytes() == b"theirs"


def test_a_lock_that_comes_too_late_is_given_back(abc, child):
    with Workspace(abc, lock_wait_s=0.05) as workspace, Workspace(abc) as third:
        process = child(abc, "SIGSTOP", "exchange")
        with pytest.raises(WorkspaceBusy):
            write(workspace, {"d": b"ours"})
        process.send_signal(signal.SIGCONT)
        assert process.wait() == 0
        code = "import sys; from surefoot_storage import Workspace; Workspace(sys.argv[1], lock_wait_s=10).close()"
        subprocess.run([sys.executable, "-c", code, abc], check=True, timeout=30)
        write(third, {"e": b"x"})


# --- control directory and database under an open workspace ---


@pytest.mark.parametrize("name", ["", "surefoot.db", "surefoot.db-wal"])
@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_what_is_removed_or_replaced_under_an_open_workspace_is_noticed(abc, name, how):
    workspace = Workspace(abc, idle_s=3600)
    write(workspace, {"a": b"first"})
    target = abc / ".surefoot" / name if name else abc / ".surefoot"
    target.rename(abc / "moved-away")
    if how == "replaced":
        target.mkdir() if not name else target.write_bytes((abc / "moved-away").read_bytes())
    for _ in range(2):
        with pytest.raises(WorkspacePoisoned, match=how if name or how == "replaced" else "ENOENT|removed"):
            write(workspace, {"a": b"second"})
    assert (abc / "a").read_bytes() == b"first"
    workspace.close()


def test_what_is_replaced_during_the_commit_is_never_acknowledged(abc):
    fs = Hooked()
    workspace = Workspace(abc, fs=fs, idle_s=3600)

    def hook(name, _arguments):
        if name == "exchange" and not (abc / "moved").exists():
            (abc / ".surefoot/surefoot.db").rename(abc / "moved")

    fs.hook = hook
    with pytest.raises(CommitOutcomeUnknown, match="removed while it was open"):
        write(workspace, {"a": b"new"})
    with pytest.raises(WorkspacePoisoned):
        workspace.begin()
    workspace.close()


def test_damage_that_one_process_finds_stops_the_others(abc):
    with Workspace(abc) as finder, Workspace(abc) as other:
        write(other, {"a": b"1"})
        finder._poison("an I/O error")
        with pytest.raises(WorkspacePoisoned, match="another process found its database damaged"):
            write(other, {"a": b"2"})
        with Workspace(abc) as again:  # repairs it: new blocks
            assert write(again, {"a": b"3"}).seq == 2
        with pytest.raises(WorkspacePoisoned):
            write(other, {"a": b"4"})
    assert (abc / "a").read_bytes() == b"3"


# --- threads: group commit ---


def commit_together(workspace, transactions):
    """All of them queue while somebody holds the lock; returns what came of each."""
    results = [None] * len(transactions)

    def run(index):
        try:
            results[index] = workspace.commit(transactions[index])
        except Exception as error:
            results[index] = error

    threads = []
    with workspace._section():
        for index in range(len(transactions)):
            thread = threading.Thread(target=run, args=(index,))
            thread.start()
            threads.append(thread)
            while len(workspace._queue._waiting) <= index:
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    return results


def test_what_queues_together_shares_one_barrier(root):
    with Workspace(root, idle_s=3600) as workspace:
        transactions = []
        for n in range(8):
            tx = workspace.begin()
            tx.write_bytes(f"f{n}", b"x")
            transactions.append(tx)
        commits = commit_together(workspace, transactions)
        assert [commit.seq for commit in commits] == list(range(1, 9))
        assert workspace.query("SELECT count(DISTINCT batch) FROM txn") == [(1,)]
        assert len(list(root.glob("f*"))) == 8


def test_one_of_a_batch_that_fails_does_not_fail_the_others(root):
    (root / "a").write_bytes(b"old")
    with Workspace(root, idle_s=3600) as workspace:
        good, stale, rows, dependent = (workspace.begin() for _ in range(4))
        stale.read_bytes("a")
        (root / "a").write_bytes(b"changed")
        good.write_bytes("g", b"x")
        stale.write_bytes("s", b"x")
        rows.write_bytes("r", b"x")
        rows.statements.append(Statement("UPDATE workspace SET epoch = epoch WHERE id = 7", rows=1))
        dependent.write_bytes("g", b"mine")
        results = commit_together(workspace, [good, stale, rows, dependent])
        assert results[0].applied
        assert isinstance(results[1], Conflict)
        assert isinstance(results[2], Conflict)
        assert isinstance(results[3], Conflict)  # `g` is no longer what it was when it was read
        assert sorted(os.listdir(root)) == [".surefoot", "a", "g"]
        assert workspace.query("SELECT seq, status FROM txn") == [(1, 1)]
    assert os.listdir(root / ".surefoot/stage") == []


def test_a_follower_that_is_interrupted_leaves_the_others_alone(root):
    """Ctrl-C in a thread that queues: its own request is withdrawn, the rest is committed once."""
    with Workspace(root, idle_s=3600) as workspace:
        queue = workspace._queue
        follow = queue._follow

        def interrupted(request):
            if request.tx.label == "mine":
                raise KeyboardInterrupt
            follow(request)

        queue._follow = interrupted
        mine, theirs = workspace.begin(label="mine"), workspace.begin(label="theirs")
        mine.write_bytes("mine", b"x")
        theirs.write_bytes("theirs", b"x")
        results = []
        with workspace._section():
            rows = threading.Thread(target=workspace.write_rows, args=([],))
            rows.start()
            while not queue._waiting:
                time.sleep(0.001)
            other = threading.Thread(target=lambda: results.append(workspace.commit(theirs)))
            other.start()
            while len(queue._waiting) < 2:
                time.sleep(0.001)
            with pytest.raises(KeyboardInterrupt):
                workspace.commit(mine)
        rows.join()
        other.join()
        assert [commit.seq for commit in results] == [1]
        assert sorted(os.listdir(root)) == [".surefoot", "theirs"]
        assert os.listdir(root / ".surefoot/stage") == []


def test_rows_and_files_of_one_batch_are_durable_together(root):
    with Workspace(root, idle_s=3600) as workspace:
        results = []
        with workspace._section():
            thread = threading.Thread(
                target=lambda: results.append(
                    workspace.write_rows([Statement("UPDATE workspace SET epoch = epoch")], durable=False)
                )
            )
            thread.start()
            while not workspace._queue._waiting:
                time.sleep(0.001)
        thread.join()
        assert results == [None]


# --- the mark ---


def test_a_torn_foreign_or_missing_mark_counts_as_none(tmp_path):
    fs = Hooked()
    folder = fs.open_root(str(tmp_path))
    fd = fs.open_record(folder, "applied")
    mark = AppliedMark(fs, fd, epoch="boot", workspace="w")
    assert mark.read() == -1
    mark.write(7)
    assert mark.read() == 7
    assert AppliedMark(fs, fd, epoch="another boot", workspace="w").read() == -1
    assert AppliedMark(fs, fd, epoch="boot", workspace="another").read() == -1
    os.pwrite(fd, b"\xff", 20)
    assert mark.read() == -1
    fs.close(fd)
    fs.close(folder)


# --- forking ---


def test_a_child_forked_in_the_middle_of_a_commit_holds_no_lock(abc):
    import warnings

    fs = Hooked()
    with Workspace(abc, fs=fs) as workspace:
        children = []

        def hook(name, _arguments):
            if name == "exchange" and not children:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)
                    pid = os.fork()
                if pid == 0:
                    signal.pause()
                children.append(pid)

        fs.hook = hook
        write(workspace, {"a": b"new"})
        fs.hook = lambda _n, _a: None
        code = "import sys; from surefoot_storage import Workspace; Workspace(sys.argv[1], lock_wait_s=5).close()"
        subprocess.run([sys.executable, "-c", code, abc], check=True, timeout=30)
        os.kill(children[0], signal.SIGKILL)
        os.waitpid(children[0], 0)


# --- the soak ---


@pytest.mark.long
@pytest.mark.parametrize(("processes", "transitions"), [(2, 125), (4, 63)])
def test_killed_and_stopped_at_random_nothing_is_lost_or_done_twice(tmp_path, processes, transitions):
    soak = os.path.join(os.path.dirname(__file__), "support", "soak.py")
    seed = os.environ.get("SUREFOOT_SEED", "20261121")
    done = subprocess.run(
        [sys.executable, soak, tmp_path, str(processes), "16", str(transitions), seed],
        capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    print(report)
    assert report["problems"] == []
    assert report["kills"] + report["stops"] > 5
    assert report["reader"]["reads"] > 1000
