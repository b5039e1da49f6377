"""What an open workspace knows about itself and about those who work in it."""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from .checkup import Checkup
from .copies import Copies
from .errors import SurefootError
from .fsops import FsOps
from .history import History
from .layout import SECRET
from .machinery import Machinery
from .named import NamedLock, holder_of, try_named_lock
from .recipes import Recipe
from .sealing import Sealing
from .states import Stamp
from .store import Store
from .wants import Spool, Statement


class Facts(ABC):
    """The half of a workspace that commits nothing."""

    fs: FsOps
    _store: Store
    _parts: Machinery
    _user: str
    _clock: Callable[[], float]

    @abstractmethod
    def _check_alive(self) -> None:
        """Raises where the workspace is of no use any more."""

    @abstractmethod
    def _section(self) -> contextlib.AbstractContextManager[object]:
        """One process at a time."""

    @abstractmethod
    def write_rows(self, statements: Sequence[Statement], *, durable: bool = True) -> None:
        """Rows without files."""

    @property
    def sealing(self) -> Sealing:
        """Prepared transactions that are kept, to be committed exactly as they are."""
        self._check_alive()
        return Sealing(self._store.looking, self.write_rows, self._read_spool, self._user, self._clock)

    @property
    def copies(self) -> Copies:
        """Working copies of directories, for whoever is to change them apart from the workspace."""
        self._check_alive()
        return Copies(self.fs, self._store.path)

    def _read_spool(self, path: str, spool: Spool) -> bytes:
        with self._parts.tree.parents() as parents:
            area = self._parts.areas.of(parents.mount(path))
        return self.fs.read(area.stage, spool.name)[0]

    def _drop_spool(self, path: str, spool: Spool) -> None:
        with contextlib.suppress(OSError, SurefootError), self._parts.tree.parents() as parents:
            self.fs.unlink(self._parts.areas.of(parents.mount(path)).stage, spool.name)

    @property
    def history(self) -> History:
        """What was committed here."""
        self._check_alive()
        return History(self.fs, self._store.root, self._store.looking)

    @property
    def checkup(self) -> Checkup:
        """What is wrong here."""
        self._check_alive()
        return Checkup(self.fs, self._store.path, self._store.root, self._store.reader, self.history)

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

    def stamp(self, path: str) -> Stamp | None:
        """How a path looks to stat now, None where there is nothing: one look, without reading it.

        Raises:
            PathRefused: the way to it is unsafe.
        """
        self._check_alive()
        return self._parts.tree.stamp(path)

    def checkpoint_rows(self) -> None:
        """Copies the database's log into the database; what was committed is durable either way.

        Raises:
            WorkspaceUnusable: the disk does not take it; nothing is lost, the log still holds it.
        """
        self._check_alive()
        with self._section():
            self._store.database.checkpoint_log()

    def secret(self) -> bytes:
        """32 random bytes of this workspace's own, kept outside the database, so that no backup has them."""
        note = self._store.layout.read_note(SECRET)
        if note is None:
            with self._section():
                note = self._store.layout.read_note(SECRET)  # another process may have been faster
                if note is None:
                    note = {"secret": os.urandom(32).hex()}
                    self._store.layout.write_note(SECRET, note, durable=True)
        return bytes.fromhex(note["secret"])

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
