"""Displaced files that are written again: only where nobody can notice, and never instead of a new one."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import subprocess
import sys
import threading

import pytest
from machines import not_run

from surefoot_storage import Policy, Workspace, processes
from surefoot_storage.fsops import FsOps
from surefoot_storage.spares import AGE_S, COUNT_MAX_OF_A_PATH

OLD, MIDDLE, NEW = b"old version\n" * 30, b"middle\n" * 50, b"new\n" * 80


class Clock:
    """Seconds that pass when a test says so; and a disk on which freeing takes as long as it says."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class SlowFrees(FsOps):
    """Each unlink takes a while, by the clock that is looked at."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds = clock, seconds

    def unlink(self, directory, name):
        self.clock.now += self.seconds
        super().unlink(directory, name)


def opened(root, *, fs=None, choice="always", clock=None, recipe=None):
    workspace = Workspace(root, idle_s=3600, fs=fs, policy=Policy(spare_files=choice), recipe=recipe)
    if recipe is None and workspace._parts.areas.home.recipe.name != "journal":
        workspace.close()
        not_run("the temporary directory is not on ext4 or xfs")
    spares_of(workspace).clock = clock or Clock()
    return workspace


def spares_of(workspace):
    return workspace._parts.checkpoint._spares


def write(workspace, path, data, **more):
    tx = workspace.begin()
    tx.write_bytes(path, data, **more)
    assert workspace.commit(tx).applied


def inode(root, path):
    return (root / path).stat().st_ino


def displace(workspace, root, path="a"):
    """Writes the path twice; returns the inode of the first version, which is a spare from now on."""
    write(workspace, path, OLD)
    first = inode(root, path)
    workspace.checkpoint()
    write(workspace, path, MIDDLE)
    workspace.checkpoint()
    spares_of(workspace).clock.now += AGE_S
    return first


@pytest.fixture
def spared(root):
    """A workspace in which the first version of `a` is a spare file; and its inode."""
    with opened(root) as workspace:
        yield workspace, displace(workspace, root)


def kept(root):
    return [
        (root / ".surefoot/conflicts" / name).read_bytes()
        for name in os.listdir(root / ".surefoot/conflicts")
    ]


def stage(root):
    return os.listdir(root / ".surefoot/stage")


def test_the_same_file_comes_back_with_a_later_version_of_the_same_path(root, spared):
    workspace, first = spared
    write(workspace, "a", NEW)
    assert (inode(root, "a"), (root / "a").read_bytes()) == (first, NEW)
    assert workspace.recovered.completed == ()
    workspace.checkpoint()
    with Workspace(root) as again:
        assert again.query("SELECT count(*) FROM file_op")[0][0] == 3
    assert (root / "a").read_bytes() == NEW


@pytest.mark.parametrize("size", [1, 200, 4000, 4096, 4097, 60_000])
def test_the_new_version_may_be_shorter_or_longer(root, spared, size):
    workspace, first = spared
    write(workspace, "a", b"x" * size)
    assert (root / "a").read_bytes() == b"x" * size
    assert inode(root, "a") == first


def test_a_spare_that_is_much_larger_than_needed_is_left_alone(root):
    with opened(root) as workspace:
        write(workspace, "a", b"L" * 40_000)
        first = inode(root, "a")
        write(workspace, "a", MIDDLE)
        workspace.checkpoint()
        spares_of(workspace).clock.now += AGE_S
        write(workspace, "a", NEW)
        assert inode(root, "a") != first


def test_never_for_another_path(root, spared):
    workspace, first = spared
    for path in ("b", "c", "sub/a"):
        write(workspace, path, NEW)
        assert inode(root, path) != first


def test_not_for_the_same_name_in_another_directory_that_took_the_place_of_the_first(root):
    with opened(root) as workspace:
        first = displace(workspace, root, "d/a")
        (root / "d").rename(root / "was-d")
        (root / "d").mkdir()
        (root / "d/a").write_bytes(b"theirs")
        write(workspace, "d/a", NEW)
        assert inode(root, "d/a") != first


def test_not_where_that_happens_before_the_checkpoint(root):
    with opened(root) as workspace:
        write(workspace, "d/a", OLD)
        write(workspace, "d/a", MIDDLE)
        (root / "d").rename(root / "was-d")
        (root / "d").mkdir()
        (root / "d/a").write_bytes(b"theirs")
        workspace.checkpoint()
        assert stage(root) == []  # freed: it is not known what lies there now


def test_another_process_frees_what_is_not_its_own(root):
    with opened(root) as workspace, opened(root) as other:
        write(workspace, "a", OLD)
        write(workspace, "a", MIDDLE)
        other.checkpoint()
        assert stage(root) == []


def test_not_before_a_checkpoint_and_not_before_its_age(root):
    with opened(root) as workspace:
        write(workspace, "a", OLD)
        first = inode(root, "a")
        write(workspace, "a", MIDDLE)
        spares_of(workspace).clock.now += AGE_S
        write(workspace, "a", b"before the checkpoint")
        assert inode(root, "a") != first
        workspace.checkpoint()
        spares_of(workspace).clock.now += AGE_S - 0.1
        write(workspace, "a", b"too early")
        assert inode(root, "a") != first
        spares_of(workspace).clock.now += 0.2
        write(workspace, "a", NEW)
        assert inode(root, "a") == first


def test_not_where_the_note_for_recovery_could_not_be_written(root, monkeypatch):
    """Recovery would take a half-written spare file for somebody's edit."""
    with opened(root) as workspace:
        write(workspace, "a", OLD)
        first = inode(root, "a")
        write(workspace, "a", MIDDLE)

        def refuse(*_arguments, **_more):
            raise OSError(errno.ENOSPC, "full")

        with monkeypatch.context() as patched:
            patched.setattr(type(workspace._store.layout), "write_note", refuse)
            with pytest.raises(OSError, match="full"):
                workspace.checkpoint()
        spares_of(workspace).clock.now += AGE_S
        write(workspace, "a", NEW)
        assert inode(root, "a") != first


