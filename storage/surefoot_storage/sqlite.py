"""Which SQLite is safe, and what its errors mean in Surefoot's words."""

from __future__ import annotations

import apsw

from .errors import CommitFailed, WorkspaceUnusable

_FIXED_IN = (3, 51, 3)
_BACKPORTS: dict[tuple[int, ...], tuple[int, ...]] = {(3, 44): (3, 44, 6), (3, 50): (3, 50, 7)}


def sqlite_is_safe(version: str) -> bool:
    """Whether this SQLite is free of the WAL-reset bug."""
    numbers = tuple(int(part) for part in version.split("."))
    return numbers >= _BACKPORTS.get(numbers[:2], _FIXED_IN)


def commit_failed(txid: str, error: BaseException) -> CommitFailed:
    """The log did not take it, and holds nothing of it."""
    full = isinstance(error, apsw.FullError)
    return CommitFailed(
        "commit",
        txid,
        expected="the log to take the transaction",
        found=f"{type(error).__name__}: {error}",
        hint="free some disk space and try again" if full else "nothing was changed; try again",
    )


def unusable(path: str, error: apsw.Error) -> WorkspaceUnusable:
    """The database could not be opened or read."""
    if isinstance(error, apsw.FullError | apsw.IOError | apsw.ReadOnlyError | apsw.CantOpenError):
        full = isinstance(error, apsw.FullError)
        return WorkspaceUnusable(
            "open the database",
            path,
            expected="a disk that takes it",
            found=f"{type(error).__name__}: {error}",
            hint="free some disk space" if full else "check the disk and the permissions",
        )
    return WorkspaceUnusable(
        "open the database",
        path,
        expected="Surefoot's database",
        found=f"{type(error).__name__}: {error}",
        hint="restore it from a backup; the workspace's own files are not affected",
    )


def check_whole(path: str, subject: str) -> None:
    """A copy of a database.

    Raises:
        WorkspaceUnusable: it is not sound.
    """
    copy = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
    verdict = copy.execute("PRAGMA integrity_check").fetchall()
    copy.close()
    if verdict != [("ok",)]:
        raise WorkspaceUnusable(
            "copy the database", subject, expected="a sound database", found=str(verdict[:3])
        )
