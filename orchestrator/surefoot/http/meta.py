"""The server itself: is it there, can it work, what does it know."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from surefoot import __version__
from surefoot_storage import SurefootError

from .doors import Reader, TheEngine

router = APIRouter(tags=["server"])
outside = APIRouter(include_in_schema=False)


@router.get("/health", operation_id="health")
async def health() -> dict[str, str]:
    """The process answers. Needs no token."""
    return {"status": "ok"}


@router.get("/ready", operation_id="ready", responses={503: {"description": "It cannot work now, and why."}})
async def ready(engine: TheEngine, response: Response) -> dict[str, str]:
    """The store can be read, and commits are not blocked. Needs no token, and tells no more than that."""
    try:
        problems = [finding.kind for finding in await engine.facts.findings() if finding.kind in _UNREADY]
    except SurefootError as error:
        problems = [error.code]
    if problems:
        response.status_code = 503
        return {"status": "not ready", "why": ", ".join(sorted(set(problems)))}
    return {"status": "ready"}


_UNREADY = ("database-damaged", "commits-blocked", "unapplied", "workspace-damaged")


@router.get("/about", operation_id="about")
async def about(engine: TheEngine, caller: Reader) -> dict[str, Any]:
    """Which version answers, who asks, and the cursor behind the last event."""
    return {
        "version": __version__,
        "caller": {"name": caller.name, "scopes": sorted(caller.scopes), "run_id": caller.run_id},
        "workflows": sorted(engine.facts.workflows()),
        "last_event": await engine.facts.last_line(),
    }


@router.get("/workflows", operation_id="list_workflows")
async def list_workflows(engine: TheEngine, _caller: Reader) -> list[dict[str, Any]]:
    """The workflows that this server moves on: their steps, what follows each, what they take."""
    return list(engine.facts.workflows().values())


@outside.get("/favicon.ico")
async def favicon(_request: Request) -> Response:
    """None."""
    return Response(status_code=204)
