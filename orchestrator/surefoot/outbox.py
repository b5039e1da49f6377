"""Telling others: effects from the durable outbox, at least once, in order per run, best effort."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anyio
from anyio import to_thread

from surefoot_storage import Conflict, SurefootError, Workspace, WorkspacePoisoned

from . import asking, rows
from .approvals import ApprovalState, Asked
from .clock import Clock
from .declare import Workflow
from .log import logger
from .model import Committed, StatusChange
from .posting import Posting
from .retry import EFFECT_RETRY, Retry
from .rows import Message
from .steps import EFFECT_TIMEOUT_S, Effect

_PAUSE_S = 5.0
AT_ONCE = 16
"""Messages of different channels that are on their way at the same time: a slow receiver stops no others."""


class Outbox:
    """Delivers what is due; failures are repeated with growing waits and then set aside as dead."""

    def __init__(
        self,
        workspace: Workspace,
        workflows: Mapping[str, Workflow],
        clock: Clock,
        random: Callable[[], float],
    ) -> None:
        self._workspace = workspace
        self._workflows = workflows
        self._clock = clock
        self._random = random
        self._posting = Posting(workspace, clock.now)
        self._more = anyio.Event()
        self._busy = anyio.Lock()

    def notify(self) -> None:
        """Something may be due."""
        self._more.set()

    async def serve(self) -> None:
        """Until cancelled."""
        while True:
            self._more = anyio.Event()
            try:
                next_at = await self.deliver_due()
            except WorkspacePoisoned:
                return  # everybody else is told by their own calls
            except SurefootError as error:  # a full disk, say: the messages are still there
                logger().error("outbox.stopped_for_now", error=str(error))
                next_at = self._clock.now() + _PAUSE_S
            with anyio.move_on_after(math.inf if next_at is None else max(0.0, next_at - self._clock.now())):
                await self._more.wait()

    async def deliver_due(self, run_id: str | None = None) -> float | None:
        """Delivers everything that is due now; returns when the next one will be, None where none waits."""
        async with self._busy:
            while True:
                found = await to_thread.run_sync(rows.next_messages, self._workspace, run_id)
                waiting = [message for message in found if self._is_ours(message)]
                due = [message for message in waiting if message.next_at <= self._clock.now()]
                if not due:
                    return min((message.next_at for message in waiting), default=None)
                await self._deliver_all(due[:AT_ONCE])  # they are of different channels

    def _is_ours(self, message: Message) -> bool:
        if message.effect.startswith(rows.HOOK):
            return self._posting.takes(message) and not self._is_elsewhere(message)
        return message.workflow in self._workflows and not self._is_elsewhere(message)

    async def _deliver_all(self, messages: Sequence[Message]) -> None:
        errors: list[SurefootError] = []

        async def one(message: Message) -> None:
            try:
                if await self._claim(message):
                    await self._deliver(message)
            except SurefootError as error:  # of the store: whoever serves knows what to do
                errors.append(error)

        async with anyio.create_task_group() as tasks:
            for message in messages:
                tasks.start_soon(one, message)
        for error in sorted(errors, key=lambda error: not isinstance(error, WorkspacePoisoned)):
            raise error

    def _is_elsewhere(self, message: Message) -> bool:
        """Whether another living worker delivers it."""
        workspace = self._workspace
        return message.owner not in ("", workspace.worker) and workspace.is_alive(message.owner)

    async def _claim(self, message: Message) -> bool:
        """False where another process was faster."""
        claimed = rows.claim_effect(message, self._workspace.worker)
        try:
            await to_thread.run_sync(lambda: self._workspace.write_rows([claimed], durable=False))
        except Conflict:
            return False
        return True

    async def _deliver(self, message: Message) -> None:
        log = logger(run=message.run_id, step=message.step, effect=message.effect, key=message.key)
        retry = EFFECT_RETRY
        try:
            effect, done = await to_thread.run_sync(self._resolve, message)
            retry = effect.retry
            with anyio.fail_after(effect.timeout_s):
                if inspect.iscoroutinefunction(effect.function):
                    await effect.function(done)
                else:
                    await to_thread.run_sync(effect.function, done, abandon_on_cancel=True)
        except Exception as error:  # noqa: BLE001 - an effect's failure never reaches the transition
            await self._repeat_or_bury(message, retry, error)
            return
        log.info("effect.delivered", attempt=message.attempts + 1)
        await self._settle(message, "delivered")

    def _resolve(self, message: Message) -> tuple[Effect, Any]:
        if message.effect.startswith(rows.HOOK):
            return self._posting.resolve(message)
        run = rows.get_run(self._workspace, message.run_id)
        workflow = self._workflows[run.workflow]
        if message.effect.startswith(rows.VIEW):
            return self._resolve_view(message, workflow)
        if message.effect == rows.ASK:
            return self._resolve_ask(message, workflow)
        step = workflow.steps.get(message.step)
        found = [effect for effect in step.effects if effect.name == message.effect] if step else []
        if not found:
            raise SurefootError(
                "deliver",
                message.key,
                expected="the effect's function",
                found=f"no {message.effect} at step {run.workflow}/{message.step}",
                hint="the workflow has changed since; give the effect its old name back",
            )
        done = Committed(
            run_id=run.id,
            workflow=run.workflow,
            step=message.step,
            txid=message.payload["txid"],
            key=message.key,
            files=tuple(message.payload["files"]),
            directory=run.directory,
            input=workflow.parse_input(run.input),
            at=message.payload["at"],
            attempt=message.attempts + 1,
        )
        return found[0], done

    def _resolve_view(self, message: Message, workflow: Workflow) -> tuple[Effect, StatusChange]:
        facts, name = message.payload, message.effect.removeprefix(rows.VIEW)
        change = StatusChange(
            message.run_id, workflow.name, facts["revision"], facts["event"], facts["status"], message.key
        )
        if name not in workflow.views:  # it is not declared any more: nobody has to be told
            return Effect(name, _nothing, EFFECT_TIMEOUT_S, EFFECT_RETRY), change
        return workflow.views[name], change

    def _resolve_ask(self, message: Message, workflow: Workflow) -> tuple[Effect, Asked]:
        facts = message.payload
        found, _ = rows.approvals(self._workspace, approval_id=facts["approval"])
        approval, person = (found[0] if found else None), facts["person"]
        if workflow.tells is None or approval is None:
            raise SurefootError(
                "tell of the request", facts["approval"],
                expected="a notifier in its workflow, and its record",
                found="no such function" if workflow.tells is None else "none that can be read",
                hint=f"@{workflow.name}.notifier declares who tells people",
            )  # fmt: skip
        seat = next((seat for seat in approval.seats if seat.person == person), None)
        is_open = approval.state is ApprovalState.OPEN and seat is not None and seat.state == "open"
        asked = Asked(
            approval.id, approval.run_id, approval.step, approval.ask.title, approval.ask.of, approval.digest,
            person, asking.token(self._workspace, approval, person), facts["reason"],
            approval.expires_at, message.key,
        )  # fmt: skip
        function = workflow.tells if is_open else _nothing  # answered meanwhile
        return Effect(message.effect, function, EFFECT_TIMEOUT_S, EFFECT_RETRY), asked

    async def _repeat_or_bury(self, message: Message, retry: Retry, error: Exception) -> None:
        failures = message.attempts + 1
        cause = f"{type(error).__name__}: {error}"
        log = logger(run=message.run_id, step=message.step, effect=message.effect, key=message.key)
        if not retry.allows(failures, error):
            log.error("effect.dead", attempts=failures, error=cause)
            await self._settle(message, "dead", cause)
            return
        wait_s = retry.delay_s(failures, self._random)
        log.warning("effect.failed", attempt=failures, error=cause, retry_in_s=round(wait_s, 3))
        await self._settle(message, "pending", cause, self._clock.now() + wait_s)

    async def _settle(self, message: Message, state: str, error: str = "", next_at: float = 0.0) -> None:
        """Without a barrier: forgetting a delivery in a power cut means one more, which receivers expect."""
        with anyio.CancelScope(shield=True):
            statement = rows.settle_effect(message, state, error, next_at)
            await to_thread.run_sync(lambda: self._workspace.write_rows([statement], durable=False))


def _nothing(_told: object) -> None:
    """Nobody has to be told any more."""
