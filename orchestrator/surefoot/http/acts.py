"""What the page's forms do: each is the API's own operation. GET decides nothing anywhere."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias
from urllib.parse import parse_qs

from anyio import to_thread
from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse

from surefoot.engine import Engine
from surefoot.errors import ConfigConflict, InputRefused
from surefoot_storage import SurefootError

from .configs import configuration_of
from .doors import COOKIE, TheEngine, the_engine
from .pages import Viewer, refused, render
from .runs import due_again

router = APIRouter(include_in_schema=False)
Form: TypeAlias = Mapping[str, str]
Act: TypeAlias = Callable[[Request, Form], Awaitable[str]]
YEAR_S = 365 * 86_400


async def form_of(request: Request) -> dict[str, str]:
    """The fields of a form that is ours.

    Raises:
        HTTPException: it is not, or no form at all.
    """
    if request.headers.get("content-type", "").partition(";")[0] != "application/x-www-form-urlencoded":
        raise HTTPException(415, "a form is expected")
    try:
        text = (await request.body()).decode()
        fields = parse_qs(text, keep_blank_values=True, max_num_fields=200, errors="strict")
    except ValueError as error:
        raise HTTPException(400, "the form cannot be read") from error
    found = {name: values[-1].replace("\r\n", "\n") for name, values in fields.items()}
    request.app.state.forms.check(request, found.pop("csrf", ""))
    return found


def _runs(name: str) -> Act:
    async def act(request: Request, form: Form) -> str:
        run_id = form.get("run_id", "")
        await getattr(the_engine(request), name)(run_id)
        return f"/runs/{run_id}"

    return act


async def _retry(request: Request, form: Form) -> str:
    await due_again(request, form.get("run_id", ""))
    return f"/runs/{form['run_id']}"


async def _advance(request: Request, form: Form) -> str:
    engine = the_engine(request)
    await engine.advance(form.get("run_id", ""))
    return f"/runs/{form['run_id']}"


async def _skip(request: Request, form: Form) -> str:
    engine = the_engine(request)
    await engine.skip(
        form.get("run_id", ""), step=form.get("step") or None, outcome=form.get("outcome") or None
    )
    return f"/runs/{form['run_id']}"


async def _undo(request: Request, form: Form) -> str:
    engine = the_engine(request)
    done = await engine.undo(form.get("txid", ""), force=form.get("force") == "on")
    return f"/runs/{done.run_id}" if done.run_id else f"/transactions/{done.txid}"


async def _commit(request: Request, form: Form) -> str:
    engine = the_engine(request)
    result = await engine.commit(form.get("digest", ""))
    return f"/runs/{result.run_id}"


async def _queue(request: Request, form: Form) -> str:
    engine = the_engine(request)
    name = form.get("name", "")
    if form.get("to") == "pause":
        await engine.control.pause_queue(name, form.get("reason", ""))
    else:
        await engine.control.resume_queue(name)
    return "/queues"


async def _schedule(request: Request, form: Form) -> str:
    engine = the_engine(request)
    control, name = engine.control, form.get("name", "")
    await (control.pause_schedule(name) if form.get("to") == "pause" else control.resume_schedule(name))
    return "/queues"


async def _redeliver(request: Request, form: Form) -> str:
    engine = the_engine(request)
    number = form.get("id", "")
    await engine.control.redeliver(int(number) if number.isdecimal() and len(number) < 18 else 0)  # noqa: PLR2004 - 64 bits
    return "/queues"


async def _replay(request: Request, form: Form) -> str:
    engine = the_engine(request)
    await engine.records.replay(form.get("name", ""))
    return "/queues"


async def _stop_agent(request: Request, form: Form) -> str:
    engine = the_engine(request)
    agent_id = form.get("agent_id", "")
    await engine.agents.stop(agent_id, f"{request.state.caller.name} has stopped it on the page")
    return f"/agents/{agent_id}"


async def _take_work(request: Request, form: Form) -> str:
    engine = the_engine(request)
    agent_id, digest = form.get("agent_id", ""), form.get("digest", "")
    if not digest:
        raise InputRefused("commit", agent_id, expected="the digest of what was looked at", found="none")
    await engine.agents.commit(agent_id, digest=digest)
    return f"/agents/{agent_id}"


async def _resolve(request: Request, form: Form) -> str:
    engine = the_engine(request)
    number, use = form.get("number", ""), form.get("use", "")
    if use not in ("ours", "theirs") or not number.isdecimal():
        raise InputRefused("resolve", number, expected="a number, and ours or theirs", found=use)
    await to_thread.run_sync(lambda: engine.upkeep.resolve(int(number), use))  # type: ignore[arg-type] # checked above
    return "/recovery"


async def _settle(request: Request, _form: Form) -> str:
    engine = the_engine(request)
    await engine.settle()
    return "/recovery"


ACTS: dict[str, tuple[str, Act]] = {
    "advance": ("write", _advance),
    "retry": ("write", _retry),
    "pause": ("write", _runs("pause")),
    "unpause": ("write", _runs("unpause")),
    "cancel": ("write", _runs("cancel")),
    "skip": ("write", _skip),
    "undo": ("write", _undo),
    "commit": ("write", _commit),
    "queue": ("write", _queue),
    "schedule": ("write", _schedule),
    "redeliver": ("write", _redeliver),
    "replay": ("write", _replay),
    "stop-agent": ("write", _stop_agent),
    "take-work": ("write", _take_work),
    "resolve": ("write", _resolve),
    "settle": ("write", _settle),
}


@router.post("/act/{name}")
async def act(request: Request, caller: Viewer, name: str) -> Response:
    """Does what a form says, and shows where that has led."""
    form = await form_of(request)
    if name not in ACTS:
        raise HTTPException(404, "there is no such action")
    scope, work = ACTS[name]
    if not caller.may(scope):
        raise HTTPException(403, f"the token {caller.name!r} has no scope {scope!r}")
    try:
        return RedirectResponse(await work(request, form), 303)
    except SurefootError as error:
        return refused(request, error)


@router.post("/preview/{run_id}")
async def preview(request: Request, engine: TheEngine, caller: Viewer, run_id: str) -> Response:
    """What the next transition would do: nothing is changed."""
    await form_of(request)
    if not caller.may("write"):
        raise HTTPException(403, f"the token {caller.name!r} has no scope 'write'")
    try:
        return render(request, "preview.html", shown=await engine.preview(run_id))
    except SurefootError as error:
        return refused(request, error)


@router.post("/undo/{txid}")
async def undo(request: Request, engine: TheEngine, _caller: Viewer, txid: str) -> Response:
    """What undoing would do: nothing is changed."""
    await form_of(request)
    try:
        return render(request, "undo.html", would=await engine.undo(txid, dry_run=True), txid=txid)
    except SurefootError as error:
        return refused(request, error)


@router.post("/verify")
async def verify(request: Request, engine: TheEngine, _caller: Viewer) -> Response:
    """Compares the disk with the store."""
    await form_of(request)
    found = await to_thread.run_sync(lambda: list(engine.history.verify()))
    return render(request, "verify.html", differences=found)


# --- people's answers ---


@router.post("/approvals/{run_id}/{number}")
async def answer_as_caller(
    request: Request, engine: TheEngine, caller: Viewer, run_id: str, number: int
) -> Response:
    """An answer by somebody who has come in."""
    if not caller.may("approve"):
        raise HTTPException(403, f"the token {caller.name!r} has no scope 'approve'")
    form = await form_of(request)
    return await _answer(request, engine, f"{run_id}/{number}", form, form.get("by", "") or caller.name)


@router.post("/answer/{token}")
async def answer_as_asked(request: Request, engine: TheEngine, token: str) -> Response:
    """An answer by whoever was sent the link."""
    return await _answer(request, engine, token, await form_of(request), "")


async def _answer(request: Request, engine: Engine, reference: str, form: Form, by: str) -> Response:
    approvals, comment = engine.approvals, form.get("comment", "")
    try:
        match form.get("answer"):
            case "approve":
                asked = await approvals.approve(reference, by=by, comment=comment)
            case "reject":
                asked = await approvals.reject(reference, by=by, comment=comment)
            case "delegate":
                asked = await approvals.delegate(reference, form.get("to", ""), by=by, comment=comment)
            case other:
                raise InputRefused(
                    "answer", "", expected="approve, reject or delegate", found=str(other)[:40]
                )
    except SurefootError as error:
        return refused(request, error)
    return render(request, "answered.html", asked=asked)


# --- configuration ---


@router.post("/configurations/{name}")
async def save(request: Request, engine: TheEngine, caller: Viewer, name: str) -> Response:
    """Saves what is on the screen, based on the revision that was shown there."""
    form = await form_of(request)
    if not caller.may("write"):
        raise HTTPException(403, f"the token {caller.name!r} has no scope 'write'")
    based_on = form.pop("based_on", "")
    if not based_on.isdecimal() or len(based_on) > 15:  # noqa: PLR2004 - digits of a revision
        raise HTTPException(400, "the form does not say which revision it is based on")
    configuration, model = configuration_of(engine, request, name)
    schema = model.model_json_schema()
    try:
        await configuration.update(typed(form, schema), based_on=int(based_on), by=caller.name)
    except (ConfigConflict, InputRefused) as error:
        now, past = await configuration.get(), await configuration.history()
        return render(
            request, "configuration.html", 412 if isinstance(error, ConfigConflict) else 422, name=name,
            revision=now.revision, value=now.value.model_dump(mode="json"), typed=form, schema=schema,
            past=past, conflict=getattr(error, "difference", None), error=str(error),
        )  # fmt: skip
    return RedirectResponse(f"/configurations/{name}", 303)


def typed(form: Form, schema: Mapping[str, Any]) -> dict[str, Any]:
    """Form fields as what the schema says they are; the model has the last word."""
    import json

    found: dict[str, Any] = {}
    for name, facts in schema["properties"].items():
        kind, text = facts.get("type"), form.get(name)
        if kind == "boolean":
            found[name] = text == "on"
        elif text is None:
            continue
        elif kind == "string":
            found[name] = text
        else:
            try:
                found[name] = json.loads(text)
            except ValueError:
                found[name] = text
    return found


# --- coming in ---


@router.post("/login")
async def login(request: Request, engine: TheEngine) -> Response:
    """Comes in with a token; it stays in this browser, where scripts cannot read it."""
    form = await form_of(request)
    token = form.get("token", "").strip()
    caller = await engine.access.caller(token or None)
    if caller is None or not caller.may("read") or caller.run_id:
        return render(request, "login.html", 401, wrong=True)
    answer = RedirectResponse("/", 303)
    secure = request.url.scheme == "https"
    if token:
        answer.set_cookie(COOKIE, token, max_age=YEAR_S, httponly=True, samesite="strict", secure=secure)
    return answer


@router.post("/logout")
async def logout(request: Request) -> Response:
    """Forgets the token in this browser."""
    await form_of(request)
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return answer
