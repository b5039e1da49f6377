"""The commit: stage → check → log → apply, for one transaction or for several that share a barrier.

From the check to the end of the apply the caller is inside the critical section, so nobody commits on
top of files that are not in place, and only the last batch can be unapplied after a kill.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from dataclasses import dataclass, field

from . import fsops
from .applying import Applied, Applier, Displaced
from .areas import Area
from .backlog import Unsynced
from .conflicts import keep_conflict
from .errors import CommitFailed, CommitOutcomeUnknown, Conflict, SurefootError, WorkspaceBlocked
from .fsops import FsOps
from .layout import Layout
from .log import Log
from .paths import ancestors_of, leaf_of, parent_of
from .plan import Plan, plan
from .policy import Policy
from .progress import Progress
from .queueing import Commit, Request
from .records import Member
from .rescuing import KeepForeign
from .rollforward import UNDECIDED
from .staging import Staged, Stager
from .states import Absent, Directory, File, Op, Snapshot, Stamp
from .transaction import FileTransaction
from .tree import Parents, Tree


@dataclass
class _Checked:
    """A request that may be logged, and the directories that it was checked against."""

    request: Request
    parents: Parents


class Committer:
    """Everything that happens to a sealed transaction."""

    def __init__(
        self,
        fs: FsOps,
        layout: Layout,
        tree: Tree,
        database: Log,
        *,
        stager: Stager,
        progress: Progress,
        umask: int,
        worker: str,
        policy: Policy,
        level: str,
        report: KeepForeign,
        clock: Callable[[], float],
    ) -> None:
        self._fs = fs
        self._layout = layout
        self._tree = tree
        self._database = database
        self._stager = stager
        self._applier = Applier(fs, tree)
        self._progress = progress
        self._umask = umask
        self._worker = worker
        self._policy = policy
        self._level = level
        self._report = report
        self._clock = clock

    # --- before the section: plan and stage ---

    def plan(self, tx: FileTransaction) -> Plan:
        """What the transaction does on disk."""
        return plan(tx, self._tree, umask=self._umask, worker=self._worker, policy=self._policy)

    def stage(self, tx: FileTransaction) -> Staged:
        """The transaction's new versions, on the disk.

        Raises:
            PathRefused, IncompatibleOperations, StageFailed, Conflict, …: nothing is left behind.
        """
        try:
            with self._tree.turn:
                return self._stager.stage(self.plan(tx))
        finally:
            tx.drop_spools()  # what was staged has another name by now

    def drop(self, staged: Staged) -> None:
        """Takes it back, unless the log holds it, or may hold it."""
        if not staged.logged:
            self._stager.discard(staged)

    # --- inside it: check, log, apply ---

    def carry_out(self, batch: list[Request]) -> None:
        """Settles the requests, except those that depend on an earlier one: they come with the next batch.

        Raises:
            CommitOutcomeUnknown: of all of them.
        """
        with self._tree.turn, contextlib.ExitStack() as stack:
            checked: list[_Checked] = []
            written = _Written()
            for request in batch:
                if written.matters_to(request):
                    continue
                parents = stack.enter_context(self._tree.parents())
                try:
                    self._check_request(request, parents)
                except (SurefootError, OSError) as error:
                    request.finish(error=error)
                    continue
                checked.append(_Checked(request, parents))
                written.add(request)
            if checked:
                self._log_and_apply(checked)

    def _check_request(self, request: Request, parents: Parents) -> None:
        if request.tx is None:
            return
        assert request.staged is not None
        if request.staged.ops:
            self._refuse_while_blocked()
        self._check(request.tx, parents)
        self._check_directories(request.staged.ops, parents)

    def _check_directories(self, ops: list[Op], parents: Parents) -> None:
        """What is put somewhere needs its directory, or makes it."""
        made = {op.path for op in ops if isinstance(op.new, Directory)}
        for op in ops:
            above = parent_of(op.path)
            if above not in made and not isinstance(op.new, Absent) and parents.get(op.path) is None:
                raise Conflict(
                    "commit",
                    above,
                    expected="the directory that was there",
                    found="nothing: it was removed",
                    hint="run the transition again: it will make it",
                )

    def _log_and_apply(self, checked: list[_Checked]) -> None:
        requests = [entry.request for entry in checked]
        _mark_logged(requests, True)  # from here on their files are needed, whatever happens
        try:
            results = self._database.commit(
                [_member(request, self._level) for request in requests],
                at=self._clock(),
                durable=any(request.durable for request in requests),
                waiting=self._tree.turn.lent,
            )
        except CommitFailed as error:
            results = [error] * len(requests)
        except CommitOutcomeUnknown as error:
            for request in requests:
                request.finish(error=error)
            raise
        except BaseException:  # Ctrl-C before the commit point: the others are taken along by the next leader
            _mark_logged(requests, False)
            raise
        self._progress.logged(max([seq for seq in results if isinstance(seq, int)], default=0))
        for entry, result in zip(checked, results, strict=True):
            if isinstance(result, SurefootError):
                _mark_logged([entry.request], False)
                entry.request.finish(error=result)
        self._apply_all([(e, seq) for e, seq in zip(checked, results, strict=True) if isinstance(seq, int)])

    def _apply_all(self, logged: list[tuple[_Checked, int]]) -> None:
        """Whatever gets in the way, the log holds them all: what is not in place now is finished later."""
        try:
            for entry, seq in logged:
                request = entry.request
                if request.tx is None or request.staged is None:
                    request.finish()
                else:
                    request.finish(self._apply(request.tx.txid, seq, request.staged, entry.parents))
            self._progress.applied()
        except BaseException as error:
            for entry, seq in logged:
                if not entry.request.done:
                    entry.request.finish(self._unfinished(entry.request, seq, error))
            if not isinstance(error, Exception):
                raise

    def _unfinished(self, request: Request, seq: int, error: BaseException) -> Commit:
        assert request.tx is not None
        assert request.staged is not None
        ops = request.staged.ops
        if seq not in [known for known, _ in self._progress.blocked]:
            self._progress.blocked.append((seq, ops))
        cause = f"{type(error).__name__}: {error}"
        self._progress.unapplied += tuple((op.path, cause) for op in ops)
        return Commit(request.tx.txid, seq, tuple(ops), tuple((op.path, cause) for op in ops))

    def _check(self, tx: FileTransaction, parents: Parents) -> None:
        """Nobody may have changed what was read: the last look before the commit point."""
        for snapshot in tx.snapshots.values():
            shared = isinstance(snapshot.state, Absent) and tx.may_be_made_by_others(snapshot.path)
            self._check_snapshot(snapshot, parents, directory_is_fine=shared)
        for directory, names in tx.listings.items():
            now = self._tree.names(directory)
            if now != names:
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

    def _apply(self, txid: str, seq: int, staged: Staged, parents: Parents) -> Commit:
        """After the commit point: nothing that happens here makes the transaction undone."""
        progress = self._progress
        entry = (seq, staged.ops)
        progress.blocked.append(entry)  # until it is applied
        try:
            self._stager.wait(staged)
            applied = self._applier.apply(staged.ops, parents)
        except OSError as error:  # the data cannot be written out: new inodes, from the log
            applied = Applied(failed=[(op, error) for op in staged.ops])
        foreign = [d.op.path for d in applied.displaced if d.foreign] + [op.path for op, _ in applied.foreign]
        self._settle_foreign(seq, applied, parents)
        if applied.failed:
            progress.settle()
        else:
            progress.blocked.remove(entry)
            progress.backlog.add(Unsynced(seq, staged.ops))
        paths = {op.path for op in staged.ops}
        left = tuple((path, cause) for path, cause in progress.unapplied if path in paths)
        return Commit(txid, seq, tuple(staged.ops), left, tuple(foreign))

    def _settle_foreign(self, seq: int, applied: Applied, parents: Parents) -> None:
        """An edit that raced the swap: one of the two versions stays, the other one is kept."""
        for displaced in applied.displaced:
            if displaced.foreign:
                self._settle_displaced(seq, displaced, applied, parents)
        for op, found in applied.foreign:
            self._report(seq, op.path, "", found)

    def _settle_displaced(self, seq: int, displaced: Displaced, applied: Applied, parents: Parents) -> None:
        op, kept = displaced.op, "theirs"
        area = self._tree.areas.of(op.mount)
        if self._policy.on_race != "ours" and not op.within and area.recipe.exchanges:
            try:
                self._put_back(area, displaced, parents.need(op.path))
            except OSError as error:  # gone again: ours stays
                self._report(seq, op.path, "", f"an edit that could not be put back: {error}")
                return
            kept = "ours"
            if self._policy.on_race == "block":
                applied.failed.append((op, OSError(errno.EBUSY, UNDECIDED, op.path)))
        kept_as = ""
        if kept == "theirs" or isinstance(op.new, File):
            with contextlib.suppress(OSError):  # it lies safe in the stage: the checkpoint tries again
                kept_as = keep_conflict(self._fs, self._layout, area.stage, displaced.name, seq, op.path)
        if kept_as or kept == "ours":
            self._report(seq, op.path, kept_as, "an edit that raced the commit", kept=kept)

    def _put_back(self, area: Area, displaced: Displaced, directory: int) -> None:
        name = leaf_of(displaced.op.path)
        if isinstance(displaced.op.new, Absent):
            self._fs.rename_new(area.stage, displaced.name, directory, name)
        else:
            self._fs.exchange(area.stage, displaced.name, directory, name)

    def _refuse_while_blocked(self) -> None:
        progress = self._progress
        if progress.blocked:
            progress.settle()
        if progress.blocked:
            path, cause = progress.unapplied[0]
            raise WorkspaceBlocked(
                "commit",
                path,
                expected="every earlier commit to be in place",
                found=f"{len(progress.unapplied)} path(s) that cannot be put in place: {cause}",
                hint="remove the cause; the next commit, or surefoot recover, finishes it",
            )


def _mark_logged(requests: list[Request], logged: bool) -> None:
    for request in requests:
        if request.staged is not None:
            request.staged.logged = logged


def _member(request: Request, level: str) -> Member:
    tx, staged = request.tx, request.staged
    if tx is None or staged is None:
        return Member(request.statements)
    return Member(request.statements, tx.txid, tx.label, tx.owner, level, tx.actor, staged.ops, staged.blobs)


@dataclass
class _Written:
    """What the earlier members of a batch change."""

    paths: set[str] = field(default_factory=set)
    listings: set[str] = field(default_factory=set)  # directories in which names come or go

    def add(self, request: Request) -> None:
        """One more member."""
        for op in request.staged.ops if request.staged is not None else ():
            self.paths.add(op.path)
            if _lists_differ(op):
                self.listings.add(parent_of(op.path))

    def matters_to(self, request: Request) -> bool:
        """Whether the request reads, lists or lies below any of it: then it waits for the next batch."""
        if request.tx is None or request.staged is None or not self.paths:
            return False
        above = {directory for op in request.staged.ops for directory in ancestors_of(op.path)}
        reads = self.paths.isdisjoint(request.tx.snapshots) and self.paths.isdisjoint(above)
        return not (reads and self.listings.isdisjoint(request.tx.listings))


def _lists_differ(op: Op) -> bool:
    return isinstance(op.old, Absent) != isinstance(op.new, Absent)


def _conflict(snapshot: Snapshot, found: str) -> Conflict:
    return Conflict(
        "commit",
        snapshot.path,
        expected=str(snapshot.state),
        found=found,
        hint="run the transition again: it will read the new version",
    )
