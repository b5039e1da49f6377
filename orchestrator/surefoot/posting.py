"""Sending what waits for webhooks: signed, so that a receiver knows who it comes from.

As https://www.standardwebhooks.com says, so that receivers can check it with a library: HMAC-SHA256 of
`id.timestamp.body` under a secret of the webhook's own, which is derived and kept nowhere.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import importlib.util
import json
from collections.abc import Callable
from typing import Any

from anyio import to_thread

from surefoot_storage import SurefootError, Workspace

from . import rows
from .retry import Retry
from .rows import Message, Webhook
from .steps import Effect

TIMEOUT_S = 10.0
RETRY = Retry(attempts=8, initial_s=1.0, factor=4.0, max_s=3_600.0)


class Posting:
    """Sends what waits for webhooks: the outbox asks it for the function of each message."""

    def __init__(self, workspace: Workspace, now: Callable[[], float]) -> None:
        self._workspace = workspace
        self._now = now

    def takes(self, message: Message) -> bool:
        """Only here, where an HTTP client is installed; another process may have one."""
        return message.effect.startswith(rows.HOOK) and importlib.util.find_spec("httpx") is not None

    def resolve(self, message: Message) -> tuple[Effect, Any]:
        """What sends it, and what is sent."""
        hook = rows.find_webhook(self._workspace, message.effect.removeprefix(rows.HOOK))
        body = json.dumps({"run_id": message.run_id, "workflow": message.workflow, **message.payload})
        return Effect(message.effect, self._post, TIMEOUT_S, RETRY), (hook, message.key, body.encode())

    async def _post(self, told: tuple[Webhook | None, str, bytes]) -> None:
        import httpx

        hook, key, body = told
        if hook is None:
            return  # it was removed meanwhile
        secret = await to_thread.run_sync(secret_of, self._workspace, hook.id)
        headers = {"content-type": "application/json", **signature(secret, key, int(self._now()), body)}
        async with httpx.AsyncClient(timeout=TIMEOUT_S, follow_redirects=False, trust_env=False) as client:
            response = await client.post(hook.url, content=body, headers=headers)
        if not response.is_success:
            raise SurefootError(
                "tell webhook", hook.id, expected="an answer from 200 to 299", found=str(response.status_code)
            )


def secret_of(workspace: Workspace, hook_id: str) -> str:
    """What a webhook's messages are signed with, as its receiver is given it."""
    key = hmac.digest(workspace.secret(), b"webhook/" + hook_id.encode(), hashlib.sha256)
    return "whsec_" + base64.b64encode(key).decode()


def signature(secret: str, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers that say who has sent it, and when."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{message_id}.{timestamp}.".encode() + body
    mac = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{mac}",
    }
