"""Making committed files durable in their places, in the background.

Commits put files in place without flushing them: the log holds their contents until a checkpoint has
flushed the files themselves. Only then are the displaced old versions freed, which on some disks costs
about a millisecond each and therefore never happens on the commit path.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from .errors import SurefootError
from .fsops import FsOps
from .layout import Layout
from .paths import leaf_of, parent_of
from .states import Directory, File, Op
from .tree import Tree

TRANSACTIONS_MAX = 256
BYTES_MAX = 8 << 20
IDLE_S = 2.0
BACKLOG_PATHS_MAX = 4096  # past these, a commit waits for a checkpoint
BACKLOG_BYTES_MAX = 64 << 20
_SYNCFS_FILES_MIN = 64  # from here on one syncfs is cheaper than a flush for each file


@dataclass(frozen=True, slots=True)
class Unsynced:
    """One applied transaction whose files are not known to be durable."""

    seq: int
    ops: list[Op]

    @property
    def size_bytes(self) -> int:
        """New contents."""
        return sum(op.new.size for op in self.ops if isinstance(op.new, File))


def flush_files(fs: FsOps, tree: Tree, layout: Layout, ops: list[Op]) -> list[Op]:
    """Flushes the files and directories of these changes; returns the files that failed to flush."""
    recipe = tree.recipe
    if recipe.name == "memory":
        return []
    newest = {op.path: op for op in ops}
    files = [op for op in newest.values() if isinstance(op.new, File)]
    if recipe.name == "journal" and len(files) >= _SYNCFS_FILES_MIN:
        try:
            fs.sync_filesystem(tree.root)
        except OSError:
            return files  # nobody says which one failed
        return []
    failed = [op for op in files if not _flush_file(fs, tree, op)]
    folders = {parent_of(op.path) for op in newest.values()}
    folders |= {op.path for op in newest.values() if isinstance(op.new, Directory)}
    for folder in sorted(folders):
        _flush_folder(fs, tree, folder)
    fs.sync(layout.stage)
    return failed


def _flush_file(fs: FsOps, tree: Tree, op: Op) -> bool:
    """False where the data could not be written: never flush that inode again."""
    try:
        directory = tree.open_parent(op.path, operation="flush")
        if directory is None:
            return True
        try:
            fd = fs.open_file(directory, leaf_of(op.path))
        finally:
            fs.close(directory)
    except (OSError, SurefootError):
        return True  # somebody else has put something else there
    try:
        fs.sync(fd)
    except OSError:
        return False
    finally:
        fs.close(fd)
    return True


def _flush_folder(fs: FsOps, tree: Tree, folder: str) -> None:
    try:
        fd = fs.open_dir(tree.root, folder)
    except OSError:
        return  # removed, with everything in it
    try:
        fs.sync(fd)
    finally:
        fs.close(fd)


class Checkpointer(threading.Thread):
    """Runs checkpoints when enough has piled up, or when it has been quiet for a while."""

    def __init__(self, checkpoint: Callable[[], None], *, idle_s: float = IDLE_S) -> None:
        super().__init__(name="surefoot-checkpoint", daemon=True)
        self._checkpoint = checkpoint
        self._idle_s = idle_s
        self._wake = threading.Condition()
        self._commits = 0
        self._urgent = False
        self._stopping = False

    def note(self, *, urgent: bool) -> None:
        """A commit happened; `urgent` when the backlog has reached its limit."""
        with self._wake:
            self._commits += 1
            self._urgent |= urgent
            if self._urgent or self._commits == 1:
                self._wake.notify()

    def stop(self) -> None:
        """Returns when the thread has ended."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self.join()

    def run(self) -> None:
        """Until stopped."""
        while self._await_work():
            self._checkpoint()

    def _await_work(self) -> bool:
        with self._wake:
            self._wake.wait_for(lambda: self._commits > 0 or self._stopping)
            while not (self._urgent or self._stopping):
                seen = self._commits
                self._wake.wait(self._idle_s)
                if self._commits == seen:
                    break
            self._commits, self._urgent = 0, False
            return not self._stopping
