"""Queues, schedules, messages that could not be delivered, and who else is told."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from pydantic import Field

from . import shapes
from .doors import Admin, Reader, TheEngine, Writer
from .keys import KeyedRoute
from .runs import Body

router = APIRouter(tags=["queues"], route_class=KeyedRoute)
QueueName = Annotated[str, Path(pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,127}|\*)$")]
ScheduleName = Annotated[str, Path(min_length=1, max_length=300, pattern=r"^[ -~]+$")]
EventName = Annotated[str, Field(pattern="^[a-z_]{1,40}$")]


class Reason(Body):
    """Why something is held."""

    reason: str = Field("", max_length=200, pattern=r"^[ -~]*$")


class NewWebhook(Body):
    """Somebody to tell."""

    url: str = Field(max_length=2_000, pattern=r"^https?://[!-~]+$")
    events: list[EventName] = Field(default=[], max_length=50, description="None: every one.")
    workflow: str = Field("", pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,127})?$")


@router.get("/queues", operation_id="list_queues", responses=shapes.shown(list[shapes.Queue]))
async def list_queues(engine: TheEngine, _caller: Reader) -> list[dict[str, Any]]:
    """How many runs are ready, running, waiting, in error, since when; and what was measured."""
    return await engine.control.queues()


@router.post("/queues/{name}/pause", operation_id="pause_queue", status_code=204)
async def pause_queue(engine: TheEngine, _caller: Writer, name: QueueName, why: Reason) -> None:
    """No worker takes anything from it any more (`*`: from any), restarts included."""
    await engine.control.pause_queue(name, why.reason)


@router.post("/queues/{name}/resume", operation_id="resume_queue", status_code=204)
async def resume_queue(engine: TheEngine, _caller: Writer, name: QueueName) -> None:
    """Workers take from it again."""
    await engine.control.resume_queue(name)


@router.get("/schedules", operation_id="list_schedules")
async def list_schedules(engine: TheEngine, _caller: Reader) -> list[dict[str, Any]]:
    """All schedules that workers have declared."""
    return await engine.control.schedules()


@router.post("/schedules/{name}/pause", operation_id="pause_schedule", status_code=204)
async def pause_schedule(engine: TheEngine, _caller: Writer, name: ScheduleName) -> None:
    """Starts nothing any more."""
    await engine.control.pause_schedule(name)


@router.post("/schedules/{name}/resume", operation_id="resume_schedule", status_code=204)
async def resume_schedule(engine: TheEngine, _caller: Writer, name: ScheduleName) -> None:
    """Starts its slots again, from now on."""
    await engine.control.resume_schedule(name)


@router.get(
    "/dead-letters", operation_id="list_dead_letters", responses=shapes.shown(list[shapes.DeadLetter])
)
async def list_dead_letters(
    engine: TheEngine, _caller: Reader, limit: Annotated[int, Query(ge=1, le=1_000)] = 100
) -> list[dict[str, Any]]:
    """Messages that could not be delivered and were set aside: what, how often, why."""
    return await engine.control.dead_letters(limit=limit)


@router.post("/dead-letters/{message_id}/retry", operation_id="redeliver", status_code=204)
async def redeliver(
    engine: TheEngine, _caller: Writer, message_id: Annotated[int, Path(ge=1, le=1 << 53)]
) -> None:
    """It is tried again, with all its attempts."""
    await engine.control.redeliver(message_id)


@router.get("/webhooks", operation_id="list_webhooks")
async def list_webhooks(engine: TheEngine, _caller: Admin) -> list[dict[str, Any]]:
    """Who is told of changes by HTTP."""
    return [hook.as_dict() for hook in await engine.webhooks.all()]


@router.post("/webhooks", operation_id="add_webhook", status_code=201)
async def add_webhook(engine: TheEngine, _caller: Admin, new: NewWebhook) -> dict[str, Any]:
    """From now on every change of a status is POSTed there, signed. Shows the secret, this once."""
    secret, hook = await engine.webhooks.add(new.url, events=new.events, workflow=new.workflow)
    return {**hook.as_dict(), "secret": secret}


@router.delete("/webhooks/{hook_id}", operation_id="remove_webhook", status_code=204)
async def remove_webhook(
    engine: TheEngine, _caller: Admin, hook_id: Annotated[str, Path(pattern="^[0-9a-f]{16}$")]
) -> None:
    """It is told nothing more."""
    await engine.webhooks.remove(hook_id)
