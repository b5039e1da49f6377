"""Both sets of tools over stdio, and over HTTP below /mcp: which ones, the caller's token says."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from mcp.server.transport_security import TransportSecuritySettings
from starlette.types import ASGIApp, Receive, Scope, Send

from surefoot.access import Caller
from surefoot.engine import Engine
from surefoot_storage import InputError

from .server import as_caller, supervisor, worker

# Who may address the server, and from which pages, the application around it has checked already.
_NO_SECOND_CHECK = TransportSecuritySettings(enable_dns_rebinding_protection=False)


async def serve_stdio(engine: Engine, token: str | None, *, decides: bool = False) -> None:
    """Talks over stdin and stdout until they are closed.

    Raises:
        InputError: the token opens nothing, or one is needed.
    """
    caller = await engine.access.caller(token)
    if caller is None:
        raise InputError(
            "serve mcp", "stdio", expected="a valid token in SUREFOOT_TOKEN",
            found="none" if token is None else "one that opens nothing", hint="surefoot token create",
        )  # fmt: skip
    server = worker(engine) if caller.run_id else supervisor(engine, decides=decides)
    with as_caller(caller):
        await server.run_stdio_async()


class Mounted:
    """The same for an ASGI application, which tells who calls."""

    def __init__(self, engine: Engine, *, decides: bool = False) -> None:
        self._servers = (supervisor(engine, decides=decides), worker(engine))
        self._apps: tuple[ASGIApp, ...] = tuple(
            server.streamable_http_app(
                streamable_http_path="/", stateless_http=True, json_response=True,
                transport_security=_NO_SECOND_CHECK,
            )
            for server in self._servers
        )  # fmt: skip

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """As long as requests are answered."""
        async with contextlib.AsyncExitStack() as stack:
            for server in self._servers:
                await stack.enter_async_context(server.session_manager.run())
            yield

    async def answer(self, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
        """One request of theirs."""
        inner: dict[str, Any] = {**scope, "path": "/", "root_path": ""}
        with as_caller(caller):
            await self._apps[bool(caller.run_id)](inner, receive, send)
