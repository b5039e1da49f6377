"""The page: what the API tells, for people. Rendered here, kept fresh by htmx and server-sent events."""

from __future__ import annotations

import time
from typing import Annotated, Any, Final

import jinja2
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from starlette.responses import HTMLResponse, RedirectResponse
from starlette.staticfiles import StaticFiles

from surefoot.access import Caller
from surefoot.engine import Engine
from surefoot.facts import line_of
from surefoot.model import RunState
from surefoot_storage import SurefootError

from . import drawing
from .configs import configuration_of
from .doors import COOKIE, SESSION, Forms, TheEngine, acts_as
from .problems import status_of

STATES: Final = ("running", "waiting", "error", "paused", "completed", "cancelled")
BOARD_MAX = 50
HOURS, PIECES = 24, 48
LOOKS_MAX = 3
router = APIRouter(include_in_schema=False)


class LoginNeeded(Exception):
    """Somebody without a token wants to see a page."""


async def viewer(request: Request, engine: TheEngine) -> Caller:
    """Who looks; whoever may not is asked for a token."""
    caller = await engine.access.caller(request.cookies.get(COOKIE))
    if caller is None or not caller.may("read") or caller.run_id:
        raise LoginNeeded
    request.state.caller = caller
    acts_as(caller)
    return caller


Viewer = Annotated[Caller, Depends(viewer)]


def add(app: FastAPI) -> None:
    """The page's routes, files and errors."""
    from . import acts

    app.state.templates = _templates()
    app.include_router(router)
    app.include_router(acts.router)
    app.mount("/static", StaticFiles(packages=[(__package__ or "", "static")]), name="static")

    @app.exception_handler(LoginNeeded)
    async def login_needed(request: Request, _error: Exception) -> Response:
        if "hx-request" in request.headers:
            return Response(status_code=401, headers={"hx-redirect": "/login"})
        return RedirectResponse("/login", 303)


def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__ or "", "templates"), autoescape=True,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"moment": moment, "ago": ago, "seconds": seconds, "difflines": diff_lines}
    return environment


def render(request: Request, template: str, status: int = 200, /, **facts: Any) -> HTMLResponse:
    """A page, or a part of one, with what every one needs."""
    forms: Forms = request.app.state.forms
    session = forms.session(request)
    caller: Caller | None = getattr(request.state, "caller", None)
    found = request.app.state.templates.get_template(template)
    text = found.render(
        csrf=forms.token(session), caller=caller, now=time.time(), path=request.url.path, **facts
    )
    answer = HTMLResponse(text, status)
    if request.cookies.get(SESSION) != session:
        answer.set_cookie(
            SESSION, session, httponly=True, samesite="strict", secure=request.url.scheme == "https"
        )
    return answer


def refused(request: Request, error: SurefootError) -> HTMLResponse:
    """What could not be done, and what helps."""
    return render(request, "problem.html", status_of(error), error=error.as_dict(), text=str(error))


# --- runs ---


@router.get("/")
async def board(request: Request, engine: TheEngine, _caller: Viewer) -> Response:
    """Runs by state, each with the reason why it is there."""
    return render(request, "board.html", last=await engine.facts.last_line(), **await _board(engine))


@router.get("/parts/board")
async def board_part(request: Request, engine: TheEngine, _caller: Viewer) -> Response:
    """The part that changes."""
    return render(request, "parts/board.html", **await _board(engine))


async def _board(engine: Engine) -> dict[str, Any]:
    columns = []
    for state in STATES:
        found = await engine.runs(states=[RunState(state)], limit=BOARD_MAX + 1)
        shown = [line_of(run) for run in found[:BOARD_MAX]]
        if state in ("waiting", "error", "paused", "running"):
            for line in shown[:20]:
                line["why"] = await engine.why(line["run_id"])
        columns.append({"state": state, "runs": shown, "more": len(found) > BOARD_MAX})
    requests = await engine.approvals.requests()
    return {"columns": columns, "requests": requests, "recovered": engine.recovered}