def test_a_reader_that_still_has_the_old_version_open_never_sees_it_change(root):
    with opened(root) as workspace:
        write(workspace, "a", OLD)
        with open(root / "a", "rb") as reader:
            first = inode(root, "a")
            displace_again(workspace, root)
            write(workspace, "a", NEW)
            assert inode(root, "a") != first
            assert reader.read() == OLD


def displace_again(workspace, root):
    workspace.checkpoint()
    write(workspace, "a", MIDDLE)
    workspace.checkpoint()
    spares_of(workspace).clock.now += AGE_S


def test_nor_one_that_has_it_mapped(root):
    with opened(root) as workspace:
        write(workspace, "a", OLD)
        fd = os.open(root / "a", os.O_RDONLY)
        mapped = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
        os.close(fd)
        displace_again(workspace, root)
        write(workspace, "a", NEW)
        assert mapped[:] == OLD
        mapped.close()


def test_nor_what_lies_in_a_pipe(root):
    with opened(root) as workspace:
        write(workspace, "a", OLD)
        workspace.checkpoint()
        first = inode(root, "a")
        read_end, write_end = os.pipe()
        fd = os.open(root / "a", os.O_RDONLY)
        os.splice(fd, write_end, len(OLD))
        os.close(fd)
        displace_again(workspace, root)
        write(workspace, "a", NEW)
        assert inode(root, "a") == first
        assert os.read(read_end, 10_000) == OLD
        os.close(read_end)
        os.close(write_end)


def test_nor_a_hard_link(root):
    with opened(root) as workspace:
        write(workspace, "a", OLD)
        os.link(root / "a", root / "copy")
        displace_again(workspace, root)
        write(workspace, "a", NEW)
        assert (root / "copy").read_bytes() == OLD


def test_nor_a_hard_link_that_is_made_later(root, spared):
    workspace, _ = spared
    (name,) = stage(root)
    os.link(root / ".surefoot/stage" / name, root / "copy")
    write(workspace, "a", NEW)
    assert (root / "copy").read_bytes() == OLD


@pytest.mark.skipif(os.geteuid() != 0, reason="not run, because mounting needs root")
def test_a_bind_mount_of_the_old_version_shows_a_later_one_of_the_same_path_at_most(root, tmp_path):
    with opened(root) as workspace:
        write(workspace, "a", OLD)
        alias = tmp_path / "alias"
        alias.touch()
        if subprocess.run(["mount", "--bind", root / "a", alias], check=False).returncode:
            not_run("this machine does not mount")
        try:
            displace_again(workspace, root)
            for path in ("b", "c"):
                write(workspace, path, b"another file's content")
            assert alias.read_bytes() == OLD
            write(workspace, "a", NEW)
            assert alias.read_bytes() in (OLD, NEW)
        finally:
            subprocess.run(["umount", alias], check=True)


