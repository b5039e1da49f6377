"""A command inside a step's body: run in a working copy, and what it changes is the transaction's."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from surefoot_storage import CopyRefused, FileTransaction, TransactionClosed, Workspace
from surefoot_storage.wants import Gone, MakeDir, Put, Spool

from . import judging, probing
from .agentspec import Agent, matcher
from .errors import CommandFailed, LaunchFailed
from .launching import RUN, launch
from .taking import take

PREFIX = "body-"
LOG_TAIL_CHARS = 2_000


@dataclass(frozen=True)
class Ran:
    """What a command in a step has come to.

    Attributes:
        log: what it has said, stdout and stderr together, as far as it is kept.
        paths: what it has changed, from the workspace's root.
        wall_s, cpu_s: how long it took, and computed.
        confined: what kept it from writing elsewhere.
    """

    log: str
    paths: tuple[str, ...]
    wall_s: float
    cpu_s: float
    confined: str


class Scratch:
    """One run. The attempt may end meanwhile: the command is stopped then, and nothing of it is taken."""

    def __init__(
        self, workspace: Workspace, files: FileTransaction, directory: str, spec: Agent, status_path: str
    ) -> None:
        self._workspace = workspace
        self._copies = workspace.copies
        self._files = files
        self._directory = directory
        self._spec = spec
        self._status_path = status_path
        self._name = f"{PREFIX}{workspace.worker}-{os.urandom(6).hex()}"
        self._over = threading.Event()

    def stop(self) -> None:
        """From another thread."""
        self._over.set()

    def run(self) -> Ran:
        """Copies, runs, seals, and makes the changes the transaction's.

        Raises:
            CommandFailed: it could not be started, or did not succeed; nothing of it is taken.
            Conflict, ChangesRefused, CopyRefused: what it has changed cannot be taken.
        """
        try:
            return self._run()
        finally:
            if self._name in self._copies.names():
                self._copies.remove(self._name, discard=True)  # by the step: it has taken it, or failed

    def _run(self) -> Ran:
        spec = self._spec
        skip = matcher([*spec.skip, *([".git"] if spec.git == "none" else [])])
        self._copies.prepare(self._name, self._directory, skip)
        pending = self._put_pending()
        nonce = f"{self._workspace.uuid}:{self._name}:{RUN}"
        try:
            launch(
                self._copies, self._workspace.root, self._name, RUN, spec, spec.argv, nonce,
                wall_s=spec.limits.wall_s, extra={},
            )  # fmt: skip
        except LaunchFailed as error:
            raise self._failed(error.found, "") from error
        exit_ = self._wait(nonce)
        log = "".join(
            (self._copies.content(self._name, RUN, piece, most=1 << 40) or b"").decode(errors="replace")
            for piece in self._copies.entries(self._name, RUN)
            if piece.startswith("log.")
        )
        outcome, why = judging.judge(exit_, "")
        if outcome != "succeeded":
            raise self._failed(why, log)
        paths = self._take(pending)
        return Ran(log, tuple(paths), exit_["wall_s"], exit_["cpu_s"], exit_["confined"])

    def _wait(self, nonce: str) -> dict[str, Any]:
        asked = False
        while True:
            found = probing.probe(self._copies, self._name, RUN, nonce)
            if found.exit is not None:
                if self._over.is_set():
                    raise TransactionClosed("the attempt was over before the command was")
                return found.exit
            if found.seen == "gone":
                probing.kill_tagged(nonce)
                raise self._failed("its shim has died", "")
            if self._over.wait(min(self._spec.poll_s, 0.1)) and not asked:
                asked = True
                self._copies.write(self._name, RUN, "stop.json", {"why": "the attempt is over"})

    def _take(self, pending: Mapping[str, tuple[str, int]]) -> list[str]:
        inside = self._status_path.removeprefix(f"{self._directory}/" if self._directory else "")
        changes = self._copies.seal(self._name, matcher([*self._spec.ignore, ".git", inside]))
        left = set(self._copies.entries_below(self._name))
        for path in pending:
            if path not in left:
                self._files.delete(self._place(path))
        same = {  # what the step has written, and the command has left as it was, is the step's own
            change.path for change in changes.changes
            if change.new and pending.get(change.path) == (change.new.sha256, change.new.mode)
        }  # fmt: skip
        return take(
            self._workspace, self._files, self._name, changes, subject=self._spec.argv[0],
            picked=lambda path: path not in same, ours=lambda _path: False, theirs=lambda _path: False,
        )  # fmt: skip

    def _put_pending(self) -> dict[str, tuple[str, int]]:
        """What the step has written before is there for the command; returns (sha256, mode) of the files."""
        prefix, put = (f"{self._directory}/" if self._directory else ""), dict[str, tuple[str, int]]()
        for path, want in sorted(self._files.wants.items()):
            if not path.startswith(prefix):
                continue
            inside = path.removeprefix(prefix)
            if isinstance(want, Put) and not isinstance(want.content, Spool):
                data = self._files.read_bytes(path)
                mode = self._copies.put(self._name, inside, data, want.mode)
                put[inside] = (hashlib.sha256(data).hexdigest(), mode)
            elif isinstance(want, MakeDir):
                self._copies.put(self._name, inside, None, want.mode)
            elif isinstance(want, Gone):
                self._copies.cut(self._name, inside)
            else:
                raise CopyRefused(
                    "run command", path, expected="files that are in memory, or that nobody has written",
                    found="a stream or a new mode of this transaction",
                    hint="do that in a step before this one",
                )  # fmt: skip
        return put

    def _place(self, path: str) -> str:
        return f"{self._directory}/{path}" if self._directory else path

    def _failed(self, found: str, log: str) -> CommandFailed:
        tail = log[-LOG_TAIL_CHARS:].strip()
        return CommandFailed(
            "run command", self._spec.argv[0], expected="it to succeed",
            found=f"{found}; its last words: {tail}" if tail else found,
        )  # fmt: skip
