"""Who works in a workspace: one file for each open workspace object, locked for as long as it lives.

The kernel drops the lock when the process dies, so a worker is alive exactly while its file is locked:
no heartbeat, no timeout. Staged files and runs carry their worker's id; a dead worker's are taken over.
"""

from __future__ import annotations

import contextlib
import json
import os

from . import processes
from .fsops import FsOps


class Workers:
    """The folder `workers/`, and this object's own file in it."""

    def __init__(self, fs: FsOps, folder: int, worker_id: str) -> None:
        self._fs = fs
        self._folder = folder
        self.id = worker_id
        self._fd = fs.create(folder, worker_id)
        try:
            fs.try_lock(self._fd)
            fs.write(self._fd, json.dumps(processes.myself()).encode())
        except BaseException:
            fs.close(self._fd)
            fs.unlink(folder, worker_id)
            raise

    def is_alive(self, worker_id: str) -> bool:
        """Whether the worker's process lives and has the workspace open."""
        if worker_id == self.id:
            return True
        try:
            fd = self._fs.open_file(self._folder, worker_id)
        except OSError:
            return False
        try:
            return not self._fs.try_lock(fd)
        finally:
            self._fs.close(fd)

    def living(self) -> set[str]:
        """The ids of all living workers; files of dead ones are removed. Inside the critical section."""
        living = {self.id}
        for name in self._fs.names(self._folder):
            if self.is_alive(name):
                living.add(name)
            else:
                with contextlib.suppress(OSError):
                    self._fs.unlink(self._folder, name)
        return living

    def describe(self, worker_id: str) -> str:
        """The worker's process, for people."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            facts = json.loads(self._fs.read(self._folder, worker_id)[0])
            if facts["pid"] == os.getpid():
                return "another engine of this process"
            return processes.describe(int(facts["pid"]))
        return f"worker {worker_id}"

    def close(self) -> None:
        """The worker is gone."""
        with contextlib.suppress(OSError):
            self._fs.unlink(self._folder, self.id)
        self._fs.close(self._fd)

    def forget(self) -> None:
        """In a forked child: the file stays the parent's."""
        with contextlib.suppress(OSError):
            self._fs.close(self._fd)
