"""How long old versions are kept for undo, and how they are let go: oldest first, and slowly."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from .layout import Layout
from .log import Log

_DELETIONS_BETWEEN_PAUSES = 16
_PAUSE_S = 0.02


@dataclass(frozen=True)
class Retention:
    """What is kept for undo. What files hold now and the lines of history are not touched by it.

    Attributes:
        days: old versions of transactions younger than this.
        transactions_max: for each owner (a run), its latest transactions.
        size_bytes_max: of all old versions together; the oldest go first.
    """

    days: float = 30.0
    transactions_max: int = 1000
    size_bytes_max: int = 1 << 30


@dataclass(frozen=True)
class Pruned:
    """What was let go, or would be."""

    transactions: int
    contents: int
    size_bytes: int


class Pruner:
    """Lets old versions go by a `Retention`."""

    def __init__(
        self,
        layout: Layout,
        database: Log,
        section: Callable[[], AbstractContextManager[object]],
        reading: Callable[[], AbstractContextManager[Log]],
        *,
        grace_s: float = 600.0,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._layout = layout
        self._database = database
        self._section = section
        self._reading = reading
        self._grace_ns = int(grace_s * 1e9)
        self._pause = pause

    def prune(self, keep: Retention, *, now: float, dry_run: bool = False) -> Pruned:
        """Chosen outside the critical section, deleted in one commit; then the files, a few at a time."""
        with self._reading() as reader:
            upto = reader.head().last_seq
            seqs = reader.prunable(
                before=now - keep.days * 86_400, each_max=keep.transactions_max, bytes_max=keep.size_bytes_max
            )
            contents = reader.unneeded_blobs(seqs)
        if not dry_run and (seqs or contents):
            with self._section():
                self._database.prune(seqs, [digest for digest, _, _ in contents], upto=upto)
            self.delete([digest for digest, _, in_file in contents if in_file])
        return Pruned(len(seqs), len(contents), sum(size for _, size, _ in contents))

    def delete(self, digests: list[bytes], *, at_once: bool = False) -> None:
        """Removes kept files that no row names, slowly: freeing blocks makes everybody wait on some disks.

        One that was asked for a short while ago stays, because its commit may be on its way; `at_once`
        it goes all the same.
        """
        fs = self._layout.fs
        for number, digest in enumerate(digests, start=1):
            with contextlib.suppress(FileNotFoundError), self._layout.blob_folder(digest) as folder:
                found = fs.lstat(folder, digest.hex())
                young = found is not None and fs.now_ns() - found.st_mtime_ns < self._grace_ns
                if found is None or (young and not at_once):
                    continue
                with self._section():
                    if not self._database.holds(digest):
                        fs.unlink(folder, digest.hex())
            if number % _DELETIONS_BETWEEN_PAUSES == 0:
                self._pause(_PAUSE_S)
