"""Mount points inside the workspace, single mounted files, overlayfs, and what is refused."""

from __future__ import annotations

import errno
import os
import subprocess
from contextlib import ExitStack

import pytest
from faulty import Hooked, Once
from machines import not_run

from surefoot_storage import PathRefused, Policy, Workspace, WorkspaceUnusable, processes
from surefoot_storage.fsops import FsOps

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="not run, because mounting needs root")


def write(workspace, contents):
    tx = workspace.begin()
    for path, data in contents.items():
        tx.write_bytes(path, data)
    return workspace.commit(tx)


def mount(stack, *arguments, target):
    done = subprocess.run(["mount", *arguments, target], capture_output=True, text=True)
    if done.returncode:
        not_run(f"this machine does not mount that: {done.stderr.strip()}")
    stack.callback(subprocess.run, ["umount", "-l", target], check=False)


@pytest.fixture
def stack():
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def with_tmpfs(root, stack):
    """A workspace with another filesystem in it, two levels down."""
    (root / "data/fast").mkdir(parents=True)
    mount(stack, "-t", "tmpfs", "none", target=root / "data/fast")
    return root


def test_another_filesystem_in_the_workspace_gets_a_stage_of_its_own(with_tmpfs):
    root = with_tmpfs
    (root / "data/fast/a").write_bytes(b"old")
    with Workspace(root, idle_s=3600) as workspace:
        commit = write(
            workspace,
            {"data/fast/a": b"new", "data/fast/sub/b": b"b", "data/c": b"c", "data/fast/big": b"B" * 400_000},
        )
        assert commit.applied
        assert (root / "data/fast/a").read_bytes() == b"new"
        assert (root / "data/fast/sub/b").read_bytes() == b"b"
        assert sorted(os.listdir(root / "data/fast/.surefoot-stage")) == [".gitignore", "keep", "stage"]
        tx = workspace.begin()
        assert tx.list_dir("data/fast") == ["a", "big", "sub"]
        tx.rmtree("data/fast/sub")
        tx.delete("data/fast/a")
        workspace.commit(tx)
        workspace.checkpoint()
        assert os.listdir(root / "data/fast/.surefoot-stage/stage") == []
        assert os.listdir(root / "data/fast/.surefoot-stage/keep") == []
        assert workspace.query("SELECT path FROM mount") == [(b"data/fast",)]


def test_a_mount_point_itself_is_not_removed_or_replaced(with_tmpfs):
    with Workspace(with_tmpfs) as workspace:
        for act in (lambda tx: tx.rmtree("data"), lambda tx: tx.rmdir("data/fast")):
            tx = workspace.begin()
            act(tx)
            with pytest.raises(PathRefused, match="mount point"):
                workspace.commit(tx)


def test_a_commit_over_two_filesystems_is_recovered_on_both(with_tmpfs):
    root = with_tmpfs
    code = (
        "import os, sys; from surefoot_storage import Workspace\n"
        "w = Workspace(sys.argv[1], idle_s=3600); t = w.begin()\n"
        "t.write_bytes('data/fast/a', b'new'); t.write_bytes('here', b'new'); w.commit(t); os._exit(9)"
    )
    subprocess.run([os.sys.executable, "-c", code, root], check=False)
    for path in ("data/fast/a", "here"):
        (root / path).unlink()
    (root / ".surefoot/applied").unlink()
    real = processes.boot_id
    processes.boot_id = lambda: "another boot"
    try:
        with Workspace(root) as workspace:
            assert set(workspace.recovered.completed) == {"data/fast/a", "here"}
    finally:
        processes.boot_id = real
    assert (root / "data/fast/a").read_bytes() == b"new"


