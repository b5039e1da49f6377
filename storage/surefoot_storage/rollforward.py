"""Carries out what `recovery.decide` says: the one way a logged change is finished later."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from . import fsops
from .applying import stage_names
from .database import Database
from .errors import SurefootError, os_error_text
from .fsops import FsOps
from .layout import Layout
from .paths import leaf_of
from .recovery import Action, Chain, chains, decide, looks_torn
from .staging import Stager
from .states import ABSENT, Absent, Directory, File, Op, Stamp, State, digest_of
from .tree import Parents, Tree

KeepForeign = Callable[[int, str, str, str], None]  # (sequence, path, kept as, what was found)


@dataclass
class Outcome:
    """What roll-forward did."""

    completed: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)  # (path, cause)


class RollForward:
    """Finishes logged changes; safe to repeat, and safe to be killed at any call."""

    def __init__(  # noqa: PLR0917 - one collaborator each
        self, fs: FsOps, layout: Layout, tree: Tree, database: Database, stager: Stager, report: KeepForeign
    ) -> None:
        self._fs = fs
        self._layout = layout
        self._tree = tree
        self._stager = stager
        self._database = database
        self._report = report

    def run(self, transactions: Sequence[tuple[int, Sequence[Op]]], *, power_cut: bool) -> Outcome:
        """Brings every path of these transactions to its newest logged version."""
        outcome = Outcome()
        for chain in chains(transactions):
            with self._tree.parents() as parents:
                try:
                    self._finish(chain, parents, outcome, power_cut=power_cut)
                except OSError as error:
                    outcome.failed.append((chain.path, os_error_text(error)))
                except SurefootError as error:
                    outcome.failed.append((chain.path, str(error).splitlines()[0]))
        return outcome

    def _finish(self, chain: Chain, parents: Parents, outcome: Outcome, *, power_cut: bool) -> None:
        now, data, stamp = self._look(chain, parents)
        torn = isinstance(now, File) and power_cut and self._torn(chain, data)
        newest = stamp is not None and (stamp.ino, stamp.mtime_ns) == (
            chain.last.stage_ino,
            chain.last.stage_mtime_ns,
        )
        action = decide(chain.states, now, power_cut=power_cut, torn=torn, newest_inode=newest)
        if action is not Action.DONE and parents.get(chain.path) is None:
            action = Action.FOREIGN  # somebody removed the whole directory
        if action is Action.FOREIGN:
            outcome.foreign.append(chain.path)
            self._report(chain.seq, chain.path, "", "a link or device" if now is None else str(now))
        elif action is not Action.DONE:
            self.make(chain, now, parents, keep_odd=action is Action.REPAIR)
            outcome.completed.append(chain.path)

    def _look(self, chain: Chain, parents: Parents) -> tuple[State | None, bytes, Stamp | None]:
        directory = parents.get(chain.path, operation="recover")
        if directory is None:
            return ABSENT, b"", None
        name = leaf_of(chain.path)
        found = self._fs.lstat(directory, name)
        if found is None:
            return ABSENT, b"", None
        stamp = Stamp.of(found)
        if fsops.is_directory(found):
            return Directory(stamp.mode), b"", stamp
        if not fsops.is_regular(found):
            return None, b"", stamp
        data, found = self._fs.read(directory, name)
        stamp = Stamp.of(found)
        return File(digest_of(data), len(data), stamp.mode), data, stamp

    def _torn(self, chain: Chain, data: bytes) -> bool:
        if not data.strip(b"\0"):
            return True
        return any(
            looks_torn(data, self._content(state.digest, chain.last))
            for state in chain.states
            if isinstance(state, File)
        )

    def rewrite(self, op: Op, seq: int) -> None:
        """The newest version once more on a new inode: its own failed to flush and is not trusted again."""
        assert isinstance(op.new, File)
        chain = Chain(op.path, (op.old, op.new), op, seq)
        with self._tree.parents() as parents:
            now, _, _ = self._look(chain, parents)
            if now == op.new:
                directory = parents.need(op.path)
                self._put(chain, op.new.digest, directory, there=True, keep_odd=False)
                self._fs.sync(directory)

    def make(self, chain: Chain, now: State | None, parents: Parents, *, keep_odd: bool = False) -> None:
        """The path gets its newest version on a new inode, durable when this returns."""
        name, new = leaf_of(chain.path), chain.states[-1]
        directory = parents.need(chain.path)
        if isinstance(now, Directory) and not isinstance(new, Directory):
            self._fs.rmdir(directory, name)
            parents.forget(chain.path)
        match new:
            case File(digest, _, mode):
                if isinstance(now, File) and now.digest == digest:
                    self._chmod(directory, name, mode)
                else:
                    self._put(chain, digest, directory, there=isinstance(now, File), keep_odd=keep_odd)
            case Directory(mode):
                if isinstance(now, File):
                    self._set_aside(chain, directory)
                if not isinstance(now, Directory):
                    self._fs.mkdir(directory, name, mode)
                with self._fs.opened_dir(directory, name) as fd:
                    self._fs.chmod(fd, mode)
            case Absent():
                if isinstance(now, File):
                    self._set_aside(chain, directory)
        self._fs.sync(directory)

    def _put(self, chain: Chain, digest: bytes, directory: int, *, there: bool, keep_odd: bool) -> None:
        again = replace(chain.last, stage=_spare_name(chain, "again"), new=chain.states[-1])
        name = leaf_of(chain.path)
        self._fs.unlink(self._layout.stage, again.stage)
        with self._stager.writing(again, self._content(digest, chain.last)) as fd:
            self._fs.sync_data(fd)
        if there and keep_odd and not self._tree.recipe.exchanges:
            self._keep(chain, self._set_aside(chain, directory), "a damaged file")
            there = False
        if not there:
            self._move_new(self._layout.stage, again.stage, directory, name)
        elif self._tree.recipe.exchanges:
            self._fs.exchange(self._layout.stage, again.stage, directory, name)
            if keep_odd:
                self._keep(chain, again.stage, "a damaged file")
        else:
            self._fs.rename_over(self._layout.stage, again.stage, directory, name)

    def _move_new(self, from_dir: int, from_name: str, to_dir: int, to_name: str) -> None:
        if self._tree.recipe.exchanges:
            self._fs.rename_new(from_dir, from_name, to_dir, to_name)
            return
        if self._fs.lstat(to_dir, to_name) is not None:
            raise FileExistsError(errno.EEXIST, "somebody made it meanwhile", to_name)
        self._fs.rename_over(from_dir, from_name, to_dir, to_name)

    def _set_aside(self, chain: Chain, directory: int) -> str:
        """Moves a file out of its place, to be dropped with the other stage files."""
        aside = _spare_name(chain, "aside")
        self._fs.unlink(self._layout.stage, aside)
        self._fs.rename_over(directory, leaf_of(chain.path), self._layout.stage, aside)
        return aside

    def _chmod(self, directory: int, name: str, mode: int) -> None:
        fd = self._fs.open_file(directory, name)
        try:
            self._fs.chmod(fd, mode)
            self._fs.sync(fd)
        finally:
            self._fs.close(fd)

    def _content(self, digest: bytes, op: Op) -> bytes:
        """The logged version: from the log, from its second name, or from the blobs."""
        data = self._database.blob(digest)
        if data is not None:
            return data
        for folder in (self._layout.keep, self._layout.stage):
            with contextlib.suppress(OSError):
                data, _ = self._fs.read(folder, op.stage)
                if digest_of(data) == digest:
                    return data
        return self._layout.read_blob(digest)

    def _keep(self, chain: Chain, stage_name: str, found: str) -> None:
        kept_as = keep_conflict(self._fs, self._layout, stage_name, chain.seq, chain.path)
        self._report(chain.seq, chain.path, kept_as, found)

    # --- what the crash left in the stage ---

    def sweep(self, transactions: Sequence[tuple[int, Sequence[Op]]]) -> None:
        """Keeps bytes that nobody logged (an edit that raced the swap), then empties the stage."""
        for seq, ops in transactions:
            for op in ops:
                for name in stage_names(op):
                    self._rescue(seq, op, name)
        for folder in (self._layout.stage, self._layout.keep):
            for name in self._fs.names(folder):
                self._fs.unlink(folder, name)

    def _rescue(self, seq: int, op: Op, name: str) -> None:
        found = self._fs.lstat(self._layout.stage, name)
        if found is None:
            return
        if fsops.is_regular(found):
            data, _ = self._fs.read(self._layout.stage, name)
            known = [state.digest for state in (op.old, op.new) if isinstance(state, File)]
            if not data or digest_of(data) in known or self._is_remnant(data, op):
                return
        kept_as = keep_conflict(self._fs, self._layout, name, seq, op.path)
        self._report(seq, op.path, kept_as, "an edit that raced the commit")

    def _is_remnant(self, data: bytes, op: Op) -> bool:
        """Our own file, cut short by the crash."""
        for state in (op.old, op.new):
            if isinstance(state, File):
                with contextlib.suppress(SurefootError):
                    version = self._content(state.digest, op)
                    if version.startswith(data) or looks_torn(data, version):
                        return True
        return False


def keep_conflict(fs: FsOps, layout: Layout, stage_name: str, seq: int, path: str) -> str:
    """Moves a foreign version from the stage to where people find it; returns its name there."""
    flat = path.replace("/", "__")[-120:]
    taken = set(fs.names(layout.conflicts))
    kept_as = next(n for n in (f"{seq}.{i}.{flat}" for i in range(1, 1_000_000)) if n not in taken)
    fs.rename_over(layout.stage, stage_name, layout.conflicts, kept_as)
    fs.sync(layout.conflicts)
    return kept_as


def _spare_name(chain: Chain, purpose: str) -> str:
    return f"{chain.last.stage or chain.seq}.{purpose}"
