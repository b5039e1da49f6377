"""The tools. Each is an operation of the engine, for a caller who may do that."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from functools import wraps
from typing import Annotated, Any, Literal, ParamSpec, TypeVar

import anyio
from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import Field

from surefoot import __version__
from surefoot.access import LOCAL, Caller
from surefoot.engine import Engine
from surefoot.facts import line_of
from surefoot.model import RunState
from surefoot_storage import SurefootError
from surefoot_storage.transaction import acting

P = ParamSpec("P")
R = TypeVar("R")
WAIT_S_MAX = 120.0
LOOK_S = 0.1
_caller: ContextVar[Caller] = ContextVar("caller", default=LOCAL)

RunId = Annotated[str, Field(description="The run's id.", max_length=128)]
TxId = Annotated[str, Field(description="A transaction's id, or eight or more characters of it.")]
SUPERVISOR = """Surefoot runs workflows whose steps land completely or not at all. Start runs, see where they
are and why, preview what a step would do before it does it, look at diffs, and take transitions back. People
answer requests for approval: you can see them, not answer them."""
WORKER = """You work on one run of a Surefoot workflow. Tell how it goes by progress, ask a person by
ask_a_person and look for the answer by answers, and say that you are done by finish, once."""


@contextlib.contextmanager
def as_caller(caller: Caller) -> Iterator[None]:
    """Whatever is called meanwhile, in this task, is called by them."""
    token, actor = _caller.set(caller), acting.set(caller.name if caller.id else "")
    try:
        yield
    finally:
        acting.reset(actor)
        _caller.reset(token)


def _needs(scope: str) -> Callable[[Callable[P, Awaitable[R]]], Callable[P, Awaitable[R]]]:
    """A tool for those who have this scope; what the engine refuses is told with its hint."""

    def wrap(function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
        @wraps(function)
        async def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            caller = _caller.get()
            if not caller.may(scope):
                raise ToolError(f"the token {caller.name!r} has no scope {scope!r}")
            try:
                return await function(*args, **kwargs)
            except SurefootError as error:
                raise ToolError(str(error)) from error

        return checked

    return wrap


def supervisor(engine: Engine, *, decides: bool = False) -> MCPServer[Any]:
    """Tools for whoever starts and watches runs.

    Args:
        engine: open, and a worker for the workflows that shall be started.
        decides: also a tool that answers requests for approval, for callers with the scope `approve`.
    """
    server: MCPServer[Any] = MCPServer(
        "surefoot", instructions=SUPERVISOR, version=__version__, log_level="WARNING"
    )
    _looking(server, engine)
    _past(server, engine)
    _moving(server, engine)
    if decides:
        _deciding(server, engine)
    return server


def _looking(server: MCPServer[Any], engine: Engine) -> None:
    @server.tool()
    @_needs("read")
    async def list_workflows() -> list[dict[str, Any]]:
        """The workflows that can be started: their steps, and the schema of their input."""
        return list(engine.facts.workflows().values())

    @server.tool()
    @_needs("read")
    async def list_runs(
        state: RunState | None = None,
        workflow: str | None = None,
        limit: Annotated[int, Field(ge=1, le=200)] = 50,
    ) -> list[dict[str, Any]]:
        """Runs, the latest change first."""
        states = [state] if state else []
        return [line_of(run) for run in await engine.runs(states=states, workflow=workflow, limit=limit)]

    @server.tool()
    @_needs("read")
    async def run_status(run_id: RunId) -> dict[str, Any]:
        """Where a run is, why, and what helps."""
        facts = await engine.facts.run(run_id)
        return {**facts, "why": (await engine.why(run_id)).as_dict()}

    @server.tool()
    @_needs("read")
    async def wait_for_run(
        run_id: RunId, timeout_s: Annotated[float, Field(ge=0, le=WAIT_S_MAX)] = 60.0
    ) -> dict[str, Any]:
        """Waits until a run is over, in error, paused, or waits for a person; or for so long."""
        until = anyio.current_time() + timeout_s
        while True:
            run = await engine.get(run_id)
            asked = await engine.approvals.requests(run_id=run_id)
            stands = run.state not in (RunState.RUNNING, RunState.WAITING) or asked
            if stands or anyio.current_time() >= until:
                return {**line_of(run), "asks": [one.as_dict() for one in asked], "timed_out": not stands}
            await anyio.sleep(LOOK_S)


def _past(server: MCPServer[Any], engine: Engine) -> None:
    @server.tool()
    @_needs("read")
    async def run_history(run_id: RunId) -> list[dict[str, Any]]:
        """Every change of a run's status with its transaction and files, oldest first."""
        entries = await engine.facts.history(run_id)
        for entry in entries:
            if entry["failure"]:
                del entry["failure"]["traceback"]
        return entries

    @server.tool()
    @_needs("read")
    async def diff(txid: TxId) -> str:
        """What a transaction changed, as one unified diff."""
        return "".join(change.diff for change in await engine.facts.diff(txid)) or "no file differs"

    @server.tool()
    @_needs("read")
    async def list_approvals(run_id: str | None = None) -> list[dict[str, Any]]:
        """What waits for people. It is theirs to answer."""
        return [one.as_dict() for one in await engine.approvals.requests(run_id=run_id)]


