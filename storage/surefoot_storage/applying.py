"""After the commit point: staged versions into place, one name operation each.

The only name operations are *exchange* and *rename to a name that is free* (on filesystems without
exchange: link, then rename), so nothing here removes the last name of a content that it did not expect.
What comes out of a swap is looked at; a foreign version is held intact in the stage and reported.
"""

from __future__ import annotations

import contextlib
import errno
import os
import zlib
from dataclasses import dataclass, field, replace

from . import fsops
from .areas import Area
from .displaced import foreign_files, is_expected
from .fsops import FsOps
from .layout import STAGE_SUFFIXES
from .paths import leaf_of, parent_of
from .plan import is_whole
from .recipes import Recipe
from .states import Absent, Directory, File, Op, Stamp
from .tree import Parents, Tree

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@dataclass(frozen=True, slots=True)
class Displaced:
    """A version that a swap put into the stage."""

    op: Op
    name: str  # in its area's stage, or below a directory there
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

    def __init__(self, fs: FsOps, tree: Tree) -> None:
        self._fs = fs
        self._tree = tree

    def apply(self, ops: list[Op], parents: Parents) -> Applied:
        """The parents must be the ones that the commit was checked against."""
        applied = Applied()
        outside = [op for op in ops if not op.within or is_whole(op)]
        for op in outside:
            try:
                self._apply_op(op, ops, parents, applied)
            except OSError as error:
                applied.failed.append((op, error))
        self._check_way(outside, parents, applied)
        return applied

    def _apply_op(self, op: Op, ops: list[Op], parents: Parents, applied: Applied) -> None:
        directory, name = parents.need(op.path), leaf_of(op.path)
        area = self._tree.areas.of(op.mount)
        if is_whole(op):
            parents.forget_below(op.path)
            try:
                self._apply_whole(op, ops, area, directory, name, applied)
            except FileExistsError:
                self._merge(op, ops, area, parents, applied)
            return
        match op.new, op.old:
            case File(), _ if op.in_place and op.stage:
                self._overwrite(op, area, directory, name)
            case File(), _ if not op.stage:
                self._chmod_file(directory, name, op)
            case File(), Absent():
                self._create(area, directory, name, op, applied)
            case File(), _:
                self._replace(area, directory, name, op, applied)
            case Directory(mode), Directory():
                with self._fs.opened_dir(directory, name, cross=True) as fd:
                    self._fs.chmod(fd, mode)
            case Directory(mode), _:
                self._mkdir(directory, name, mode, op)
                parents.forget(op.path)
            case Absent(), Directory():
                self._rmdir(directory, name, op, applied)
                parents.forget(op.path)
            case Absent(), _:
                self._delete(area, directory, name, op, applied)

    # --- one kind of change each ---

    def _replace(self, area: Area, directory: int, name: str, op: Op, applied: Applied) -> None:
        if not area.recipe.exchanges:
            self._replace_portably(area, directory, name, op, applied)
            return
        try:
            self._fs.exchange(area.stage, op.stage, directory, name)
        except FileNotFoundError:  # deleted since the check: our version is newer
            self._fs.rename_new(area.stage, op.stage, directory, name)
            applied.foreign.append((op, "nothing: it was deleted"))
            return
        self._note_displaced(area, op, op.stage, applied)

    def _replace_portably(self, area: Area, directory: int, name: str, op: Op, applied: Applied) -> None:
        old_name = displaced_name(op, area.recipe)
        self._fs.unlink(area.stage, old_name)
        try:
            self._fs.link(directory, name, area.stage, old_name)
        except FileNotFoundError:
            applied.foreign.append((op, "nothing: it was deleted"))
        except OSError as error:
            self._check_unlinkable(error, directory, name, op)
        self._fs.rename_over(area.stage, op.stage, directory, name)
        self._note_displaced(area, op, old_name, applied)

    def _create(self, area: Area, directory: int, name: str, op: Op, applied: Applied) -> None:
        try:
            if area.recipe.exchanges:
                self._fs.rename_new(area.stage, op.stage, directory, name)
            else:
                self._link_new(area, directory, name, op)
        except FileExistsError:  # created since the check: kept, and reported
            self._replace(area, directory, name, op, applied)

    def _link_new(self, area: Area, directory: int, name: str, op: Op) -> None:
        try:
            self._fs.link(area.stage, op.stage, directory, name)
        except FileExistsError:
            raise
        except OSError as error:
            self._check_unlinkable(error, directory, name, op)
            self._fs.rename_over(area.stage, op.stage, directory, name)
        else:
            self._fs.unlink(area.stage, op.stage)

    def _check_unlinkable(self, error: OSError, directory: int, name: str, op: Op) -> None:
        """Without hard links (FAT, some FUSE) the old version lives on in the log only: look first."""
        if error.errno not in _NO_LINKS:
            raise error
        found = self._fs.lstat(directory, name)
        now = Stamp.of(found) if found is not None else None
        if now is not None and not (op.old_stamp is not None and op.old_stamp.same_content(now)):
            raise OSError(errno.EBUSY, "somebody else changed it during the commit", op.path)

    def _overwrite(self, op: Op, area: Area, directory: int, name: str) -> None:
        """The same file gets new bytes: readers may see it half written, a crash is mended from the log."""
        source = self._fs.open_file(area.stage, op.stage)
        try:
            target = self._fs.open_to_overwrite(directory, name)
            try:
                overwrite(self._fs, source, target, op)
            finally:
                self._fs.close(target)
        finally:
            self._fs.close(source)

    def _delete(self, area: Area, directory: int, name: str, op: Op, applied: Applied) -> None:
        try:
            if area.recipe.exchanges:
                self._fs.rename_new(directory, name, area.stage, op.stage)
            else:
                self._fs.rename_over(directory, name, area.stage, op.stage)
        except FileNotFoundError:
            return
        self._note_displaced(area, op, op.stage, applied)

    def _chmod_file(self, directory: int, name: str, op: Op) -> None:
        assert isinstance(op.new, File)
        fd = self._fs.open_file(directory, name)
        try:
            self._fs.chmod(fd, op.new.mode)
        finally:
            self._fs.close(fd)

    def _mkdir(self, directory: int, name: str, mode: int, op: Op) -> None:
        try:
            self._fs.mkdir(directory, name, mode)
        except FileExistsError:
            found = self._fs.lstat(directory, name)
            if found is None or not fsops.is_directory(found):
                raise
            return
        dress_directory(self._fs, directory, name, op)

    def _rmdir(self, directory: int, name: str, op: Op, applied: Applied) -> None:
        try:
            self._fs.rmdir(directory, name)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            applied.foreign.append((op, "a directory with something new in it; it stays"))

    def _note_displaced(self, area: Area, op: Op, name: str, applied: Applied) -> None:
        """What came out of the swap must be the version that the transaction had read."""
        found = self._fs.lstat(area.stage, name)
        if found is not None:
            foreign = not is_expected(self._fs, area.stage, name, op, found)
            applied.displaced.append(Displaced(op, name, foreign))

    # --- whole directories ---

    def _apply_whole(
        self, op: Op, ops: list[Op], area: Area, directory: int, name: str, applied: Applied
    ) -> None:
        out = displaced_name(op, area.recipe)
        if isinstance(op.old, Absent):
            self._rename_free(area, area.stage, op.stage, directory, name)
            return
        try:
            self._take_out(area, op, directory, name, out)
        except FileNotFoundError:
            applied.foreign.append((op, "nothing: it was deleted"))
            if not isinstance(op.new, Absent):
                self._rename_free(area, area.stage, op.stage, directory, name)
            return
        self._look_at_tree(area, op, ops, out, applied)

    def _merge(self, top: Op, ops: list[Op], area: Area, parents: Parents, applied: Applied) -> None:
        """Somebody else has made the directory meanwhile: what is new goes into theirs, one by one."""
        if not isinstance(top.old, Absent):
            raise FileExistsError(errno.EEXIST, "somebody made it meanwhile", top.path)
        for op in [op for op in ops if op.within == top.path]:
            directory, name = parents.need(op.path), leaf_of(op.path)
            if isinstance(op.new, Directory):
                self._mkdir(directory, name, op.new.mode, op)
                parents.forget(op.path)
            else:
                staged = replace(op, stage=f"{top.stage}{op.path[len(top.path) :]}")
                self._create(area, directory, name, staged, applied)

    def _take_out(self, area: Area, op: Op, directory: int, name: str, out: str) -> None:
        if isinstance(op.new, Absent):
            self._rename_free(area, directory, name, area.stage, out)
        elif area.recipe.exchanges:
            self._fs.exchange(area.stage, op.stage, directory, name)
        else:
            self._rename_free(area, directory, name, area.stage, out)
            self._rename_free(area, area.stage, op.stage, directory, name)

    def _rename_free(self, area: Area, from_dir: int, from_name: str, to_dir: int, to_name: str) -> None:
        if area.recipe.exchanges:
            self._fs.rename_new(from_dir, from_name, to_dir, to_name)
            return
        if self._fs.lstat(to_dir, to_name) is not None:
            raise FileExistsError(errno.EEXIST, "somebody made it meanwhile", to_name)
        self._fs.rename_over(from_dir, from_name, to_dir, to_name)

    def _look_at_tree(self, area: Area, op: Op, ops: list[Op], out: str, applied: Applied) -> None:
        """What came out with the directory must be what the transaction had read in it."""
        within = {child.path: child for child in ops if child.within == op.path}
        found = self._fs.lstat(area.stage, out)
        if found is None:
            return
        if not fsops.is_directory(found):
            self._note_displaced(area, op, out, applied)
            return
        foreign = list(foreign_files(self._fs, area.stage, out, op.path, within))
        applied.displaced.append(Displaced(op, out, foreign=False))
        for path, name in foreign:
            child = within.get(path, Op(path, op.old, op.new, mount=op.mount))
            applied.displaced.append(Displaced(child, name, foreign=True))

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
            area = self._tree.areas.of(op.mount)
            if op.stage and area.recipe.exchanges and not op.in_place:
                with contextlib.suppress(OSError):  # both versions still exist: the log finishes the change
                    self.swap_back(area, op, parents.need(op.path))
        applied.displaced = [d for d in applied.displaced if parent_of(d.op.path) != moved]

    def swap_back(self, area: Area, op: Op, directory: int) -> None:
        """The opposite of the change; the new version is in the stage again."""
        name = leaf_of(op.path)
        if isinstance(op.new, Absent):
            self._fs.rename_new(area.stage, op.stage, directory, name)
        elif isinstance(op.old, Absent):
            self._fs.rename_new(directory, name, area.stage, op.stage)
        else:
            self._fs.exchange(area.stage, op.stage, directory, name)


