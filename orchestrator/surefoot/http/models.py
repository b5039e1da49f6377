"""The Model Context Protocol below /mcp, where its SDK is installed."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from surefoot.engine import Engine

from .problems import problem

if TYPE_CHECKING:
    from surefoot.mcp.serving import Mounted


class ForModels:
    """Hands on what comes to /mcp, with the caller whose token it has."""

    def __init__(self, app: ASGIApp, engine: Engine) -> None:
        self._app = app
        self._engine = engine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """To the tools, or on to the API and the page."""
        mounted: Mounted | None = None
        if scope["type"] == "http" and scope["path"].rstrip("/") == "/mcp":
            mounted = scope["app"].state.mcp
        if mounted is None:
            await self._app(scope, receive, send)
            return
        kind, _, token = Request(scope).headers.get("authorization", "").partition(" ")
        given = token if kind.lower() == "bearer" else None
        caller = await self._engine.access.caller(given)
        if caller is None:
            refused = problem(401, "http", "a valid token is needed: Authorization: Bearer …")
            refused.headers["www-authenticate"] = "Bearer"
            await refused(scope, receive, send)
            return
        await mounted.answer(caller, scope, receive, send)


@contextlib.asynccontextmanager
async def for_models(engine: Engine) -> AsyncIterator[Mounted | None]:
    """The tools, as long as the application is served; None where the SDK is not installed."""
    try:
        from surefoot.mcp.serving import Mounted
    except ModuleNotFoundError:
        yield None
        return
    mounted = Mounted(engine)
    async with mounted.running():
        yield mounted
