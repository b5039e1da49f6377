"""Making committed files durable in their places, in the background.

Commits put files in place without flushing them: the log holds their contents until a checkpoint has
flushed the files themselves. Only then are the displaced old versions freed, which on some disks costs
about a millisecond each and therefore never happens on the commit path. One process at a time does it,
for all of them, outside the commit lock.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

from . import fsops
from .applying import stage_names
from .areas import Area
from .backlog import Unsynced
from .conflicts import keep_conflict
from .displaced import foreign_files, holds_version
from .errors import SurefootError, WorkspaceBusy
from .flusher import flush_files
from .fsops import FsOps
from .layout import MARKER, Layout, parse_stage_name
from .locking import WAIT_S, CommitLock
from .log import Log
from .progress import Progress
from .rollforward import KeepForeign, RollForward
from .states import Op
from .tree import Tree


class Checkpoint:
    """Flushes, records that, then frees what was displaced."""

    def __init__(
        self,
        fs: FsOps,
        layout: Layout,
        tree: Tree,
        database: Log,
        *,
        forward: RollForward,
        progress: Progress,
        section: Callable[[], AbstractContextManager[object]],
        report: KeepForeign,
    ) -> None:
        self._fs = fs
        self._layout = layout
        self._tree = tree
        self._database = database
        self._forward = forward
        self._progress = progress
        self._section = section
        self._report = report
        self._alone = CommitLock(fs, lambda: fs.open_dir(layout.stage, "."), "checkpoint", wait_s=WAIT_S)

    def run(self, *, epoch: str, wait: bool) -> None:
        """Everything that was committed before the call, unless another process is at it (`wait`: then too).

        Raises:
            OSError, SurefootError: nothing is lost, the log still holds it; try again.
        """
        try:
            with self._alone.held(None if wait else 0.0):
                self.run_alone(epoch)
        except WorkspaceBusy:
            if wait:
                raise

    def alone(self) -> AbstractContextManager[bool]:
        """Keeps other checkpoints, and everything that lets old versions go, waiting."""
        return self._alone.held()

    def run_alone(self, epoch: str) -> None:
        """Inside `alone`."""
        entries = self._entries()
        if entries:
            self._flush(entries, epoch)
            self._free(entries)
        if self._database.log_is_long:
            with self._section():
                self._database.checkpoint_log()

    def _entries(self) -> list[Unsynced]:
        with self._section():
            backlog = self._progress.backlog
            if self._progress.blocked:
                return []
            if not backlog.others:
                return list(backlog.mine)
            return [Unsynced(seq, ops) for seq, ops in self._database.unchecked_ops()]

    def _flush(self, entries: list[Unsynced], epoch: str) -> None:
        for op, seq in make_durable(self._fs, self._tree, entries):
            with self._section():
                self._forward.rewrite(op, seq)
        upto = max(entry.seq for entry in entries)
        with self._section():
            self._database.mark_checkpointed(upto, epoch)
            self._progress.checkpointed(upto)
        self._note_seq(upto)

    def _note_seq(self, seq: int) -> None:
        """So that an older database, put back later, is recognised."""
        note = {**(self._layout.read_note(MARKER) or {}), "seq": seq}
        self._layout.write_note(MARKER, note, durable=True)

    # --- freeing what was displaced ---

    def _free(self, entries: list[Unsynced]) -> None:
        for mount in sorted({op.mount for entry in entries for op in entry.ops}):
            area = self._tree.areas.of(mount)
            present = set(self._fs.names(area.stage))
            for entry in entries:
                by_path = {op.path: op for op in entry.ops}
                for op in entry.ops:
                    if op.mount != mount:
                        continue
                    for name in stage_names(op, entry.seq):
                        if name in present:
                            self._free_one(entry.seq, op, area, name, by_path)
                    if op.kept:
                        self._fs.unlink(area.keep, op.stage)

    def _free_one(self, seq: int, op: Op, area: Area, name: str, by_path: Mapping[str, Op]) -> None:
        """A writer that still had the old version open may have gone on: its bytes are kept."""
        found = self._fs.lstat(area.stage, name)
        if found is not None and fsops.is_directory(found):
            for path, inner in list(foreign_files(self._fs, area.stage, name, op.path, by_path)):
                self._keep(seq, path, area, inner)
            self._fs.remove_tree(area.stage, name)
        elif holds_version(self._fs, area.stage, name, op, trust_stamp=area.recipe.fine_stamps):
            self._fs.unlink(area.stage, name)
        else:
            self._keep(seq, op.path, area, name)

    def _keep(self, seq: int, path: str, area: Area, name: str) -> None:
        kept_as = keep_conflict(self._fs, self._layout, area.stage, name, seq, path)
        with self._section():
            self._report(seq, path, kept_as, "written to after it had been replaced")

    def after_recovery(self, *, epoch: str, power_cut: bool) -> None:
        """Nobody else works here: everything is made durable at once, and the stage given back."""
        entries = [Unsynced(seq, ops) for seq, ops in self._database.unchecked_ops()]
        if not entries:
            if power_cut:
                self._database.mark_checkpointed(0, epoch)
            return
        for op, seq in make_durable(self._fs, self._tree, entries):
            self._forward.rewrite(op, seq)
        self._forward.rescue([(entry.seq, entry.ops) for entry in entries])
        self._database.mark_checkpointed(entries[-1].seq, epoch)
        self._progress.checkpointed(entries[-1].seq)
        self._note_seq(entries[-1].seq)

    def sweep(self, living: set[str]) -> None:
        """What dead workers left: files of no transaction go, displaced ones once they are not needed."""
        for mount in ("", *self._database.mounts()):
            with contextlib.suppress(OSError, SurefootError):  # unplugged: swept when it is back
                area = self._tree.areas.of(mount)
                self._sweep(area, area.stage, living)
                self._sweep(area, area.keep, living)

    def _sweep(self, area: Area, folder: int, living: set[str]) -> None:
        for name in self._fs.names(folder):
            known = parse_stage_name(name)
            if known is not None and known[0] in living:
                continue
            found = self._database.op_of(*known[1:]) if known is not None else None
            if found is None or (folder == area.keep and found[0] <= self._progress.checkpointed_seq):
                self._fs.remove_tree(folder, name)
            elif folder == area.stage and found[0] <= self._progress.checkpointed_seq:
                by_path = {op.path: op for op in self._database.ops_of(found[0])}
                self._free_one(*found, area, name, by_path)


def make_durable(fs: FsOps, tree: Tree, entries: list[Unsynced]) -> list[tuple[Op, int]]:
    """Flushes; returns the newest changes whose inodes failed to."""
    ops = [op for entry in entries for op in entry.ops]
    seqs = {op.path: entry.seq for entry in entries for op in entry.ops}
    return [(op, seqs[op.path]) for op in flush_files(fs, tree, ops)]
