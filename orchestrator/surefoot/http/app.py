"""The application: its routes, and what every request passes through."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

import anyio
from fastapi import FastAPI
from pydantic import BaseModel

from surefoot import __version__
from surefoot.engine import Engine

from . import agents, approvals, configs, history, meta, metrics, pages, queues, recovery, runs, streams
from .doors import Forms
from .live import Feed
from .models import ForModels, for_models
from .problems import Problem, documented, handle_all
from .security import LOOPBACK, Gate, Limits

ABOUT = """Runs whose steps land completely or not at all.

Every answer is given only once what it reports is durable. Errors are problem details (RFC 9457) with the
same hints as the command line. A POST with an `Idempotency-Key` is done once, however often it is sent."""


@dataclass(frozen=True)
class Options:
    """How the application is open.

    Attributes:
        hosts: names by which it may be addressed, besides those of this machine.
        limits: how much is taken.
        configurations: those that can be changed here, by name, each with the model that checks it.
    """

    hosts: frozenset[str] = frozenset()
    limits: Limits = field(default_factory=Limits)
    configurations: Mapping[str, type[BaseModel]] = field(default_factory=dict)


def create_app(engine: Engine, options: Options | None = None) -> FastAPI:
    """An ASGI application of an open engine, for any server that runs one on asyncio.

    Args:
        engine: open as long as the application is served; it answers everything.
        options: how it is open.
    """
    options = options or Options()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with for_models(engine) as app.state.mcp, anyio.create_task_group() as tasks:
            app.state.tasks = tasks
            tasks.start_soon(app.state.feed.serve)
            yield
            app.state.feed.close()
            tasks.cancel_scope.cancel()

    app = FastAPI(
        title="Surefoot", version=__version__, description=ABOUT, openapi_url="/v1/openapi.json",
        docs_url=None, redoc_url=None, lifespan=lifespan, responses=documented(),
        separate_input_output_schemas=False,
    )  # fmt: skip
    app.state.engine = engine
    app.state.options = options
    app.state.feed = Feed(engine, options.limits.streams_max)
    app.state.forms = Forms()
    app.state.keys_at_work = set()
    for module in (meta, runs, history, approvals, queues, agents, configs, recovery, streams):
        app.include_router(module.router, prefix="/v1")
    app.include_router(meta.outside)
    app.include_router(metrics.outside)
    pages.add(app)
    handle_all(app)
    _describe_problem(app)
    app.add_middleware(ForModels, engine=engine)
    app.add_middleware(Gate, hosts=LOOPBACK | options.hosts, limits=options.limits)
    return app


def _describe_problem(app: FastAPI) -> None:
    """The schema that all documented errors refer to; and no other form of them."""
    original = app.openapi

    def openapi() -> dict[str, object]:
        if app.openapi_schema is None:
            schema = original()
            schemas = schema.setdefault("components", {}).setdefault("schemas", {})
            schemas["Problem"] = Problem.model_json_schema()
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's own way to change it
