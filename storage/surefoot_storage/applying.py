"""After the commit point: staged versions into place, one name operation each.

The only name operations are *exchange* and *rename to a name that is free* (on filesystems without
exchange: link, then rename), so nothing here removes the last name of a content that it did not expect.
What comes out of a swap is looked at; a foreign version is held intact in the stage and reported.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

from . import fsops
from .fsops import FsOps
from .layout import Layout
from .paths import leaf_of, parent_of
from .recipes import Recipe
from .states import Absent, Directory, File, Op, Stamp
from .tree import Parents, Tree

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@dataclass(frozen=True, slots=True)
class Displaced:
    """A version that a swap put into the stage."""

    op: Op
    name: str  # in stage/
    foreign: bool  # not the version that the transaction had read


@dataclass
class Applied:
    """What came of it."""

    displaced: list[Displaced] = field(default_factory=list)
    foreign: list[tuple[Op, str]] = field(
        default_factory=list
    )  # (change, what was found) with nothing to keep
    failed: list[tuple[Op, OSError]] = field(default_factory=list)


class Applier:
    """Carries out a list of changes in order. Goes on past a change that fails."""

    def __init__(self, fs: FsOps, layout: Layout, tree: Tree) -> None:
        self._fs = fs
        self._stage = layout.stage
        self._tree = tree
        self._recipe = tree.recipe

    def apply(self, ops: list[Op], parents: Parents) -> Applied:
        """The parents must be the ones that the commit was checked against."""
        applied = Applied()
        for op in ops:
            try:
                self._apply_op(op, parents, applied)
            except OSError as error:
                applied.failed.append((op, error))
        self._check_way(ops, parents, applied)
        return applied

    def _apply_op(self, op: Op, parents: Parents, applied: Applied) -> None:
        directory, name = parents.need(op.path), leaf_of(op.path)
        match op.new, op.old:
            case File(), _ if not op.stage:
                self._chmod_file(directory, name, op)
            case File(), Absent():
                self._create(directory, name, op, applied)
            case File(), _:
                self._replace(directory, name, op, applied)
            case Directory(mode), Directory():
                with self._fs.opened_dir(directory, name) as fd:
                    self._fs.chmod(fd, mode)
            case Directory(mode), _:
                self._mkdir(directory, name, mode)
                parents.forget(op.path)
            case Absent(), Directory():
                self._rmdir(directory, name, op, applied)
                parents.forget(op.path)
            case Absent(), _:
                self._delete(directory, name, op, applied)

    # --- one kind of change each ---

    def _replace(self, directory: int, name: str, op: Op, applied: Applied) -> None:
        if not self._recipe.exchanges:
            self._replace_portably(directory, name, op, applied)
            return
        try:
            self._fs.exchange(self._stage, op.stage, directory, name)
        except FileNotFoundError:  # deleted since the check: our version is newer
            self._fs.rename_new(self._stage, op.stage, directory, name)
            applied.foreign.append((op, "nothing: it was deleted"))
            return
        self._note_displaced(op, op.stage, applied)

    def _replace_portably(self, directory: int, name: str, op: Op, applied: Applied) -> None:
        old_name = displaced_name(op, self._recipe)
        self._fs.unlink(self._stage, old_name)
        try:
            self._fs.link(directory, name, self._stage, old_name)
        except FileNotFoundError:
            applied.foreign.append((op, "nothing: it was deleted"))
        except OSError as error:
            self._check_unlinkable(error, directory, name, op)
        self._fs.rename_over(self._stage, op.stage, directory, name)
        self._note_displaced(op, old_name, applied)

    def _create(self, directory: int, name: str, op: Op, applied: Applied) -> None:
        try:
            if self._recipe.exchanges:
                self._fs.rename_new(self._stage, op.stage, directory, name)
            else:
                self._link_new(directory, name, op)
        except FileExistsError:  # created since the check: kept, and reported
            self._replace(directory, name, op, applied)

    def _link_new(self, directory: int, name: str, op: Op) -> None:
        try:
            self._fs.link(self._stage, op.stage, directory, name)
        except FileExistsError:
            raise
        except OSError as error:
            self._check_unlinkable(error, directory, name, op)
            self._fs.rename_over(self._stage, op.stage, directory, name)
        else:
            self._fs.unlink(self._stage, op.stage)

    def _check_unlinkable(self, error: OSError, directory: int, name: str, op: Op) -> None:
        """Without hard links (FAT, some FUSE) the old version lives on in the log only: look first."""
        if error.errno not in _NO_LINKS:
            raise error
        found = self._fs.lstat(directory, name)
        now = Stamp.of(found) if found is not None else None
        if now is not None and not (op.old_stamp is not None and op.old_stamp.same_content(now)):
            raise OSError(errno.EBUSY, "somebody else changed it during the commit", op.path)

    def _delete(self, directory: int, name: str, op: Op, applied: Applied) -> None:
        try:
            if self._recipe.exchanges:
                self._fs.rename_new(directory, name, self._stage, op.stage)
            else:
                self._fs.rename_over(directory, name, self._stage, op.stage)
        except FileNotFoundError:
            return
        self._note_displaced(op, op.stage, applied)

    def _chmod_file(self, directory: int, name: str, op: Op) -> None:
        assert isinstance(op.new, File)
        fd = self._fs.open_file(directory, name)
        try:
            self._fs.chmod(fd, op.new.mode)
        finally:
            self._fs.close(fd)

    def _mkdir(self, directory: int, name: str, mode: int) -> None:
        try:
            self._fs.mkdir(directory, name, mode)
        except FileExistsError:
            found = self._fs.lstat(directory, name)
            if found is None or not fsops.is_directory(found):
                raise

    def _rmdir(self, directory: int, name: str, op: Op, applied: Applied) -> None:
        try:
            self._fs.rmdir(directory, name)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            applied.foreign.append((op, "a directory with something new in it; it stays"))

    def _note_displaced(self, op: Op, name: str, applied: Applied) -> None:
        """What came out of the swap must be the version that the transaction had read."""
        found = self._fs.lstat(self._stage, name)
        if found is None:
            return
        expected = op.old_stamp is not None and isinstance(op.old, File) and fsops.is_regular(found)
        foreign = not (expected and op.old_stamp is not None and op.old_stamp.same_content(Stamp.of(found)))
        applied.displaced.append(Displaced(op, name, foreign))

    # --- directories swapped under us ---

    def _check_way(self, ops: list[Op], parents: Parents, applied: Applied) -> None:
        """A held descriptor follows its directory even out of the workspace: look whether it did."""
        for directory in {parent_of(op.path): op.path for op in ops}.values():
            try:
                there = parents.still_there(directory)
            except FileNotFoundError:
                continue  # it could not be made: reported with its change
            if not there:
                self._take_back(parent_of(directory), ops, parents, applied)

    def _take_back(self, moved: str, ops: list[Op], parents: Parents, applied: Applied) -> None:
        failed = {op.path for op, _ in applied.failed}
        for op in ops:
            if parent_of(op.path) != moved or op.path in failed:
                continue
            error = OSError(errno.ESTALE, "its directory was moved or replaced during the commit", op.path)
            applied.failed.append((op, error))
            if op.stage and self._recipe.exchanges:
                self._swap_back(op, parents.need(op.path))
        applied.displaced = [d for d in applied.displaced if parent_of(d.op.path) != moved]

    def _swap_back(self, op: Op, directory: int) -> None:
        name = leaf_of(op.path)
        try:
            if isinstance(op.new, Absent):
                self._fs.rename_new(self._stage, op.stage, directory, name)
            elif isinstance(op.old, Absent):
                self._fs.rename_new(directory, name, self._stage, op.stage)
            else:
                self._fs.exchange(self._stage, op.stage, directory, name)
        except OSError:
            return  # both versions still exist, one here and one there; the log finishes the change


def displaced_name(op: Op, recipe: Recipe) -> str:
    """Where a replaced version lies in the stage."""
    replaced = isinstance(op.new, File) and not recipe.exchanges
    return f"{op.stage}.old" if replaced else op.stage


def stage_names(op: Op) -> tuple[str, ...]:
    """Every name that a change can have left in the stage."""
    if not op.stage:
        return ()
    return (op.stage, f"{op.stage}.old", f"{op.stage}.again", f"{op.stage}.aside")
