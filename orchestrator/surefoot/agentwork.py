"""The part of a transaction that runs commands and agents, and takes what they have changed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from surefoot_storage import Conflict, InputError
from surefoot_storage.paths import normalise

from .agentspec import Agent, Work, matcher
from .errors import ChangesRefused
from .files import Files, contents
from .scratch import Ran, Scratch
from .taking import picks, take
from .waits import Wait, agent


class AgentWork(Files):
    """What it needs of a transaction is declared here; see there."""

    run_id: str
    step: str
    taken: list[str]
    _find_works: Callable[[str, str | None], list[Work]]
    _name_of: Callable[[str], str]

    @abstractmethod
    def _waiting(self, wait: Wait) -> Wait:
        """A wait that is made is returned."""

    @abstractmethod
    def on_end(self, stop: Callable[[], None]) -> None:
        """Calls `stop` when the attempt is over."""

    def agent(
        self, argv: Sequence[str] | Agent | None = None, *, directory: str = "", **options: Any
    ) -> Wait:
        """`return tx.agent(["my-agent", "--prompt", "prompt.md"])`: until it is done, in a copy of its own.

        Once this step is committed, the command is launched in a working copy of the run's directory, and
        watched, also by the next process where this one dies. The outcome is `succeeded`, or one of `failed`,
        `timed_out`, `stalled`, `over_limit`, `lost`, `cancelled`, `rejected` (by its verifying commands),
        `unverified` or `conflict`; what it has changed is sealed, and nothing of it is in the workspace until
        the step after it takes it: see `work` and `take`.

        Args:
            argv: the command with its arguments; no shell is involved.
            directory: what is copied, below the run's directory; all of it, unless given. One that begins
                with `/` starts at the workspace's root, and `/` is the whole workspace.
            options: those of `Agent`: `driver`, `prompt`, `result`, `limits`, `done`, `verify`, …

        Raises:
            InputError: it cannot be launched like this.
        """
        subject = f"{self.run_id}/{self.step}"
        spec = Agent.parse(argv, subject, **options)
        place = self._place(directory)
        return self._waiting(agent(spec, place))

    def run(self, argv: Sequence[str], *, directory: str = "", **options: Any) -> Ran:
        """Runs a command in a working copy, now; what it changes becomes this transaction's. For sync steps.

        It finds what this step has written. When it fails, or the attempt ends, it is stopped with everything
        that it has started, and nothing of it is left. For what may take long, see `agent`.

        Args:
            argv: the command with its arguments; no shell is involved.
            directory: what is copied, below the run's directory; all of it, unless given. One that begins
                with `/` starts at the workspace's root, and `/` is the whole workspace.
            options: those of `Agent` but `driver`, `retry`, `verify`, `result`, `done` and `reads`.

        Raises:
            CommandFailed: it could not be started, or did not succeed.
            InputError: it cannot be run like this.
            Conflict, ChangesRefused, CopyRefused: what it has changed cannot be taken.
        """
        subject = f"{self.run_id}/{self.step}"
        wrong = {"driver", "retry", "verify", "result", "done", "reads"} & set(options)
        if wrong or self._is_async:
            raise InputError(
                "run command", subject, expected="options of a command" if wrong else "a sync step",
                found=", ".join(sorted(wrong)) or "an async one", hint="tx.agent(…) takes them",
            )  # fmt: skip
        spec = Agent.parse(argv, subject, **options)
        place = self._place(directory)
        scratch = Scratch(self._storage, self._files, place, spec, self._status_path)
        self.on_end(scratch.stop)
        return scratch.run()

    def _place(self, directory: str) -> str:
        """A directory, from the workspace's root."""
        if not isinstance(directory, str):
            raise InputError("copy", repr(directory), expected="a directory", found=type(directory).__name__)
        if directory.startswith("/"):
            inside = directory.strip("/")
            return normalise(inside, operation="copy") if inside else ""
        return self._path(directory, "copy") if directory else self._prefix.removesuffix("/")

    def work(self, step: str | None = None) -> Work:
        """What the run's latest agent has come to, or the one that `step` has launched. For sync steps.

        Raises:
            InputError: none is over.
        """
        found = self.works(step)
        if not found:
            raise InputError(
                "look at the work of", f"{self.run_id}/{step or self.step}",
                expected="an agent of this run that is over", found="none",
                hint="read it in the step that follows tx.agent(…)",
            )  # fmt: skip
        return found[-1]

    def works(self, step: str | None = None) -> list[Work]:
        """The same of all of them, in the order of their visits: for the step that joins a fan-out."""
        return self._find_works(self.run_id, step)

    def take(
        self, work: Work, *, paths: Sequence[str] | None = None, ours: Sequence[str] = (),
        theirs: Sequence[str] = (),
    ) -> list[str]:  # fmt: skip
        """What an agent has changed becomes part of this transaction; returns the paths, from the root.

        Exactly what was sealed, all of it or nothing, checked against what is there now.

        Args:
            work: from `work`.
            paths: patterns below the directory that was copied: only these; all, unless given.
            ours: where somebody has changed the same meanwhile, what the agent has wins;
            theirs: or what is there stays. Any other such change is a conflict.

        Raises:
            Conflict: somebody has changed the same meanwhile, or a file that it was declared to read.
            ChangesRefused: nothing was sealed, or it holds what cannot be committed.
        """
        subject = f"{self.run_id}/{work.id}"
        for name, value in {"paths": paths, "ours": ours, "theirs": theirs}.items():
            if isinstance(value, str):
                raise InputError("take", subject, expected=f"{name}: a list of patterns", found=repr(value))
        changes = self._storage.copies.sealed(self._name_of(work.id)) if work.digest else None
        if changes is None or changes.digest != work.digest:
            raise ChangesRefused(
                "take", subject, expected="sealed changes", found="none, or others than these",
                hint=f"surefoot workspace diff {work.id}",
            )  # fmt: skip
        if work.reads and contents(self._files, "", work.reads, "") != work.reads_digest:
            raise Conflict(
                "take", subject, expected=f"{', '.join(work.reads)} as it was when the agent was launched",
                found="other contents: what it has read is out of date", hint="launch it again",
            )  # fmt: skip
        self.taken.append(work.id)
        return take(
            self._storage, self._files, self._name_of(work.id), changes, subject=subject,
            picked=picks(paths, matcher), ours=matcher(ours), theirs=matcher(theirs),
        )  # fmt: skip
