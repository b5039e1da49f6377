"""Runs: started, looked at, moved on, repaired."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeAlias

import anyio
from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

from surefoot.engine import Engine
from surefoot.facts import line_of
from surefoot.log import logger
from surefoot.model import Run, RunState, TransitionResult
from surefoot_storage import SurefootError

from . import shapes
from .doors import Reader, RunReader, RunWriter, TheEngine, Writer, the_engine
from .keys import KeyedRoute, derived
from .live import Feed

router = APIRouter(tags=["runs"], route_class=KeyedRoute)
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
RunId = Annotated[str, Path(pattern=NAME)]
Name = Annotated[str, Field(pattern=NAME)]
Line = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[ -~]+$")]
Input: TypeAlias = "dict[str, JsonValue] | None"
State: TypeAlias = Literal["running", "waiting", "error", "paused", "completed", "cancelled"]
# A name has at most 255 bytes on every filesystem that is supported.
FilePath = Annotated[str, Field(max_length=2_000, pattern=r"^[^/\x00]{1,60}(/[^/\x00]{1,60})*$")]
# JSON has one kind of number: 7.0 is a whole one.
Whole = Annotated[int, BeforeValidator(lambda n: int(n) if isinstance(n, float) and n.is_integer() else n)]
WAIT_S_MAX = 60.0


class Body(BaseModel):
    """What a request may say: nothing else."""

    model_config = ConfigDict(extra="forbid", strict=True)


class RunLine(BaseModel):
    """A run in a list."""

    run_id: str
    workflow: str
    state: RunState
    step: str | None
    queue: str
    updated_at: float
    transition_error: bool


class NewRun(Body):
    """A run to start."""

    workflow: Name
    input: Input = None
    run_id: Name | None = None
    queue: Name | None = Field("http", description="Which worker moves it on; null: whoever says `advance`.")
    priority: Whole = Field(0, ge=-1_000_000, le=1_000_000)
    lane: Line | None = None
    dedup: Line | None = None
    delay_s: float = Field(0.0, ge=0, le=1e8)
    deadline_s: float | None = Field(None, gt=0, le=1e8)
    adopt: bool = False


class Sent(Body):
    """A message to a run."""

    signal: Name
    payload: JsonValue = None
    key: Line | None = None
    sender: str = Field("", max_length=200, pattern=r"^[ -~]*$")


class Skipped(Body):
    """A step to go on without."""

    step: Name | None = None
    outcome: Name | None = None


class Forked(Body):
    """A new run from a step of this one on."""

    step: Name
    new_id: Name | None = None
    input: Input = None
    queue: Name | None = "http"


class Bulk(Body):
    """The same for many runs."""

    action: Literal["retry", "cancel", "pause", "unpause", "skip"]
    states: list[State] = Field(min_length=1, max_length=6)
    workflow: Name | None = None
    queue: Name | None = None
    limit: Whole = Field(1_000, ge=1, le=10_000)
    dry_run: bool = False


@router.get("/runs", operation_id="list_runs", response_model=list[RunLine])
async def list_runs(
    engine: TheEngine, _caller: Reader, state: Annotated[list[RunState], Query()] = [],  # noqa: B006 - FastAPI's way
    workflow: Annotated[str | None, Query(pattern=NAME)] = None,
    queue: Annotated[str | None, Query(pattern=NAME)] = None,
    limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
) -> list[dict[str, Any]]:  # fmt: skip
    """Runs, the latest change first."""
    found = await engine.runs(states=state, workflow=workflow, queue=queue, limit=limit)
    return [line_of(run) for run in found]


@router.post(
    "/runs", operation_id="start_run", status_code=201, responses=shapes.shown(shapes.RunStatus, 201)
)
async def start_run(
    engine: TheEngine, request: Request, response: Response, caller: Writer, new: NewRun
) -> dict[str, Any]:
    """Starts a run: durable when this answers. With `run_id`, or a key, however often it is sent."""
    del caller
    run_id = new.run_id or derived(request, "run")
    run = await engine.start(
        engine.workflow(new.workflow), new.input, run_id=run_id, queue=new.queue or "", adopt=new.adopt,
        priority=new.priority, lane=new.lane, dedup=new.dedup, delay_s=new.delay_s, deadline_s=new.deadline_s,
    )  # fmt: skip
    response.headers["location"] = f"/v1/runs/{run.id}"
    return _shown(response, run)


@router.get(
    "/runs/{run_id}",
    operation_id="get_run",
    responses={**shapes.shown(shapes.RunFacts), 304: {"description": "Not modified"}},
)
async def get_run(
    engine: TheEngine, request: Request, response: Response, _caller: RunReader, run_id: RunId,
    wait_s: Annotated[float, Query(ge=0, le=WAIT_S_MAX, description="With If-None-Match: for a change.")] = 0,
) -> Any:  # fmt: skip
    """A run: its status, open branches, attempts. Its ETag is its revision; `wait_s` waits for another."""
    known = [one.strip().strip('"') for one in request.headers.get("if-none-match", "").split(",")]
    feed: Feed = request.app.state.feed
    run = await engine.get(run_id)
    until = anyio.current_time() + wait_s
    while str(run.revision) in known and not feed.is_closed:
        left_s = until - anyio.current_time()
        if left_s <= 0:
            break
        await feed.wait(left_s)
        run = await engine.get(run_id)
    if str(run.revision) in known:
        return Response(status_code=304, headers={"etag": f'"{run.revision}"'})
    facts = await engine.facts.run(run_id)
    response.headers["etag"] = f'"{facts["revision"]}"'
    return facts


@router.get("/runs/{run_id}/status", operation_id="get_status", responses=shapes.shown(shapes.RunStatus))
async def get_status(engine: TheEngine, response: Response, _caller: RunReader, run_id: RunId) -> Any:
    """Its status document, as `demo.status.json` holds it: never older than what anybody was told."""
    status = await engine.status(run_id)
    response.headers["etag"] = f'"{status.revision}"'
    return status.document


@router.get("/runs/{run_id}/why", operation_id="explain_run", responses=shapes.shown(shapes.Why))
async def explain_run(engine: TheEngine, _caller: RunReader, run_id: RunId) -> dict[str, Any]:
    """Why it is where it is: one sentence, the evidence, and what helps."""
    return (await engine.why(run_id)).as_dict()


@router.get("/runs/{run_id}/history", operation_id="run_history")
async def run_history(
    engine: TheEngine, _caller: RunReader, run_id: RunId, *, traceback: Annotated[bool, Query()] = False
) -> list[dict[str, Any]]:
    """Every change of its status, oldest first, with the files that each has changed."""
    entries = await engine.facts.history(run_id)
    for entry in entries:
        if entry["failure"] and not traceback:
            del entry["failure"]["traceback"]
    return entries


@router.post("/runs/{run_id}/advance", operation_id="advance_run", responses=shapes.shown(shapes.Result))
async def advance_run(engine: TheEngine, _caller: RunWriter, run_id: RunId) -> dict[str, Any]:
    """One attempt at the due step, now. Answers with its result, also where it failed."""
    return _result(await engine.advance(run_id))


@router.post("/runs/{run_id}/retry", operation_id="retry_run", responses=shapes.shown(shapes.RunStatus))
async def retry_run(request: Request, response: Response, _caller: RunWriter, run_id: RunId) -> Any:
    """What failed, or waits to be tried again, is due now; its queue goes on with it."""
    return _shown(response, await due_again(request, run_id))


@router.post("/runs/{run_id}/pause", operation_id="pause_run", responses=shapes.shown(shapes.RunStatus))
async def pause_run(engine: TheEngine, response: Response, _caller: RunWriter, run_id: RunId) -> Any:
    """Nothing of it begins any more."""
    return _shown(response, await engine.pause(run_id))


@router.post("/runs/{run_id}/unpause", operation_id="unpause_run", responses=shapes.shown(shapes.RunStatus))
async def unpause_run(engine: TheEngine, response: Response, _caller: RunWriter, run_id: RunId) -> Any:
    """It may go on."""
    return _shown(response, await engine.unpause(run_id))


@router.post("/runs/{run_id}/cancel", operation_id="cancel_run", responses=shapes.shown(shapes.RunStatus))
async def cancel_run(engine: TheEngine, response: Response, _caller: RunWriter, run_id: RunId) -> Any:
    """Ends it; a step that is being worked on changes nothing."""
    return _shown(response, await engine.cancel(run_id))


@router.post("/runs/{run_id}/skip", operation_id="skip_step", responses=shapes.shown(shapes.RunStatus))
async def skip_step(
    engine: TheEngine, response: Response, _caller: RunWriter, run_id: RunId, what: Skipped
) -> Any:
    """Goes on without a step."""
    run = await engine.skip(run_id, step=what.step, outcome=what.outcome)
    return _shown(response, run)


@router.post(
    "/runs/{run_id}/fork",
    operation_id="fork_run",
    status_code=201,
    responses=shapes.shown(shapes.RunStatus, 201),
)
async def fork_run(
    engine: TheEngine, request: Request, response: Response, _caller: Writer, run_id: RunId, what: Forked
) -> Any:
    """A new run that begins at a step of this one, with its files as they were then."""
    new_id = what.new_id or derived(request, "fork")
    run = await engine.fork(run_id, what.step, new_id=new_id, input=what.input, queue=what.queue or "")
    return _shown(response, run)


@router.post("/runs/{run_id}/messages", operation_id="send_message")
async def send_message(
    engine: TheEngine, request: Request, _caller: RunWriter, run_id: RunId, message: Sent
) -> dict[str, bool]:
    """Sends it a message: durable when this answers. With a key, however often it is sent."""
    key = message.key or derived(request, "key")
    sent = await engine.send(run_id, message.signal, message.payload, key=key, sender=message.sender)
    return {"sent": sent}


@router.post("/runs/{run_id}/preview", operation_id="preview_run", responses=shapes.shown(shapes.Preview))
async def preview_run(engine: TheEngine, _caller: RunWriter, run_id: RunId) -> dict[str, Any]:
    """The exact diff of its next transition, kept under a digest. Changes no file, sends nothing."""
    return (await engine.preview(run_id)).as_dict()


@router.post(
    "/previews/{digest}/commit", operation_id="commit_preview", responses=shapes.shown(shapes.Result)
)
async def commit_preview(
    engine: TheEngine, _caller: Writer, digest: Annotated[str, Path(pattern="^[0-9a-f]{8,64}$")]
) -> dict[str, Any]:
    """Does exactly what was previewed; no step runs again."""
    return _result(await engine.commit(digest))


@router.post("/runs:bulk", operation_id="bulk")
async def bulk(engine: TheEngine, _caller: Writer, what: Bulk) -> dict[str, Any]:
    """Retries, cancels, pauses, unpauses or skips many runs."""
    done = await engine.bulk(
        what.action, states=what.states, workflow=what.workflow, queue=what.queue, limit=what.limit,
        dry_run=what.dry_run,
    )  # fmt: skip
    return done.as_dict()


async def due_again(request: Request, run_id: str) -> Run:
    """What failed of a run is due; where no worker takes it by itself, this server goes on with it."""
    engine = the_engine(request)
    run = await engine.make_due(run_id)
    if not run.queue:
        request.app.state.tasks.start_soon(_go_on, engine, run_id)
    return run


async def _go_on(engine: Engine, run_id: str) -> None:
    """What comes of it is in the run's rows; what prevents it (another worker, say) is told in the log."""
    try:
        await engine.resume(run_id)
    except SurefootError as error:
        logger(run=run_id).warning("http.not_driven", error=str(error))


def _result(result: TransitionResult) -> dict[str, Any]:
    facts = result.as_dict()
    facts.get("failure", {}).pop("traceback", None)  # the history has it, for those who ask
    return facts


def _shown(response: Response, run: Run) -> dict[str, Any]:
    response.headers["etag"] = f'"{run.revision}"'
    status: dict[str, Any] = json.loads(run.status)
    return {**status, "directory": run.directory, "revision": run.revision}
