"""Making committed files durable in their places, in the background.

Commits put files in place without flushing them: the log holds their contents until a checkpoint has
flushed the files themselves. Only then are the displaced old versions freed, which on some disks costs
about a millisecond each and therefore never happens on the commit path. One process at a time does it,
for all of them, outside the commit lock.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
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
from .layout import MARKER, SPARE_SUFFIX, Layout, parse_stage_name
from .locking import WAIT_S, CommitLock
from .log import Log
from .progress import Progress
from .rescuing import KeepForeign, Rescue
from .rollforward import RollForward
from .spares import Place, Spares
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
        rescue: Rescue,
        progress: Progress,
        spares: Spares,
        section: Callable[[], AbstractContextManager[object]],
        report: KeepForeign,
    ) -> None:
        self._fs = fs
        self._layout = layout
        self._tree = tree
        self._database = database
        self._forward = forward
        self._rescue = rescue
        self._progress = progress
        self._spares = spares
        self._section = section
        self._report = report
        self._held: dict[tuple[str, str], tuple[int, Op, Area, str, Mapping[str, Op]]] = {}
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
        self._free_held()
        entries = self._entries()
        if entries:
            upto = max(entry.seq for entry in entries)
            self._flush(entries, upto, epoch)
            try:
                self._free(entries)
            except BaseException:
                self._spares.stop()
                raise
            self._note_seq(upto)
            self._spares.settle(upto, self._keep)
        if self._database.log_is_long:
            with self._section():
                self._database.checkpoint_log()

    def _entries(self) -> list[Unsynced]:
        with self._section():
            backlog = self._progress.backlog
            if self._progress.blocked:
                return []
            if not backlog.theirs:
                return list(backlog.mine)
            return [Unsynced(seq, ops) for seq, ops in self._database.unchecked_ops()]

    def _flush(self, entries: list[Unsynced], upto: int, epoch: str) -> None:
        for op, seq in make_durable(self._fs, self._tree, entries):
            with self._section():
                self._forward.rewrite(op, seq)
        with self._section():
            self._database.mark_checkpointed(upto, epoch)
            self._progress.checkpointed(upto)

    def _note_seq(self, seq: int) -> None:
        """So that an older database, put back later, is recognised."""
        note = self._layout.read_note(MARKER) or {}
        self._layout.write_note(MARKER, {**note, "seq": seq}, durable=True)

    # --- freeing what was displaced ---

    def _free(self, entries: list[Unsynced]) -> None:
        places = self._places({op.path: op for entry in entries for op in entry.ops})
        for mount in sorted({op.mount for entry in entries for op in entry.ops}):
            area = self._tree.areas.of(mount)
            present = set(self._fs.names(area.stage))
            for entry in entries:
                by_path = {op.path: op for op in entry.ops}
                for op in [op for op in entry.ops if op.mount == mount]:
                    for name in present.intersection(stage_names(op, entry.seq)):
                        place = places.get(op.path)
                        if self._is_held(entry.seq, op, area, name, by_path):
                            continue
                        if place is None or not self._spares.put_by(entry.seq, op, area, name, place):
                            self._free_one(entry.seq, op, area, name, by_path, watched=False)
                    if op.kept:
                        self._fs.unlink(area.keep, op.stage)

    def _places(self, newest: Mapping[str, Op]) -> dict[str, Place | None]:
        """Of the paths whose displaced versions may be spare files: of the workspace's own filesystem."""
        if not self._spares.wanted:
            return {}
        with self._tree.parents() as parents:
            return {
                path: self._spares.place_of(parents.find(path), op)
                for path, op in newest.items()
                if not op.mount  # the note, which is flushed there, makes their names durable with it
            }

    def _free_one(
        self, seq: int, op: Op, area: Area, name: str, by_path: Mapping[str, Op], *, watched: bool = True
    ) -> None:
        """A writer that had the old version open may have gone on: its bytes are kept.

        `watched` where somebody has, or may have had: a store to a page that was mapped and dirty already
        leaves no stamp, so the content is looked at.
        """
        trust_stamp = area.recipe.fine_stamps and not watched
        found = self._fs.lstat(area.stage, name)
        if found is not None and fsops.is_directory(found):
            for path, inner in list(foreign_files(self._fs, area.stage, name, op.path, by_path)):
                self._keep(seq, path, area, inner)
            self._fs.remove_tree(area.stage, name)
        elif holds_version(self._fs, area.stage, name, op, trust_stamp=trust_stamp):
            self._spares.free(area, name)
        else:
            self._keep(seq, op.path, area, name)

    def _is_held(self, seq: int, op: Op, area: Area, name: str, by_path: Mapping[str, Op]) -> bool:
        """Whether somebody is still writing to it: then it is looked at again later."""
        found = self._fs.lstat(area.stage, name)
        held = found is not None and self._is_being_written(area.stage, name, found)
        if held:
            self._held[area.mount, name] = (seq, op, area, name, by_path)
        return held

    def _is_being_written(self, folder: int, name: str, found: os.stat_result) -> bool:
        if fsops.is_regular(found):
            return self._fs.has_writer(folder, name)
        if not fsops.is_directory(found):
            return False
        with self._fs.opened_dir(folder, name) as below:
            inner = [(leaf, self._fs.lstat(below, leaf)) for leaf in self._fs.names(below)]
            return any(f is not None and self._is_being_written(below, leaf, f) for leaf, f in inner)

    def _free_held(self) -> None:
        """What somebody was still writing to: perhaps not any more."""
        for key, waiting in list(self._held.items()):
            if not self._is_held(*waiting):
                self._free_one(*waiting)
                del self._held[key]

    def drop_spares(self) -> None:
        """This workspace's own; what resists goes when the workspace is next opened."""
        with contextlib.suppress(OSError, SurefootError):
            self._spares.remove_all(self._keep)

    def wipe(self, path: str) -> None:
        """What the stages still hold of a path's checkpointed versions, in whosever spare files."""
        for area in self._areas():
            for name in self._fs.names(area.stage):
                known = parse_stage_name(name)
                found = self._database.op_of(*known[1:]) if known is not None else None
                if found and found[1].path == path and found[0] <= self._progress.checkpointed_seq:
                    self._fs.unlink(area.stage, name)  # whoever misses it makes a new file

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
        self._rescue.run([(entry.seq, entry.ops) for entry in entries])
        for mount in {op.mount for entry in entries for op in entry.ops}:
            self._fs.sync(self._tree.areas.of(mount).stage)  # or another cut brings back what was removed
        self._database.mark_checkpointed(entries[-1].seq, epoch)
        self._progress.checkpointed(entries[-1].seq)
        self._note_seq(entries[-1].seq)

    def sweep(self, living: set[str]) -> None:
        """What dead workers left: files of no transaction go, displaced ones once they are not needed."""
        for area in self._areas():
            with contextlib.suppress(OSError, SurefootError):
                self._sweep(area, area.stage, living)
                self._sweep(area, area.keep, living)

    def _areas(self) -> Iterator[Area]:
        for mount in ("", *self._database.mounts()):
            with contextlib.suppress(OSError, SurefootError):  # unplugged: looked at when it is back
                yield self._tree.areas.of(mount)

    def _sweep(self, area: Area, folder: int, living: set[str]) -> None:
        changes: dict[int, dict[str, Op]] = {}  # of a transaction with many files, looked up once
        for name in self._fs.names(folder):
            known = parse_stage_name(name)
            if known is not None and known[0] in living:
                continue
            found = self._database.op_of(*known[1:]) if known is not None else None
            if (
                found is None
                or name.endswith(SPARE_SUFFIX)
                or (folder == area.keep and self._is_durable(found[0]))
            ):
                self._fs.remove_tree(folder, name)
            elif folder == area.stage and self._is_durable(found[0]):
                if found[0] not in changes:
                    changes[found[0]] = {op.path: op for op in self._database.ops_of(found[0])}
                if not self._is_held(*found, area, name, changes[found[0]]):
                    self._free_one(*found, area, name, changes[found[0]])

    def _is_durable(self, seq: int) -> bool:
        return seq <= self._progress.checkpointed_seq


def make_durable(fs: FsOps, tree: Tree, entries: list[Unsynced]) -> list[tuple[Op, int]]:
    """Flushes; returns the newest changes whose inodes failed to."""
    ops = [op for entry in entries for op in entry.ops]
    seqs = {op.path: entry.seq for entry in entries for op in entry.ops}
    return [(op, seqs[op.path]) for op in flush_files(fs, tree, ops)]
