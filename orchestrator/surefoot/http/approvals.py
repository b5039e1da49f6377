"""What waits for people. A request's id contains a slash: it is the rest of the path, or a parameter."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from pydantic import Field

from surefoot.approvals import ApprovalState

from . import shapes
from .doors import Approver, Reader, TheEngine
from .keys import KeyedRoute
from .runs import NAME, Body

router = APIRouter(tags=["approvals"], route_class=KeyedRoute)
RunId = Annotated[str, Path(pattern=NAME)]
Number = Annotated[int, Path(ge=1, le=1 << 31, description="The second half of its id.")]
Person = Annotated[str, Field(max_length=200, pattern=r"^[ -~]*$")]


class Answer(Body):
    """Somebody's answer."""

    by: Person = Field("", description="Who it is, where the token does not say so.")
    comment: str = Field("", max_length=10_000)


class Delegated(Answer):
    """Somebody else is asked instead."""

    to: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[ -~]+$")]


@router.get("/approvals", operation_id="list_approvals", responses=shapes.shown(list[shapes.Approval]))
async def list_approvals(
    engine: TheEngine, _caller: Reader,
    state: Annotated[list[ApprovalState], Query()] = [ApprovalState.OPEN],  # noqa: B006 - FastAPI's way
    run_id: Annotated[str | None, Query(pattern=NAME)] = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Requests, the latest first."""
    found = await engine.approvals.requests(states=state, run_id=run_id)
    return [approval.as_dict() for approval in found]


@router.get(
    "/approvals/{run_id}/{number}", operation_id="get_approval", responses=shapes.shown(shapes.Approval)
)
async def get_approval(engine: TheEngine, _caller: Reader, run_id: RunId, number: Number) -> dict[str, Any]:
    """One request: of what, who is asked, everything that has happened to it."""
    return (await engine.approvals.get(f"{run_id}/{number}")).as_dict()


@router.post(
    "/approvals/{run_id}/{number}/approve", operation_id="approve", responses=shapes.shown(shapes.Approval)
)
async def approve(
    engine: TheEngine, caller: Approver, run_id: RunId, number: Number, answer: Answer
) -> dict[str, Any]:
    """Approves exactly what the request shows: files that have changed since end it."""
    by = answer.by or caller.name
    done = await engine.approvals.approve(f"{run_id}/{number}", by=by, comment=answer.comment)
    return done.as_dict()


@router.post(
    "/approvals/{run_id}/{number}/reject", operation_id="reject", responses=shapes.shown(shapes.Approval)
)
async def reject(
    engine: TheEngine, caller: Approver, run_id: RunId, number: Number, answer: Answer
) -> dict[str, Any]:
    """Rejects: one rejection is enough."""
    by = answer.by or caller.name
    done = await engine.approvals.reject(f"{run_id}/{number}", by=by, comment=answer.comment)
    return done.as_dict()


@router.post(
    "/approvals/{run_id}/{number}/delegate", operation_id="delegate", responses=shapes.shown(shapes.Approval)
)
async def delegate(
    engine: TheEngine, caller: Approver, run_id: RunId, number: Number, answer: Delegated
) -> dict[str, Any]:
    """Lets somebody else be asked instead."""
    done = await engine.approvals.delegate(
        f"{run_id}/{number}", answer.to, by=answer.by or caller.name, comment=answer.comment
    )
    return done.as_dict()
