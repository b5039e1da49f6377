"""From what a transaction wants to the list of changes that its commit makes, refused where it cannot."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field, replace

from .errors import IncompatibleOperations, PathRefused, UnreadableFile
from .fsops import FsOps
from .paths import ancestors_of, folded, leaf_of, parent_of
from .states import ABSENT, Absent, Directory, File, Op, Snapshot, State, digest_of
from .transaction import FileTransaction, Gone, MakeDir, Mode, Put, Want
from .tree import Parents, Tree


@dataclass(frozen=True)
class Plan:
    """Changes in the order in which they are applied, and the contents they need."""

    ops: list[Op]
    contents: dict[bytes, bytes] = field(default_factory=dict)  # new versions by sha256
    bases: dict[str, Snapshot] = field(default_factory=dict)  # the versions they replace, by path


def plan(tx: FileTransaction, tree: Tree, *, umask: int) -> Plan:
    """What has to be done on disk, with everything refused that could not be finished.

    Raises:
        PathRefused, IncompatibleOperations, UnreadableFile: nothing was changed.
    """
    wants = dict(tx.wants)
    for path in list(wants):
        if not isinstance(wants[path], Gone):
            for above in ancestors_of(path):
                wants.setdefault(above, MakeDir())
    contents: dict[bytes, bytes] = {}
    ops = []
    for path, want in wants.items():
        op = _op(tx.base(path), want, umask, explicit=path in tx.wants)
        if op is not None:
            ops.append(op)
            if isinstance(want, Put):
                contents[digest_of(want.data)] = want.data
    _refuse_full_directories(ops, tree)
    _refuse_collisions(ops, tree)
    with tree.parents() as parents:
        ops = [_preflight(op, tree.fs, parents) for op in ops]
    ops.sort(key=_order)
    named = [replace(op, stage=f"{tx.txid}.{idx}") if _needs_stage(op) else op for idx, op in enumerate(ops)]
    return Plan(named, contents, {op.path: tx.base(op.path) for op in named})


def _op(base: Snapshot, want: Want, umask: int, *, explicit: bool) -> Op | None:
    """The change from what is there to what is wanted; None where they are the same."""
    old = base.state
    new: State
    match want, old:
        case Put(), Directory():
            raise _mismatch("write", base)
        case Put(data, mode), _:
            kept = old.mode if isinstance(old, File) else 0o666 & ~umask
            new = File(digest_of(data), len(data), kept if mode is None else mode)
        case Gone("file"), Directory():
            raise _mismatch("delete", base)
        case Gone("directory"), File():
            raise _mismatch("rmdir", base)
        case Gone(kind, must_exist), Absent():
            if must_exist:
                raise UnreadableFile(
                    "delete" if kind == "file" else "rmdir", base.path, expected=f"a {kind}", found="nothing"
                )
            return None
        case Gone(), _:
            new = ABSENT
        case MakeDir(), File():
            raise _mismatch("mkdir" if explicit else "write below", base)
        case MakeDir(mode), Directory(have):
            new = Directory(have if mode is None else mode)
        case MakeDir(mode), _:
            new = Directory(0o777 & ~umask if mode is None else mode)
        case Mode(mode), Directory():
            new = Directory(mode)
        case Mode(mode), File(digest, size, _):
            new = File(digest, size, mode)
        case _:
            raise UnreadableFile("chmod", base.path, expected="a file or directory", found="nothing")
    return None if new == old else Op(base.path, old, new, base.stamp, xattrs=base.xattrs)


def _needs_stage(op: Op) -> bool:
    """New contents are staged; what is deleted is moved to the stage."""
    if isinstance(op.new, File):
        return not (isinstance(op.old, File) and op.old.digest == op.new.digest)
    return isinstance(op.new, Absent) and isinstance(op.old, File)


def _order(op: Op) -> tuple[int, str | list[int]]:
    """Directories are made top-down first and removed bottom-up last."""
    if isinstance(op.new, Directory) and isinstance(op.old, Absent):
        return 0, op.path
    if isinstance(op.new, Absent) and isinstance(op.old, Directory):
        return 2, [-op.path.count("/")]
    return 1, op.path


def _preflight(op: Op, fs: FsOps, parents: Parents) -> Op:
    """Refuses what the filesystem would refuse only after the commit point; fills in the owner."""
    directory = parents.get(op.path, operation="write")
    if directory is None:  # it is made by this transaction
        return op
    if op.old_stamp is not None and isinstance(op.old, File):
        _refuse_protected(op, fs, directory)
    if not fs.may_write_in(directory):
        raise PathRefused(
            "write",
            op.path,
            expected="a directory that this user may write in",
            found=f"no write permission in {parent_of(op.path) or 'the workspace'}",
        )
    if op.old_stamp is not None:
        if (op.old_stamp.uid, op.old_stamp.gid) != (os.geteuid(), os.getegid()):
            return replace(op, uid=op.old_stamp.uid, gid=op.old_stamp.gid)
    elif (above := fs.fstat(directory)).st_mode & stat.S_ISGID:
        return replace(op, gid=above.st_gid)
    return op


def _refuse_protected(op: Op, fs: FsOps, directory: int) -> None:
    assert op.old_stamp is not None
    if not op.old_stamp.mode & 0o222:
        raise PathRefused(
            "write",
            op.path,
            expected="a writable file",
            found=f"a read-only file (mode {op.old_stamp.mode:o})",
            hint="chmod it first: somebody protected it",
        )
    if fs.is_mount_point(directory, leaf_of(op.path)):
        raise PathRefused("write", op.path, expected="a plain file", found="a file that is a mount point")


def _refuse_full_directories(ops: list[Op], tree: Tree) -> None:
    gone = {op.path for op in ops if isinstance(op.new, Absent)}
    for op in ops:
        if isinstance(op.new, Absent) and isinstance(op.old, Directory):
            left = [name for name in tree.names(op.path) or () if f"{op.path}/{name}" not in gone]
            if left:
                raise IncompatibleOperations(
                    "rmdir",
                    op.path,
                    expected="a directory that this transaction empties",
                    found=f"{len(left)} more in it, {left[0]!r} among them",
                )


def _refuse_collisions(ops: list[Op], tree: Tree) -> None:
    """Two names that a case-insensitive filesystem takes for one would overwrite each other there."""
    seen: dict[str, str] = {}
    for op in ops:
        if (other := seen.setdefault(folded(op.path), op.path)) != op.path:
            raise _collision(op.path, other)
    made: dict[str, list[str]] = {}
    for op in ops:
        if isinstance(op.old, Absent):
            made.setdefault(parent_of(op.path), []).append(op.path)
    for directory, paths in made.items():
        on_disk = {folded(name): name for name in tree.names(directory) or ()}
        for path in paths:
            if (other := on_disk.get(folded(leaf_of(path)), leaf_of(path))) != leaf_of(path):
                raise _collision(path, f"{directory}/{other}" if directory else other)


def _collision(path: str, other: str) -> PathRefused:
    return PathRefused(
        "write",
        path,
        expected="names that differ by more than case or Unicode form",
        found=f"{other!r}",
        hint="on macOS and Windows the two are one file; choose another name",
    )


def _mismatch(operation: str, base: Snapshot) -> IncompatibleOperations:
    wanted = "a directory" if operation in ("rmdir", "mkdir", "write below") else "a file"
    return IncompatibleOperations(
        operation, base.path, expected=f"{wanted} or nothing", found=str(base.state)
    )
