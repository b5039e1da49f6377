"""Recovery: the decision table, and power cuts acted out on the files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from faulty import Hooked

from surefoot_storage import Workspace, processes
from surefoot_storage.log import Log
from surefoot_storage.recovery import Action, decide, looks_half_written, looks_torn
from surefoot_storage.states import ABSENT, Directory, File, digest_of


def file(data: bytes, mode: int = 0o644) -> File:
    return File(digest_of(data), len(data), mode)


OLD, MIDDLE, NEW = file(b"old"), file(b"middle"), file(b"new")
CHAIN = (OLD, MIDDLE, NEW)
TABLE = [
    (CHAIN, NEW, False, False, Action.DONE),
    (CHAIN, NEW, True, False, Action.DONE),
    (CHAIN, OLD, False, False, Action.APPLY),
    (CHAIN, MIDDLE, True, False, Action.APPLY),
    (CHAIN, file(b"new", 0o600), True, False, Action.FOREIGN),
    ((OLD, file(b"new", 0o600)), file(b"new", 0o644), False, False, Action.APPLY),
    (CHAIN, ABSENT, False, False, Action.FOREIGN),
    (CHAIN, ABSENT, True, False, Action.APPLY),
    ((ABSENT, NEW), ABSENT, False, False, Action.APPLY),
    ((OLD, ABSENT), ABSENT, False, False, Action.DONE),
    ((OLD, ABSENT), OLD, True, False, Action.APPLY),
    (CHAIN, file(b""), False, True, Action.FOREIGN),
    (CHAIN, file(b""), True, True, Action.REPAIR),
    (CHAIN, file(b"edited"), False, False, Action.FOREIGN),
    (CHAIN, file(b"edited"), True, False, Action.FOREIGN),
    (CHAIN, None, True, False, Action.FOREIGN),
    (CHAIN, Directory(0o755), True, False, Action.FOREIGN),
    ((ABSENT, Directory(0o755)), Directory(0o700), False, False, Action.APPLY),
    ((ABSENT, Directory(0o755), ABSENT), Directory(0o700), True, False, Action.APPLY),  # btrfs does that
    ((ABSENT, Directory(0o755), ABSENT), Directory(0o750), True, False, Action.FOREIGN),
    ((OLD, file(b"new", 0o600), ABSENT), file(b"new", 0o644), True, False, Action.APPLY),
]


@pytest.mark.parametrize(("states", "now", "power_cut", "torn", "action"), TABLE)
def test_the_decision_table(states, now, power_cut, torn, action):
    assert decide(states, now, power_cut=power_cut, torn=torn) is action


@pytest.mark.parametrize(
    ("data", "torn"),
    [(b"", True), (b"\0\0", True), (b"new\0\0", True), (b"new ve", False), (b"edited\0", False)],
)
def test_what_looks_torn(data, torn):
    assert looks_torn(data, b"new version") is torn


def crash_after_commit(root, files, recipe="journal"):
    """A process that dies right after its commit; its checkpoint never ran."""
    code = (
        "import os, sys\nfrom surefoot_storage import Workspace\n"
        "w = Workspace(sys.argv[1], recipe=sys.argv[2], idle_s=3600)\n"
        "for files in eval(sys.stdin.read()):\n"
        "    tx = w.begin()\n"
        "    for path, data in files.items():\n"
        "        tx.delete(path) if data is None else tx.write_bytes(path, data)\n"
        "    w.commit(tx)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, root, recipe], input=repr(files), text=True)
    assert done.returncode == -signal.SIGKILL


@pytest.fixture
def reboot(monkeypatch):
    """The next open takes place after a reboot."""
    return lambda: monkeypatch.setattr(processes, "boot_id", lambda: "another boot")


DAMAGES = {
    "empty": lambda p: instead(p, b""),
    "zeros": lambda p: instead(p, b"\0" * 400_000),
    "torn": lambda p: instead(p, p.read_bytes()[:2] + b"\0" * 4096),
    "name lost": lambda p: p.unlink(),
    "back to the old version": lambda p: instead(p, b"old"),
}


def instead(path, data):
    """On an inode of its own: the data of large files was flushed, a power cut cannot hurt it."""
    path.unlink()
    path.write_bytes(data)


@pytest.mark.parametrize("recipe", ["journal", "portable"])
@pytest.mark.parametrize("size", [10, 400_000])
@pytest.mark.parametrize("damage", DAMAGES)
def test_after_a_power_cut_damaged_files_are_made_whole(root, reboot, damage, size, recipe):
    (root / "a").write_bytes(b"old")
    new = b"ne" + b"w" * size
    crash_after_commit(root, [{"a": b"middle"}, {"a": new, "b": b"b"}], recipe)
    DAMAGES[damage](root / "a")
    reboot()
    with Workspace(root, recipe=recipe) as workspace:
        assert workspace.recovered.completed == ("a",)
        assert (root / "a").read_bytes() == new
        assert workspace.query("SELECT checkpointed_seq FROM workspace") == [(2,)]
    assert os.listdir(root / ".surefoot/stage") == []


def test_a_version_before_the_last_two_is_replaced_without_any_fuss(root, reboot):
    """What recovery displaces itself is no edit, however far the power cut took the file back."""
    (root / "a").write_bytes(b"one" * 20)
    crash_after_commit(root, [{"a": b"two" * 20}, {"a": b"three" * 20}])
    for path in (root / ".surefoot/stage").iterdir():
        path.unlink()
    instead(root / "a", b"one" * 20)
    reboot()
    with Workspace(root) as workspace:
        assert (root / "a").read_bytes() == b"three" * 20
        assert workspace.upkeep.conflicts() == []


@pytest.mark.parametrize("power_cut", [True, False])
def test_an_edit_made_after_the_crash_stays(root, reboot, power_cut):
    (root / "a").write_bytes(b"old")
    crash_after_commit(root, [{"a": b"new", "b": b"new"}])
    (root / "a").write_bytes(b"edited since")
    os.unlink(root / "b")
    (root / "b").mkdir()
    if power_cut:
        reboot()
    else:
        (root / ".surefoot/applied").unlink()  # the kill came before the mark
    with Workspace(root) as workspace:
        assert workspace.recovered.foreign == ("a", "b")
        assert workspace.recovered.completed == ()
        assert workspace.query("SELECT path, kept_as FROM foreign_edit") == [(b"a", ""), (b"b", "")]
    assert (root / "a").read_bytes() == b"edited since"
    Workspace(root).close()
    assert (root / "a").read_bytes() == b"edited since"


def test_a_directory_removed_after_the_crash_stays_removed(root, reboot):
    import shutil

    crash_after_commit(root, [{"d/e/a": b"new"}])
    with Workspace(root):
        pass
    crash_after_commit(root, [{"d/e/a": b"newer"}])
    shutil.rmtree(root / "d")
    reboot()
    with Workspace(root) as workspace:
        assert workspace.recovered.foreign == ("d/e/a",)
        assert workspace.unapplied == ()
    assert not (root / "d").exists()


def test_deletions_are_repeated_after_a_power_cut(root, reboot):
    (root / "a").write_bytes(b"old")
    crash_after_commit(root, [{"a": None}])
    (root / "a").write_bytes(b"old")
    reboot()
    with Workspace(root) as workspace:
        assert workspace.recovered.completed == ("a",)
    assert not (root / "a").exists()


def test_an_edit_that_raced_the_swap_survives_a_kill_before_it_was_noticed(root):
    (root / "a").write_bytes(b"old")
    crash_after_commit(root, [{"a": b"new"}])
    (name,) = os.listdir(root / ".surefoot/stage")
    (root / ".surefoot/stage" / name).write_bytes(b"a line that an editor saved")
    with Workspace(root):
        kept = os.listdir(root / ".surefoot/conflicts")
        assert len(kept) == 1
        assert (root / ".surefoot/conflicts" / kept[0]).read_bytes() == b"a line that an editor saved"


def test_recovery_flushes_what_it_found_before_it_forgets_the_log(root):
    crash_after_commit(root, [{"a": b"new"}])
    calls = []
    with Workspace(root, fs=Hooked(lambda name, _a: calls.append(name))) as workspace:
        assert workspace.query("SELECT checkpointed_seq FROM workspace") == [(1,)]
    assert calls.index("sync") < calls.index("unlink", calls.index("sync"))


def test_recovery_twice_is_recovery_once(root, reboot):
    (root / "a").write_bytes(b"old")
    crash_after_commit(root, [{"a": b"new"}])
    (root / "a").write_bytes(b"")
    reboot()
    with Workspace(root) as workspace:
        assert workspace.recovered.completed == ("a",)
    with Workspace(root) as workspace:
        assert workspace.recovered.completed == ()
    assert (root / "a").read_bytes() == b"new"


def test_what_a_killed_checkpoint_left_costs_one_look_at_each_transaction(root, monkeypatch):
    """And not one at all its changes for each file: with thousands of files that took minutes."""
    code = (
        "import os, sys\nfrom surefoot_storage import Workspace\n"
        "w = Workspace(sys.argv[1], idle_s=3600)\n"
        "for data in (b'old', b'new'):\n"
        "    tx = w.begin()\n"
        "    for n in range(30):\n        tx.write_bytes(f'd/{n}', data)\n"
        "    w.commit(tx)\n"
        "w._parts.checkpoint._free = lambda entries: os._exit(9)\n"
        "w.checkpoint()\n"
    )
    assert subprocess.run([sys.executable, "-c", code, root], check=False).returncode == 9
    assert len(os.listdir(root / ".surefoot/stage")) == 30
    looks, ops_of = [], Log.ops_of
    monkeypatch.setattr(Log, "ops_of", lambda self, seq: looks.append(seq) or ops_of(self, seq))
    with Workspace(root):
        assert os.listdir(root / ".surefoot/stage") == []
    assert len(looks) == len(set(looks))


@pytest.mark.parametrize("shown", [b"", b"\0" * 11, None])
def test_a_file_whose_mode_alone_was_changed_and_whose_content_was_never_durable_does_not_block(
    root, monkeypatch, shown
):
    """Somebody wrote it without a flush, we changed its mode, the power went: its content was never ours."""
    (root / "a").write_bytes(b"somebody's " * 30_000)
    with Workspace(root, idle_s=3600) as workspace:
        tx = workspace.begin()
        tx.chmod("a", 0o600)
        workspace.commit(tx)
        monkeypatch.setattr(workspace._background, "stop", lambda *, checkpoint: None)
    if shown is None:
        (root / "a").unlink()
    else:
        (root / "a").write_bytes(shown)
    monkeypatch.setattr(processes, "boot_id", lambda: "another boot")
    with Workspace(root, idle_s=3600) as workspace:
        assert workspace.recovered.foreign == ("a",)
        assert workspace.unapplied == ()
        tx = workspace.begin()
        tx.write_bytes("b", b"goes on")
        assert workspace.commit(tx).applied
    assert (root / "a").exists() == (shown is not None)


def test_half_written_is_only_a_beginning_of_the_new_one_over_the_old_one():
    assert looks_half_written(b"new old", b"old old", b"new new")
    assert not looks_half_written(b"new odd", b"old old", b"new new")
    assert not looks_half_written(b"edited!", b"old old", b"new new")


def test_a_removed_directory_with_something_new_in_it_stays_after_a_kill(root):
    """As it would have without the kill; nothing waits for it."""
    (root / "d").mkdir()
    code = f"""