def _moving(server: MCPServer[Any], engine: Engine) -> None:
    @server.tool()
    @_needs("write")
    async def start_run(
        workflow: str, input: dict[str, Any] | None = None, run_id: str | None = None, queue: str = "mcp"  # noqa: A002 - as everywhere
    ) -> dict[str, Any]:  # fmt: skip
        """Starts a run; a worker moves it on. With run_id, doing it again returns the same run."""
        return line_of(await engine.start(engine.workflow(workflow), input or {}, run_id=run_id, queue=queue))

    @server.tool()
    @_needs("write")
    async def preview_run(run_id: RunId) -> dict[str, Any]:
        """The exact diff of a run's next transition, and its digest. Nothing is changed."""
        return (await engine.preview(run_id)).as_dict()

    @server.tool()
    @_needs("write")
    async def commit_preview(digest: str) -> dict[str, Any]:
        """Does exactly what a preview has shown; no step runs again."""
        return (await engine.commit(digest)).as_dict()

    @server.tool()
    @_needs("write")
    async def undo(txid: TxId, dry_run: bool = True) -> dict[str, Any]:
        """Takes a transition back: files, the run's state, messages that were not sent. First says how."""
        return (await engine.undo(txid, dry_run=dry_run)).as_dict()

    @server.tool()
    @_needs("write")
    async def retry_run(run_id: RunId) -> dict[str, Any]:
        """What failed of a run is due again."""
        return line_of(await engine.make_due(run_id))

    @server.tool()
    @_needs("write")
    async def cancel_run(run_id: RunId) -> dict[str, Any]:
        """Ends a run where it stands."""
        return line_of(await engine.cancel(run_id))


def _deciding(server: MCPServer[Any], engine: Engine) -> None:
    @server.tool()
    @_needs("approve")
    async def answer_approval(
        approval_id: str, answer: Literal["approve", "reject"], by: str, comment: str = ""
    ) -> dict[str, Any]:
        """Answers a request in somebody's name."""
        decide = engine.approvals.approve if answer == "approve" else engine.approvals.reject
        return (await decide(approval_id, by=by, comment=comment)).as_dict()


def worker(engine: Engine) -> MCPServer[Any]:
    """Tools for whoever works on one run, and has a token for that run.

    What they say reaches the run as messages: its workflow declares the signals `ask` and `finish`, and says
    what follows.
    """
    server: MCPServer[Any] = MCPServer(
        "surefoot-worker", instructions=WORKER, version=__version__, log_level="WARNING"
    )

    @server.tool()
    @_needs("write")
    async def progress(message: Annotated[str, Field(min_length=1, max_length=4_000)]) -> str:
        """Tells how it goes. Kept with the run."""
        await engine.records.submit("progress", {"message": message}, run_id=_run())
        await engine.records.flush()
        return "kept"

    @server.tool()
    @_needs("write")
    async def ask_a_person(question: Annotated[str, Field(min_length=1, max_length=4_000)]) -> str:
        """Asks whoever the workflow says; the answer comes later: see answers."""
        await engine.send(_run(), "ask", {"question": question}, sender=_caller.get().name)
        return "asked"

    @server.tool()
    @_needs("read")
    async def answers() -> list[dict[str, Any]]:
        """What people were asked by this run, and what they have answered."""
        found = await engine.approvals.requests(states=(), run_id=_run())
        return [
            {
                "question": one.ask.title,
                "state": one.state.value,
                "answers": [
                    {"by": event.by, "answer": event.event, "comment": event.comment}
                    for event in one.events
                    if event.by
                ],
            }
            for one in found
        ]

    @server.tool()
    @_needs("write")
    async def finish(summary: Annotated[str, Field(max_length=10_000)], succeeded: bool = True) -> str:
        """Says that the work is done, once; the run goes on."""
        said = {"summary": summary, "succeeded": succeeded}
        sent = await engine.send(_run(), "finish", said, key="finish", sender=_caller.get().name)
        return "the run goes on" if sent else "it was said before"

    return server


def _run() -> str:
    run_id = _caller.get().run_id
    if not run_id:
        raise ToolError(
            "these tools need a token for one run: surefoot token create NAME --scope write --run RUN"
        )
    return run_id
