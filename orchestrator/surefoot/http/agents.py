"""Agents: what each does, has said and changed; stopping them, deciding about their work.

An agent of a run is known by that run and a number, one of nobody's run by a name: its id may have a slash.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from fastapi import APIRouter, Path, Query
from pydantic import Field
from starlette.exceptions import HTTPException

from surefoot.agentlooks import evidence_of
from surefoot.agentspec import Agent

from . import shapes
from .doors import Admin, Reader, TheEngine, Writer
from .keys import KeyedRoute
from .runs import NAME, Body

router = APIRouter(tags=["agents"], route_class=KeyedRoute)
AgentId = Annotated[
    str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,199}$", description="As the list shows it.")
]
State: TypeAlias = Literal["wanted", "running", "sealing", "verifying", "over"]
Offset = Annotated[int, Query(ge=0, le=1 << 53, description="In bytes.")]
Reason = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[ -~]+$")]


class Stopped(Body):
    """Why it shall end."""

    why: Reason = "somebody has stopped it"


class NewAgent(Body):
    """A command to launch."""

    agent: Agent
    directory: str = Field("", max_length=2_000, description="That is copied; all of it, unless given.")


class Taken(Body):
    """Which of its changes become the workspace's."""

    digest: str = Field(pattern="^[0-9a-f]{8,64}$", description="Of the changes that were looked at.")
    paths: list[str] | None = Field(None, max_length=1_000, description="Patterns; all, unless given.")
    ours: list[str] = Field(default=[], max_length=1_000)
    theirs: list[str] = Field(default=[], max_length=1_000)


@router.get("/agents", operation_id="list_agents", responses=shapes.shown(list[shapes.AgentAttempt]))
async def list_agents(
    engine: TheEngine, _caller: Reader, state: Annotated[list[State], Query()] = [],  # noqa: B006 - FastAPI's way
    run_id: Annotated[str | None, Query(pattern=NAME)] = None,
    limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
) -> list[dict[str, Any]]:  # fmt: skip
    """Attempts, the latest first."""
    found = await engine.agents.attempts(run_id=run_id, states=state, limit=limit)
    return [row.as_dict() for row in found]


@router.post(
    "/agents", operation_id="launch_agent", status_code=201, responses=shapes.shown(shapes.AgentAttempt, 201)
)
async def launch_agent(engine: TheEngine, _caller: Admin, new: NewAgent) -> dict[str, Any]:
    """Launches a command in a working copy: whoever may do this runs commands on this machine."""
    row = await engine.agents.launch(new.agent, directory=new.directory)
    return row.as_dict()


@router.post("/agents:stop-all", operation_id="stop_all_agents")
async def stop_all_agents(engine: TheEngine, _caller: Writer, why: Stopped) -> dict[str, int]:
    """Ends all of them, and none is launched before they may start again: restarts included."""
    return {"stopped": await engine.agents.stop_all(why.why)}


@router.post("/agents:start-again", operation_id="start_agents_again", status_code=204)
async def start_agents_again(engine: TheEngine, _caller: Writer) -> None:
    """Agents may be launched again."""
    await engine.agents.start_again()


@router.get("/agents:doctor", operation_id="agent_doctor")
async def agent_doctor(engine: TheEngine, _caller: Reader) -> list[dict[str, str]]:
    """What is wrong with agents, or nobody has decided about."""
    return await engine.agents.doctor()


@router.get("/agents/{agent_id:path}/logs", operation_id="agent_logs", responses=shapes.shown(shapes.Said))
async def agent_logs(
    engine: TheEngine, _caller: Reader, agent_id: AgentId, offset: Offset = 0
) -> dict[str, Any]:
    """What it has said from an offset on, as far as it is kept."""
    return vars(await engine.agents.logs(agent_id, offset))


@router.get("/agents/{agent_id:path}/diff", operation_id="agent_diff")
async def agent_diff(engine: TheEngine, _caller: Reader, agent_id: AgentId) -> dict[str, Any]:
    """What is sealed of its work, as one diff against what is in the workspace now, with its digest."""
    changes = await engine.agents.changes(agent_id)
    return {**changes.as_dict(), "diff": await engine.agents.diff(agent_id)}


@router.get("/agents/{agent_id:path}/evidence", operation_id="agent_evidence")
async def agent_evidence(engine: TheEngine, _caller: Reader, agent_id: AgentId) -> dict[str, Any]:
    """Everything that its outcome rests on."""
    return evidence_of(await engine.agents.get(agent_id))


@router.post("/agents/{agent_id:path}/stop", operation_id="stop_agent", status_code=202)
async def stop_agent(engine: TheEngine, _caller: Writer, agent_id: AgentId, why: Stopped) -> dict[str, str]:
    """Whoever watches it ends it, with everything that it has started; what it has done is sealed."""
    await engine.agents.stop(agent_id, why.why)
    return {"stopping": agent_id}


@router.post("/agents/{agent_id:path}/commit", operation_id="commit_agent_work")
async def commit_agent_work(
    engine: TheEngine, _caller: Writer, agent_id: AgentId, what: Taken
) -> dict[str, Any]:
    """Its sealed changes become the workspace's, all of them or nothing."""
    commit = await engine.agents.commit(
        agent_id, digest=what.digest, paths=what.paths, ours=what.ours, theirs=what.theirs
    )
    return {"txid": commit.txid, "sequence": commit.seq}


@router.post("/agents/{agent_id:path}/discard", operation_id="discard_agent_work", status_code=204)
async def discard_agent_work(engine: TheEngine, _caller: Admin, agent_id: AgentId) -> None:
    """Its work is given up: it cannot be brought back."""
    await engine.agents.discard(agent_id)


@router.get("/agents/{agent_id:path}", operation_id="get_agent", responses=shapes.shown(shapes.AgentAttempt))
async def get_agent(engine: TheEngine, _caller: Reader, agent_id: AgentId) -> dict[str, Any]:
    """One attempt."""
    if agent_id.rpartition("/")[2] in (
        "stop",
        "commit",
        "discard",
    ):  # an id has a slash: these are no part of it
        raise HTTPException(405, "Method Not Allowed", {"allow": "POST"})
    return (await engine.agents.get(agent_id)).as_dict()
