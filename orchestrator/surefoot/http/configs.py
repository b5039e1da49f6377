"""Configuration, with its revisions; what is kept of slow sources."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Request, Response
from pydantic import BaseModel, JsonValue

from surefoot.configuration import Configuration
from surefoot.engine import Engine
from surefoot_storage import UnknownId

from . import shapes
from .doors import Reader, TheEngine, Writer
from .keys import KeyedRoute
from .problems import documented
from .runs import NAME

router = APIRouter(tags=["configuration"], route_class=KeyedRoute)
ConfigName = Annotated[str, Path(pattern=NAME)]


@router.get("/configurations", operation_id="list_configurations")
async def list_configurations(engine: TheEngine, request: Request, _caller: Reader) -> list[dict[str, Any]]:
    """Each with its revision, and whether it can be changed here."""
    models: Mapping[str, type[BaseModel]] = request.app.state.options.configurations
    saved = dict(await engine.facts.configurations())
    return [
        {"name": name, "revision": saved.get(name, 0), "editable": name in models}
        for name in sorted({*saved, *models})
    ]


@router.get(
    "/configurations/{name}", operation_id="get_configuration", responses=shapes.shown(shapes.Configuration)
)
async def get_configuration(
    engine: TheEngine, request: Request, response: Response, _caller: Reader, name: ConfigName
) -> dict[str, Any]:
    """What it says now, and the schema of what it may say. Its ETag is its revision."""
    configuration, model = configuration_of(engine, request, name)
    now = await configuration.get()
    response.headers["etag"] = f'"{now.revision}"'
    return {
        "name": name,
        "revision": now.revision,
        "value": now.value.model_dump(mode="json"),
        "schema": model.model_json_schema(),
    }


@router.get("/configurations/{name}/history", operation_id="configuration_history")
async def configuration_history(
    engine: TheEngine, request: Request, _caller: Reader, name: ConfigName
) -> list[dict[str, Any]]:
    """Every revision, the newest first: when, by whom, what it was."""
    return await configuration_of(engine, request, name)[0].history()


@router.put(
    "/configurations/{name}",
    operation_id="update_configuration",
    responses={**shapes.shown(shapes.Configuration), **documented(412)},
)
async def update_configuration(
    engine: TheEngine, request: Request, response: Response, caller: Writer, name: ConfigName,
    change: dict[str, JsonValue],
    if_match: Annotated[str, Header(pattern=r'^"?[0-9]{1,15}"?$', description="The revision.")],
) -> dict[str, Any]:  # fmt: skip
    """Saves fields that change, based on the revision in If-Match; subscribers are waited for."""
    configuration, _ = configuration_of(engine, request, name)
    updated = await configuration.update(change, based_on=int(if_match.strip('"')), by=caller.name)
    response.headers["etag"] = f'"{updated.revision}"'
    return {
        "name": name,
        "revision": updated.revision,
        "value": updated.value.model_dump(mode="json"),
        "failures": [list(failure) for failure in updated.failures],
    }


@router.get("/cache", operation_id="list_cached")
async def list_cached(engine: TheEngine, _caller: Reader) -> list[dict[str, Any]]:
    """What is kept of slow sources, and how old it is."""
    return await engine.facts.cached()


def configuration_of(
    engine: Engine, request: Request, name: str
) -> tuple[Configuration[Any], type[BaseModel]]:
    """One that can be looked at and changed here.

    Raises:
        UnknownId: the server was not given its model.
    """
    models: Mapping[str, type[BaseModel]] = request.app.state.options.configurations
    if name not in models:
        raise UnknownId(
            "find configuration", name, expected=f"one of {', '.join(models) or 'none'}",
            found="one whose model this server was not given",
            hint=f"surefoot serve --config {name}=FILE.py:MODEL",
        )  # fmt: skip
    return engine.configuration(name, models[name]), models[name]
