"""What a step works with: files that change together, what comes next, and facts about the run."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, overload

from surefoot_storage import FileTransaction, InputError, TransactionClosed, Workspace

from . import checks, templates
from .agentspec import Work
from .agentwork import AgentWork
from .approvals import EXPIRES_S, Ask
from .declare import Workflow
from .errors import ApprovalRefused, StepReturnRefused
from .files import Files, contents
from .model import Run, Visit
from .requests import requested
from .waits import M, Signal, Wait, approval, message, runs, sleep

STARTS_MAX = 1_000


class Transaction(AgentWork):
    """One attempt at one step. Paths are relative to the run's directory; `workspace` starts at the root.

    Usable until the step returns, times out or is cancelled; after that every use raises
    `TransactionClosed`, and nothing of it can ever be committed.
    """

    def __init__(
        self,
        workspace: Workspace,
        files: FileTransaction,
        run: Run,
        visit: Visit,
        *,
        templates_dir: str,
        is_async: bool,
        now: float,
        find_works: Callable[[str, str | None], list[Work]] = lambda _run, _step: [],
        name_of: Callable[[str], str] = str,
    ) -> None:
        super().__init__(workspace, files, run.directory, is_async=is_async, status_path=run.status_path)
        self.workspace = Files(workspace, files, "", is_async=is_async, status_path=run.status_path)
        """The same transaction, seen from the workspace's root."""
        self.run_id = run.id
        self.step = visit.step
        self.part = ""
        """The part of the step that runs at the moment."""
        self.index = visit.index
        """Of the item of a fan-out in its list, from 0."""
        self.attempt = visit.failures + 1
        """1 for the first try."""
        self.key = run.key(visit, visit.step)
        """The same in every attempt at this visit of the step: for receivers to deduplicate by."""
        self.now = now
        """When the attempt began, in seconds since 1970: use it instead of asking the clock."""
        self.started: list[tuple[Workflow, Run]] = []
        self.taken = []
        self._find_works = find_works
        self._name_of = name_of
        self._visit = visit
        self._wait: Wait | None = None
        self._templates_dir = templates_dir
        self._over = threading.Event()
        self._on_end: list[Callable[[], None]] = []

    @property
    def txid(self) -> str:
        """The transaction's id, as in the log."""
        return self._files.txid

    def render(self, template: str, /, **values: Any) -> str:
        """A template filled in.

        Raises:
            TemplateRefused: it is missing, broken, or uses a value that was not given.
        """
        return templates.render(self._templates_dir, template, values)

    # --- what comes next ---

    def sleep(self, seconds: float | None = None, *, until: datetime | float | None = None) -> Wait:
        """`return tx.sleep(60)`: once this step is committed, the run waits; its rows are all that is kept.

        Raises:
            InputError: a negative length, a moment without a time zone, both or neither.
        """
        return self._waiting(sleep(seconds, until=until))

    def wait_for(self, signal: Signal[Any], *, timeout_s: float | None = None) -> Wait:
        """`return tx.wait_for(approve)`: until somebody has sent that message, or has already.

        The outcome is `received`, or `timeout`; the step after it reads the message by `tx.received`.
        """
        return self._waiting(message(signal, timeout_s))

    def wait_for_runs(self, *, timeout_s: float | None = None) -> Wait:
        """`return tx.wait_for_runs()`: until all runs are over that this step has started.

        The outcome is `completed`, or `cancelled` where one was, `timeout`, or `error` as soon as one is in
        error (where the step declares that outcome; otherwise the run waits until somebody has mended it).
        """
        return self._waiting(runs(timeout_s))

    def ask(
        self,
        title: str,
        *,
        of: Sequence[str] = (),
        approvers: Sequence[str] = (),
        quorum: int = 1,
        expires_s: float = EXPIRES_S,
        remind_s: float | None = None,
        escalate_s: float | None = None,
        escalate_to: Sequence[str] = (),
        work: Work | None = None,
    ) -> Wait:
        """`return tx.ask("Publish?", of=["brief.md"])`: until enough people approve, or one rejects.

        The outcome is `approved`, `rejected`, `expired`, or `changed` where the files of `of` are not what
        they were when it was asked. The step after it reads the answers by `tx.received()`, or, where it must
        not go on with anything else than what was approved, by `tx.approved()`.

        Args:
            title: the question.
            of: paths, directories and globs below the run's directory.
            approvers: who may answer; unless given, whoever has the token.
            quorum: how many must approve.
            expires_s: how long it waits: 7 days.
            remind_s: those who have not answered are told again this often.
            escalate_s: when `escalate_to` is asked as well.
            escalate_to: who.
            work: an agent's sealed changes that are approved as well, byte for byte: see `work`.

        Raises:
            InputError: it cannot be asked like this.
        """
        lists = {"of": of, "approvers": approvers, "escalate_to": escalate_to}
        for name, value in lists.items():
            if isinstance(value, str) or not isinstance(value, Sequence):
                raise InputError(
                    "ask", f"{self.run_id}/{self.step}", expected=f"{name}: a list of names",
                    found=checks.shown(value),
                )  # fmt: skip
        for pattern in of:
            self._path(pattern, "ask about")
        ask = Ask(
            title,
            tuple(of),
            tuple(approvers),
            quorum,
            expires_s,
            remind_s,
            escalate_s,
            tuple(escalate_to),
            changes=work.digest if work is not None else "",
        )
        return self._waiting(approval(ask.check(f"{self.run_id}/{self.step}")))

    def approved(self) -> dict[str, Any]:
        """The answers that this step follows, where the files are still what was approved; the commit checks.

        Raises:
            ApprovalRefused: they are not, or nothing was approved. UndeclaredRead: an async step has not
            loaded them.
        """
        facts = self.received()
        subject = f"{self.run_id}/{self.step}"
        if not isinstance(facts, dict) or facts.get("state") != "approved":
            raise ApprovalRefused("follow", subject, expected="an approval before this step", found="none")
        for pattern in facts["of"]:
            self._readable(pattern)
        if facts.get("changes") and self.work().digest != facts["changes"]:
            raise ApprovalRefused(
                "follow", subject, expected=f"the changes that {facts['approval']} has approved",
                found=f"those of {self.work().id}: an agent has run since", hint="surefoot agent list",
            )  # fmt: skip
        digest = contents(self._files, self._prefix.removesuffix("/"), facts["of"], self._status_path)
        if digest != facts["digest"]:
            raise ApprovalRefused(
                "follow", subject, expected=f"the contents that {facts['approval']} has approved",
                found="others: the files have changed since", hint=f"surefoot diff {self.run_id}",
            )  # fmt: skip
        return facts

    def _waiting(self, wait: Wait) -> Wait:
        self._wait = wait
        return wait

    def check_wait(self, returned: object) -> None:
        """A wait that is made is returned: otherwise it would do nothing.

        Raises:
            StepReturnRefused: it was not.
        """
        if self._wait is not None and returned is not self._wait:
            raise StepReturnRefused(
                "follow", self.step, expected=f"the step to return its wait for {self._wait}",
                found=f"{type(returned).__name__}", hint="return tx.sleep(…), return tx.wait_for(…)",
            )  # fmt: skip

    @overload
    def received(self, signal: Signal[M]) -> M: ...

    @overload
    def received(self, signal: None = None) -> Any: ...

    def received(self, signal: Signal[Any] | None = None) -> Any:
        """What the wait before this step has brought: a signal's payload; of runs, their ids and states.

        Raises:
            InputError: nothing was received.
        """
        payload = self._visit.payload
        if payload is None:
            raise InputError(
                "receive", f"{self.run_id}/{self.step}",
                expected=f"a message {signal.name!r}" if signal else "a message",
                found="none: the step before this one waited for no message, or in vain",
                hint="read it in the step that follows the outcome 'received'",
            )  # fmt: skip
        return json.loads(payload) if signal is None else signal.parse(payload)

    def start(
        self,
        workflow: Workflow,
        given: Any = None,
        *,
        run_id: str | None = None,
        queue: str = "",
        priority: int = 0,
        lane: str | None = None,
        dedup: str | None = None,
        delay_s: float = 0.0,
        deadline_s: float | None = None,
    ) -> str:
        """A run of its own, started by this transaction's commit, or not at all; returns its id.

        It goes on in this engine or in any worker of its queue; see `wait_for_runs`.

        Raises:
            InputRefused, DeclarationError: it could not be started like this.
        """
        if len(self.started) >= STARTS_MAX:
            raise InputError(
                "start", self.step, expected=f"at most {STARTS_MAX} runs from one step", found="more"
            )
        number = len(self.started) + 1
        run = requested(
            workflow, given, run_id=run_id or f"{self.run_id}.{self._visit.number}.{number}", now=self.now,
            queue=queue, priority=priority, lane=lane, dedup=dedup, delay_s=delay_s, deadline_s=deadline_s,
            parent=self.run_id, parent_visit=self._visit.number,
        )  # fmt: skip
        self.started.append((workflow, run))
        return run.id

    # --- its end ---

    def render_text(self, text: str, /, **values: Any) -> str:
        """A text that is a template itself, filled in.

        Raises:
            TemplateRefused: it is broken, or uses a value that was not given.
        """
        return templates.render_text(text, values)

    def on_end(self, stop: Callable[[], None]) -> None:
        """Calls `stop` when the attempt is cancelled or times out: to end what this step has started.

        From another thread; at once where that has happened already.
        """
        self._on_end.append(stop)
        if self._over.is_set():
            stop()

    def check(self) -> None:
        """Raises `TransactionClosed` where the attempt is over: for long loops."""
        if self._over.is_set():
            raise TransactionClosed(f"the attempt at {self.step} is over")

    def _end(self) -> bool:
        """Fences the transaction; False where its commit has begun already."""
        if not self._files.fence():
            return False
        self._over.set()
        for stop in list(self._on_end):
            stop()
        return True
