"""What an open workspace knows about itself and about those who work in it."""

from __future__ import annotations

from abc import ABC, abstractmethod

from .fsops import FsOps
from .history import History
from .named import NamedLock, holder_of, try_named_lock
from .recipes import Recipe
from .store import Store


class Facts(ABC):
    """The half of a workspace that commits nothing."""

    fs: FsOps
    _store: Store

    @abstractmethod
    def _check_alive(self) -> None:
        """Raises where the workspace is of no use any more."""

    @property
    def history(self) -> History:
        """What was committed here."""
        self._check_alive()
        return History(self.fs, self._store.root, self._store.looking)

    @property
    def uuid(self) -> str:
        """The workspace's identity."""
        return self._store.uuid

    @property
    def worker(self) -> str:
        """This object's own id: alive for as long as it is open."""
        return self._store.workers.id

    @property
    def recipe(self) -> Recipe:
        """How files are put in place here."""
        return self._store.recipe

    @property
    def flush_s(self) -> float:
        """Seconds that a durable commit waits for the disk, lately."""
        return self._store.database.flush_s

    @property
    def epoch(self) -> str:
        """The boot and filesystem: equal means that the page cache survived."""
        return self._store.epoch

    def is_alive(self, worker: str) -> bool:
        """Whether another worker's process lives and has the workspace open."""
        return self._store.workers.is_alive(worker)

    def describe_worker(self, worker: str) -> str:
        """A worker's process, for people."""
        return self._store.workers.describe(worker)

    def try_named_lock(self, name: str) -> NamedLock | None:
        """A lock among all processes; None where somebody else has it. Freed when its process dies."""
        self._check_alive()
        return try_named_lock(self.fs, self._store.layout.locks, name)

    def named_lock_holder(self, name: str) -> str:
        """Who has it, for people."""
        return holder_of(self.fs, self._store.layout.locks, name)

    def read_blob(self, digest: bytes) -> bytes:
        """A kept content by sha256."""
        self._check_alive()
        rows, _ = self._store.query("SELECT data FROM blob WHERE digest = ?", (digest,))
        if rows and rows[0][0] is not None:
            return bytes(rows[0][0])
        return self._store.layout.read_blob(digest)
