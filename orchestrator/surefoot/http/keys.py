"""Idempotency keys: a POST that is sent again with its key is done once, and answered as before.

The answer is durable before it is sent. A request that nobody has answered, because the server died
meanwhile, is done again where the engine itself makes it once (starting by id, sending by key), and refused
otherwise.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

from anyio import to_thread
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from surefoot import rows
from surefoot.engine import Engine
from surefoot_storage import Conflict, SurefootError

from .doors import caller_of
from .problems import of_error, problem

HEADER = "idempotency-key"
KEY_CHARS_MAX = 200
KEPT_S = 7 * 86_400.0
REPEATABLE = ("start_run", "send_message")


def derived(request: Request, what: str) -> str | None:
    """A name that the same key always gives: so the engine itself does it once."""
    key = request.headers.get(HEADER)
    if key is None:
        return None
    caller = request.state.caller.id
    return f"{what}-" + hashlib.sha256(f"{caller}\0{key}".encode()).hexdigest()[:24]


class KeyedRoute(APIRoute):
    """A route whose POSTs may have a key."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, once for each key."""
        handle = super().get_route_handler()
        repeatable = self.name in REPEATABLE

        async def keyed(request: Request) -> Response:
            key = request.headers.get(HEADER)
            if key is None or request.method != "POST":
                return await handle(request)
            if not 0 < len(key) <= KEY_CHARS_MAX or not key.isprintable():
                return problem(422, "key", f"a key has 1 to {KEY_CHARS_MAX} printable characters")
            caller = await caller_of(request)  # first of all: an answer that is kept is theirs alone
            return await self._once(request, handle, (caller.id, key), repeatable=repeatable)

        return keyed

    async def _once(
        self, request: Request, handle: Callable[[Request], Coroutine[Any, Any, Response]],
        name: tuple[str, str], *, repeatable: bool,
    ) -> Response:  # fmt: skip
        engine: Engine = request.app.state.engine
        workspace = engine._the_open.workspace  # noqa: SLF001 - an edge of the engine, as commands are
        body = await request.body()
        what = f"{request.method} {request.url.path}?{request.url.query}\0".encode()
        fingerprint = hashlib.sha256(what + body).hexdigest()
        at_work: set[tuple[str, str]] = request.app.state.keys_at_work
        if name in at_work:
            return _refused(409, "another request with this key is being worked on")
        at_work.add(name)
        try:
            known = await to_thread.run_sync(rows.find_request, workspace, *name)
            if known is not None and known.fingerprint != fingerprint:
                return _refused(422, "this key was used for another request")
            if known is not None and known.status is not None:
                return _replayed(known)
            if known is not None and not repeatable:
                return _refused(
                    409, "it was begun before, and nobody knows what came of it: look what is there"
                )
            if known is None and not await self._begin(engine, name, fingerprint):
                return _refused(409, "another request with this key is being worked on")
            return await self._answer(request, handle, engine, name)
        finally:
            at_work.discard(name)

    async def _begin(self, engine: Engine, name: tuple[str, str], fingerprint: str) -> bool:
        opened = engine._the_open  # noqa: SLF001 - as above
        now = opened.clock.now()
        statements = [
            rows.begin_request(*name, fingerprint, now),
            rows.forget_requests(now - KEPT_S),
        ]
        try:
            await to_thread.run_sync(lambda: opened.workspace.write_rows(statements))
        except Conflict:
            return False
        return True

    async def _answer(
        self, request: Request, handle: Callable[[Request], Coroutine[Any, Any, Response]], engine: Engine,
        name: tuple[str, str],
    ) -> Response:  # fmt: skip
        """What comes of it; where that is not certain (our error, a server that ends), it stays begun."""
        workspace = engine._the_open.workspace  # noqa: SLF001 - as above
        drop = rows.drop_request(*name)
        try:
            answer = await handle(request)
        except SurefootError as error:
            answer = of_error(error)
        except (HTTPException, RequestValidationError):  # nothing was tried
            await to_thread.run_sync(lambda: workspace.write_rows([drop]))
            raise
        if answer.status_code == HTTPStatus.INTERNAL_SERVER_ERROR:
            return answer
        kept = {"body": bytes(answer.body).decode(), "type": answer.headers.get("content-type", "")}
        is_over = answer.status_code < HTTPStatus.INTERNAL_SERVER_ERROR  # otherwise it may be tried again
        statement = rows.answer_request(*name, answer.status_code, json.dumps(kept)) if is_over else drop
        await to_thread.run_sync(lambda: workspace.write_rows([statement]))
        return answer


def _replayed(known: rows.Answered) -> Response:
    assert known.status is not None
    kept = json.loads(known.answer or "{}")
    return Response(kept["body"], known.status, {"idempotency-replayed": "true"}, kept["type"] or None)


def _refused(status: int, detail: str) -> Response:
    return problem(status, "idempotency_key", detail, hint="choose another key for another request")
