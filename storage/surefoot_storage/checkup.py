"""What is wrong with a workspace, and what mends it. Looks without a lock and without changing anything.

So it works beside an engine that runs, that is frozen, or that is gone; what it sees may be a moment old.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from . import processes
from .dumps import Dumps
from .errors import SurefootError
from .fsops import FsOps
from .history import History
from .identity import refuse_wrong_store
from .layout import DAMAGED, parse_stage_name
from .log import Log
from .mark import read_mark
from .paths import CONTROL_DIR

FREE_BYTES_MIN = 64 << 20


@dataclass(frozen=True)
class Finding:
    """One thing that somebody may have to do something about."""

    kind: str  # a word for programs
    what: str
    evidence: str
    remedy: str = ""
    is_problem: bool = True  # or only worth knowing

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**self.__dict__}


@dataclass(frozen=True)
class Worker:
    """Somebody who has the workspace open, or had it when its process died."""

    id: str
    pid: int | None  # None: nobody any more
    facts: dict[str, Any]

    @property
    def is_stopped(self) -> bool:
        """By a signal, or by a debugger."""
        return self.pid is not None and processes.state_of(self.pid) in ("T", "t")


class Checkup:
    """One look at one workspace."""

    def __init__(self, fs: FsOps, path: str, root: int, log: Log, history: History) -> None:
        self._fs = fs
        self._path = path
        self._root = root
        self._log = log
        self._history = history

    def workers(self) -> list[Worker]:
        """Living ones, and those whose process died."""
        found = []
        with self._folder("workers") as folder:
            for name in self._fs.names(folder):
                stat = self._fs.lstat(folder, name)
                if stat is None:
                    continue
                facts: dict[str, Any] = {}
                with contextlib.suppress(OSError, ValueError):
                    facts = json.loads(self._fs.read(folder, name)[0])
                found.append(Worker(name, processes.lock_holder(stat), facts))
        return found

    def dumps(self) -> list[str]:
        """The names of all dumps."""
        return Dumps(self._fs, self._path).names()

    def findings(self, *, deep: bool = False) -> Iterator[Finding]:
        """`deep` also compares every file with the store."""
        workers = self.workers()
        yield from self._store()
        yield from self._locks(workers)
        yield from self._commits(workers)
        yield from self._foreign()
        yield from self._orphans(workers)
        yield from self._room()
        if deep:
            for different in self._history.verify():
                found = f"expected {different.expected}, found {different.found}"
                yield Finding(
                    "differs", f"{different.path} is not as it was committed", found, is_problem=False
                )

    def facts(self) -> dict[str, Any]:
        """Where and how far: filesystem, sequence numbers, who is there, room. No names of files."""
        magic, _ = self._fs.filesystem(self._root)
        head = self._log.head()
        sizes = {}
        for folder in ("stage", "keep", "blobs", "conflicts"):
            files, size_bytes = self._fs.tree_size(self._root, f"{CONTROL_DIR}/{folder}")
            sizes[folder] = {"files": files, "size_bytes": size_bytes}
        return {
            "filesystem": hex(magic & 0xFFFFFFFF),
            "free_bytes": self._fs.free_bytes(self._root),
            "sqlite": self._log.library_version,
            "last_seq": head.last_seq,
            "checkpointed_seq": head.checkpointed_seq,
            "workers": [
                {"id": w.id, "pid": w.pid, "state": processes.state_of(w.pid) if w.pid else "gone"}
                for w in self.workers()
            ],
            "sizes": sizes,
        }

    @contextlib.contextmanager
    def _folder(self, name: str) -> Iterator[int]:
        with self._fs.opened_dir(self._root, f"{CONTROL_DIR}/{name}" if name else CONTROL_DIR) as fd:
            yield fd

    def _store(self) -> Iterator[Finding]:
        with self._folder("") as control:
            try:
                refuse_wrong_store(self._fs, control, self._path, self._log)
            except SurefootError as error:
                yield Finding(
                    "wrong-store", "this is not the store that belongs here", error.found, error.hint
                )
            if self._fs.lstat(control, DAMAGED) is not None:
                text = "a process found that the database could not be flushed, and stopped using it"
                yield Finding(
                    "database-suspect",
                    "the database may be damaged",
                    text,
                    "surefoot recover copies it to new blocks",
                )
        for text in self._log.damage():
            yield Finding(
                "database-damaged",
                "the database is damaged",
                text,
                "surefoot restore puts a backup in its place",
            )

    def _locks(self, workers: list[Worker]) -> Iterator[Finding]:
        with self._folder("") as control:
            pid = processes.lock_holder(self._fs.fstat(control))
        remedy = "kill -CONT {0} lets it go on; kill {0} ends it: nothing that is committed is lost"
        if pid is not None and processes.state_of(pid) in ("T", "t"):
            what = "everybody waits for a process that is stopped while it holds the commit lock"
            yield Finding("lock-held", what, processes.describe(pid), remedy.format(pid))
        for worker in workers:
            if worker.is_stopped and worker.pid is not None and worker.pid != pid:
                what = f"worker {worker.id} is stopped: its runs wait for the end of their lease"
                yield Finding(
                    "worker-stopped", what, processes.describe(worker.pid), remedy.format(worker.pid)
                )
        with self._folder("locks") as folder:
            for name in self._fs.names(folder):
                found = self._fs.lstat(folder, name)
                holder = processes.lock_holder(found) if found is not None else None
                if holder is not None and processes.state_of(holder) in ("T", "t"):
                    what = f"a named lock ({name[:8]}…) is held by a stopped process"
                    yield Finding("named-lock-held", what, processes.describe(holder), remedy.format(holder))

    def _commits(self, workers: list[Worker]) -> Iterator[Finding]:
        remedy = "surefoot recover tries again, and says what is in the way"
        for _, txid, label, cause in self._log.blocked_rows():
            yield Finding(
                "not-in-place",
                f"transaction {txid[:12]} ({label}) is committed, but not all in place",
                cause,
                remedy,
            )
        head, living = self._log.head(), [worker for worker in workers if worker.pid is not None]
        if living:
            return
        epoch = f"{processes.boot_id()}:{self._fs.filesystem(self._root)[1]}"
        if head.last_seq <= head.checkpointed_seq:
            return
        if self._log.epoch() != epoch:
            count = head.last_seq - head.checkpointed_seq
            text = f"{count} transaction(s) are not known to be on the disk in their places"
            yield Finding(
                "restarted", "the machine was restarted since", text, "surefoot recover looks at each of them"
            )
        elif read_mark(self._fs, self._root, epoch, self._log.identity().uuid) < head.last_seq:
            text = "nobody has said that the last commit's files are in place"
            yield Finding(
                "half-committed",
                "a process died in the middle of a commit",
                text,
                "surefoot recover finishes it",
            )

    def _foreign(self) -> Iterator[Finding]:
        rows = self._log.foreign_edits(unresolved_only=True)
        for number, _, path, kept_as, kept, found, *_ in rows:
            text = f"{found}; {kept}: {kept_as or 'the log'}"
            what = f"an edit of {path.decode(errors='surrogateescape')} met a commit"
            yield Finding(
                "foreign-edit", what, text, f"surefoot resolve {number} --use ours|theirs", is_problem=False
            )

    def _orphans(self, workers: list[Worker]) -> Iterator[Finding]:
        living = {worker.id for worker in workers if worker.pid is not None}
        for folder in ("stage", "keep"):
            with self._folder(folder) as fd:
                names = [
                    name for name in self._fs.names(fd) if (parse_stage_name(name) or ("",))[0] not in living
                ]
                sizes = [found.st_size for name in names if (found := self._fs.lstat(fd, name))]
            if names:
                text = f"{len(names)} file(s), {sum(sizes)} bytes in {CONTROL_DIR}/{folder}"
                yield Finding(
                    "orphans", "dead processes have left files", text, "surefoot recover", is_problem=False
                )
        dead = [worker.id for worker in workers if worker.pid is None]
        if dead:
            text = f"{', '.join(dead)}: killed, or not seen from here (another container?)"
            yield Finding(
                "dead-workers",
                "workers have gone without closing",
                text,
                "surefoot recover",
                is_problem=False,
            )

    def _room(self) -> Iterator[Finding]:
        free = self._fs.free_bytes(self._root)
        if free < FREE_BYTES_MIN:
            remedy = "free some space; surefoot gc lets old versions go"
            yield Finding("disk-full", "the disk is nearly full", f"{free >> 20} MiB are free", remedy)