def test_bytes_that_a_late_writer_finished_are_kept(root):
    with opened(root) as workspace:
        write(workspace, "a", OLD)
        with open(root / "a", "r+b") as late:
            displace_again(workspace, root)
            late.write(b"LATE")
        write(workspace, "a", NEW)
        assert (root / "a").read_bytes() == NEW
        workspace.checkpoint()
        assert kept(root) == [b"LATE" + OLD[4:]]
        assert [edit.path for edit in workspace.upkeep.conflicts()] == ["a"]


def test_and_of_one_that_writes_through_memory_and_leaves_no_stamp(root):
    with opened(root) as workspace:
        write(workspace, "a", OLD)
        workspace.checkpoint()
        with open(root / "a", "r+b") as late:
            memory = mmap.mmap(late.fileno(), 0)
        memory[:4] = b"SEEN"  # makes the page dirty: later stores do not pass through the kernel
        write(workspace, "a", MIDDLE)
        workspace.checkpoint()
        before = os.stat(root / ".surefoot/stage" / stage(root)[0])
        memory[:4] = b"LATE"
        assert os.stat(root / ".surefoot/stage" / stage(root)[0]).st_mtime_ns == before.st_mtime_ns
        memory.close()
        write(workspace, "a", NEW)
        workspace.checkpoint()
    assert kept(root) == [b"LATE" + OLD[4:]]


def test_and_of_one_that_goes_on_until_the_end(root):
    with opened(root) as workspace:
        write(workspace, "a", OLD)
        with open(root / "a", "r+b") as late:
            displace_again(workspace, root)
            late.write(b"LATE")
    assert kept(root) == [b"LATE" + OLD[4:]]


@pytest.mark.parametrize("how", ["mode", "attribute"])
def test_not_where_the_new_file_has_to_look_different(root, how):
    with opened(root) as workspace:
        write(workspace, "a", OLD)
        first = inode(root, "a")
        if how == "attribute":
            os.setxattr(root / "a", "user.note", b"mine")
        workspace.checkpoint()
        write(workspace, "a", MIDDLE)
        if how == "attribute":
            os.removexattr(root / "a", "user.note")
        workspace.checkpoint()
        spares_of(workspace).clock.now += AGE_S
        write(workspace, "a", NEW, mode=0o600 if how == "mode" else None)
        assert inode(root, "a") != first
        found = (root / "a").stat()
        assert found.st_mode & 0o777 == (0o600 if how == "mode" else 0o644)
        assert os.listxattr(root / "a") == []


def test_attributes_that_are_wanted_anyway_are_no_obstacle(root):
    with opened(root) as workspace:
        write(workspace, "a", OLD)
        os.setxattr(root / "a", "user.note", b"mine")
        first = inode(root, "a")
        displace_again(workspace, root)
        write(workspace, "a", NEW)
        assert inode(root, "a") == first
        assert os.getxattr(root / "a", "user.note") == b"mine"


def test_somebody_who_opens_it_at_that_moment_waits_and_the_process_lives(root):
    """Without a signal of its own the kernel would end the holder of the lease (SIGIO)."""

    class Opener(FsOps):
        waiting = None

        def forget_pages(self, fd, size):
            super().forget_pages(fd, size)
            (name,) = stage(root)
            with pytest.raises(BlockingIOError):
                os.open(root / ".surefoot/stage" / name, os.O_RDONLY | os.O_NONBLOCK)
            self.waiting = name

    fs = Opener()
    with opened(root, fs=fs) as workspace:
        first = displace(workspace, root)
        write(workspace, "a", NEW)
        assert fs.waiting
        assert inode(root, "a") != first
        assert (root / "a").read_bytes() == NEW