def overwrite(fs: FsOps, source: int, target: int, op: Op) -> None:
    """An existing file's bytes, in place, and flushed: there is no second version to fall back on."""
    assert isinstance(op.new, File)
    while chunk := fs.read_chunk(source, 1 << 20):
        fs.write(target, chunk)
    fs.truncate(target, op.new.size)
    fs.chmod(target, op.new.mode)
    fs.sync(target)


def dress_directory(fs: FsOps, directory: int, name: str, op: Op) -> None:
    """A new directory's owner and attributes."""
    if (op.uid, op.gid) == (-1, -1) and not op.xattrs:
        return
    assert isinstance(op.new, Directory)
    with fs.opened_dir(directory, name) as fd:
        if (op.uid, op.gid) != (-1, -1):
            fs.chown(fd, op.uid, op.gid)
        for key, value in op.xattrs.items():
            fs.set_xattr(fd, key, value)
        fs.chmod(fd, op.new.mode)


def displaced_name(op: Op, recipe: Recipe) -> str:
    """Where a replaced version lies in the stage."""
    replaced = not isinstance(op.new, Absent) and not recipe.exchanges
    return f"{op.stage}.old" if replaced else op.stage


def stage_names(op: Op, seq: int) -> tuple[str, ...]:
    """Every name that a change can have left in the stage."""
    spare = spare_name(op, seq)
    return (*([op.stage] if op.stage else []), *(f"{spare}{suffix}" for suffix in STAGE_SUFFIXES))


def spare_name(op: Op, seq: int) -> str:
    """What later tries at a change are named after: also one that needed no staged file at first."""
    return op.stage or f"{seq}.p{zlib.crc32(os.fsencode(op.path)):08x}"
