"""Whole directories, changes of kind, names, metadata: what a commit does, and what it refuses before it."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import threading

import pytest
from faulty import Hooked, Once

from surefoot_storage import (
    Conflict,
    IncompatibleOperations,
    PathRefused,
    Policy,
    UnreadableFile,
    Workspace,
)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="not run, because it needs root")


def tree(folder):
    """Paths below a folder: content of files, None for directories."""
    return {
        str(p.relative_to(folder)): None if p.is_dir() else p.read_bytes()
        for p in folder.rglob("*")
        if ".surefoot" not in p.parts and ".surefoot-stage" not in p.parts
    }


def fill(folder, files):
    for path, data in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


def empty(root):
    return os.listdir(root / ".surefoot/stage") == [] and os.listdir(root / ".surefoot/conflicts") == []


RECIPES = ["journal", "flush", "memory", "portable"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_new_directory_is_published_by_one_rename(root, recipe):
    fs = Hooked()
    shown = []
    with Workspace(root, fs=fs, recipe=recipe, idle_s=3600) as workspace:
        tx = workspace.begin()
        for n in range(20):
            tx.write_bytes(f"new/{n % 3}/{n}.txt", b"%d" % n)
        tx.mkdir("new/hollow", mode=0o750)
        names = []
        fs.hook = lambda name, args: (
            names.append((name, args[-1]))
            if name in ("exchange", "rename_new", "rename_over", "mkdir")
            else None,
            shown.append(sorted(os.listdir(root / "new"))) if (root / "new").exists() else None,
        )
        assert workspace.commit(tx).applied
        fs.hook = lambda _n, _a: None
        assert [name for name, where in names if where == "new"] in (["rename_new"], ["rename_over"])
        assert len(tree(root)) == 25
        assert stat.S_IMODE((root / "new/hollow").stat().st_mode) == 0o750
        assert all(names == ["0", "1", "2", "hollow"] for names in shown)
        workspace.checkpoint()
        assert empty(root)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_tree_is_deleted_by_one_rename_and_kept_as_old_versions(root, recipe):
    fill(root, {"d/a": b"a", "d/e/b": b"b" * 300_000, "d/e/f/c": b"", "stays": b"s"})
    fs = Hooked()
    with Workspace(root, fs=fs, recipe=recipe, idle_s=3600) as workspace:
        tx = workspace.begin()
        tx.rmtree("d")
        assert not tx.exists("d/e/b")
        assert tx.list_dir() == ["stays"]
        moved = []
        fs.hook = lambda name, args: moved.append(args[1]) if name.startswith("rename") else None
        workspace.commit(tx)
        fs.hook = lambda _n, _a: None
        assert [name for name in moved if not name.endswith(".new")] == ["d"]
        assert tree(root) == {"stays": b"s"}
        (digest,) = workspace.query("SELECT old_digest FROM file_op WHERE path = ?", (b"d/e/b",))[0]
        assert workspace.read_blob(digest) == b"b" * 300_000
        workspace.checkpoint()
        assert empty(root)


def test_a_directory_is_swapped_in_one_exchange_and_nobody_sees_a_mix(root):
    fill(root, {"site/index": b"1", "site/about": b"1", "site/blog/post": b"1", "site/style": b"same"})
    style = (root / "site/style").stat().st_ino
    with Workspace(root, recipe="journal", idle_s=3600) as workspace:
        stop, mixes, reads = threading.Event(), [], 0

        def reader():
            nonlocal reads
            while not stop.is_set():
                fd = os.open(root / "site", os.O_RDONLY)
                try:
                    seen = set()
                    for path in ("index", "about", "blog/post"):
                        file = os.open(path, os.O_RDONLY, dir_fd=fd)
                        seen.add(os.read(file, 99))
                        os.close(file)
                    if len(seen) > 1:
                        mixes.append(seen)
                    reads += 1
                finally:
                    os.close(fd)

        thread = threading.Thread(target=reader)
        thread.start()
        for n in range(2, 60):
            tx = workspace.begin()
            tx.swap("site")
            for path in ("index", "about", "blog/post"):
                tx.write_bytes(f"site/{path}", b"%d" % n)
            workspace.commit(tx)
        stop.set()
        thread.join()
        assert mixes == []
        assert reads > 10
        assert (root / "site/style").stat().st_ino == style  # what does not change is the same file
        workspace.checkpoint()
        assert (root / "site/style").stat().st_nlink == 1
        assert empty(root)


def test_a_swap_takes_additions_removals_modes_and_keeps_everything_else(root):
    fill(root, {"s/a": b"a", "s/b": b"b", "s/k/x": b"x", "s/k/y": b"y", "s/gone/z": b"z"})
    (root / "s/k").chmod(0o711)
    (root / "s/k/y").chmod(0o640)
    os.utime(root / "s/k/y", ns=(1, 1))
    with Workspace(root, recipe="journal") as workspace:
        tx = workspace.begin()
        tx.swap("s")
        tx.write_bytes("s/a", b"A")
        tx.delete("s/b")
        tx.chmod("s/k/x", 0o600)
        tx.rmtree("s/gone")
        tx.write_bytes("s/new/n", b"n")
        workspace.commit(tx)
        assert tree(root / "s") == {
            "a": b"A",
            "k": None,
            "k/x": b"x",
            "k/y": b"y",
            "new": None,
            "new/n": b"n",
        }
        assert stat.S_IMODE((root / "s/k").stat().st_mode) == 0o711
        assert stat.S_IMODE((root / "s/k/x").stat().st_mode) == 0o600
        assert (root / "s/k/y").stat().st_mtime_ns == 1


@pytest.mark.parametrize("what", ["new file", "edit", "deletion"])
def test_a_change_in_a_directory_that_is_to_be_swapped_is_a_conflict(root, what):
    fill(root, {"s/a": b"a", "s/b": b"b"})
    with Workspace(root, recipe="journal") as workspace:
        tx = workspace.begin()
        tx.swap("s")
        tx.write_bytes("s/a", b"A")
        tx.seal()
        staged = workspace._committer.stage(tx)
        with pytest.raises(Conflict):
            {"new file": lambda: (root / "s/n").write_bytes(b"n"), "edit": lambda: (root / "s/b").write_bytes(b"B"),
             "deletion": lambda: (root / "s/b").unlink()}[what]()  # fmt: skip
            from surefoot_storage.queueing import Request

            request = Request((), tx=tx, staged=staged)
            workspace._queue.submit_all([request])
            workspace._committer.drop(staged)
            raise request.error
        assert (root / "s/a").read_bytes() == b"a"
        assert empty(root)


def test_without_exchange_a_swap_is_refused(root):
    fill(root, {"s/a": b"a"})
    with Workspace(root, recipe="portable") as workspace:
        tx = workspace.begin()
        tx.swap("s")
        tx.write_bytes("s/a", b"A")
        with pytest.raises(PathRefused, match="exchange two names"):
            workspace.commit(tx)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_file_becomes_a_directory_and_a_directory_a_file(root, recipe):
    fill(root, {"f": b"file", "d/x": b"x", "d/y/z": b"z"})
    with Workspace(root, recipe=recipe, idle_s=3600) as workspace:
        tx = workspace.begin()
        tx.delete("f")
        tx.write_bytes("f/inner/deep", b"deep")
        tx.rmtree("d")
        tx.write_bytes("d", b"a file")
        assert tx.list_dir("f") == ["inner"]
        assert not tx.is_dir("d")
        workspace.commit(tx)
        assert tree(root) == {"f": None, "f/inner": None, "f/inner/deep": b"deep", "d": b"a file"}
        tx = workspace.begin()
        tx.rmtree("f")
        tx.write_bytes("f", b"back")
        tx.delete("d")
        tx.mkdir("d")
        workspace.commit(tx)
        assert tree(root) == {"f": b"back", "d": None}
        workspace.checkpoint()
        assert empty(root)


def test_replacing_what_was_not_deleted_first_is_refused(root):
    fill(root, {"f": b"file", "d/x": b"x"})
    with Workspace(root) as workspace:
        for act in (lambda tx: tx.write_bytes("f/below", b""), lambda tx: tx.write_bytes("d", b"")):
            tx = workspace.begin()
            act(tx)
            with pytest.raises((IncompatibleOperations, PathRefused)):
                workspace.commit(tx)
        assert tree(root) == {"f": b"file", "d": None, "d/x": b"x"}


def test_a_tree_that_holds_a_link_is_not_removed(root):
    fill(root, {"d/x": b"x"})
    (root / "d/link").symlink_to("x")
    with Workspace(root) as workspace, pytest.raises(PathRefused, match="symlink"):
        workspace.begin().rmtree("d")
    with Workspace(root) as workspace, pytest.raises(UnreadableFile):
        workspace.begin().rmtree("nothing")


def test_renames_of_files_and_trees_take_everything_along(root):
    fill(root, {"old/a": b"a", "old/b/c": b"c" * 2_000_000, "f": b"f"})
    (root / "old/a").chmod(0o640)
    os.setxattr(root / "old/a", "user.note", b"keep me")
    with Workspace(root, idle_s=3600) as workspace:
        tx = workspace.begin()
        tx.rename("old", "new")
        tx.rename("f", "F")  # a change of case only
        assert tx.read_bytes("new/a") == b"a"
        workspace.commit(tx)
        assert tree(root) == {
            "new": None,
            "new/a": b"a",
            "new/b": None,
            "new/b/c": b"c" * 2_000_000,
            "F": b"f",
        }
        assert stat.S_IMODE((root / "new/a").stat().st_mode) == 0o640
        assert os.getxattr(root / "new/a", "user.note") == b"keep me"
        tx = workspace.begin()
        with pytest.raises(IncompatibleOperations, match="a name that is free"):
            tx.rename("F", "new")


@pytest.fixture
def casefold(tmp_path):
    """A directory on which A and a are one name."""
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("not run, because making a case-insensitive disk needs root and mkfs.ext4")
    image, mount = tmp_path / "image", tmp_path / "mount"
    mount.mkdir()
    subprocess.run(["truncate", "-s", "64M", image], check=True)
    made = subprocess.run(["mkfs.ext4", "-q", "-O", "casefold", image], capture_output=True)
    if (
        made.returncode
        or subprocess.run(["mount", "-o", "loop", image, mount], capture_output=True).returncode
    ):
        pytest.skip("not run, because this kernel does not mount case-insensitive ext4")
    try:
        (mount / "w").mkdir()
        if subprocess.run(["chattr", "+F", mount / "w"], capture_output=True).returncode:
            pytest.skip("not run, because chattr +F is not possible here")
        yield mount / "w"
    finally:
        subprocess.run(["umount", "-l", mount], check=False)


def test_a_change_of_case_where_both_names_are_one(casefold):
    fill(casefold, {"Readme.md": b"r", "Docs/a": b"a"})
    with Workspace(casefold, idle_s=3600) as workspace:
        tx = workspace.begin()
        tx.rename("Readme.md", "README.md")
        workspace.commit(tx)
        assert sorted(os.listdir(casefold)) == [".surefoot", "Docs", "README.md"]
        assert (casefold / "README.md").read_bytes() == b"r"
    (casefold / ".surefoot/applied").unlink()
    with Workspace(casefold) as workspace:
        assert workspace.recovered.foreign == ()


# --- metadata ---


@needs_root
def test_owner_mode_and_attributes_are_carried_on_or_dropped(root):
    (root / "a").write_bytes(b"old")
    os.chown(root / "a", 1234, 1235)
    (root / "a").chmod(0o640)
    os.setxattr(root / "a", "user.x", b"1")
    with Workspace(root) as workspace:
        tx = workspace.begin()
        tx.write_bytes("a", b"new")
        workspace.commit(tx)
    found = (root / "a").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1234, 1235, 0o640)
    assert os.getxattr(root / "a", "user.x") == b"1"
    with Workspace(root, policy=Policy(metadata="drop")) as workspace:
        tx = workspace.begin()
        tx.write_bytes("a", b"newer")
        workspace.commit(tx)
    found = (root / "a").stat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (0, 0o640)
    assert os.listxattr(root / "a") == []


def test_a_default_acl_is_inherited_by_new_files_and_directories(root):
    entries = "01000700ffffffff 02000600e8030000 04000500ffffffff 10000700ffffffff 20000500ffffffff"
    acl = bytes.fromhex(f"02000000 {entries}")
    (root / "d").mkdir()
    try:
        os.setxattr(root / "d", "system.posix_acl_default", acl)
    except OSError:
        pytest.skip("not run, because this disk has no ACLs")
    expected_file, expected_dir = root / "d/kernel", root / "d/kerneldir"
    expected_file.write_bytes(b"")
    expected_dir.mkdir()
    (expected_dir / "x").write_bytes(b"")
    with Workspace(root) as workspace:
        tx = workspace.begin()
        tx.write_bytes("d/ours", b"x")
        tx.write_bytes("d/oursdir/x", b"x")
        workspace.commit(tx)
    for ours, kernels in (
        ("d/ours", expected_file), ("d/oursdir", expected_dir), ("d/oursdir/x", expected_dir / "x"),
    ):  # fmt: skip
        assert os.getxattr(root / ours, "system.posix_acl_access") == os.getxattr(
            kernels, "system.posix_acl_access"
        )
        assert (root / ours).stat().st_mode == kernels.stat().st_mode
    assert os.getxattr(root / "d/oursdir", "system.posix_acl_default") == acl


@pytest.mark.parametrize("policy", ["break", "refuse", "in_place"])
def test_hard_linked_targets_by_policy(root, policy):
    (root / "a").write_bytes(b"old version")
    os.link(root / "a", root / "other")
    with Workspace(root, policy=Policy(hard_links=policy), idle_s=3600) as workspace:
        tx = workspace.begin()
        tx.write_bytes("a", b"new")
        if policy == "refuse":
            with pytest.raises(PathRefused, match="2 hard links"):
                workspace.commit(tx)
            return
        assert workspace.commit(tx).applied
        assert (root / "a").read_bytes() == b"new"
        assert (root / "other").read_bytes() == (b"new" if policy == "in_place" else b"old version")
        assert ((root / "a").stat().st_ino == (root / "other").stat().st_ino) is (policy == "in_place")
        workspace.checkpoint()
        assert empty(root)


@needs_root
@pytest.mark.parametrize("flag", ["i", "a"])
def test_immutable_and_append_only_are_refused_before_the_commit_point(root, flag):
    fill(root, {"d/f": b"x"})
    if subprocess.run(["chattr", f"+{flag}", root / "d/f"], capture_output=True).returncode:
        pytest.skip("not run, because this disk has no such flags")
    try:
        with Workspace(root) as workspace:
            tx = workspace.begin()
            tx.write_bytes("d/f", b"y")
            with pytest.raises(PathRefused, match="immutable or append-only") as caught:
                workspace.commit(tx)
            assert "chattr" in caught.value.hint
            subprocess.run(["chattr", f"-{flag}", root / "d/f"], check=True)
            subprocess.run(["chattr", f"+{flag}", root / "d"], check=True)
            tx = workspace.begin()
            tx.write_bytes("d/g", b"y")
            with pytest.raises(PathRefused, match="immutable or append-only"):
                workspace.commit(tx)
            assert workspace.query("SELECT count(*) FROM txn") == [(0,)]
    finally:
        for path in ("d", "d/f"):
            subprocess.run(["chattr", f"-{flag}", root / path], check=False, capture_output=True)


# --- somebody else is at it ---


def test_a_file_that_appears_in_a_tree_while_it_is_removed_is_kept(root):
    fill(root, {"d/a": b"a"})
    fs = Hooked()
    with Workspace(root, fs=fs, recipe="journal", idle_s=3600) as workspace:
        tx = workspace.begin()
        tx.rmtree("d")
        fs.hook = Once("rename_new", lambda: (root / "d/theirs").write_bytes(b"theirs"), word="d")
        commit = workspace.commit(tx)
        assert commit.foreign == ("d/theirs",)
        kept = os.listdir(root / ".surefoot/conflicts")
        assert [(root / ".surefoot/conflicts" / name).read_bytes() for name in kept] == [b"theirs"]


def test_a_directory_that_somebody_makes_first_is_filled(root):
    fs = Hooked()

    def theirs():
        fill(root, {"new/theirs": b"theirs", "new/both": b"theirs"})

    with Workspace(root, fs=fs, recipe="journal", idle_s=3600) as workspace:
        fs.hook = Once("rename_new", theirs, word="new")
        tx = workspace.begin()
        for path in ("new/ours", "new/deep/ours", "new/both"):
            tx.write_bytes(path, b"ours")
        commit = workspace.commit(tx)
        assert commit.applied
        assert commit.foreign == ("new/both",)
        assert tree(root / "new") == {
            "theirs": b"theirs", "ours": b"ours", "both": b"ours", "deep": None, "deep/ours": b"ours",
        }  # fmt: skip
        workspace.checkpoint()
        assert os.listdir(root / ".surefoot/stage") == []
        assert len(os.listdir(root / ".surefoot/conflicts")) == 1
