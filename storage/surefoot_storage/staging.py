"""New versions on the disk before the commit point, where nobody looks: in `.surefoot/stage`."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from .errors import PathRefused, StageFailed, os_error_text
from .fsops import FsOps
from .layout import Layout
from .plan import Plan
from .recipes import Recipe
from .states import File, Op

INLINE_BYTES_MAX = 256 << 10  # a content up to this size travels in the log itself
INLINE_TOTAL_BYTES_MAX = 1 << 20  # ... as long as one transaction's stay below this
_OPEN_FILES_MAX = 64  # staged files held open until their write-out is awaited


@dataclass
class Staged:
    """Staged files of one transaction, and what of it travels in the log."""

    ops: list[Op]
    blobs: dict[bytes, tuple[int, bytes | None]] = field(default_factory=dict)
    open_files: dict[str, int] = field(default_factory=dict)
    logged: bool = False  # the log holds the transaction, or may: the files must stay


class Stager:
    """Writes staged files by the filesystem's recipe."""

    def __init__(self, fs: FsOps, layout: Layout, recipe: Recipe) -> None:
        self._fs = fs
        self._layout = layout
        self._recipe = recipe

    def stage(self, plan: Plan) -> Staged:
        """Everything that a commit needs, written; large contents durable under a second name.

        Raises:
            StageFailed, PathRefused: nothing is left behind.
        """
        staged = Staged([])
        current = None
        try:
            inline = _choose_inline(plan)
            for op in plan.ops:
                current = op
                staged.ops.append(self._stage_op(op, plan, inline, staged))
            self._keep_old_versions(plan, staged)
            self._sync_folders(staged)
        except OSError as error:
            self.discard(staged, plan)
            raise _failed(current, error) from error
        except BaseException:
            self.discard(staged, plan)
            raise
        return staged

    def _stage_op(self, op: Op, plan: Plan, inline: set[bytes], staged: Staged) -> Op:
        if not op.stage or not isinstance(op.new, File):
            return op
        data = plan.contents[op.new.digest]
        kept = op.new.digest not in inline
        with self.writing(op, data) as fd:
            if kept:
                self._fs.sync_data(fd)
                self._fs.link(self._layout.stage, op.stage, self._layout.keep, op.stage)
            else:
                self._send_off(fd)
                staged.blobs[op.new.digest] = (len(data), data)
            found = self._fs.fstat(fd)
            if self._recipe.name == "journal" and not kept and len(staged.open_files) < _OPEN_FILES_MAX:
                staged.open_files[op.stage] = self._fs.dup(fd)  # awaited after the commit point
        return replace(op, stage_ino=found.st_ino, stage_mtime_ns=found.st_mtime_ns, kept=kept)

    @contextlib.contextmanager
    def writing(self, op: Op, data: bytes) -> Iterator[int]:
        """The staged file with its final owner, mode and attributes, still open."""
        assert isinstance(op.new, File)
        fd = self._fs.create(self._layout.stage, op.stage)
        try:
            self._fs.write(fd, data)
            if (op.uid, op.gid) != (-1, -1):
                self._fs.chown(fd, op.uid, op.gid)  # before chmod: it clears setuid bits
            self._fs.chmod(fd, op.new.mode)
            for name, value in op.xattrs.items():
                self._fs.set_xattr(fd, name, value)
            yield fd
        finally:
            self._fs.close(fd)

    def _send_off(self, fd: int) -> None:
        if self._recipe.name == "journal":
            self._fs.start_writeback(fd)
        elif self._recipe.name == "portable":
            self._fs.sync_data(fd)

    def wait(self, staged: Staged) -> None:
        """Returns when all staged data is on the device: from then on names may be swapped."""
        if self._recipe.name != "journal":
            return
        for op in staged.ops:
            if not op.stage or not isinstance(op.new, File) or op.kept:
                continue
            fd = staged.open_files.pop(op.stage, None)
            if fd is None:
                fd = self._fs.open_file(self._layout.stage, op.stage)
            try:
                self._fs.wait_writeback(fd)
            finally:
                self._fs.close(fd)

    def _keep_old_versions(self, plan: Plan, staged: Staged) -> None:
        """The version that is replaced becomes part of the commit: nothing else survives to undo with."""
        total = sum(size for size, data in staged.blobs.values())
        for op in plan.ops:
            base = plan.bases[op.path]
            if not isinstance(op.old, File) or not op.stage or op.old.digest in staged.blobs:
                continue
            total += op.old.size
            if op.old.size <= INLINE_BYTES_MAX and total <= INLINE_TOTAL_BYTES_MAX:
                staged.blobs[op.old.digest] = (op.old.size, base.data)
            else:
                self._layout.store_blob(op.old.digest, base.data)
                staged.blobs[op.old.digest] = (op.old.size, None)

    def _sync_folders(self, staged: Staged) -> None:
        if any(op.kept for op in staged.ops):
            self._fs.sync(self._layout.keep)
            self._fs.sync(self._layout.stage)

    def discard(self, staged: Staged, plan: Plan) -> None:
        """Removes what was staged; leftovers that resist go when the workspace is next opened."""
        for fd in staged.open_files.values():
            self._fs.close(fd)
        staged.open_files.clear()
        for op in plan.ops:
            if op.stage:
                for folder in (self._layout.stage, self._layout.keep):
                    with contextlib.suppress(OSError):
                        self._fs.unlink(folder, op.stage)


def _choose_inline(plan: Plan) -> set[bytes]:
    """The contents that travel in the log: the smallest first, up to the total."""
    chosen: set[bytes] = set()
    total = 0
    for digest, data in sorted(plan.contents.items(), key=lambda item: len(item[1])):
        total += len(data)
        if len(data) > INLINE_BYTES_MAX or total > INLINE_TOTAL_BYTES_MAX:
            break
        chosen.add(digest)
    return chosen


def _failed(op: Op | None, error: OSError) -> Exception:
    path = op.path if op else ""
    if error.errno in (errno.EPERM, errno.EACCES) and op is not None and op.uid >= 0:
        return PathRefused(
            "write",
            path,
            expected="a file that this user owns",
            found=f"a file of user {op.uid}",
            hint="a replacement must keep its owner, which only that user or root can do",
        )
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return StageFailed(
        "stage",
        path,
        expected="room for the new version",
        found=os_error_text(error),
        hint="free some disk space; nothing was changed" if full else "nothing was changed; try again",
    )
