"""Looking after a workspace: what it uses, what can go, backups, and decisions about foreign edits."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

from .checkpoint import Checkpoint
from .conflicts import ForeignEdit, edit_of
from .copies import Copies
from .errors import InputError, UnknownId, WorkspaceUnusable, os_error_text
from .fsops import FsOps
from .layout import DATABASE
from .opening import FORMAT
from .paths import CONTROL_DIR, PathLike, normalise
from .progress import Progress
from .queueing import Commit
from .retention import Pruned, Pruner, Retention
from .rollforward import RollForward
from .states import File
from .store import Store
from .transaction import FileTransaction

_PRUNE_EVERY = 256  # transactions
_FORGET_ATTEMPTS = 5
BACKUP_NOTE = "backup.json"


@dataclass(frozen=True)
class Forgotten:
    """What `forget` removed."""

    contents: int
    conflicts: int
    also: tuple[str, ...]  # other paths that had had the same content


class Upkeep:
    """Housekeeping of one open workspace."""

    def __init__(
        self,
        fs: FsOps,
        store: Store,
        *,
        progress: Progress,
        forward: RollForward,
        checkpoint: Checkpoint,
        section: Callable[[], AbstractContextManager[object]],
        begin: Callable[..., FileTransaction],
        commit: Callable[[FileTransaction], Commit],
        clock: Callable[[], float],
        retention: Retention,
    ) -> None:
        self._fs = fs
        self._store = store
        self._layout = store.layout
        self._database = store.database
        self._progress = progress
        self._forward = forward
        self._checkpoint = checkpoint
        self._section = section
        self._begin = begin
        self._commit = commit
        self._clock = clock
        self._retention = retention
        self._pruner = Pruner(store.layout, store.database, section, store.reading)

    # --- foreign edits ---

    def conflicts(self, *, unresolved_only: bool = True) -> list[ForeignEdit]:
        """Edits by others that met a commit, or were found at recovery."""
        with self._section():
            return [edit_of(row) for row in self._database.foreign_edits(unresolved_only=unresolved_only)]

    def read_conflict(self, edit: ForeignEdit) -> bytes:
        """The version that is kept.

        Raises:
            InputError: it is kept nowhere any more.
        """
        if edit.kept_as:
            with contextlib.suppress(OSError):
                return self._fs.read(self._layout.conflicts, edit.kept_as)[0]
        state = self._logged_state(edit)
        data = self._database.blob(state.digest) if state is not None else None
        if state is not None:
            return data if data is not None else self._layout.read_blob(state.digest)
        raise InputError("resolve", edit.path, expected="a version that is kept", found="none")

    def _logged_state(self, edit: ForeignEdit) -> File | None:
        with self._section():
            ops = self._database.ops_of(edit.seq)
        states = [op.new for op in ops if op.path == edit.path]
        return states[0] if states and isinstance(states[0], File) else None

    def resolve(self, number: int, use: Literal["ours", "theirs"]) -> ForeignEdit:
        """A person's decision about one foreign edit. The version that is not used stays in the history.

        Raises:
            InputError: there is no such edit, or it was decided before.
            Conflict: the file was changed meanwhile; nothing was changed.
        """
        found = [edit for edit in self.conflicts() if edit.id == number]
        if not found:
            raise UnknownId(
                "resolve",
                number,
                expected="the number of an undecided edit",
                found="none of that number",
                hint="surefoot conflicts lists them",
            )
        edit = found[0]
        if edit.seq in [seq for seq, _ in self._progress.blocked]:
            self._resolve_blocked(edit, use)
        elif use == edit.kept:
            self._put_kept(edit)
        else:
            with self._section():
                self._database.write_rows(
                    [self._database.resolve_foreign(edit.id, use)], at=self._clock(), durable=True
                )
        return edit

    def _resolve_blocked(self, edit: ForeignEdit, use: Literal["ours", "theirs"]) -> None:
        with self._section():
            if use == "ours":
                for op in self._database.ops_of(edit.seq):
                    if op.path == edit.path:
                        self._forward.put_ours(edit.seq, op)
            self._database.write_rows(
                [self._database.resolve_foreign(edit.id, use)], at=self._clock(), durable=True
            )
            self._progress.settle()

    def _put_kept(self, edit: ForeignEdit) -> None:
        """The kept version becomes the next version of its path, through a commit like any other."""
        tx = self._begin(label=f"resolve/{edit.id}")
        tx.write_bytes(edit.path, self.read_conflict(edit))
        tx.statements.append(self._database.resolve_foreign(edit.id, edit.kept))
        self._commit(tx)

    # --- room ---

    def usage(self) -> dict[str, dict[str, int]]:
        """Files and bytes on the disk, by what they are for."""
        names = {
            "database": (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm"),
            "old_versions": ("blobs",),
            "conflicts": ("conflicts",),
            "staged": ("stage", "keep"),
            "ballast": ("ballast",),
            "working_copies": ("copies",),
        }
        found = {}
        for what, parts in names.items():
            sizes = [self._fs.tree_size(self._layout.control, part) for part in parts]
            found[what] = {"files": sum(n for n, _ in sizes), "size_bytes": sum(size for _, size in sizes)}
        rows = self._database.query(
            "SELECT count(*), coalesce(sum(size), 0) FROM blob WHERE data IS NOT NULL"
        )
        found["old_versions_in_database"] = {"files": rows[0][0], "size_bytes": rows[0][1]}
        return found

    def collect(self, *, retention: Retention | None = None, dry_run: bool = False) -> Pruned:
        """Lets go of old versions by the retention, of files that nothing refers to, and of decided edits."""
        self._checkpoint.run(epoch=self._store.epoch, wait=True)
        if not dry_run:
            self._checkpoint.drop_spares()
        keep = retention or self._retention
        pruned = self._pruner.prune(keep, now=self._clock(), dry_run=dry_run)
        if not dry_run:
            with self._section():
                self._checkpoint.sweep(self._store.workers.living())
            self._pruner.delete(self._orphans())
            self._drop_decided(self._clock() - keep.days * 86_400)
        return pruned

    def prune_if_due(self, before: int, now: int) -> None:
        """Once in a while, by the number of transactions: also where processes are short-lived."""
        if before // _PRUNE_EVERY != now // _PRUNE_EVERY:
            self._pruner.prune(self._retention, now=self._clock())

    def _orphans(self) -> list[bytes]:
        """Kept files that no row refers to: a crash between the file and its commit."""
        with self._section():
            known = self._database.blob_files()
            return [digest for digest in self._layout.blob_digests() if digest not in known]

    def _drop_decided(self, before: float) -> None:
        for edit in self.conflicts(unresolved_only=False):
            if edit.resolution and edit.kept_as and edit.at < before:
                self._fs.unlink(self._layout.conflicts, edit.kept_as)

    def forgettable(self, path: PathLike) -> Forgotten:
        """What `forget` would remove. Changes nothing."""
        name = normalise(path, operation="forget")
        with self._section():
            digests, others = self._database.versions_of(name)
            kept = [digest for digest in digests if self._database.holds(digest)]
        found = [edit for edit in self.conflicts(unresolved_only=False) if edit.path == name and edit.kept_as]
        return Forgotten(len(kept), len(found), tuple(sorted(others)))

    def forget(self, path: PathLike) -> Forgotten:
        """Removes every kept content of a path: from the log, the blobs, the conflicts and working copies.

        The file itself stays as it is. What other paths had with the same content cannot be undone any
        more either. Blocks that are freed are not overwritten on the disk.

        Raises:
            WorkspaceUnusable: another process is still reading an older state of the log, or keeps writing
            the content.
        """
        name = normalise(path, operation="forget")
        every: set[bytes] = set()
        for _ in range(_FORGET_ATTEMPTS):
            self._checkpoint.run(epoch=self._store.epoch, wait=True)
            self._checkpoint.wipe(name)
            with self._section():
                digests, others = self._database.versions_of(name)
                every = set(digests)
                ops = [op for _, ops in self._database.unchecked_ops() for op in ops]
                if digests & {op.new.digest for op in ops if isinstance(op.new, File)}:
                    continue  # committed again meanwhile: the log is all that a power cut would leave of it
                digests = {digest for digest in digests if self._database.holds(digest)}
                in_files = list(digests & self._database.blob_files())
                self._database.forget(name, digests)
                self._database.wipe_log()
                break
        else:
            raise WorkspaceUnusable(
                "forget",
                name,
                expected="a moment in which nobody writes it",
                found=f"new commits of it {_FORGET_ATTEMPTS} times in a row",
                hint="stop what writes it first: it would be kept again at once",
            )
        self._pruner.delete(in_files, at_once=True)  # a secret goes, even if that costs somebody an undo
        Copies(self._fs, self._store.path).forget(name, {digest.hex() for digest in every})
        dropped = [
            edit for edit in self.conflicts(unresolved_only=False) if edit.path == name and edit.kept_as
        ]
        for edit in dropped:
            self._fs.unlink(self._layout.conflicts, edit.kept_as)
        return Forgotten(len(digests), len(dropped), tuple(sorted(others)))

    # --- backup ---

    def backup(self, target: str) -> dict[str, Any]:
        """A copy of the store (database, old versions, conflicts) in a new directory, while work goes on.

        The workspace's own files are not in it: back them up as you do, after this.

        Raises:
            InputError: the directory exists already, or cannot be made.
        """
        try:
            self._fs.make_root(target)
        except OSError as error:
            raise InputError(
                "backup", target, expected="a directory that does not exist yet", found=os_error_text(error)
            ) from error
        with self._checkpoint.alone():
            self._checkpoint.run_alone(self._store.epoch)
            self._database.copy_into(os.path.join(target, DATABASE))
            folder = self._fs.open_root(target)
            try:
                files = sum(
                    self._fs.copy_tree(self._layout.control, name, folder, name)
                    for name in ("blobs", "conflicts")
                )
                facts = {
                    "format": FORMAT,
                    "uuid": self._store.uuid,
                    "at": self._clock(),
                    "workspace": self._store.path,
                    "files": files,
                }
                fd = self._fs.create(folder, BACKUP_NOTE)
                self._fs.write(fd, json.dumps(facts).encode())
                self._fs.close(fd)
                self._fs.sync_filesystem(folder)
            finally:
                self._fs.close(folder)
        return facts


def restore(backup: str, root: str, *, fs: FsOps | None = None) -> str:
    """Puts a backup in the place of a workspace's store; returns where the old one was moved to, "" for none.

    Nothing of the workspace's own files is touched. What the restored database does not know of them is
    reported, not reverted, by the next transactions. The workspace must not be in use.

    Raises:
        InputError: it is no backup.
        WorkspaceUnusable: the workspace is in use.
    """
    seam = fs or FsOps()
    note = os.path.join(backup, BACKUP_NOTE)
    if not seam.exists(note) or not seam.exists(os.path.join(backup, DATABASE)):
        raise InputError(
            "restore", backup, expected="a directory made by surefoot backup", found="another one"
        )
    control = os.path.join(root, CONTROL_DIR)
    moved = ""
    if seam.exists(control):
        moved = _move_away(seam, root, control)
    source, target = seam.open_root(backup), seam.open_root(root)
    try:
        seam.mkdir(target, CONTROL_DIR, 0o700)
        with seam.opened_dir(target, CONTROL_DIR) as made:
            for name in (DATABASE, "blobs", "conflicts"):
                seam.copy_tree(source, name, made, name)
            seam.sync_filesystem(made)
    finally:
        seam.close(source)
        seam.close(target)
    return moved


def _move_away(fs: FsOps, root: str, control: str) -> str:
    fd = fs.open_root(control)
    try:
        in_use = not fs.try_lock(fd) or _has_workers(fs, fd)
        if in_use:
            raise WorkspaceUnusable(
                "restore",
                root,
                expected="a workspace that nobody has open",
                found="one that is in use",
                hint="end the processes that use it first",
            )
        number = next(n for n in range(1, 1_000_000) if not fs.exists(f"{control}.replaced-{n}"))
        moved = f"{control}.replaced-{number}"
        fs.rename_root(control, moved)
    finally:
        fs.close(fd)
    return moved


def _has_workers(fs: FsOps, control: int) -> bool:
    with contextlib.suppress(FileNotFoundError), fs.opened_dir(control, "workers") as workers:
        for name in fs.names(workers):
            fd = fs.open_file(workers, name)
            try:
                if not fs.try_lock(fd):
                    return True
            finally:
                fs.close(fd)
    return False