def test_what_is_unplugged_stays_pending_until_it_is_back(root, tmp_path, stack):
    (root / "m").mkdir()
    (tmp_path / "other").mkdir()
    mount(stack, "--bind", tmp_path / "other", target=root / "m")
    code = (
        "import os, sys; from surefoot_storage import Workspace\n"
        "w = Workspace(sys.argv[1], idle_s=3600); t = w.begin()\n"
        "t.write_bytes('m/a', b'new'); w.commit(t); os._exit(9)"
    )
    subprocess.run([os.sys.executable, "-c", code, root], check=False)
    (tmp_path / "other/a").unlink()
    (root / ".surefoot/applied").unlink()
    subprocess.run(["umount", root / "m"], check=True)
    root.joinpath("m").rmdir()
    with Workspace(root) as workspace:
        assert [path for path, _ in workspace.unapplied] == ["m/a"]
        (root / "m").mkdir()
        subprocess.run(["mount", "--bind", tmp_path / "other", root / "m"], check=True)
        (root / "m/a").write_bytes(b"")  # as it was before
        (root / "m/a").unlink()


def test_a_single_mounted_file_is_refused_or_written_in_place(root, tmp_path, stack):
    (root / "config.json").write_bytes(b"")
    (tmp_path / "outside").write_bytes(b"old and longer")
    mount(stack, "--bind", tmp_path / "outside", target=root / "config.json")
    with Workspace(root) as workspace:
        with pytest.raises(PathRefused, match="a mount point") as caught:
            write(workspace, {"config.json": b"new"})
        assert "in_place" in caught.value.hint
    with Workspace(root, policy=Policy(mounted_files="in_place"), idle_s=3600) as workspace:
        assert write(workspace, {"config.json": b"new", "other": b"x"}).applied
        assert (tmp_path / "outside").read_bytes() == b"new"
        workspace.checkpoint()
        assert os.listdir(root / ".surefoot/stage") == []


class Unhurried(Hooked):
    """Notes its pauses instead of making them."""

    def __init__(self):
        super().__init__()
        self.pauses = []

    def pause(self, seconds):
        self.pauses.append(seconds)


def test_a_rename_that_something_is_in_the_way_of_is_tried_again(root, tmp_path):
    """A mount that appears after the check, and goes."""
    (root / "a").write_bytes(b"old")
    (tmp_path / "outside").write_bytes(b"outside")
    fs, told = Unhurried(), []
    with Workspace(root, fs=fs, idle_s=3600, observer=lambda *event: told.append(event)) as workspace:
        umount = Once("pause", lambda: subprocess.run(["umount", root / "a"], check=True), nth=2)
        mount = Once(
            "exchange",
            lambda: subprocess.run(["mount", "--bind", tmp_path / "outside", root / "a"], check=True),
        )
        fs.hook = lambda name, arguments: (mount(name, arguments), umount(name, arguments))
        assert write(workspace, {"a": b"new"}).applied
    assert (fs.pauses, (root / "a").read_bytes()) == ([0.05, 0.1], b"new")
    facts = {"name": "a", "error": "EBUSY", "attempt": 2, "retry_in_s": 0.1}
    assert told[1] == ("rename_retried", facts)


def test_and_in_the_end_it_says_how_often_it_was_tried_and_what_to_do(root, stack):
    (root / "mounted").mkdir()
    (root / "new").mkdir()
    mount(stack, "-t", "tmpfs", "none", target=root / "mounted")
    fs = Unhurried()
    folder = os.open(root, os.O_RDONLY)
    stack.callback(os.close, folder)
    with pytest.raises(OSError, match="in each of 5 attempts: something is mounted there or") as caught:
        fs.rename_over(folder, "new", folder, "mounted")
    assert (caught.value.errno, fs.pauses) == (errno.EBUSY, [0.05, 0.1, 0.2, 0.4])
    assert (root / "new").is_dir()


def test_a_rename_across_filesystems_names_both_devices_and_is_not_tried_again(with_tmpfs, stack):
    fs, folders = Unhurried(), [with_tmpfs, with_tmpfs / "data/fast"]
    (with_tmpfs / "a").write_bytes(b"a")
    here, there = (os.open(folder, os.O_RDONLY) for folder in folders)
    stack.callback(os.close, here)
    stack.callback(os.close, there)
    devices = "from device {} to device {}".format(*(os.stat(folder).st_dev for folder in folders))
    with pytest.raises(OSError, match=devices) as caught:
        fs.rename_new(here, "a", there, "a")
    assert (caught.value.errno, fs.pauses) == (errno.EXDEV, [])


