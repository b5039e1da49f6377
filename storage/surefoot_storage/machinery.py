"""The parts of an open workspace, put together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from .areas import Areas
from .checkpoint import Checkpoint
from .committing import Committer
from .contents import Contents
from .fsops import FsOps
from .hardening import Durability
from .policy import Policy
from .progress import Progress
from .rescuing import KeepForeign, Rescue
from .rollforward import RollForward
from .spares import Spares
from .staging import Stager
from .store import Store
from .tree import Tree


@dataclass(frozen=True)
class Recovered:
    """What opening the workspace had to do."""

    completed: tuple[str, ...] = ()  # paths that a crash had left behind their log
    foreign: tuple[str, ...] = ()  # paths that somebody had changed since; left alone
    unapplied: tuple[tuple[str, str], ...] = ()  # (path, cause) that still cannot be put in place


class Machinery:
    """One of each, for one store."""

    def __init__(
        self,
        fs: FsOps,
        store: Store,
        policy: Policy,
        durability: Durability,
        section: Callable[[], AbstractContextManager[object]],
        report: KeepForeign,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._flushes = durability != "none"
        self.areas = Areas(fs, store.layout, store.root, store.recipe)
        self.tree = Tree(fs, store.root, self.areas)
        spares = Spares(
            fs,
            store.root,
            worker=store.workers.id,
            choice=policy.spare_files if self._flushes else "never",
        )
        stager = Stager(fs, store.layout, self.areas, self.tree, spares, flushes=self._flushes)
        contents = Contents(fs, store.layout, self.areas, store.database)
        self.forward = RollForward(fs, store.layout, self.tree, store.database, stager, contents, report)
        self.progress = Progress(store.database, self.forward, store.mark, policy, store.ballast)
        self.committer = Committer(
            fs,
            store.layout,
            self.tree,
            store.database,
            stager=stager,
            progress=self.progress,
            umask=fs.umask(),
            worker=store.workers.id,
            policy=policy,
            level=durability,
            report=report,
            clock=clock,
        )
        self.checkpoint = Checkpoint(
            fs,
            store.layout,
            self.tree,
            store.database,
            forward=self.forward,
            rescue=Rescue(fs, store.layout, self.tree, contents, report),
            progress=self.progress,
            spares=spares,
            section=section,
            report=report,
        )

    def recover(self) -> Recovered:
        """At open, inside the critical section: what a dead process or a power cut left behind."""
        store = self._store
        living = store.workers.living()
        power_cut = store.database.epoch() != store.epoch
        outcome = self.progress.recover(power_cut=power_cut)
        alone = living == {store.workers.id}
        if not outcome.failed and (power_cut or (alone and self._flushes)):
            self.checkpoint.after_recovery(epoch=store.epoch, power_cut=power_cut)
        if not outcome.failed:
            self.checkpoint.sweep(living)
        return Recovered(tuple(outcome.completed), tuple(outcome.foreign), tuple(outcome.failed))
