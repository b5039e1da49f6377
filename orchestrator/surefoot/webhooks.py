"""`engine.webhooks`: others are told of every change of status by a signed POST, from the outbox."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from anyio import to_thread

from surefoot_storage import InputError, UnknownId

from . import checks, rows
from .opened import OpenEngine
from .pending import Pender, Pending
from .posting import secret_of
from .rows import Webhook

EVENTS_MAX = 50


class Webhooks:
    """Of one engine."""

    def __init__(self, engine: Callable[[], OpenEngine], pender: Pender) -> None:
        self._engine = engine
        self._pending = pender

    def add(
        self, url: str, *, events: Collection[str] = (), workflow: str = ""
    ) -> Pending[tuple[str, Webhook]]:
        """From now on every change of a run's status is POSTed there. Returns the secret to check it with.

        At least once, in order for each run, with retries for hours; then it is a dead letter.

        Args:
            url: http or https; redirects are not followed.
            events: only these, as the audit log names them: started, committed, failed, …
            workflow: only of its runs.

        Raises:
            InputError: it cannot be one.
        """
        _checked_url(url)
        for event in events:
            checks.text("add webhook", url, "event", event, most=100, error=InputError)
        if isinstance(events, str) or len(events) > EVENTS_MAX or any(" " in event for event in events):
            raise InputError(
                "add webhook",
                url,
                expected=f"at most {EVENTS_MAX} names of events",
                found=checks.shown(events),
            )

        def work() -> tuple[str, Webhook]:
            engine = self._engine()
            hook = Webhook(secrets.token_hex(8), url, tuple(events), workflow, engine.clock.now())
            engine.workspace.write_rows([rows.insert_webhook(hook)])
            return secret_of(engine.workspace, hook.id), hook

        return self._pending("webhooks.add", lambda: to_thread.run_sync(work))

    def all(self) -> Pending[list[Webhook]]:
        """All of them, the oldest first."""
        return self._pending(
            "webhooks.all", lambda: to_thread.run_sync(rows.webhooks, self._engine().workspace)
        )

    def remove(self, hook_id: str) -> Pending[None]:
        """It is told nothing more; what waits for it is withdrawn.

        Raises:
            InputError: there is none of that id.
        """

        def work() -> None:
            engine = self._engine()
            if rows.find_webhook(engine.workspace, hook_id) is None:
                raise UnknownId(
                    "remove webhook", hook_id, expected="the id of a webhook", found="none of that id",
                    hint="surefoot webhook list",
                )  # fmt: skip
            engine.workspace.write_rows(rows.delete_webhook(hook_id))

        return self._pending("webhooks.remove", lambda: to_thread.run_sync(work), hook_id=hook_id)


def _checked_url(url: str) -> None:
    checks.text("add webhook", url, "url", url, most=2_000, error=InputError)
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits = False
    if not fits or parts.username or parts.password:
        raise InputError(
            "add webhook", url[:80], expected="a URL such as https://example.org/hook, without a password",
            found=url[:80],
        )  # fmt: skip
