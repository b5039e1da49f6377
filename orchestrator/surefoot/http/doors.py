"""What each route starts from: the engine, and a caller who may do this."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from surefoot.access import Caller
from surefoot.engine import Engine
from surefoot_storage.transaction import acting

COOKIE: Final = "surefoot_token"
SESSION: Final = "surefoot_session"
_bearer = HTTPBearer(auto_error=False, description="A token of `surefoot token create`.")


def the_engine(request: Request) -> Engine:
    """The one that this application was made of."""
    engine: Engine = request.app.state.engine
    return engine


TheEngine = Annotated[Engine, Depends(the_engine)]


def token_of(connection: HTTPConnection) -> str | None:
    """The token that somebody has sent; another kind of authorization is one that opens nothing."""
    sent = connection.headers.get("authorization")
    if sent is None:
        return connection.cookies.get(COOKIE) or None
    kind, _, token = sent.partition(" ")
    return token if kind.lower() == "bearer" else ""


async def caller_of(connection: HTTPConnection) -> Caller:
    """Who asks.

    Raises:
        HTTPException: nobody who may come in.
    """
    engine: Engine = connection.app.state.engine
    caller = await engine.access.caller(token_of(connection))
    if caller is None:
        raise HTTPException(
            401, "a valid token is needed: Authorization: Bearer …", {"www-authenticate": "Bearer"}
        )
    return caller


async def may_listen(connection: HTTPConnection) -> bool:
    """Whether whoever has opened a live connection may still have it: a token can be revoked meanwhile."""
    engine: Engine = connection.app.state.engine
    caller = await engine.access.caller(token_of(connection))
    return caller is not None and caller.may("read") and not caller.run_id


def allowed(scope: str, *, of_run: bool = False) -> Callable[..., Awaitable[Caller]]:
    """A dependency: a caller who has this scope; with `of_run`, also one who may touch only that run."""

    async def check(request: Request, _described: Annotated[Any, Security(_bearer)]) -> Caller:
        caller = await caller_of(request)
        _refuse(caller, scope, request.path_params.get("run_id") if of_run else None)
        request.state.caller = caller
        acts_as(caller)
        return caller

    return check


def acts_as(caller: Caller) -> None:
    """What is committed from here on says that they have asked for it."""
    if caller.id:
        acting.set(caller.name)


def _refuse(caller: Caller, scope: str, run_id: str | None) -> None:
    if not caller.may(scope):
        raise HTTPException(403, f"the token {caller.name!r} has no scope {scope!r}")
    if caller.run_id and caller.run_id != run_id:
        raise HTTPException(403, f"the token {caller.name!r} is for run {caller.run_id} only")


Reader = Annotated[Caller, Depends(allowed("read"))]
RunReader = Annotated[Caller, Depends(allowed("read", of_run=True))]
Writer = Annotated[Caller, Depends(allowed("write"))]
RunWriter = Annotated[Caller, Depends(allowed("write", of_run=True))]
Approver = Annotated[Caller, Depends(allowed("approve"))]
Admin = Annotated[Caller, Depends(allowed("admin"))]


class Forms:
    """Protection of the page's forms: what a form sends with it only our own page could know."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)  # of this server's life: a page that is older is loaded again

    def session(self, request: Request) -> str:
        """This browser's, or a new one."""
        return request.cookies.get(SESSION) or secrets.token_urlsafe(24)

    def token(self, session: str) -> str:
        """What its forms must send."""
        return hmac.new(self._secret, session.encode(), hashlib.sha256).hexdigest()

    def check(self, request: Request, sent: Any) -> None:
        """Refuses a form that is not from our page in this browser.

        Raises:
            HTTPException: it is not.
        """
        session = request.cookies.get(SESSION, "")
        if not session or not hmac.compare_digest(self.token(session).encode(), str(sent).encode()):
            raise HTTPException(403, "the form is too old, or not from this page: load the page again")