def test_a_signal_of_its_own_is_asked_for(root):
    """The same in a process without any handlers: SIGIO's default action would be its end."""
    code = f"""
import os, sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from surefoot_storage.fsops import FsOps
fd = os.open({str(root / "file")!r}, os.O_CREAT | os.O_RDWR)
assert FsOps().take_lease(fd)
try:
    os.open({str(root / "file")!r}, os.O_RDONLY | os.O_NONBLOCK)
except BlockingIOError:
    print("alive", FsOps().end_lease(fd))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != -signal.SIGIO
    assert done.stdout.strip() == "alive False", done.stderr


@pytest.mark.parametrize("call", ["open_again", "take_lease", "forget_pages", "rename_new"])
def test_an_error_anywhere_means_a_new_file(root, call):
    class Failing(FsOps):
        armed = False

        def fail(self, *_arguments):
            if self.armed:
                type(self).armed = False
                raise OSError(errno.EIO, "no")
            return getattr(super(), call)(*_arguments)

    setattr(Failing, call, Failing.fail)
    fs = Failing()
    with opened(root, fs=fs) as workspace:
        first = displace(workspace, root)
        Failing.armed = True
        write(workspace, "a", NEW)
        assert not Failing.armed
        assert (inode(root, "a") != first, (root / "a").read_bytes()) == (True, NEW)
        workspace.checkpoint()
        assert kept(root) == []
    assert stage(root) == []


def test_where_pages_cannot_be_detached_nothing_more_is_tried(root):
    class Old(FsOps):
        tried = 0

        def forget_pages(self, fd, size):
            self.tried += 1
            raise OSError(errno.EOPNOTSUPP, "no")

    fs = Old()
    with opened(root, fs=fs) as workspace:
        for _ in range(3):
            displace(workspace, root)
        assert fs.tried == 1


def test_off_unless_freeing_is_slow(root, monkeypatch):
    monkeypatch.setattr("surefoot_storage.spares.SLOW_FREE_S", 50e-6)
    clock = Clock()
    fs = SlowFrees(clock, 10e-6)
    with opened(root, fs=fs, choice="auto", clock=clock) as workspace:
        for n in range(20):
            write(workspace, "a", b"%d" % n * 50)
        workspace.checkpoint()
        assert stage(root) == []
        fs.seconds = 1e-3
        for turn in range(2):  # noticed by the first checkpoint, used by the second
            for n in range(20):
                write(workspace, "a", b"%d %d" % (turn, n) * 60)
            workspace.checkpoint()
            assert bool(stage(root)) == (turn == 1)
    assert stage(root) == []


@pytest.mark.parametrize("how", ["never", "flush", "memory", "portable"])
def test_off_where_the_policy_or_the_filesystem_says_so(root, how):
    choice = "never" if how == "never" else "always"
    with opened(root, choice=choice, recipe=None if how == "never" else how) as workspace:
        displace(workspace, root)
        assert stage(root) == []


def test_off_without_any_flushes(root):
    with Workspace(root, durability="none", policy=Policy(spare_files="always")) as workspace:
        spares_of(workspace).clock = Clock()
        displace(workspace, root)
        assert stage(root) == []


def test_there_are_never_more_than_that(root, monkeypatch):
    monkeypatch.setattr("surefoot_storage.spares.COUNT_MAX", COUNT_MAX_OF_A_PATH + 10)
    with opened(root) as workspace:
        for n in range(COUNT_MAX_OF_A_PATH + 5):
            write(workspace, "a", b"%d" % n * 50)
        workspace.checkpoint()
        assert len(stage(root)) == COUNT_MAX_OF_A_PATH
        spares_of(workspace).clock.now += 1
        for n in range(30):
            write(workspace, "b", b"%d" % n * 50)
        workspace.checkpoint()
        assert len(stage(root)) == COUNT_MAX_OF_A_PATH + 10  # the oldest, of `a`, went
        assert {stat_of(root, name) for name in stage(root)} == {50, 100}
    assert stage(root) == []


def stat_of(root, name):
    return (root / ".surefoot/stage" / name).stat().st_size


def test_a_spare_file_has_a_name_that_says_so(root):
    """Recovery removes those unseen; what it finds under another name could be an edit."""
    with opened(root) as workspace:
        write(workspace, "a", OLD)
        write(workspace, "a", MIDDLE)
        (displaced,) = stage(root)
        workspace.checkpoint()
        assert stage(root) == [f"{displaced}.spare"]


def test_many_threads_share_them(root):
    with opened(root) as workspace:
        for n in range(8):
            displace(workspace, root, f"{n}/a")
        errors = []

        def work(n):
            try:
                for turn in range(30):
                    write(workspace, f"{n}/a", b"%d %d;" % (n, turn) * 20)
                    if turn % 10 == 9:
                        workspace.checkpoint()
                        spares_of(workspace).clock.now += AGE_S
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert [(root / f"{n}/a").read_bytes() for n in range(8)] == [b"%d 29;" % n * 20 for n in range(8)]
    assert kept(root) == []


def test_forgetting_a_path_removes_what_its_spare_files_hold(root, spared):
    workspace, _ = spared
    with opened(root) as other:
        other.upkeep.forget("a")
    assert stage(root) == []
    write(workspace, "a", NEW)
    assert (root / "a").read_bytes() == NEW


def test_what_a_killed_process_had_half_written_is_nobodys_edit(root, monkeypatch):
    code = f"""
