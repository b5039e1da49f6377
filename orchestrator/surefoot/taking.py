"""Sealed changes of a working copy become wants of a transaction: checked against what is there now."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from surefoot_storage import (
    ChangeSet,
    Conflict,
    Copies,
    Directory,
    File,
    FileTransaction,
    PathChange,
    Version,
    Workspace,
)
from surefoot_storage.paths import ancestors_of

from .errors import ChangesRefused

Pick: TypeAlias = "Callable[[str], bool]"
HELD_BYTES_MAX = 1 << 20


def take(
    workspace: Workspace, files: FileTransaction, name: str, changes: ChangeSet,
    *, picked: Pick, ours: Pick, theirs: Pick, subject: str,
) -> list[str]:  # fmt: skip
    """The transaction shall do what was sealed; returns the paths, from the workspace's root.

    Args:
        workspace: where it shall be done.
        files: the transaction.
        name: of the working copy.
        changes: its sealed changes.
        picked: which of them.
        ours: of paths that somebody has changed meanwhile, those that become what the copy has.
        theirs: those that stay as they are.
        subject: for messages.

    Raises:
        ChangesRefused: some of them cannot be committed at all.
        Conflict: somebody has changed the same meanwhile.
    """
    blocked = [(path, why) for path, why in changes.blocked if picked(path)]
    if blocked:
        path, why = blocked[0]
        raise ChangesRefused(
            "take", subject, expected="changes of files and directories",
            found=f"{len(blocked)} that cannot be committed, as {path!r}: {why}",
            hint="paths=[…] takes the rest; ignore=[…] leaves such paths out from the beginning",
        )  # fmt: skip
    wanted, conflicts, plain = [], [], set[str]()
    for change in changes.changes:
        if not picked(change.path):
            continue
        below_file = any(above in plain for above in ancestors_of(change.path))  # which becomes a directory
        found = None if below_file else _found(files, _place(changes, change))
        if found is not None and not found.is_directory:
            plain.add(change.path)
        if found == change.new:
            continue
        if found != change.old or change.path in changes.conflicts:
            if theirs(change.path):
                continue
            if not ours(change.path):
                conflicts.append(change.path)
                continue
        wanted.append((change, found))
    if conflicts:
        raise Conflict(
            "take", f"{subject}: {conflicts[0]}", expected="what was there when it was copied",
            found=f"another version, at {len(conflicts)} of {len(changes.changes)} paths",
            hint="launch it again over what is there now; ours=[…] or theirs=[…] decide by path",
        )  # fmt: skip
    _want(workspace, files, name, changes, wanted)
    return [_place(changes, change) for change, _ in wanted]


def _place(changes: ChangeSet, change: PathChange) -> str:
    return f"{changes.directory}/{change.path}" if changes.directory else change.path


def _found(files: FileTransaction, path: str) -> Version | None:
    state = files.load(path).state
    if isinstance(state, File):
        return Version(state.mode, state.digest.hex(), state.size)
    return Version(state.mode) if isinstance(state, Directory) else None


def _want(
    workspace: Workspace, files: FileTransaction, name: str, changes: ChangeSet,
    wanted: Sequence[tuple[PathChange, Version | None]],
) -> None:  # fmt: skip
    """Removals from the innermost out, then what is new from the outermost in."""
    for change, found in sorted(wanted, key=lambda one: -one[0].path.count("/")):
        path = _place(changes, change)
        if found is not None and (change.new is None or found.is_directory != change.new.is_directory):
            files.rmdir(path) if found.is_directory else files.delete(path)
    for change, found in sorted(wanted, key=lambda one: one[0].path.count("/")):
        path, new = _place(changes, change), change.new
        if new is None:
            continue
        if new.is_directory:
            same = found is not None and found.is_directory
            files.chmod(path, new.mode) if same else files.mkdir(path, mode=new.mode)
        elif found is not None and found.sha256 == new.sha256:
            files.chmod(path, new.mode)
        elif new.size <= HELD_BYTES_MAX:
            files.write_bytes(path, workspace.copies.read(name, new.sha256), mode=new.mode)
        else:
            _stream(workspace, files, workspace.copies, name, path, new)


def _stream(
    workspace: Workspace, files: FileTransaction, copies: Copies, name: str, path: str, new: Version
) -> None:
    digest = hashlib.sha256()
    with workspace.create(files, path, mode=new.mode) as stream:
        for piece in copies.stream(name, new.sha256):
            digest.update(piece)
            stream.write(piece)
        if digest.hexdigest() != new.sha256:
            raise ChangesRefused(
                "take", path, expected="the content that was sealed",
                found="another one: the disk is damaged", hint="surefoot doctor",
            )  # fmt: skip


def picks(given: Iterable[str] | None, matcher: Callable[[Iterable[str]], Pick]) -> Pick:
    """None picks everything."""
    return (lambda _path: True) if given is None else matcher(given)
