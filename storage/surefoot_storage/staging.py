"""New versions on the disk before the commit point, where nobody looks: in the stage of their filesystem."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from dataclasses import dataclass, field

from .areas import Area, Areas
from .errors import Conflict, PathRefused, StageFailed, SurefootError, os_error_text
from .fsops import FsOps
from .layout import Layout
from .paths import leaf_of, parent_of
from .plan import Plan, is_whole
from .recipes import RecipeName
from .spares import Spares
from .states import Directory, File, Op, Snapshot
from .tree import Tree
from .wants import Content, Existing, Spool

INLINE_BYTES_MAX = 256 << 10  # a content up to this size travels in the log itself
INLINE_TOTAL_BYTES_MAX = 1 << 20  # ... as long as one transaction's stay below this
SMALL_BYTES_MAX = 16 << 10  # ... but flushing a file as small as this costs more than logging it: these
SMALL_TOTAL_BYTES_MAX = 16 << 20  # have a limit of their own
_SYNCFS_FILES_MIN = 16  # from here on one syncfs is cheaper than a flush for each file
_OPEN_FILES_MAX = 16  # staged files held open until their write-out is awaited


@dataclass
class Staged:
    """Staged files of one transaction, and what of it travels in the log."""

    planned: list[Op]
    ops: list[Op] = field(default_factory=list)
    blobs: dict[bytes, tuple[int, bytes | None]] = field(default_factory=dict)
    open_files: dict[str, int] = field(default_factory=dict)
    together: bool = False  # large ones are made durable by one call at the end
    logged: bool = False  # the log holds the transaction, or may: the files must stay


class Stager:
    """Writes staged files by their filesystem's recipe."""

    def __init__(
        self, fs: FsOps, layout: Layout, areas: Areas, tree: Tree, spares: Spares, *, flushes: bool = True
    ) -> None:
        self._flushes = flushes
        self._spares = spares
        self._fs = fs
        self._layout = layout
        self._areas = areas
        self._tree = tree

    def stage(self, plan: Plan) -> Staged:
        """Everything that a commit needs, written; large contents durable under a second name.

        Raises:
            StageFailed, PathRefused: nothing is left behind.
        """
        staged = Staged(plan.ops)
        current = None
        try:
            room = _Room()
            inline = _choose_inline(plan, room)
            staged.together = self._syncs_together(plan, inline)
            with contextlib.ExitStack() as trees:
                folders: dict[str, int] = {}
                for op in plan.ops:
                    current = op
                    staged.ops.append(self._stage_op(op, plan, inline, staged, folders, trees))
                self._finish_trees(plan, folders)
            self._keep_old_versions(plan, staged, room)
            self._sync_folders(staged)
        except OSError as error:
            self.discard(staged)
            raise _failed(current, error) from error
        except BaseException:
            self.discard(staged)
            raise
        return staged

    def _stage_op(
        self,
        op: Op,
        plan: Plan,
        inline: set[bytes],
        staged: Staged,
        folders: dict[str, int],
        trees: contextlib.ExitStack,
    ) -> Op:
        area = self._areas.of(op.mount)
        if is_whole(op) and isinstance(op.new, Directory):
            self._stage_directory(op, plan, area, folders, trees)
        if not op.stage or not isinstance(op.new, File):
            return op
        folder, name = self._place(op, area, folders)
        content = plan.contents[op.new.digest]
        fd = self._written(op, content, area, folder, name)
        waits = False
        try:
            op = self._send(op, content, area, inline, staged, fd, folder, name)
            waits = (
                self._order(area) == "journal" and not op.kept and len(staged.open_files) < _OPEN_FILES_MAX
            )
        finally:
            if waits:
                staged.open_files[op.stage] = fd  # awaited after the commit point
            else:
                self._fs.close(fd)
        return op

    def _place(self, op: Op, area: Area, folders: dict[str, int]) -> tuple[int, str]:
        """Where the new version is staged: in the stage, or in a directory that is staged whole."""
        if op.within and not is_whole(op):
            return folders[parent_of(op.path)], leaf_of(op.path)
        return area.stage, op.stage

    def _send(
        self, op: Op, content: Content, area: Area, inline: set[bytes], staged: Staged,
        fd: int, folder: int, name: str,
    ) -> Op:  # fmt: skip
        assert isinstance(op.new, File)
        kept = op.new.digest not in inline
        if kept:
            if self._order(area) != "memory" and not staged.together:
                self._fs.sync_data(fd)
            self._fs.link(folder, name, area.keep, op.stage)
        else:
            self._send_off(fd, area)
            assert isinstance(content, bytes)
            staged.blobs[op.new.digest] = (len(content), content)
        found = self._fs.fstat(fd)
        return op.staged(found.st_ino, found.st_mtime_ns, kept=kept)

    def _written(self, op: Op, content: Content, area: Area, folder: int, name: str) -> int:
        """An open staged file with the new version's content, owner, mode and attributes."""
        if isinstance(content, bytes) and not op.within:
            spare = self._spares.filled(area, op, content)
            if spare is not None:
                return spare
        if isinstance(content, Spool):
            self._fs.rename_over(area.stage, content.name, folder, name)
            fd = self._fs.open_file(folder, name)
        else:
            fd = self._fs.create(folder, name)
        try:
            if isinstance(content, bytes):
                self._fs.write(fd, content)
            elif isinstance(content, Existing):
                self._copy_existing(content, fd)
            self.dress(op, fd)
        except BaseException:
            self._fs.close(fd)
            raise
        return fd

    def _copy_existing(self, content: Existing, target: int) -> None:
        source = self._tree.open_to_read(content.path)
        try:
            self._fs.copy(source, target)
        finally:
            self._fs.close(source)

    @contextlib.contextmanager
    def rewriting(self, op: Op) -> Iterator[int]:
        """A staged file for a version that is made again, with its final owner, mode and attributes.

        From the beginning: btrfs forgets a mode that was set after the flush.
        """
        fd = self._fs.create(self._areas.of(op.mount).stage, op.stage)
        try:
            self.dress(op, fd)
            yield fd
        finally:
            self._fs.close(fd)

    def dress(self, op: Op, fd: int) -> None:
        """Owner, mode and attributes."""
        if (op.uid, op.gid) != (-1, -1):
            self._fs.chown(fd, op.uid, op.gid)  # before chmod: it clears setuid bits
        mode = op.new.mode if isinstance(op.new, File | Directory) else 0o600
        for name, value in op.xattrs.items():
            if name == "security.selinux":
                with contextlib.suppress(OSError):  # the policy decides
                    self._fs.set_xattr(fd, name, value)
            else:
                self._fs.set_xattr(fd, name, value)
        self._fs.chmod(fd, mode)

    def _order(self, area: Area) -> RecipeName:
        """How data gets to the device before its name does: without flushes, not at all."""
        return area.recipe.name if self._flushes else "memory"

    def _send_off(self, fd: int, area: Area) -> None:
        order = self._order(area)
        if order == "journal":
            self._fs.start_writeback(fd)
        elif order != "memory":
            self._fs.sync_data(fd)

    def wait(self, staged: Staged) -> None:
        """Returns when all staged data is on the device: from then on names may be swapped."""
        tops = {op.path: op for op in staged.ops if is_whole(op)}
        for op in staged.ops:
            area = self._areas.of(op.mount)
            if self._order(area) != "journal" or op.kept or not op.stage or not isinstance(op.new, File):
                continue
            fd = staged.open_files.pop(op.stage, None)
            if fd is None:
                fd = self._open_staged(op, area, tops.get(op.within))
            try:
                self._fs.wait_writeback(fd)
            finally:
                self._fs.close(fd)

    def _open_staged(self, op: Op, area: Area, top: Op | None) -> int:
        if top is None or top is op:
            return self._fs.open_file(area.stage, op.stage)
        inner = parent_of(f"{top.stage}{op.path[len(top.path) :]}")
        with self._fs.opened_dir(area.stage, inner) as folder:
            return self._fs.open_file(folder, leaf_of(op.path))

    # --- whole directories ---

    def _stage_directory(
        self, top: Op, plan: Plan, area: Area, folders: dict[str, int], trees: contextlib.ExitStack
    ) -> None:
        """All its directories, and the files of it that stay; the new files follow."""
        made = {op.path for op in plan.ops if op.within == top.path and isinstance(op.new, Directory)}
        kept = set(plan.unchanged.get(top.path, ()))
        for path in sorted(made | kept):
            above, name = (
                (area.stage, top.stage) if path == top.path else (folders[parent_of(path)], leaf_of(path))
            )
            if path in made or isinstance(plan.bases[path].state, Directory):
                self._fs.mkdir(above, name, 0o700)
                folders[path] = self._fs.open_dir(above, name)
                trees.callback(self._fs.close, folders[path])
            else:
                self._link_kept(path, above, name)

    def _link_kept(self, path: str, above: int, name: str) -> None:
        """What does not change stays the same file, under a second name until the old directory is freed."""
        with self._tree.parents() as parents:
            self._fs.link(parents.need(path), leaf_of(path), above, name)

    def _finish_trees(self, plan: Plan, folders: dict[str, int]) -> None:
        """Owners and modes of staged directories, the innermost first; then they are made durable."""
        changed = {op.path: op for op in plan.ops if isinstance(op.new, Directory) and op.within}
        swapped = tuple(plan.unchanged)
        for path in sorted(folders, key=lambda p: -p.count("/")):
            fd = folders[path]
            if path in changed and isinstance(changed[path].old, Directory):
                self._dress_like(plan.bases[path], fd)
                self.dress(changed[path], fd)
            elif path in changed:
                self.dress(changed[path], fd)
            else:
                self._dress_like(plan.bases[path], fd)
            if self._flushes and any(path == top or path.startswith(f"{top}/") for top in swapped):
                self._fs.sync(fd)  # the log does not hold what stays the same: its names must be durable

    def _dress_like(self, base: Snapshot, fd: int) -> None:
        """A directory that stays, as it was."""
        assert base.stamp is not None
        self._fs.chown(fd, base.stamp.uid, base.stamp.gid)
        with self._tree.parents() as parents:
            xattrs = self._fs.xattrs(parents.need(base.path), leaf_of(base.path))
        for name, value in xattrs.items():
            self._fs.set_xattr(fd, name, value)
        self._fs.chmod(fd, base.stamp.mode)

    # --- old versions ---

    def _syncs_together(self, plan: Plan, inline: set[bytes]) -> bool:
        """Whether there are so many large versions, on the workspace's own disk, that one call is cheaper."""
        large = sum(digest not in inline for digest in plan.contents)
        large += sum(isinstance(op.old, File) and op.old.size > SMALL_BYTES_MAX for op in plan.ops)
        return (
            large >= _SYNCFS_FILES_MIN
            and self._areas.home.recipe.syncfs_is_safe
            and not any(op.mount for op in plan.ops)
        )

    def _keep_old_versions(self, plan: Plan, staged: Staged, room: _Room) -> None:
        """The version that is replaced becomes part of the commit: nothing else survives to undo with."""
        for op in plan.ops:
            base = plan.bases[op.path]
            gone = isinstance(op.old, File) and not (
                isinstance(op.new, File) and op.new.digest == op.old.digest
            )
            if not gone or not isinstance(op.old, File) or op.old.digest in staged.blobs:
                continue
            if base.data is not None and room.take(op.old.size):
                staged.blobs[op.old.digest] = (op.old.size, base.data)
            else:
                self._store_old(op.old, op.path, durable=self._flushes and not staged.together)
                staged.blobs[op.old.digest] = (op.old.size, None)

    def _store_old(self, old: File, path: str, *, durable: bool) -> None:
        with self._tree.parents() as parents:
            self._layout.store_blob(old.digest, parents.need(path), leaf_of(path), durable=durable)

    def _sync_folders(self, staged: Staged) -> None:
        if staged.together and self._flushes:
            self._fs.sync_filesystem(self._areas.home.stage)
            return
        for mount in {op.mount for op in staged.ops if op.kept}:
            area = self._areas.of(mount)
            if self._order(area) != "memory":
                self._fs.sync(area.keep)
                self._fs.sync(area.stage)

    def discard(self, staged: Staged) -> None:
        """Removes what was staged; leftovers that resist go when the workspace is next opened."""
        for fd in staged.open_files.values():
            self._fs.close(fd)
        staged.open_files.clear()
        for op in staged.planned:
            if op.stage:
                with contextlib.suppress(OSError, SurefootError):
                    area = self._areas.of(op.mount)
                    self._fs.remove_tree(area.stage, op.stage)
                    self._fs.unlink(area.keep, op.stage)


