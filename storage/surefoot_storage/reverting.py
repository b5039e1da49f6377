"""Going back: a new transaction that makes files what they were before some committed ones.

Never an erasure: what is replaced becomes an old version like any other, so that going back can itself be
undone (a compensation record in the terms of ARIES; jj's undo as a new operation).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BufferedWriter
from typing import TypeAlias

from .errors import PathRefused, UndoRefused
from .history import Change, Difference, History, describe
from .states import ABSENT, Absent, Directory, File, State
from .transaction import FileTransaction

_HELD_BYTES_MAX = 1 << 20  # a larger version is streamed
_SHOWN_MAX = 10

Create: TypeAlias = Callable[[str, int], BufferedWriter]  # (path, mode): a stream into it


@dataclass(frozen=True)
class WentBack:
    """What the transaction will do, beside what it was asked for."""

    overwritten: tuple[str, ...] = ()  # changed since; `force` puts the old version there all the same
    left: tuple[str, ...] = ()  # directories that stay, because there is something else in them


def go_back(
    tx: FileTransaction, history: History, changes: Sequence[Change], create: Create, *, force: bool = False
) -> WentBack:
    """Puts into `tx` what makes these changes undone.

    Raises:
        UndoRefused: files were changed since (unless `force`), or old contents are gone.
    """
    now = {change.path: _state_of(tx, change.path) for change in changes}
    todo = [change for change in changes if now[change.path] != change.before]
    drift = [
        Difference(change.path, describe(change.after), describe(now[change.path]))
        for change in todo
        if not _as_left(now[change.path], change.after)
    ]
    links = [different for different in drift if now[different.path] is None]
    if links or (drift and not force):
        raise _changed_since(links or drift)
    gone = [change.path for change in todo if not _is_held(history, change)]
    if gone:
        raise _contents_gone(gone)
    left = _remove(tx, todo, now)
    _restore(tx, history, todo, now, create)
    return WentBack(tuple(different.path for different in drift), tuple(left))


def _state_of(tx: FileTransaction, path: str) -> State | None:
    """As the commit will check it; None for a link or a device, or behind one."""
    try:
        return tx.load(path).state
    except PathRefused as error:
        return ABSENT if isinstance(error.__cause__, NotADirectoryError) else None  # below a file is nothing


def _as_left(now: State | None, after: State) -> bool:
    """A directory's mode is not worth a refusal: its content is what matters, and has changes of its own."""
    return now == after or (isinstance(now, Directory) and isinstance(after, Directory))


def _is_held(history: History, change: Change) -> bool:
    return not isinstance(change.before, File) or history.holds(change.before, change.path)


def _remove(tx: FileTransaction, todo: Sequence[Change], now: dict[str, State | None]) -> list[str]:
    """What must not be there any more, the innermost first; returns directories that are not empty."""
    left = []
    for change in sorted(todo, key=lambda change: -change.path.count("/")):
        there = now[change.path]
        if isinstance(there, File) and not isinstance(change.before, File):
            tx.delete(change.path)
        elif isinstance(there, Directory) and not isinstance(change.before, Directory):
            if not tx.children(change.path):
                tx.rmdir(change.path)
            elif isinstance(change.before, Absent):
                left.append(change.path)
            else:
                raise _changed_since([Difference(change.path, "an empty directory", "something else in it")])
    return left


def _restore(
    tx: FileTransaction,
    history: History,
    todo: Sequence[Change],
    now: dict[str, State | None],
    create: Create,
) -> None:
    for change in sorted(todo, key=lambda change: change.path.count("/")):
        path, before, there = change.path, change.before, now[change.path]
        if isinstance(before, Directory):
            tx.mkdir(path, mode=before.mode & 0o777)
        elif isinstance(before, File):
            mode = before.mode & 0o777
            if isinstance(there, File) and there.digest == before.digest:
                tx.chmod(path, mode)
            elif before.size > _HELD_BYTES_MAX:
                with create(path, mode) as out:
                    out.writelines(history.chunks(before, path))
            else:
                tx.write_bytes(path, history.read(before, path), mode=mode)


def _changed_since(drift: Sequence[Difference]) -> UndoRefused:
    shown = "; ".join(f"{d.path}: expected {d.expected}, found {d.found}" for d in drift[:_SHOWN_MAX])
    more = f"; and {len(drift) - _SHOWN_MAX} more" if len(drift) > _SHOWN_MAX else ""
    error = UndoRefused(
        "undo",
        f"{len(drift)} path(s)",
        expected="files as the transaction left them",
        found=f"others: {shown}{more}",
        hint="--force puts the old versions there all the same (what is there now is kept as an old version);"
        " --path takes only some of the files",
    )
    error.paths = tuple(different.path for different in drift)
    return error


def _contents_gone(paths: Sequence[str]) -> UndoRefused:
    shown = ", ".join(paths[:_SHOWN_MAX]) + (" …" if len(paths) > _SHOWN_MAX else "")
    error = UndoRefused(
        "undo",
        f"{len(paths)} path(s)",
        expected="the old contents",
        found=f"none any more for {shown}: the retention let them go, or they were forgotten",
        hint="--path takes only those files whose old versions are left",
    )
    error.paths = tuple(paths)
    return error
