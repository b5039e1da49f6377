"""The commit: stage → check → log → apply. And what keeps the log short: settle, recover, checkpoint.

The caller holds the workspace's mutex from the check to the end of the apply, so nobody commits on top
of files that are not in place, and only the last transaction can be unapplied after a kill.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from . import fsops
from .applying import Applied, Applier, stage_names
from .checkpoint import (
    BACKLOG_BYTES_MAX,
    BACKLOG_PATHS_MAX,
    BYTES_MAX,
    TRANSACTIONS_MAX,
    Unsynced,
    flush_files,
)
from .database import Database
from .errors import CommitFailed, Conflict, WorkspaceBlocked
from .fsops import FsOps
from .layout import Layout
from .paths import CONTROL_DIR, leaf_of
from .plan import Plan, plan
from .rollforward import KeepForeign, Outcome, RollForward, keep_conflict
from .staging import Staged, Stager
from .states import Absent, Directory, File, Op, Snapshot, Stamp, digest_of
from .transaction import FileTransaction
from .tree import Parents, Tree


@dataclass(frozen=True)
class Commit:
    """A transaction that happened."""

    txid: str
    seq: int
    ops: tuple[Op, ...]
    unapplied: tuple[tuple[str, str], ...] = ()  # (path, cause): in the log, not in their place yet
    foreign: tuple[str, ...] = ()  # paths where somebody else's version came out, and was kept

    @property
    def applied(self) -> bool:
        """Whether every file is in its place."""
        return not self.unapplied


@dataclass
class _Backlog:
    unsynced: list[Unsynced] = field(default_factory=list)
    paths: int = 0
    size_bytes: int = 0

    def add(self, entry: Unsynced) -> None:
        self.unsynced.append(entry)
        self._count(entry, 1)

    def drop(self, entries: list[Unsynced]) -> None:
        del self.unsynced[: len(entries)]
        for entry in entries:
            self._count(entry, -1)

    def _count(self, entry: Unsynced, sign: int) -> None:
        self.paths += sign * len(entry.ops)
        self.size_bytes += sign * entry.size_bytes


class Committer:
    """Everything that happens to a sealed transaction."""

    def __init__(
        self,
        fs: FsOps,
        layout: Layout,
        tree: Tree,
        database: Database,
        *,
        stager: Stager,
        forward: RollForward,
        umask: int,
        report: KeepForeign,
    ) -> None:
        self._fs = fs
        self._layout = layout
        self._tree = tree
        self._database = database
        self._stager = stager
        self._forward = forward
        self._applier = Applier(fs, layout, tree)
        self._umask = umask
        self._report = report
        self._backlog = _Backlog()
        self._blocked: list[tuple[int, list[Op]]] = []
        self.unapplied: tuple[tuple[str, str], ...] = ()

    # --- stage, check, log ---

    def plan(self, tx: FileTransaction) -> Plan:
        """What the transaction does on disk."""
        return plan(tx, self._tree, umask=self._umask)

    @contextlib.contextmanager
    def staged(self, tx: FileTransaction) -> Iterator[Staged]:
        """The staged transaction; taken back unless the log holds it, or may hold it."""
        planned = self.plan(tx)
        staged = self._stager.stage(planned)
        try:
            yield staged
        except BaseException:
            if not staged.logged:
                self._stager.discard(staged, planned)
            raise

    def commit(self, tx: FileTransaction, staged: Staged, *, at: float) -> Commit:
        """Under the mutex."""
        if staged.ops:
            self._refuse_while_blocked()
        with self._tree.parents() as parents:
            self._check(tx, parents)
            staged.logged = True  # from here on its files are needed, whatever happens
            try:
                seq = self._database.commit(
                    tx.txid,
                    label=tx.label,
                    at=at,
                    ops=staged.ops,
                    blobs=staged.blobs,
                    statements=tx.statements,
                )
            except (CommitFailed, Conflict):
                staged.logged = False
                raise
            return self._apply(tx.txid, seq, staged, parents)

    def _check(self, tx: FileTransaction, parents: Parents) -> None:
        """Nobody may have changed what was read: the last look before the commit point."""
        for snapshot in tx.snapshots.values():
            shared = isinstance(snapshot.state, Absent) and tx.may_be_made_by_others(snapshot.path)
            self._check_snapshot(snapshot, parents, directory_is_fine=shared)
        for directory, names in tx.listings.items():
            now = self._tree.names(directory)
            if _listing(now, directory) != names:
                raise Conflict(
                    "commit",
                    f"{directory or '.'}/*",
                    expected=f"the listing that was read ({len(names or ())} names)",
                    found=f"another one ({len(now or ())} names)",
                )

    def _check_snapshot(
        self, snapshot: Snapshot, parents: Parents, *, directory_is_fine: bool = False
    ) -> None:
        directory = parents.get(snapshot.path, operation="commit")
        found = None if directory is None else self._fs.lstat(directory, leaf_of(snapshot.path))
        if found is None:
            if not isinstance(snapshot.state, Absent):
                raise _conflict(snapshot, "nothing: it was deleted")
            return
        if directory_is_fine and fsops.is_directory(found):
            return
        now = Stamp.of(found)
        if isinstance(snapshot.state, Directory):
            if not fsops.is_directory(found) or now.mode != snapshot.state.mode:
                raise _conflict(snapshot, f"{fsops.kind_name(found)} (mode {now.mode:o})")
            return
        if now == snapshot.stamp and not snapshot.racy:
            return
        if snapshot.stamp is None or not now.same_content(snapshot.stamp) or not fsops.is_regular(found):
            raise _conflict(snapshot, f"{fsops.kind_name(found)} of {now.size} bytes, changed meanwhile")
        again = self._tree.load(snapshot.path, operation="commit", parents=parents)
        if again.state != snapshot.state:
            raise _conflict(snapshot, str(again.state))

    # --- apply ---

    def _apply(self, txid: str, seq: int, staged: Staged, parents: Parents) -> Commit:
        """After the commit point: nothing that happens here makes the transaction undone."""
        entry = (seq, staged.ops)
        self._blocked.append(entry)  # until it is applied: also when something unforeseen gets in the way
        try:
            self._stager.wait(staged)
            applied = self._applier.apply(staged.ops, parents)
        except OSError as error:  # the data cannot be written out: new inodes, from the log
            applied = Applied(failed=[(op, error) for op in staged.ops])
        self._keep_foreign(seq, applied)
        if applied.failed:
            self.settle()
        else:
            self._blocked.remove(entry)
            self._backlog.add(Unsynced(seq, staged.ops))
        foreign = [d.op.path for d in applied.displaced if d.foreign] + [op.path for op, _ in applied.foreign]
        return Commit(txid, seq, tuple(staged.ops), self.unapplied, tuple(foreign))

    def _keep_foreign(self, seq: int, applied: Applied) -> None:
        for displaced in applied.displaced:
            if not displaced.foreign:
                continue
            with contextlib.suppress(OSError):  # it lies safe in the stage: the checkpoint tries again
                kept_as = keep_conflict(self._fs, self._layout, displaced.name, seq, displaced.op.path)
                self._report(seq, displaced.op.path, kept_as, "an edit that raced the commit")
        for op, found in applied.foreign:
            self._report(seq, op.path, "", found)

    def settle(self) -> None:
        """Under the mutex: tries once more to put committed changes in place."""
        causes: list[tuple[str, str]] = []
        for seq, ops in list(self._blocked):
            outcome = self._forward.run([(seq, ops)], power_cut=False)
            if outcome.failed:
                causes += outcome.failed
                with contextlib.suppress(CommitFailed):  # a hint: recovery looks at the last one anyway
                    self._database.mark_blocked(seq, "; ".join(f"{p}: {c}" for p, c in outcome.failed))
            else:
                self._blocked.remove((seq, ops))
                self._backlog.add(Unsynced(seq, ops))
        self.unapplied = tuple(causes)

    def _refuse_while_blocked(self) -> None:
        if self._blocked:
            self.settle()
        if self._blocked:
            path, cause = self.unapplied[0]
            raise WorkspaceBlocked(
                "commit",
                path,
                expected="every earlier commit to be in place",
                found=f"{len(self.unapplied)} path(s) that cannot be put in place: {cause}",
                hint="remove the cause; the next commit, or surefoot recover, finishes it",
            )

    # --- recovery at open ---

    def recover(self, *, power_cut: bool, epoch: str) -> Outcome:
        """Finishes what the log says, then empties the stage. Killed anywhere, it is simply run again."""
        unchecked = self._database.unchecked_ops()
        if not unchecked:
            self._forward.sweep([])
            if power_cut:
                self._database.mark_checkpointed(0, epoch)
            return Outcome()
        doubtful = [
            (seq, ops)
            for seq, blocked, ops in unchecked
            if power_cut or blocked or seq == unchecked[-1][0]  # only the last can be unapplied after a kill
        ]
        outcome = self._forward.run(doubtful, power_cut=power_cut)
        if outcome.failed:
            failed = {path for path, _ in outcome.failed}
            self._blocked = [(seq, ops) for seq, ops in doubtful if failed & {op.path for op in ops}]
            self.unapplied = tuple(outcome.failed)
            return outcome
        for op, seq in self._make_durable([Unsynced(seq, ops) for seq, _, ops in unchecked]):
            self._forward.rewrite(op, seq)
        self._forward.sweep([(seq, ops) for seq, _, ops in unchecked])
        self._database.mark_checkpointed(unchecked[-1][0], epoch)
        return outcome

    # --- checkpoint ---

    @property
    def wants_checkpoint(self) -> bool:
        """Whether enough has piled up for the background."""
        backlog = self._backlog
        return (
            len(backlog.unsynced) >= TRANSACTIONS_MAX
            or backlog.size_bytes >= BYTES_MAX
            or self._database.log_is_long
        )

    @property
    def backlog_is_full(self) -> bool:
        """Whether a commit has to wait for a checkpoint."""
        return self._backlog.paths > BACKLOG_PATHS_MAX or self._backlog.size_bytes > BACKLOG_BYTES_MAX

    def checkpoint(self, exclusive: Callable[[], AbstractContextManager[None]], *, epoch: str) -> None:
        """Flushing and freeing happen outside the mutex; commits go on meanwhile."""
        with exclusive():
            entries = list(self._backlog.unsynced)
            blocked = bool(self._blocked)
        if entries:
            for op, seq in self._make_durable(entries):
                with exclusive():
                    self._forward.rewrite(op, seq)
            if not blocked:
                with exclusive():
                    self._database.mark_checkpointed(entries[-1].seq, epoch)
                    self._backlog.drop(entries)
                self._free_displaced(entries, exclusive)
        with exclusive():
            if self._database.log_is_long:
                self._database.checkpoint_log()

    def _make_durable(self, entries: list[Unsynced]) -> list[tuple[Op, int]]:
        """Flushes; returns the newest changes whose inodes failed to."""
        ops = [op for entry in entries for op in entry.ops]
        seqs = {op.path: entry.seq for entry in entries for op in entry.ops}
        failed = flush_files(self._fs, self._tree, self._layout, ops)
        return [(op, seqs[op.path]) for op in failed]

    def _free_displaced(
        self, entries: list[Unsynced], exclusive: Callable[[], AbstractContextManager[None]]
    ) -> None:
        present = set(self._fs.names(self._layout.stage))
        for entry in entries:
            for op in entry.ops:
                for name in stage_names(op):
                    if name in present:
                        self._free(entry.seq, op, name, exclusive)
                if op.kept:
                    self._fs.unlink(self._layout.keep, op.stage)

    def _free(
        self, seq: int, op: Op, name: str, exclusive: Callable[[], AbstractContextManager[None]]
    ) -> None:
        """A writer that still had the old version open may have gone on: its bytes are kept."""
        if self._is_untouched(op, name):
            self._fs.unlink(self._layout.stage, name)
            return
        data, _ = self._fs.read(self._layout.stage, name)
        versions = [state.digest for state in (op.old, op.new) if isinstance(state, File)]
        if digest_of(data) in versions:
            self._fs.unlink(self._layout.stage, name)
            return
        kept_as = keep_conflict(self._fs, self._layout, name, seq, op.path)
        with exclusive():
            self._report(seq, op.path, kept_as, "written to after it had been replaced")

    def _is_untouched(self, op: Op, name: str) -> bool:
        """By its stamp, where that proves it; by content otherwise."""
        if op.old_stamp is None or not self._tree.recipe.fine_stamps:
            return False
        found = self._fs.lstat(self._layout.stage, name)
        return found is not None and op.old_stamp.same_content(Stamp.of(found))


def _listing(names: tuple[str, ...] | None, directory: str) -> tuple[str, ...] | None:
    if names is None or directory:
        return names
    return tuple(name for name in names if name != CONTROL_DIR)


def _conflict(snapshot: Snapshot, found: str) -> Conflict:
    return Conflict(
        "commit",
        snapshot.path,
        expected=str(snapshot.state),
        found=found,
        hint="run the transition again: it will read the new version",
    )
