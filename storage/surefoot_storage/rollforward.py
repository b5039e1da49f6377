"""Carries out what `recovery.decide` says: the one way a logged change is finished later."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from . import fsops
from .applying import dress_directory, overwrite, spare_name, stage_names
from .areas import Area
from .conflicts import keep_conflict
from .contents import Contents
from .errors import SurefootError, os_error_text
from .fsops import FsOps
from .layout import Layout
from .log import Log
from .paths import leaf_of
from .plan import is_whole
from .recovery import Action, Chain, chains, decide, looks_half_written, looks_torn
from .staging import INLINE_BYTES_MAX, Stager
from .states import ABSENT, Absent, Directory, File, Op, Stamp, State, digest_of
from .tree import Parents, Tree

KeepForeign = Callable[..., None]  # (sequence, path, kept as, what was found, kept="theirs")
OnForeign = Literal["theirs", "ours", "block"]

UNDECIDED = "somebody else's version is in its place: surefoot conflicts"


@dataclass
class Outcome:
    """What roll-forward did."""

    completed: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)  # (path, cause)


@dataclass(frozen=True, slots=True)
class _Look:
    """What a path shows now. `state` is None for a link or a device."""

    state: State | None
    data: bytes | None = b""  # None: too large to be held
    stamp: Stamp | None = None


class RollForward:
    """Finishes logged changes; safe to repeat, and safe to be killed at any call."""

    def __init__(
        self,
        fs: FsOps,
        layout: Layout,
        tree: Tree,
        database: Log,
        stager: Stager,
        contents: Contents,
        report: KeepForeign,
    ) -> None:
        self._fs = fs
        self._layout = layout
        self._tree = tree
        self._stager = stager
        self._contents = contents
        self._database = database
        self._report = report

    def run(
        self,
        transactions: Sequence[tuple[int, Sequence[Op]]],
        *,
        power_cut: bool,
        on_foreign: OnForeign = "theirs",
    ) -> Outcome:
        """Brings every path of these transactions to its newest logged version."""
        outcome = Outcome()
        for chain in chains(transactions):
            with self._tree.parents() as parents:
                try:
                    self._finish(chain, parents, outcome, power_cut=power_cut, on_foreign=on_foreign)
                except OSError as error:
                    outcome.failed.append((chain.path, os_error_text(error)))
                except SurefootError as error:
                    outcome.failed.append((chain.path, str(error).splitlines()[0]))
        return outcome

    def _finish(
        self, chain: Chain, parents: Parents, outcome: Outcome, *, power_cut: bool, on_foreign: OnForeign
    ) -> None:
        if chain.last.mount:
            self._tree.areas.of(chain.last.mount)  # unplugged: it stays pending
        look = self._look(chain, parents)
        action = self._decide(chain, look, parents, power_cut=power_cut)
        if action is Action.FOREIGN:
            self._settle_foreign(chain, look, parents, outcome, on_foreign)
        elif action is not Action.DONE:
            odd = action is Action.REPAIR and look.data != b""  # an empty file holds nothing to keep
            self.make(chain, look.state, parents, keep_odd=odd)
            outcome.completed.append(chain.path)

    def _decide(self, chain: Chain, look: _Look, parents: Parents, *, power_cut: bool) -> Action:
        last, stamp = chain.last, look.stamp
        newest = stamp is not None and (stamp.ino, stamp.mtime_ns) == (last.stage_ino, last.stage_mtime_ns)
        torn = isinstance(look.state, File) and power_cut and self._torn(chain, look, parents)
        action = decide(chain.states, look.state, power_cut=power_cut, torn=torn, newest_inode=newest)
        if action is Action.FOREIGN and last.in_place and self._half_written(chain, look):
            return Action.REPAIR
        if action is Action.FOREIGN and isinstance(look.state, Absent) and self._is_half_done(chain):
            return Action.APPLY
        if action is not Action.DONE and parents.find(chain.path) is None:
            return Action.DONE if isinstance(chain.states[-1], Absent) else Action.FOREIGN
        return action

    def _is_half_done(self, chain: Chain) -> bool:
        """What had to be moved away before its successor could come: a kill can fall in between."""
        area, suffixes = self._area(chain), [".aside"]
        if is_whole(chain.last) and not area.recipe.exchanges:
            suffixes.append(".old")
        base = spare_name(chain.last, chain.seq)
        return any(self._fs.lstat(area.stage, f"{base}{suffix}") is not None for suffix in suffixes)

    def _look(self, chain: Chain, parents: Parents) -> _Look:
        directory = parents.find(chain.path)
        if directory is None:
            return _Look(ABSENT)
        name = leaf_of(chain.path)
        found = self._fs.lstat(directory, name)
        if found is None:
            return _Look(ABSENT)
        if isinstance(chain.states[-1], Absent) and name not in self._fs.names(directory):
            return _Look(ABSENT)  # a disk that ignores case has found the name that took its place
        stamp = Stamp.of(found)
        if fsops.is_directory(found):
            return _Look(Directory(stamp.mode), b"", stamp)
        if not fsops.is_regular(found):
            return _Look(None, b"", stamp)
        if found.st_size > INLINE_BYTES_MAX:
            digest, found = self._fs.digest(directory, name)
            return _Look(File(digest, found.st_size, stamp.mode), None, Stamp.of(found))
        data, found = self._fs.read(directory, name)
        return _Look(File(digest_of(data), len(data), stamp.mode), data, Stamp.of(found))

    def _torn(self, chain: Chain, look: _Look, parents: Parents) -> bool:
        digests = [state.digest for state in chain.states if isinstance(state, File)]
        if look.data is None:
            return self._contents.is_torn(parents.need(chain.path), leaf_of(chain.path), digests, chain.last)
        if not look.data.strip(b"\0"):
            return True
        versions = (self._contents.small(digest) for digest in digests)
        if any(looks_torn(look.data, version) for version in versions if version is not None):
            return True
        return self._contents.is_torn(parents.need(chain.path), leaf_of(chain.path), digests, chain.last)

    def _half_written(self, chain: Chain, look: _Look) -> bool:
        """A file that is written in place can show the beginning of one version and the end of another."""
        old, new = chain.last.old, chain.last.new
        if look.data is None or not isinstance(old, File) or not isinstance(new, File):
            return isinstance(look.state, File) and isinstance(new, File)  # too large to tell: the log wins
        before, after = self._contents.small(old.digest), self._contents.small(new.digest)
        return before is None or after is None or looks_half_written(look.data, before, after)

    # --- somebody else's version ---

    def _settle_foreign(
        self, chain: Chain, look: _Look, parents: Parents, outcome: Outcome, on_foreign: OnForeign
    ) -> None:
        if self._database.is_superseded(chain.seq, chain.path):
            return
        found = "a link or device" if look.state is None else str(look.state)
        if on_foreign == "block":
            outcome.failed.append((chain.path, UNDECIDED))
        elif on_foreign == "ours" and look.state is not None and parents.find(chain.path) is not None:
            outcome.completed.append(chain.path)
            self.make(chain, look.state, parents, keep_odd=True)
            return
        else:
            outcome.foreign.append(chain.path)
        self._report(chain.seq, chain.path, "", found, kept="ours")

    def put_ours(self, seq: int, op: Op) -> None:
        """A person has decided: the logged version takes its place; the other one is kept.

        Raises:
            OSError, SurefootError: it cannot be put there.
        """
        chain = Chain(op.path, (op.old, op.new), op, seq)
        with self._tree.parents() as parents:
            look = self._look(chain, parents)
            if look.state is None:
                raise FileExistsError(errno.EEXIST, "a link or device is in its place", op.path)
            if look.state != op.new:
                self.make(chain, look.state, parents, keep_odd=True)

    def rewrite(self, op: Op, seq: int) -> None:
        """The newest version once more on a new inode: its own failed to flush and is not trusted again."""
        assert isinstance(op.new, File)
        chain = Chain(op.path, (op.old, op.new), op, seq)
        with self._tree.parents() as parents:
            if self._look(chain, parents).state == op.new:
                directory = parents.need(op.path)
                self._put(chain, op.new, directory, there=True, keep_odd=False)
                self._fs.sync(directory)

    # --- making it so ---

    def make(self, chain: Chain, now: State | None, parents: Parents, *, keep_odd: bool = False) -> None:
        """The path gets its newest version on a new inode, durable when this returns."""
        name, new = leaf_of(chain.path), chain.states[-1]
        directory = parents.need(chain.path)
        if isinstance(now, Directory) and not isinstance(new, Directory):
            self._remove_directory(chain, new, directory, name, keep_odd=keep_odd)
            parents.forget_below(chain.path)
        match new:
            case File(digest, _, mode):
                if isinstance(now, File) and now.digest == digest:
                    self._chmod(directory, name, mode)
                else:
                    self._put(chain, new, directory, there=isinstance(now, File), keep_odd=keep_odd)
            case Directory(mode):
                if isinstance(now, File):
                    self._put_aside(chain, directory, keep_odd=keep_odd)
                if not isinstance(now, Directory):
                    self._fs.mkdir(directory, name, mode)
                    dress_directory(self._fs, directory, name, replace(chain.last, new=new))
                with self._fs.opened_dir(directory, name, cross=True) as fd:
                    self._fs.chmod(fd, mode)
            case Absent():
                if isinstance(now, File):
                    self._put_aside(chain, directory, keep_odd=keep_odd)
        self._fs.sync(directory)

    def _remove_directory(
        self, chain: Chain, new: State, directory: int, name: str, *, keep_odd: bool
    ) -> None:
        """Its own content is removed by its own changes; what else is in it is rescued from the stage."""
        try:
            self._fs.rmdir(directory, name)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if isinstance(new, Absent) and not keep_odd:
                raise
            self._set_aside(chain, directory)

    def _put(self, chain: Chain, new: File, directory: int, *, there: bool, keep_odd: bool) -> None:
        area = self._area(chain)
        again = replace(chain.last, stage=_spare_name(chain, "again"), new=new)
        name = leaf_of(chain.path)
        self._fs.remove_tree(area.stage, again.stage)
        with self._stager.rewriting(again) as fd:
            self._contents.write(new.digest, chain.last, fd)
            self._fs.sync_data(fd)
        if chain.last.in_place and there:
            self._overwrite(again, area, directory, name)
            return
        if there and keep_odd and not area.recipe.exchanges:
            self._keep(chain, self._set_aside(chain, directory), "another version")
            there = False
        if not there:
            self._move_new(area, again.stage, directory, name)
        elif area.recipe.exchanges:
            self._fs.exchange(area.stage, again.stage, directory, name)
            if keep_odd:
                self._keep(chain, again.stage, "another version")
        else:
            self._fs.rename_over(area.stage, again.stage, directory, name)

    def _overwrite(self, again: Op, area: Area, directory: int, name: str) -> None:
        source = self._fs.open_file(area.stage, again.stage)
        try:
            target = self._fs.open_to_overwrite(directory, name)
            try:
                overwrite(self._fs, source, target, again)
            finally:
                self._fs.close(target)
        finally:
            self._fs.close(source)

    def _move_new(self, area: Area, from_name: str, to_dir: int, to_name: str) -> None:
        if area.recipe.exchanges:
            self._fs.rename_new(area.stage, from_name, to_dir, to_name)
            return
        if self._fs.lstat(to_dir, to_name) is not None:
            raise FileExistsError(errno.EEXIST, "somebody made it meanwhile", to_name)
        self._fs.rename_over(area.stage, from_name, to_dir, to_name)

    def _put_aside(self, chain: Chain, directory: int, *, keep_odd: bool) -> None:
        aside = self._set_aside(chain, directory)
        if keep_odd:
            self._keep(chain, aside, "another version")

    def _set_aside(self, chain: Chain, directory: int) -> str:
        """Moves what is there out of its place, to be looked at with the other stage files."""
        area, aside = self._area(chain), _spare_name(chain, "aside")
        self._fs.remove_tree(area.stage, aside)
        self._fs.rename_over(directory, leaf_of(chain.path), area.stage, aside)
        return aside

    def _chmod(self, directory: int, name: str, mode: int) -> None:
        fd = self._fs.open_file(directory, name)
        try:
            self._fs.chmod(fd, mode)
            self._fs.sync(fd)
        finally:
            self._fs.close(fd)

    def _area(self, chain: Chain) -> Area:
        return self._tree.areas.of(chain.last.mount)

    def _keep(self, chain: Chain, stage_name: str, found: str) -> None:
        area = self._area(chain)
        kept_as = keep_conflict(self._fs, self._layout, area.stage, stage_name, chain.seq, chain.path)
        self._report(chain.seq, chain.path, kept_as, found)

    # --- what the crash left in the stage ---

    def rescue(self, transactions: Sequence[tuple[int, Sequence[Op]]]) -> None:
        """Keeps bytes that nobody logged: an edit that raced the swap. The rest of the stage may go.

        What recovery itself has displaced can be any version that the path went through.
        """
        known: dict[str, set[bytes]] = {}
        for _, ops in transactions:
            for op in ops:
                versions = {state.digest for state in (op.old, op.new) if isinstance(state, File)}
                known.setdefault(op.path, set()).update(versions)
        for seq, ops in transactions:
            for op in ops:
                with contextlib.suppress(SurefootError):
                    area = self._tree.areas.of(op.mount)
                    for name in stage_names(op, seq):
                        self._rescue(seq, op.path, area, name, known)

    def _rescue(self, seq: int, path: str, area: Area, name: str, known: dict[str, set[bytes]]) -> None:
        found = self._fs.lstat(area.stage, name)
        if found is None:
            return
        if fsops.is_directory(found):
            with self._fs.opened_dir(area.stage, name) as folder:
                leaves = self._fs.names(folder)
            for leaf in leaves:
                self._rescue(seq, f"{path}/{leaf}", area, f"{name}/{leaf}", known)
            self._fs.remove_tree(area.stage, name)
            return
        versions = known.get(path, set())
        if found.st_nlink > 1 or (
            fsops.is_regular(found) and self._is_known(versions, area, name, found.st_size)
        ):
            self._fs.unlink(area.stage, name)
            return
        kept_as = keep_conflict(self._fs, self._layout, area.stage, name, seq, path)
        self._report(seq, path, kept_as, "an edit that raced the commit")

    def _is_known(self, known: set[bytes], area: Area, name: str, size: int) -> bool:
        """One of the path's versions, or our own file, cut short by the crash."""
        if not size:
            return True
        if self._fs.digest(area.stage, name)[0] in known:
            return True
        if size > INLINE_BYTES_MAX:
            return False
        data, _ = self._fs.read(area.stage, name)
        versions = (self._contents.small(digest) for digest in known)
        return any(v.startswith(data) or looks_torn(data, v) for v in versions if v is not None)


def _spare_name(chain: Chain, purpose: str) -> str:
    return f"{spare_name(chain.last, chain.seq)}.{purpose}"