import os, sys
sys.path[:0] = {sys.path!r}
from faulty import Hooked, Once
from surefoot_storage import Workspace
fs = Hooked()
w = Workspace({str(root)!r}, fs=fs, idle_s=3600)
tx = w.begin()
tx.write_bytes("a", b"ours")
tx.rmdir("d")
fs.hook = Once("rmdir", lambda: os._exit(9), word="d")
w.commit(tx)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    (root / "d/new").write_bytes(b"theirs")
    with Workspace(root, idle_s=3600) as workspace:
        assert workspace.recovered.foreign == ("d",)
        assert workspace.unapplied == ()
        assert [edit.path for edit in workspace.upkeep.conflicts()] == ["d"]
    assert (root / "d/new").read_bytes() == b"theirs"
    assert (root / "a").read_bytes() == b"ours"


@pytest.mark.parametrize("how", ["replaced", "in a tree that was removed"])
def test_a_writer_that_goes_on_during_recovery_loses_nothing(root, how):
    (root / "d").mkdir()
    (root / "d/a").write_bytes(b"old")
    change = 'tx.write_bytes("d/a", b"ours")' if how == "replaced" else 'tx.rmtree("d")'
    code = f"""
import os, sys
sys.path[:0] = {sys.path!r}
from surefoot_storage import Workspace
w = Workspace({str(root)!r}, idle_s=3600)
tx = w.begin()
{change}
w.commit(tx)
os._exit(9)
"""
    with open(root / "d/a", "r+b") as editor:
        subprocess.run([sys.executable, "-c", code], check=False)
        with Workspace(root, idle_s=3600) as workspace:
            editor.write(b"the")
            editor.close()
            workspace.checkpoint()
            assert [edit.path for edit in workspace.upkeep.conflicts()] == ["d/a"]
    (kept,) = (root / ".surefoot/conflicts").iterdir()
    assert kept.read_bytes() == b"the"
    assert list((root / ".surefoot/stage").iterdir()) == []