import os, sys
sys.path[:0] = {sys.path!r}
from surefoot_storage import Policy, Workspace
workspace = Workspace({str(root)!r}, idle_s=3600, policy=Policy(spare_files="always"))
for data in (b"one" * 50, b"two" * 50):
    tx = workspace.begin()
    tx.write_bytes("a", data)
    workspace.commit(tx)
    workspace.checkpoint()
for name in os.listdir({str(root / ".surefoot/stage")!r}):
    with open({str(root / ".surefoot/stage")!r} + "/" + name, "r+b") as file:
        file.write(b"half a new ver")
    print(name)
os._exit(9)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if not done.stdout.strip():
        not_run("the temporary directory is not on ext4 or xfs")
    monkeypatch.setattr(processes, "boot_id", lambda: "another boot")
    with Workspace(root) as workspace:
        assert workspace.upkeep.conflicts() == []
        assert (root / "a").read_bytes() == b"two" * 50
    assert (stage(root), kept(root)) == ([], [])


def test_what_another_process_still_watched_when_it_died_is_looked_at_by_recovery(root):
    """The other's checkpoint had met the late writer; ours, later, has nothing to do with that version."""
    code = f"""
import os, sys
sys.path[:0] = {sys.path!r}
from surefoot_storage import Policy, Workspace
def write(workspace, path, data):
    tx = workspace.begin()
    tx.write_bytes(path, data)
    workspace.commit(tx)
mine, other = (Workspace({str(root)!r}, idle_s=3600, policy=Policy(spare_files="always")) for _ in range(2))
write(mine, "a", b"old" * 50)
late = open({str(root / "a")!r}, "r+b")
write(mine, "a", b"new" * 50)
other.checkpoint()
for data in (b"one", b"two"):
    write(mine, "b", data)
mine.checkpoint()
late.write(b"LATE")
late.flush()
os._exit(9)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    with Workspace(root):
        pass
    assert [data[:7] for data in kept(root)] == [b"LATEldo"]


@pytest.mark.parametrize("how", ["held", "failed"])
def test_what_could_not_be_looked_at_is_looked_at_by_recovery(root, how):
    """A displaced version that resisted its freeing is not covered by the note of a later checkpoint."""
    code = f"""
import os, sys
sys.path[:0] = {sys.path!r}
from surefoot_storage import FsOps, Policy, Workspace
class Failing(FsOps):
    armed = True
    def unlink(self, directory, name):
        if self.armed and name.split(".")[1:2] == ["0"]:
            raise OSError(5, "no")
        super().unlink(directory, name)
fs = Failing()
workspace = Workspace({str(root)!r}, idle_s=3600, fs=fs, policy=Policy(spare_files="always"))
def write(path, data):
    tx = workspace.begin()
    tx.write_bytes(path, data)
    workspace.commit(tx)
write("big", b"old" * 30_000)
late = open({str(root / "big")!r}, "r+b") if {how!r} == "held" else None
write("big", b"new" * 30_000)
try:
    workspace.checkpoint()
except OSError as error:
    print(error)
fs.armed = False
stage = {str(root / ".surefoot/stage")!r}
late = late or open(os.path.join(stage, os.listdir(stage)[0]), "r+b")
late.write(b"LATE")
late.close() if {how!r} != "held" else late.flush()
write("a", b"one")
write("a", b"two")
workspace.checkpoint()
os._exit(9)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert how == "held" or "no" in done.stdout, done.stderr
    with Workspace(root):
        pass
    assert [data[:7] for data in kept(root)] == [b"LATEldo"]


def test_on_xfs(xfs_folder):
    root = xfs_folder / "spares"
    root.mkdir()
    with opened(root) as workspace:
        first = displace(workspace, root)
        write(workspace, "a", NEW)
        assert (inode(root, "a"), (root / "a").read_bytes()) == (first, NEW)
