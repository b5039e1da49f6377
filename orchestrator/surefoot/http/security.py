"""Who may come in, from where, and how much: before any route is reached.

Pure ASGI, so that it also holds for streams and WebSockets. The rules: the Host is one of ours (a name that
somebody else has pointed here is not: DNS rebinding), a browser's unsafe request comes from our own pages, a
body has a size, and nobody asks more often than the limit.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

import anyio
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from surefoot_storage.transaction import acting

from .problems import problem

LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
HEADERS: Final = {
    b"content-security-policy": b"default-src 'none'; script-src 'self'; style-src 'self';"
    b" img-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"cache-control": b"no-store",
}
CLIENTS_MAX = 10_000


@dataclass
class Limits:
    """How much is taken.

    Attributes:
        body_bytes_max: of one request.
        body_s: a body that takes longer to arrive is refused.
        requests_per_s: of one client, on average;
        burst: and at once.
        streams_max: live connections at the same time.
    """

    body_bytes_max: int = 1 << 20
    body_s: float = 10.0
    requests_per_s: float = 200.0
    burst: int = 400
    streams_max: int = 200


@dataclass
class Buckets:
    """Tokens of each client, filled by time."""

    per_s: float
    burst: int
    now: Callable[[], float] = time.monotonic
    _left: dict[str, tuple[float, float]] = field(default_factory=dict)

    def take(self, client: str) -> bool:
        """Whether one more request is within the limit."""
        now = self.now()
        left, at = self._left.get(client, (float(self.burst), now))
        left = min(float(self.burst), left + (now - at) * self.per_s)
        if len(self._left) > CLIENTS_MAX:
            self._left.clear()
        self._left[client] = (max(0.0, left - 1.0) if left >= 1.0 else left, now)
        return left >= 1.0


class Gate:
    """The outermost layer of the application."""

    def __init__(self, app: ASGIApp, *, hosts: frozenset[str], limits: Limits) -> None:
        self._app = app
        self._hosts = hosts
        self._limits = limits
        self._buckets = Buckets(limits.requests_per_s, limits.burst)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuses, or passes on."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        acts = acting.set("")  # a route says who it is; nothing of that is left afterwards
        try:
            await self._answer(scope, receive, send)
        finally:
            acting.reset(acts)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        refused = self._refuse(scope, headers)
        if refused is not None and scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": refused[1]})
        elif refused is not None:
            await problem(*refused)(scope, receive, _guarded(send))
        else:
            await self._pass(scope, receive, send, headers)

    def _refuse(self, scope: Scope, headers: Headers) -> tuple[int, str, str] | None:
        host = headers.get("host", "")
        if _name_of(host) not in self._hosts:
            return 400, "host", f"the Host header names {host[:100]!r}, which is not this server"
        origin = headers.get("origin")
        unsafe = scope["type"] == "websocket" or scope["method"] not in SAFE
        if unsafe and origin is not None and urlsplit(origin).netloc != host:
            return 403, "origin", "the request comes from a page of another origin"
        if unsafe and headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return 403, "origin", "the request comes from a page of another site"
        client = scope["client"][0] if scope.get("client") else ""
        if not self._buckets.take(client):
            return 429, "rate", f"more than {self._limits.requests_per_s:g} requests a second"
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > self._limits.body_bytes_max:
            return 413, "size", f"a body may have at most {self._limits.body_bytes_max} bytes"
        return None

    async def _pass(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        if scope["type"] == "websocket":
            await self._app(scope, receive, send)
            return
        body = _Body(receive, self._limits)
        has_body = "content-length" in headers or "transfer-encoding" in headers
        if has_body and not await body.read():
            status = 408 if body.is_late else 413
            await problem(status, "body", "the body is too large, or took too long")(
                scope, receive, _guarded(send)
            )
            return
        await self._app(scope, body.receive if has_body else receive, _guarded(send))


class _Body:
    """A request's body, read whole before anybody works on it: a slow sender holds nothing but itself."""

    def __init__(self, receive: Receive, limits: Limits) -> None:
        self._receive = receive
        self._limits = limits
        self._messages: list[Message] = []
        self.is_late = False

    async def read(self) -> bool:
        size = 0
        with anyio.move_on_after(self._limits.body_s):
            while True:
                message = await self._receive()
                self._messages.append(message)
                size += len(message.get("body", b""))
                if size > self._limits.body_bytes_max:
                    return False
                if message["type"] != "http.request" or not message.get("more_body"):
                    return True
        self.is_late = True
        return False

    async def receive(self) -> Message:
        return self._messages.pop(0) if self._messages else await self._receive()


def _guarded(send: Send) -> Callable[[Message], Awaitable[None]]:
    """Every answer says what a browser may do with it."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = {name.lower() for name, _ in message["headers"]}
            more = [(name, value) for name, value in HEADERS.items() if name not in given]
            message = {**message, "headers": [*message["headers"], *more]}
        await send(message)

    return sending


def _name_of(host: str) -> str:
    """Without the port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""