@router.get("/runs/{run_id}")
async def run(request: Request, engine: TheEngine, _caller: Viewer, run_id: str) -> Response:
    """A run: why it is where it is, its graph, its transitions."""
    try:
        facts = await _run(engine, run_id)
    except SurefootError as error:
        return refused(request, error)
    return render(request, "run.html", last=await engine.facts.last_line(), **facts)


@router.get("/parts/runs/{run_id}")
async def run_part(request: Request, engine: TheEngine, _caller: Viewer, run_id: str) -> Response:
    """The part that changes."""
    return render(request, "parts/run.html", **await _run(engine, run_id))


async def _run(engine: Engine, run_id: str) -> dict[str, Any]:
    for _ in range(LOOKS_MAX):  # a page shows one moment, or the next event shows it again
        found = await _run_once(engine, run_id)
        if (await engine.get(run_id)).revision == found["run"]["revision"]:
            break
    return found


async def _run_once(engine: Engine, run_id: str) -> dict[str, Any]:
    facts = await engine.facts.run(run_id)
    history = await engine.facts.history(run_id)
    workflow = engine.facts.workflows().get(facts["workflow"])
    graph = drawing.draw(workflow, drawing.looks_of(workflow, facts)) if workflow else None
    return {
        "run": facts,
        "why": await engine.why(run_id),
        "lines": drawing.timeline(facts, history),
        "graph": graph,
        "requests": await engine.approvals.requests(run_id=run_id),
        "agents": await engine.agents.attempts(run_id=run_id),
    }


@router.get("/transactions/{txid}")
async def transaction(request: Request, engine: TheEngine, _caller: Viewer, txid: str) -> Response:
    """One transaction with its diff, and what undoing it would do."""
    try:
        facts = await engine.facts.transaction(txid)
        diff = await engine.facts.diff(txid)
    except SurefootError as error:
        return refused(request, error)
    return render(request, "transaction.html", facts=facts, diff=diff)


# --- people, agents, queues ---


@router.get("/approvals")
async def approvals(request: Request, engine: TheEngine, _caller: Viewer) -> Response:
    """What waits for people."""
    found = await engine.approvals.requests(states=())
    return render(request, "approvals.html", requests=found)


@router.get("/approvals/{run_id}/{number}")
async def approval(
    request: Request, engine: TheEngine, _caller: Viewer, run_id: str, number: int
) -> Response:
    """One request, with the diff beside it."""
    try:
        found = await engine.approvals.get(f"{run_id}/{number}")
        diff = await engine.facts.approved_changes(found)
    except SurefootError as error:
        return refused(request, error)
    return render(request, "approval.html", asked=found, diff=diff, token="", person="")


@router.get("/answer/{token}")
async def answer(request: Request, engine: TheEngine, token: str) -> Response:
    """The same for whoever was sent the link: looking decides nothing."""
    try:
        found = await engine.approvals.get(token)
        diff = await engine.facts.approved_changes(found)
    except SurefootError as error:
        return refused(request, error)
    return render(request, "approval.html", asked=found, diff=diff, token=token, person="")


@router.get("/agents")
async def agents(request: Request, engine: TheEngine, _caller: Viewer) -> Response:
    """What agents do, and what is wrong with them."""
    found = await engine.agents.attempts(limit=200)
    return render(request, "agents.html", agents=found, findings=await engine.agents.doctor())


@router.get("/agents/log/{agent_id:path}")
async def agent_log(
    request: Request, engine: TheEngine, _caller: Viewer, agent_id: str,
    offset: Annotated[int, Query(ge=0)] = 0,
) -> Response:  # fmt: skip
    """What it has said since, and how to ask for the rest."""
    said = await engine.agents.logs(agent_id, offset)
    row = await engine.agents.get(agent_id)
    is_over = row.state == "over" and said.next_offset == offset
    return render(request, "parts/log.html", said=said, agent=row, is_over=is_over)