@pytest.mark.parametrize(
    "shown", [b"ne", b"newer version, an", b"newer version, and longe\0\0", b"newer vers of it"]
)
def test_a_file_that_was_half_written_in_place_is_mended(root, shown):
    (root / "a").write_bytes(b"older vers of it")
    os.link(root / "a", root / "b")
    policy = Policy(hard_links="in_place")
    code = (
        "import os, sys; from surefoot_storage import Workspace, Policy\n"
        "w = Workspace(sys.argv[1], policy=Policy(hard_links='in_place'), idle_s=3600); t = w.begin()\n"
        "t.write_bytes('a', b'newer version, and longer'); w.commit(t); os._exit(9)"
    )
    subprocess.run([os.sys.executable, "-c", code, root], check=False)
    (root / "a").write_bytes(shown)
    (root / ".surefoot/applied").unlink()
    with Workspace(root, policy=policy) as workspace:
        assert workspace.recovered.completed == ("a",)
    assert (root / "b").read_bytes() == b"newer version, and longer"


def test_overlayfs_with_files_and_trees_from_the_lower_layer(tmp_path, stack):
    lower, upper, work, merged = (tmp_path / name for name in ("lower", "upper", "work", "merged"))
    for folder in (lower, upper, work, merged):
        folder.mkdir()
    for path, data in {"a": b"a", "d/x": b"x", "d/e/y": b"y", "s/k": b"k", "s/c": b"c"}.items():
        (lower / path).parent.mkdir(parents=True, exist_ok=True)
        (lower / path).write_bytes(data)
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    mount(stack, "-t", "overlay", "overlay", "-o", options, target=merged)
    with Workspace(merged, idle_s=3600) as workspace:
        assert (workspace.recipe.name, workspace.recipe.filesystem) == ("flush", "overlayfs")
        commit = write(workspace, {"a": b"A", "n/m": b"m"})
        assert (commit.applied, commit.foreign) == (True, ())
        tx = workspace.begin()
        tx.rmtree("d")  # its directories cannot be renamed: they belong to the lower layer
        tx.swap("s")
        tx.write_bytes("s/c", b"C")
        commit = workspace.commit(tx)
        assert (commit.applied, commit.foreign) == (True, ())
        assert not (merged / "d").exists()
        assert ((merged / "s/c").read_bytes(), (merged / "s/k").read_bytes()) == (b"C", b"k")
        workspace.checkpoint()
        assert os.listdir(merged / ".surefoot/stage") == []
        assert os.listdir(merged / ".surefoot/conflicts") == []
    with Workspace(merged) as workspace:
        assert workspace.recovered.foreign == ()


def test_a_network_filesystem_below_the_workspace_is_refused_for_writing(with_tmpfs):
    class Nfs(FsOps):
        def filesystem(self, fd):
            found = super().filesystem(fd)
            return (0x6969, "00") if found[0] == 0x01021994 else found

    with Workspace(with_tmpfs, fs=Nfs()) as workspace:
        with pytest.raises((PathRefused, WorkspaceUnusable), match="NFS"):
            write(workspace, {"data/fast/a": b"x"})
        assert write(workspace, {"b": b"x"}).applied


def test_btrfs_by_its_own_recipe(btrfs_folder):
    btrfs = btrfs_folder
    (btrfs / "w").mkdir()
    with Workspace(btrfs / "w", idle_s=3600) as workspace:
        assert (workspace.recipe.name, workspace.recipe.filesystem) == ("flush", "btrfs")
        assert write(workspace, {"a": b"1", "d/b": b"2" * 400_000}).applied
        assert write(workspace, {"a": b"3", "d/b": b"4" * 400_000}).applied
        workspace.checkpoint()
        assert os.listdir(btrfs / "w/.surefoot/stage") == []
