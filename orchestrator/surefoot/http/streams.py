"""Live: server-sent events and a WebSocket, both behind one cursor."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Header, Query, Request, WebSocket
from starlette.responses import StreamingResponse
from starlette.websockets import WebSocketDisconnect

from surefoot.engine import Engine

from . import shapes
from .doors import Reader, TheEngine, may_listen
from .live import PIECE, Feed
from .runs import NAME

router = APIRouter(tags=["live"])
HEARTBEAT_S = 15.0
CURSOR_MAX = (1 << 53) - 1
Cursor = Annotated[int, Query(ge=0, le=CURSOR_MAX, description="The sequence of the last event one has.")]
RunName = Annotated[str | None, Query(pattern=NAME, description="Only of this run.")]


@router.get("/events", operation_id="list_events", responses=shapes.shown(list[shapes.Event]))
async def list_events(
    engine: TheEngine, request: Request, _caller: Reader, after: Cursor = 0, run_id: RunName = None,
    limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
    wait_s: Annotated[float, Query(ge=0, le=60, description="How long to wait for the first one.")] = 0.0,
) -> list[dict[str, Any]]:  # fmt: skip
    """Changes of status behind a cursor, oldest first: each has its `sequence`, the next cursor."""
    feed: Feed = request.app.state.feed
    until = anyio.current_time() + wait_s
    while True:
        found = await events(engine, run_id, after, limit)
        left_s = until - anyio.current_time()
        if found or left_s <= 0 or feed.is_closed:
            return found
        await feed.wait(left_s)


@router.get(
    "/events/stream",
    operation_id="stream_events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def stream_events(
    engine: TheEngine, request: Request, _caller: Reader, after: Cursor = 0, run_id: RunName = None,
    last_event_id: Annotated[str | None, Header(pattern=r"^[0-9]{1,15}$")] = None,
) -> StreamingResponse:  # fmt: skip
    """The same as server-sent events, for as long as one listens. `Last-Event-ID` goes before `after`."""
    request.app.state.feed.refuse_more()
    start = int(last_event_id) if last_event_id else after
    return StreamingResponse(_stream(engine, request, run_id, start), media_type="text/event-stream")


async def _stream(engine: Engine, request: Request, run_id: str | None, after: int) -> AsyncIterator[str]:
    feed: Feed = request.app.state.feed
    with feed.stream():
        yield "retry: 1000\n\n"
        while not feed.is_closed and await may_listen(request):
            found = await events(engine, run_id, after, PIECE)
            for event in found:
                after = event["sequence"]
                yield f"id: {after}\nevent: status\ndata: {json.dumps(event)}\n\n"
            if not found:
                await feed.wait(HEARTBEAT_S)
                yield ": still here\n\n"


@router.websocket("/events/ws")
async def socket_events(
    socket: WebSocket, after: Annotated[int, Query(ge=0, le=CURSOR_MAX)] = 0, run_id: str | None = None
) -> None:
    """The same over a WebSocket: one JSON text for each event. Nothing is taken from the caller."""
    engine, feed = socket.app.state.engine, socket.app.state.feed
    if not await may_listen(socket):
        await socket.close(1008, "a token with the scope read is needed")
        return
    feed.refuse_more()
    with contextlib.suppress(WebSocketDisconnect), feed.stream():
        await socket.accept()
        async with anyio.create_task_group() as tasks:

            async def until_gone() -> None:
                while True:
                    if (await socket.receive())["type"] == "websocket.disconnect":
                        tasks.cancel_scope.cancel()
                        return

            tasks.start_soon(until_gone)
            await _send(socket, engine, feed, run_id, after)
            tasks.cancel_scope.cancel()


async def _send(socket: WebSocket, engine: Engine, feed: Feed, run_id: str | None, after: int) -> None:
    while not feed.is_closed and await may_listen(socket):
        found = await events(engine, run_id, after, PIECE)
        for event in found:
            after = event["sequence"]
            await socket.send_text(json.dumps(event))
        if not found:
            await feed.wait(HEARTBEAT_S)
    await socket.close(1001 if feed.is_closed else 1008)


async def events(engine: Engine, run_id: str | None, after: int, limit: int) -> list[dict[str, Any]]:
    """Lines of the audit log, as events: without tracebacks."""
    lines = await engine.audit(run_id, after=after, limit=limit)
    for line in lines:
        line["sequence"] = line.pop("id")
        line["transaction_sequence"] = line.pop("seq")
        if line["failure"]:
            line["failure"].pop("traceback", None)
    return lines
