"""One transaction over files: what it sees, what it does, what it refuses."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from surefoot_storage import (
    Conflict,
    IncompatibleOperations,
    InputError,
    PathRefused,
    TransactionClosed,
    UnreadableFile,
    Workspace,
    syscalls,
)


def files_in(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes()
        for p in root.rglob("*")
        if p.is_file() and ".surefoot" not in p.parts
    }


def test_a_commit_creates_replaces_deletes_and_makes_directories(workspace, root):
    (root / "change").write_text("before")
    (root / "gone").write_text("gone")
    (root / "hollow").mkdir()
    tx = workspace.begin()
    tx.write_bytes("new/deep/file", b"made")
    tx.write_bytes("change", b"after")
    tx.delete("gone")
    tx.mkdir("empty", mode=0o700)
    tx.rmdir("hollow")
    assert files_in(root) == {"change": b"before", "gone": b"gone"}
    commit = workspace.commit(tx)
    assert commit.applied
    assert files_in(root) == {"change": b"after", "new/deep/file": b"made"}
    assert stat.S_IMODE((root / "empty").stat().st_mode) == 0o700
    assert not (root / "hollow").exists()


def test_reads_see_the_transactions_own_writes(workspace, root):
    (root / "a").write_text("old")
    (root / "d").mkdir()
    (root / "d/x").write_text("x")
    tx = workspace.begin()
    tx.write_bytes("a", b"new")
    tx.write_bytes("d/y", b"y")
    tx.delete("d/x")
    assert tx.read_bytes("a") == b"new"
    assert tx.list_dir("d") == ["y"]
    assert tx.glob("**") == ["a", "d/y"]
    assert tx.exists("d/y")
    assert not tx.exists("d/x")
    with pytest.raises(UnreadableFile, match="deleted in this transaction"):
        tx.read_bytes("d/x")


def test_modes_are_kept_given_and_changed(workspace, root):
    (root / "script").write_text("#!/bin/sh\n")
    (root / "script").chmod(0o750)
    (root / "plain").write_text("x")
    tx = workspace.begin()
    tx.write_bytes("script", b"#!/bin/sh\necho\n")
    tx.write_bytes("secret", b"x", mode=0o600)
    tx.chmod("plain", 0o640)
    workspace.commit(tx)
    modes = {p: stat.S_IMODE((root / p).stat().st_mode) for p in ("script", "secret", "plain")}
    assert modes == {"script": 0o750, "secret": 0o600, "plain": 0o640}


def test_extended_attributes_and_owner_survive_a_replacement(workspace, root):
    path = root / "a"
    path.write_text("old")
    try:
        os.setxattr(path, "user.colour", b"blue")
    except OSError as error:
        pytest.skip(f"not run, because this filesystem takes no attributes: {error}")
    if os.geteuid() == 0:
        os.chown(path, 1234, 4321)
    tx = workspace.begin()
    tx.write_bytes("a", b"new")
    workspace.commit(tx)
    assert os.getxattr(path, "user.colour") == b"blue"
    if os.geteuid() == 0:
        assert (path.stat().st_uid, path.stat().st_gid) == (1234, 4321)


def test_writing_what_is_there_already_changes_nothing(workspace, root):
    (root / "a").write_text("same")
    inode = (root / "a").stat().st_ino
    tx = workspace.begin()
    tx.write_bytes("a", b"same")
    assert workspace.commit(tx).ops == ()
    assert (root / "a").stat().st_ino == inode


def test_glob_matches_like_a_shell(workspace, root):
    for name in ("a.md", "b.txt", "d/c.md", "d/e/f.md", ".hidden.md"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    os.symlink("a.md", root / "link.md")
    tx = workspace.begin()
    assert tx.glob("*.md") == ["a.md"]
    assert tx.glob("**/*.md") == ["a.md", "d/c.md", "d/e/f.md"]
    assert tx.glob("d/*/f.md") == ["d/e/f.md"]
    assert tx.glob(".h*") == [".hidden.md"]
    assert tx.glob("[ab].*") == ["a.md", "b.txt"]


REFUSED_PATHS = [
    "../outside", "a/../../outside", "/etc/passwd", "", ".", ".surefoot/surefoot.db", "nul\0byte",
    "x" * 256, "d/" + "ü" * 128, "/".join(["abcdefgh"] * 500),
]  # fmt: skip


@pytest.mark.parametrize("path", REFUSED_PATHS)
@pytest.mark.parametrize("operation", ["read_bytes", "delete", "mkdir", "rmdir", "write"])
def test_paths_that_leave_the_workspace_or_are_no_names_are_refused(workspace, root, path, operation):
    tx = workspace.begin()
    with pytest.raises(PathRefused) as caught:
        tx.write_bytes(path, b"x") if operation == "write" else getattr(tx, operation)(path)
    assert caught.value.operation
    assert caught.value.found
    assert list(root.iterdir()) == [root / ".surefoot"]


def _special(root: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(root / "odd")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(root / "odd"))
    elif kind == "symlink":
        os.symlink("/etc/passwd", root / "odd")
    elif kind == "dangling":
        os.symlink("nowhere", root / "odd")
    elif kind == "read-only":
        (root / "odd").write_text("protected")
        (root / "odd").chmod(0o444)


@pytest.mark.parametrize("kind", ["pipe", "socket", "symlink", "dangling", "read-only"])
@pytest.mark.parametrize("operation", ["write", "delete"])
def test_links_special_and_protected_files_are_refused_before_anything_happens(
    tmp_path, root, workspace, kind, operation
):
    if kind == "socket":
        root = Path(os.path.relpath(root))  # socket names are short
    _special(root, kind)
    before = os.lstat(root / "odd")
    tx = workspace.begin()
    tx.write_bytes("other", b"x")
    with pytest.raises(PathRefused) as caught:
        tx.write_bytes("odd", b"x") if operation == "write" else tx.delete("odd")
        workspace.commit(tx)
    assert caught.value.subject == "odd"
    assert os.lstat(root / "odd").st_ino == before.st_ino
    assert not (root / "other").exists()
    assert os.listdir(root / ".surefoot/stage") == []


def test_a_symlink_on_the_way_is_refused_even_inside_the_workspace(workspace, root):
    (root / "real").mkdir()
    os.symlink("real", root / "link")
    tx = workspace.begin()
    with pytest.raises(PathRefused, match="symlink on the way"):
        tx.read_bytes("link/file")
    tx = workspace.begin()
    tx.write_bytes("link/file", b"x")
    with pytest.raises(PathRefused, match="symlink on the way"):
        workspace.commit(tx)
    assert list((root / "real").iterdir()) == []


def test_without_openat2_the_way_is_walked_name_by_name(workspace, root, monkeypatch):
    def missing(*_arguments):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(syscalls, "openat2", missing)
    (root / "real/deep").mkdir(parents=True)
    os.symlink("real", root / "link")
    tx = workspace.begin()
    tx.write_bytes("real/deep/a", b"x")
    assert workspace.commit(tx).applied
    assert (root / "real/deep/a").read_bytes() == b"x"
    with pytest.raises(PathRefused):
        workspace.begin().read_bytes("link/deep/a")


def test_a_file_on_the_way_is_refused(workspace, root):
    (root / "a").write_text("x")
    tx = workspace.begin()
    tx.write_bytes("a/b", b"x")
    with pytest.raises((PathRefused, IncompatibleOperations)):
        workspace.commit(tx)


@pytest.mark.parametrize(
    ("first", "second"), [("readme.md", "README.md"), ("Stra\u00dfe", "STRASSE"), ("e\u0301", "\u00e9")]
)
def test_names_that_another_system_takes_for_one_are_refused(workspace, root, first, second):
    tx = workspace.begin()
    tx.write_bytes(f"d/{first}", b"1")
    tx.write_bytes(f"d/{second}", b"2")
    with pytest.raises(PathRefused, match="differ by more than case"):
        workspace.commit(tx)
    assert not (root / "d").exists()
    (root / first).write_text("on disk")
    tx = workspace.begin()
    tx.write_bytes(second, b"2")
    with pytest.raises(PathRefused, match="differ by more than case"):
        workspace.commit(tx)


INCOMPATIBLE = {
    "file then directory": lambda tx: (tx.write_bytes("p", b""), tx.mkdir("p")),
    "directory then file": lambda tx: (tx.mkdir("p"), tx.write_bytes("p", b"")),
    "below a new file": lambda tx: (tx.write_bytes("p", b""), tx.write_bytes("p/q", b"")),
    "file over what is below": lambda tx: (tx.write_bytes("p/q", b""), tx.write_bytes("p", b"")),
    "chmod of a deleted file": lambda tx: (tx.delete("file"), tx.chmod("file", 0o600)),
    "delete of a new directory": lambda tx: (tx.mkdir("p"), tx.delete("p")),
    "rmdir of a new file": lambda tx: (tx.write_bytes("p", b""), tx.rmdir("p")),
    "rmdir above pending writes": lambda tx: (tx.write_bytes("dir/q", b""), tx.rmdir("dir")),
    "write over a directory on disk": lambda tx: tx.write_bytes("dir", b""),
    "delete of a directory on disk": lambda tx: tx.delete("dir"),
    "rmdir of a file on disk": lambda tx: tx.rmdir("file"),
    "mkdir over a file on disk": lambda tx: tx.mkdir("file"),
    "rmdir of a directory that is not empty": lambda tx: tx.rmdir("full"),
}


@pytest.mark.parametrize("name", INCOMPATIBLE)
def test_operations_that_exclude_each_other_are_refused(workspace, root, name):
    (root / "file").write_text("x")
    (root / "dir").mkdir()
    (root / "full").mkdir()
    (root / "full/x").write_text("x")
    before = files_in(root)
    tx = workspace.begin()
    with pytest.raises(IncompatibleOperations) as caught:
        INCOMPATIBLE[name](tx)
        workspace.commit(tx)
    assert caught.value.expected
    assert files_in(root) == before


def test_operations_that_cancel_each_other_are_fine(workspace, root):
    tx = workspace.begin()
    tx.write_bytes("a", b"x")
    tx.delete("a")
    tx.mkdir("d")
    tx.rmdir("d")
    assert workspace.commit(tx).ops == ()
    with pytest.raises(UnreadableFile):
        tx = workspace.begin()
        tx.delete("missing")
        workspace.commit(tx)


def test_wrong_types_are_named(workspace):
    tx = workspace.begin()
    with pytest.raises(InputError, match="expected bytes, found str"):
        tx.write_bytes("a", "text")
    with pytest.raises(InputError, match="permission bits"):
        tx.write_bytes("a", b"", mode=0o4755)
    with pytest.raises(PathRefused, match="found int"):
        tx.read_bytes(7)


CHANGES = {
    "content": lambda p: p.write_text("edited"),
    "same size": lambda p: p.write_text("OLD"),
    "atomic save": lambda p: ((p.parent / "t").write_text("sav"), os.replace(p.parent / "t", p)),
    "deleted": lambda p: p.unlink(),
    "mode": lambda p: p.chmod(0o600),
    "same size, stamps put back": lambda p: _forge(p),
    "now a directory": lambda p: (p.unlink(), p.mkdir()),
    "now a symlink": lambda p: (p.unlink(), p.symlink_to("elsewhere")),
}


def _forge(path: Path) -> None:
    before = path.stat()
    path.write_text("OLD")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("use", ["read", "write"])
def test_a_change_between_read_and_commit_is_a_conflict_and_nothing_is_overwritten(
    workspace, root, name, use
):
    path = root / "a"
    path.write_text("old")
    tx = workspace.begin()
    tx.read_bytes("a")
    tx.write_bytes("b" if use == "read" else "a", b"ours")
    CHANGES[name](path)
    shown = os.lstat(path) if os.path.lexists(path) else None
    with pytest.raises((Conflict, PathRefused)) as caught:
        workspace.commit(tx)
    if isinstance(caught.value, Conflict):
        assert caught.value.subject == "a"
        assert "a file of 3 bytes" in caught.value.expected
        assert caught.value.found
    after = os.lstat(path) if os.path.lexists(path) else None
    assert (after and after.st_ino) == (shown and shown.st_ino)
    assert not (root / "b").exists()
    assert os.listdir(root / ".surefoot/stage") == []


def test_a_touch_without_a_change_is_no_conflict(workspace, root):
    (root / "a").write_text("old")
    tx = workspace.begin()
    tx.read_bytes("a")
    tx.write_bytes("a", b"ours")
    os.link(root / "a", root / "second name")  # changes only the ctime
    workspace.commit(tx)
    assert (root / "a").read_bytes() == b"ours"


def test_a_file_that_appears_where_nothing_was_read_is_a_conflict(workspace, root):
    tx = workspace.begin()
    assert not tx.exists("a")
    tx.write_bytes("a", b"ours")
    (root / "a").write_text("theirs")
    with pytest.raises(Conflict):
        workspace.commit(tx)
    assert (root / "a").read_text() == "theirs"


def test_a_new_match_of_a_glob_is_a_conflict(workspace, root):
    (root / "a.md").write_text("x")
    tx = workspace.begin()
    assert tx.glob("*.md") == ["a.md"]
    tx.write_bytes("index", b"a.md")
    (root / "b.md").write_text("x")
    with pytest.raises(Conflict, match="listing"):
        workspace.commit(tx)


def test_a_fenced_transaction_can_do_nothing_any_more(workspace, root):
    tx = workspace.begin()
    tx.write_bytes("a", b"x")
    assert tx.fence()
    for use in (lambda: tx.read_bytes("a"), lambda: tx.write_bytes("b", b""), lambda: workspace.commit(tx)):
        with pytest.raises(TransactionClosed):
            use()
    done = workspace.begin()
    done.write_bytes("a", b"x")
    workspace.commit(done)
    assert not done.fence()
    with pytest.raises(TransactionClosed):
        workspace.commit(done)


def test_threads_take_turns(workspace, root):
    def add(n: int) -> None:
        for i in range(10):
            while True:
                tx = workspace.begin()
                count = int(tx.read_bytes("count")) if tx.exists("count") else 0
                tx.write_bytes("count", str(count + 1).encode())
                tx.write_bytes(f"{n}.{i}", b"x")
                try:
                    workspace.commit(tx)
                    break
                except Conflict:
                    continue

    threads = [threading.Thread(target=add, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (root / "count").read_text() == "40"


@pytest.mark.parametrize("size", [0, 1, 262_144, 262_145, 3_000_000])
def test_contents_of_every_size(workspace, root, size):
    data = os.urandom(size)
    tx = workspace.begin()
    tx.write_bytes("a", data)
    workspace.commit(tx)
    assert (root / "a").read_bytes() == data
    tx = workspace.begin()
    tx.write_bytes("a", b"then small")
    commit = workspace.commit(tx)
    assert workspace.read_blob(commit.ops[0].old.digest) == data
    workspace.checkpoint()
    assert os.listdir(root / ".surefoot/keep") == []
    assert os.listdir(root / ".surefoot/stage") == []


def test_thousands_of_files_in_one_transaction(root):
    with Workspace(root) as workspace:
        tx = workspace.begin()
        for i in range(3000):
            tx.write_bytes(f"d{i % 7}/f{i}", str(i).encode() * 50)
        workspace.commit(tx)
    assert len(files_in(root)) == 3000
    assert os.listdir(root / ".surefoot/stage") == []