@router.get("/agents/{agent_id:path}")
async def agent(request: Request, engine: TheEngine, _caller: Viewer, agent_id: str) -> Response:
    """One agent: how it stands, its log, its changes."""
    try:
        row = await engine.agents.get(agent_id)
        said = await engine.agents.logs(row.id)
        diff, changes = "", None
        if row.state == "over" and row.taken != "discarded":
            changes = await engine.agents.changes(row.id)
            diff = await engine.agents.diff(row.id)
    except SurefootError as error:
        return refused(request, error)
    return render(request, "agent.html", agent=row, said=said, diff=diff, changes=changes)


@router.get("/queues")
async def queues(request: Request, engine: TheEngine, _caller: Viewer) -> Response:
    """Queues, schedules, what could not be delivered or stored."""
    return render(
        request, "queues.html", queues=await engine.control.queues(),
        schedules=await engine.control.schedules(), letters=await engine.control.dead_letters(),
        dumps=await engine.records.dumps(), records=engine.records.figures(),
    )  # fmt: skip


# --- figures, configuration, recovery ---


@router.get("/figures")
async def figures(request: Request, engine: TheEngine, _caller: Viewer) -> Response:
    """What has happened over time, and how long things take."""
    found = await engine.facts.activity(hours=HOURS, pieces=PIECES)
    now = time.time()
    charts = {
        name: drawing.bars(found, name=name, now=now, hours=HOURS, pieces=PIECES)
        for name in ("steps", "started", "finished")
    }
    return render(request, "figures.html", charts=charts, statistics=await engine.analytics(), found=found)


@router.get("/configurations")
async def configurations(request: Request, engine: TheEngine, _caller: Viewer) -> Response:
    """All of them."""
    models = request.app.state.options.configurations
    saved = dict(await engine.facts.configurations())
    return render(
        request, "configurations.html", models=models, saved=saved, cached=await engine.facts.cached()
    )


@router.get("/configurations/{name}")
async def configuration(request: Request, engine: TheEngine, _caller: Viewer, name: str) -> Response:
    """One, to be changed."""
    try:
        found, model = configuration_of(engine, request, name)
        now, past = await found.get(), await found.history()
    except SurefootError as error:
        return refused(request, error)
    value = now.value.model_dump(mode="json")
    return render(
        request, "configuration.html", name=name, revision=now.revision, value=value, typed=value,
        schema=model.model_json_schema(), past=past, conflict=None, error="",
    )  # fmt: skip


@router.get("/recovery")
async def recovery(request: Request, engine: TheEngine, _caller: Viewer) -> Response:
    """What is wrong and what mends it; what happened at the last restart."""
    from anyio import to_thread

    edits = await to_thread.run_sync(engine.upkeep.conflicts)
    return render(
        request, "recovery.html", findings=await engine.facts.findings(), recovered=engine.recovered,
        edits=edits, usage=await to_thread.run_sync(engine.upkeep.usage), differences=None,
    )  # fmt: skip


@router.get("/login")
async def login(request: Request) -> Response:
    """A place for a token."""
    return render(request, "login.html", wrong=False)


# --- words ---


def moment(at: float | None) -> str:
    """When, in this machine's time."""
    return "-" if at is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def ago(at: float | None, now: float) -> str:
    """How long since, in the largest unit that fits."""
    return "-" if at is None else f"{seconds(max(0.0, now - at))} ago"


def seconds(length: float | None) -> str:
    """A length of time."""
    if length is None:
        return "-"
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if length >= 2 * size:
            return f"{length / size:.0f} {unit}"
    return f"{length:.1f} s" if length >= 1 else f"{length * 1_000:.0f} ms"


def diff_lines(diff: str) -> list[tuple[str, str]]:
    """Lines with what each is: head, hunk, plus, minus or same."""
    kinds = {"+++": "head", "---": "head", "@@ ": "hunk"}
    found = []
    for line in diff.splitlines():
        kind = kinds.get(line[:3]) or {"+": "plus", "-": "minus"}.get(line[:1], "same")
        found.append((kind, line))
    return found
