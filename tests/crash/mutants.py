"""Promises of the commit, broken one at a time: the lab has to notice each of them.

`break_promise(name)` patches the product in this process; see LAB.md for which suite turns red.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from surefoot_storage import checkpoint, database
from surefoot_storage.fsops import FsOps


def _nothing(*_arguments: Any, **_more: Any) -> None:
    """Instead of a flush."""


def _no_write_out() -> None:
    """Names are swapped before their data is on its way."""
    FsOps.start_writeback = _nothing  # type: ignore[method-assign]
    FsOps.wait_writeback = _nothing  # type: ignore[method-assign]


def _no_commit_flush() -> None:
    """COMMIT answers before the log is on the disk."""
    database.Database._be_durable = lambda self, _durable: self._db.execute("PRAGMA synchronous = OFF")  # type: ignore[method-assign]


def _no_checkpoint_flush() -> None:
    """The log forgets contents that were never flushed in their places."""
    checkpoint.flush_files = lambda *_arguments: []  # type: ignore[assignment]


def _no_staged_flush() -> None:
    """Where write-out is not enough: staged files are not flushed before the swap."""
    FsOps.sync_data = _nothing  # type: ignore[method-assign]


MUTANTS: dict[str, Callable[[], None]] = {
    "no-write-out": _no_write_out,
    "no-commit-flush": _no_commit_flush,
    "no-checkpoint-flush": _no_checkpoint_flush,
    "no-staged-flush": _no_staged_flush,
}


def break_promise(name: str) -> None:
    """From now on, in this process."""
    MUTANTS[name]()
