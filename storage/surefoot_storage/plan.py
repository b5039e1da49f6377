"""From what a transaction wants to the list of changes that its commit makes, refused where it cannot."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from .errors import IncompatibleOperations, PathRefused, UnreadableFile
from .layout import stage_name
from .paths import ancestors_of, folded, leaf_of, parent_of
from .policy import Policy
from .preflight import Preflight, collision
from .states import ABSENT, Absent, Directory, File, Op, Snapshot, State, digest_of
from .transaction import FileTransaction
from .tree import Parents, Tree
from .wants import Content, Existing, Gone, MakeDir, Mode, Put, Want


@dataclass(frozen=True)
class Plan:
    """Changes in the order in which they are applied, and the contents they need."""

    ops: list[Op]
    contents: dict[bytes, Content] = field(default_factory=dict)  # new versions by sha256
    bases: dict[str, Snapshot] = field(default_factory=dict)  # the versions they replace, by path
    unchanged: dict[str, list[str]] = field(
        default_factory=dict
    )  # what a swapped directory keeps, by its path


def plan(tx: FileTransaction, tree: Tree, *, umask: int, worker: str, policy: Policy) -> Plan:
    """What has to be done on disk, with everything refused that could not be finished.

    Raises:
        PathRefused, IncompatibleOperations, UnreadableFile: nothing was changed.
    """
    wants = dict(tx.wants)
    for path in tx.swaps:
        wants.setdefault(path, MakeDir())
    with tree.parents() as parents:
        return _plan(tx, tree, wants, parents, umask=umask, worker=worker, policy=policy)


def _plan(
    tx: FileTransaction,
    tree: Tree,
    wants: dict[str, Want],
    parents: Parents,
    *,
    umask: int,
    worker: str,
    policy: Policy,
) -> Plan:
    for path in list(wants):
        if not isinstance(wants[path], Gone) and _needs_directories(path, wants, parents):
            for above in ancestors_of(path):
                wants.setdefault(above, MakeDir())
    bases = {path: tx.base(path, parents) for path in wants}
    _tell_case_apart(wants, bases)
    contents: dict[bytes, Content] = {}
    ops = []
    for path, want in wants.items():
        op = _op(bases[path], want, umask, explicit=path in tx.wants, whole=path in tx.swaps)
        if op is not None:
            ops.append(_like(op, want, tx))
            _note_content(op, want, bases[path], contents)
    _refuse_full_directories(ops, tx)
    _refuse_collisions(ops, tree)
    explicit = {path for path, want in wants.items() if not isinstance(want, Gone) and want.mode is not None}
    checks = Preflight(tree, parents, policy, bases, explicit=explicit)
    ops = [checks.check(op) for op in ops]
    ops, unchanged = _grouped(ops, tx, tree)
    tops = {op.path: op for op in ops if is_whole(op)}
    ops.sort(key=lambda op: _order(tops.get(op.within, op), op))
    named = [
        op.named(stage_name(worker, tx.txid, idx)) if _needs_stage(op) else op for idx, op in enumerate(ops)
    ]
    bases |= {path: tx.base(path) for kept in unchanged.values() for path in kept}
    return Plan(named, contents, bases, unchanged)


def _needs_directories(path: str, wants: dict[str, Want], parents: Parents) -> bool:
    """Whether its directory is not simply there, and stays."""
    return any(above in wants for above in ancestors_of(path)) or parents.find(path) is None


def _tell_case_apart(wants: dict[str, Want], bases: dict[str, Snapshot]) -> None:
    """On a disk that ignores case the new name of a rename finds the old file: there is nothing else."""
    gone = {
        folded(path): bases[path].stamp
        for path, want in wants.items()
        if isinstance(want, Gone) and bases[path].stamp is not None
    }
    for path, want in wants.items():
        stamp = bases[path].stamp
        if not isinstance(want, Gone) and stamp is not None:
            other = gone.get(folded(path))
            if other is not None and other.ino == stamp.ino:
                bases[path] = Snapshot(path, ABSENT)


def _op(base: Snapshot, want: Want, umask: int, *, explicit: bool, whole: bool) -> Op | None:
    """The change from what is there to what is wanted; None where they are the same."""
    old = base.state
    new: State
    match want, old:
        case Put(over=False), Directory():
            raise _mismatch("write", base)
        case Put(content, mode), _:
            kept = old.mode if isinstance(old, File) else 0o666 & ~umask
            new = File(_digest(content), want.size, kept if mode is None else mode)
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
        case MakeDir(over=False), File():
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
    if new == old and not whole:
        return None
    return Op(base.path, old, new, base.stamp, xattrs=base.xattrs)


def _digest(content: Content) -> bytes:
    return digest_of(content) if isinstance(content, bytes) else content.digest


def _like(op: Op, want: Want, tx: FileTransaction) -> Op:
    """A renamed file takes its owner and attributes along."""
    if not isinstance(want, Put) or not want.like:
        return op
    source = tx.base(want.like)
    owner = (source.stamp.uid, source.stamp.gid) if source.stamp is not None else (-1, -1)
    return replace(op, xattrs=source.xattrs, uid=owner[0], gid=owner[1])


def _note_content(op: Op, want: Want, base: Snapshot, contents: dict[bytes, Content]) -> None:
    if isinstance(want, Put) and isinstance(op.new, File):
        contents[op.new.digest] = want.content
    elif isinstance(want, Mode) and isinstance(op.new, File):  # needed where its directory is swapped
        held = base.data if base.data is not None else Existing(base.path, op.new.digest, op.new.size)
        contents.setdefault(op.new.digest, held)


def _needs_stage(op: Op) -> bool:
    """New contents are staged; what is deleted is moved to the stage; a whole directory is both."""
    if isinstance(op.new, File) and not is_whole(op):
        changed = not (isinstance(op.old, File) and op.old.digest == op.new.digest)
        return changed or bool(op.within)
    return is_whole(op) or (isinstance(op.old, File) and not op.within)


def is_whole(op: Op) -> bool:
    """Whether a directory is put in place, exchanged or removed with everything in it, by this change."""
    return op.within == op.path


def _order(top: Op, op: Op) -> tuple[int, int, str]:
    """What goes comes first (names that differ by case only may follow), then directories, then files.

    What is within a whole directory comes right after it.
    """
    depth = op.path.count("/")
    if isinstance(top.new, Absent):
        return (0, 0, op.path) if isinstance(op.old, File) or op.within else (1, -depth, op.path)
    if isinstance(top.new, Directory) and not isinstance(top.old, Directory):
        return 2, 0, op.path
    return 3, 0, op.path


# --- whole directories ---


def _grouped(ops: list[Op], tx: FileTransaction, tree: Tree) -> tuple[list[Op], dict[str, list[str]]]:
    """Directories that appear, vanish or are swapped do so with everything in them, in one operation."""
    whole = set(_tops(ops, tx, tree))
    if not whole:
        return ops, {}
    result = [replace(op, within=_outermost(op.path, whole)) for op in ops]
    changed = {op.path for op in ops}
    swapped = [
        op.path
        for op in result
        if is_whole(op) and isinstance(op.old, Directory) and isinstance(op.new, Directory)
    ]
    return result, {path: list(_unchanged(tx, path, changed)) for path in swapped}


def _outermost(path: str, whole: set[str]) -> str:
    return next((above for above in (*ancestors_of(path), path) if above in whole), "")


def _tops(ops: list[Op], tx: FileTransaction, tree: Tree) -> list[str]:
    having = {parent_of(op.path) for op in ops}
    tops = []
    for op in ops:
        match op.old, op.new:
            case Directory(), Directory():
                if op.path in tx.swaps:
                    _refuse_swap(op, tree)
                    tops.append(op.path)
            case Directory(), _:
                if op.path in having or isinstance(op.new, File):
                    tops.append(op.path)
            case _, Directory():
                if op.path in having or isinstance(op.old, File):
                    tops.append(op.path)
    return tops


def _refuse_swap(op: Op, tree: Tree) -> None:
    recipe = tree.areas.of(op.mount).recipe
    if not recipe.exchanges:
        raise PathRefused(
            "swap",
            op.path,
            expected="a filesystem that can exchange two names",
            found=f"{recipe.filesystem}, which cannot",
            hint="leave swap() out: the changes in it are then put in place one by one",
        )


def _unchanged(tx: FileTransaction, directory: str, changed: set[str]) -> list[str]:
    """What a swapped directory keeps: each is looked at again by the commit, like anything that was read."""
    found = []
    for name in tx.listing(directory):
        path = f"{directory}/{name}"
        base = tx.base(path)
        if path not in changed:
            found.append(path)
        if isinstance(base.state, Directory):
            found += _unchanged(tx, path, changed)
    return found


# --- refusals ---


def _refuse_full_directories(ops: list[Op], tx: FileTransaction) -> None:
    gone = {op.path for op in ops if isinstance(op.new, Absent)}
    for op in ops:
        if isinstance(op.old, Directory) and not isinstance(op.new, Directory):
            left = [name for name in tx.listing(op.path) if f"{op.path}/{name}" not in gone]
            if left:
                raise IncompatibleOperations(
                    "rmdir",
                    op.path,
                    expected="a directory that this transaction empties",
                    found=f"{len(left)} more in it, {left[0]!r} among them",
                )


def _refuse_collisions(ops: list[Op], tree: Tree) -> None:
    """Two names that a case-insensitive filesystem takes for one would overwrite each other there."""
    gone = {op.path for op in ops if isinstance(op.new, Absent)}
    seen: dict[str, str] = {}
    for op in ops:
        if op.path not in gone and (other := seen.setdefault(folded(op.path), op.path)) != op.path:
            raise collision(op.path, other)
    made: dict[str, list[str]] = {}
    for op in ops:
        if isinstance(op.old, Absent):
            made.setdefault(parent_of(op.path), []).append(op.path)
    fresh = {op.path for op in ops if not isinstance(op.old, Directory)}
    for directory, paths in made.items():
        if directory in fresh:
            continue
        on_disk = {
            folded(name): name
            for name in tree.names(directory) or ()
            if (f"{directory}/{name}" if directory else name) not in gone
        }
        for path in paths:
            if (other := on_disk.get(folded(leaf_of(path)), leaf_of(path))) != leaf_of(path):
                raise collision(path, f"{directory}/{other}" if directory else other)


def _mismatch(operation: str, base: Snapshot) -> IncompatibleOperations:
    wanted = "a directory" if operation in ("rmdir", "mkdir", "write below") else "a file"
    return IncompatibleOperations(
        operation,
        base.path,
        expected=f"{wanted} or nothing",
        found=str(base.state),
        hint="delete it first, in the same transaction" if wanted == "a directory" else "",
    )