class _Room:
    """How much of one transaction still fits into the log."""

    def __init__(self) -> None:
        self._left = {True: SMALL_TOTAL_BYTES_MAX, False: INLINE_TOTAL_BYTES_MAX}

    def take(self, size: int) -> bool:
        """Whether a content of this size travels in the log."""
        small = size <= SMALL_BYTES_MAX
        if size > INLINE_BYTES_MAX or size > self._left[small]:
            return False
        self._left[small] -= size
        return True


def _choose_inline(plan: Plan, room: _Room) -> set[bytes]:
    """The contents that travel in the log: the smallest first."""
    held = [(len(data), digest) for digest, data in plan.contents.items() if isinstance(data, bytes)]
    return {digest for size, digest in sorted(held) if room.take(size)}


def _failed(op: Op | None, error: OSError) -> Exception:
    path = op.path if op else ""
    if error.errno in (errno.EPERM, errno.EACCES) and op is not None and op.uid >= 0:
        return PathRefused(
            "write",
            path,
            expected="a file that this user owns",
            found=f"a file of user {op.uid}",
            hint="a replacement must keep its owner, which only that user or root can do;"
            " Policy(metadata='drop') gives it a new one",
        )
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EBUSY):
        return Conflict(
            "stage",
            path,
            expected="the version that was read",
            found=f"another one, or none: {os_error_text(error)}",
            hint="run the transition again: it will read the new version",
        )
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return StageFailed(
        "stage",
        path,
        expected="room for the new version",
        found=os_error_text(error),
        hint="free some disk space; nothing was changed" if full else "nothing was changed; try again",
    )
