"""Opening a workspace: what is refused, by what words, and that nothing is changed by it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import apsw
import pytest
from faulty import Hooked, Once, fails

from surefoot_storage import (
    ReadOnlyWorkspace,
    Schema,
    Workspace,
    WorkspacePoisoned,
    WorkspaceUnusable,
)
from surefoot_storage.fsops import FsOps
from surefoot_storage.sqlite import sqlite_is_safe


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p.relative_to(folder)): (p.lstat().st_size, p.lstat().st_mtime_ns) for p in folder.rglob("*")}


def test_the_control_directory_is_private_and_ignores_itself(root):
    with Workspace(root):
        pass
    control = root / ".surefoot"
    assert control.stat().st_mode & 0o777 == 0o700
    assert (control / ".gitignore").read_text() == "*\n"
    assert json.loads((control / "workspace.json").read_text())["format"] == 2


def test_a_file_a_missing_directory_and_a_strange_control_are_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/.surefoot").write_text("x")
    for path, found in (("file", "a file"), ("missing", "ENOENT"), ("odd", "a file named .surefoot")):
        with pytest.raises(WorkspaceUnusable, match=found) as caught:
            Workspace(tmp_path / path)
        assert str(tmp_path / path) in str(caught.value)
    assert not (tmp_path / "missing").exists()


def test_a_second_process_may_work_and_look_at_the_same_time(root):
    code = "import sys; from surefoot_storage import Workspace; w = Workspace(sys.argv[1]); t = w.begin();"
    code += "t.write_bytes('theirs', b'x'); w.commit(t); w.close()"
    with Workspace(root) as workspace, Workspace(root) as again:
        subprocess.run([sys.executable, "-c", code, root], check=True)
        for number, one in enumerate((workspace, again)):
            tx = one.begin()
            assert tx.read_bytes("theirs") == b"x"
            tx.write_bytes(f"ours{number}", b"y")
            assert one.commit(tx).seq == number + 2
        with ReadOnlyWorkspace(root) as seen:
            assert seen.query("SELECT uuid, (SELECT count(*) FROM txn) FROM workspace") == [
                (workspace.uuid, 3)
            ]
    Workspace(root).close()
    assert os.listdir(root / ".surefoot/workers") == []


def test_the_lock_goes_with_a_killed_process(root):
    code = "import os, sys; from surefoot_storage import Workspace; w = Workspace(sys.argv[1]); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code, root]).returncode == -9
    Workspace(root).close()


def test_looking_changes_nothing_and_needs_a_workspace(root):
    with pytest.raises(WorkspaceUnusable, match=r"no \.surefoot in it"):
        ReadOnlyWorkspace(root)
    assert list(root.iterdir()) == []
    Workspace(root).close()
    before = {k: v for k, v in listing(root).items() if not k.endswith("-shm")}
    with ReadOnlyWorkspace(root) as seen:
        assert seen.query("SELECT count(*) FROM txn") == [(0,)]
    assert {k: v for k, v in listing(root).items() if not k.endswith("-shm")} == before


@pytest.mark.parametrize("how", ["marker", "storage", "another layer"])
def test_a_newer_version_is_refused_and_left_untouched(root, how):
    layer = Schema("layer", ("CREATE TABLE layer (x)",))
    Workspace(root, schemas=[layer]).close()
    if how == "marker":
        (root / ".surefoot/workspace.json").write_text('{"format": 99}')
    else:
        db = apsw.Connection(str(root / ".surefoot/surefoot.db"))
        component = "storage" if how == "storage" else "layer"
        db.execute("UPDATE component SET version = 99 WHERE name = ?", (component,))
        db.close()
    before = listing(root)
    for opener in (Workspace, ReadOnlyWorkspace):
        with pytest.raises(WorkspaceUnusable, match="newer version") as caught:
            opener(root, schemas=[layer])
        assert "upgrade" in caught.value.hint
    changed = {k for k, v in listing(root).items() if before.get(k) != v}
    assert {
        k for k in changed if not k.endswith("-shm") and k not in (".surefoot", ".surefoot/stage")
    } == set()


def test_a_missing_or_foreign_database_is_refused(root):
    Workspace(root).close()
    database = root / ".surefoot/surefoot.db"
    database.unlink()
    with pytest.raises(WorkspaceUnusable, match=r"no \.surefoot/surefoot\.db") as caught:
        Workspace(root)
    assert "backup" in caught.value.hint
    for suffix in ("-wal", "-shm"):
        (root / f".surefoot/surefoot.db{suffix}").unlink(missing_ok=True)
    database.write_bytes(b"not a database, but long enough to look like one" * 40)
    with pytest.raises(WorkspaceUnusable, match="Surefoot's database"):
        Workspace(root)


@pytest.mark.skipif(os.geteuid() != 0, reason="not run, because changing owners needs root")
def test_another_users_workspace_is_refused(root):
    Workspace(root).close()
    os.chown(root / ".surefoot", 1234, 1234)
    for opener in (Workspace, ReadOnlyWorkspace):
        if opener is Workspace:
            with pytest.raises(WorkspaceUnusable, match="belongs to user 1234"):
                opener(root)
    shutil.rmtree(root / ".surefoot")
    for folder in [root, *root.parents]:
        if "pytest" in str(folder):
            folder.chmod(0o755)
    pid = os.fork()
    if pid == 0:
        os.setuid(1234)
        try:
            Workspace(root)
        except WorkspaceUnusable as error:
            os._exit(0 if "EACCES" in str(error) and "owner" in error.hint else 2)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert list(root.iterdir()) == []


def test_a_read_only_disk_is_refused_but_can_be_looked_at(small_ext4):
    folder = small_ext4 / "w"
    folder.mkdir()
    Workspace(folder).close()
    (small_ext4 / "empty").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", small_ext4], check=True)
    for path in (folder, small_ext4 / "empty"):
        with pytest.raises(WorkspaceUnusable, match="EROFS|read-only|readonly") as caught:
            Workspace(path)
        assert str(path) in str(caught.value)
    with ReadOnlyWorkspace(folder) as seen:
        assert seen.query("SELECT count(*) FROM txn") == [(0,)]


def test_a_full_disk_is_refused_cleanly_and_a_full_one_later_rolls_back(small_ext4):
    with open(small_ext4 / "ballast", "wb") as ballast, pytest.raises(OSError, match="No space"):
        while True:
            ballast.write(b"x" * 65536)
            ballast.flush()
    folder = small_ext4 / "w"
    folder.mkdir()
    with pytest.raises(WorkspaceUnusable, match="ENOSPC|[Ff]ull"):
        Workspace(folder)
    assert list(folder.iterdir()) == []
    os.truncate(small_ext4 / "ballast", (small_ext4 / "ballast").stat().st_size - (7 << 20))
    with Workspace(folder) as workspace:
        (folder / "a").write_text("old")
        tx = workspace.begin()
        tx.write_bytes("a", os.urandom(200_000))
        for n in range(40):
            tx.write_bytes(f"f{n}", os.urandom(200_000))
        from surefoot_storage import CommitError

        with pytest.raises(CommitError) as caught:
            workspace.commit(tx)
        assert "disk space" in caught.value.hint
        assert (folder / "a").read_text() == "old"
        assert os.listdir(folder / ".surefoot/stage") == []
        tx = workspace.begin()
        tx.write_bytes("a", b"new")
        assert workspace.commit(tx).applied


def test_a_network_filesystem_is_refused(root):
    class Nfs(FsOps):
        def filesystem(self, fd):
            return 0x6969, "00"

    with pytest.raises(WorkspaceUnusable, match="NFS"):
        Workspace(root, fs=Nfs())
    assert list(root.iterdir()) == []


def test_without_exchange_the_portable_recipe_is_chosen(root):
    class Old(FsOps):
        def exchange(self, *_arguments):
            raise OSError(22, "Invalid argument")

    with Workspace(root, fs=Old()) as workspace:
        assert workspace.recipe.name == "portable"
        tx = workspace.begin()
        tx.write_bytes("a", b"x")
        assert workspace.commit(tx).applied


def test_a_forked_child_cannot_use_the_parents_workspace(root):
    with Workspace(root) as workspace:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is what is tested
            pid = os.fork()
        if pid == 0:
            try:
                workspace.begin()
            except WorkspacePoisoned as error:
                os._exit(0 if "forked child" in str(error) else 2)
            os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        tx = workspace.begin()
        tx.write_bytes("a", b"x")
        workspace.commit(tx)
    Workspace(root).close()


def test_a_closed_workspace_says_so(root):
    workspace = Workspace(root)
    workspace.close()
    workspace.close()
    with pytest.raises(WorkspacePoisoned, match="it was closed"):
        workspace.begin()


@pytest.mark.parametrize(
    ("version", "safe"),
    [("3.40.1", False), ("3.51.2", False), ("3.51.3", True), ("3.44.6", True), ("3.44.5", False), ("3.50.7", True),
     ("3.50.6", False), ("3.54.1", True), ("4.0.0", True), ("3.45.0", False)],
)  # fmt: skip
def test_the_sqlite_version_gate(version, safe):
    assert sqlite_is_safe(version) is safe


def test_a_note_that_cannot_be_read_is_not_taken_for_a_missing_one(root):
    with Workspace(root):
        pass
    before = (root / ".surefoot/workspace.json").read_bytes()
    fs = Hooked(Once("read", fails(errno.EIO), word="workspace.json"))
    with pytest.raises(WorkspaceUnusable, match="EIO"):
        Workspace(root, fs=fs)
    assert (root / ".surefoot/workspace.json").read_bytes() == before
