"""The status of runs, for readers: cached, and checked against the file each time.

The file and the row change in one commit. A reader answers from memory as long as the file is the one it has
read, which one look at the directory entry tells; otherwise the row says what is true.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from surefoot_storage import Stamp, SurefootError, Workspace

from . import rows
from .clock import steady
from .log import logger

KEPT_S = 5.0
"""An entry that nobody has used for so long is dropped."""


@dataclass(frozen=True)
class Status:
    """What a run's status document says.

    Attributes:
        document: as in `demo.status.json`.
        revision: goes up with each change.
        source: `file` where the file says the same; `row` where there is no file, or somebody has edited it.
        foreign: somebody has edited the file; the run's next commit keeps theirs and writes it again.
    """

    run_id: str
    document: dict[str, Any]
    revision: int
    source: Literal["file", "row"]
    foreign: bool = False


@dataclass
class _Entry:
    path: str
    stamp: Stamp
    text: str
    revision: int
    used_at: float


class Statuses:
    """Of one open workspace. For threads."""

    def __init__(self, workspace: Workspace, steady: Callable[[], float] = steady) -> None:
        self._workspace = workspace
        self._steady = steady
        self._entries: dict[str, _Entry] = {}
        self._told: dict[str, Stamp] = {}  # foreign edits that were reported
        self._lock = threading.Lock()

    def get(self, run_id: str) -> Status:
        """The status, never older than the last change that anybody was told of.

        Raises:
            UnknownRun: there is no such run.
        """
        now = self._steady()
        with self._lock:
            self._entries = {k: e for k, e in self._entries.items() if now - e.used_at < KEPT_S}
            entry = self._entries.get(run_id)
            if entry is not None:
                entry.used_at = now
        if entry is not None and self._stamp(entry.path) == entry.stamp:
            return Status(run_id, json.loads(entry.text), entry.revision, "file")
        return self._read(run_id)

    @property
    def size(self) -> int:
        """How many are kept."""
        return len(self._entries)

    def _read(self, run_id: str) -> Status:
        while True:
            run = rows.get_run(self._workspace, run_id)
            before = self._stamp(run.status_path)
            text = self._text(run.status_path)
            again = rows.get_run(self._workspace, run_id)
            if again.revision == run.revision and self._stamp(run.status_path) == before:
                break
        status = Status(run_id, json.loads(run.status), run.revision, "row")
        if before is None:
            return status
        if text != run.status:
            if self._told.get(run_id) != before:
                self._told[run_id] = before
                logger(run=run_id).warning("status.foreign_edit", path=run.status_path)
            return replace(status, foreign=True)
        with self._lock:
            self._entries[run_id] = _Entry(run.status_path, before, text, run.revision, self._steady())
        return replace(status, source="file")

    def _stamp(self, path: str) -> Stamp | None:
        try:
            return self._workspace.stamp(path)
        except SurefootError:  # somebody has put something else on the way: the row answers
            return None

    def _text(self, path: str) -> str:
        files = self._workspace.begin()
        try:
            return files.read_bytes(path).decode()
        except (SurefootError, UnicodeDecodeError):
            return ""
        finally:
            files.fence()
