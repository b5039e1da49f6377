"""Transactions: who changed what and when, any old version, and taking them back."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

from anyio import to_thread
from fastapi import APIRouter, Path, Query
from pydantic import Field
from starlette.concurrency import iterate_in_threadpool
from starlette.responses import StreamingResponse

from . import shapes
from .doors import Reader, TheEngine, Writer
from .keys import KeyedRoute
from .runs import Body, FilePath

router = APIRouter(tags=["history"], route_class=KeyedRoute)
TxId = Annotated[str, Path(pattern="^[0-9a-f]{8,64}$", description="A few characters are enough.")]


class Back(Body):
    """How something is taken back."""

    force: bool = Field(False, description="Also where files were changed since; those are kept.")
    paths: list[FilePath] = Field(default=[], max_length=1_000)
    dry_run: bool = Field(False, description="Say what it would do; change nothing.")


@router.get(
    "/transactions/{txid}", operation_id="get_transaction", responses=shapes.shown(shapes.Transaction)
)
async def get_transaction(engine: TheEngine, _caller: Reader, txid: TxId) -> dict[str, Any]:
    """Who, when, which step, each file before and after, its messages, whether it stands."""
    return await engine.facts.transaction(txid)


@router.get("/transactions/{txid}/diff", operation_id="get_diff", responses=shapes.shown(list[shapes.Diff]))
async def get_diff(
    engine: TheEngine, _caller: Reader, txid: TxId,
    other: Annotated[str | None, Query(pattern="^[0-9a-f]{8,64}$")] = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """What it changed; with `other`, what its run changed from after it until after the other."""
    return [change.as_dict() for change in await engine.facts.diff(txid, other)]


@router.get(
    "/transactions/{txid}/content",
    operation_id="get_content",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/octet-stream": {"schema": {"type": "string"}}}}},
)
async def get_content(
    engine: TheEngine, _caller: Reader, txid: TxId,
    path: Annotated[FilePath, Query(description="From the workspace's root.")],
) -> StreamingResponse:  # fmt: skip
    """The content that a file had right after it: of what was committed, never of another file."""
    state, pieces = await engine.facts.content(path, txid)
    first = await to_thread.run_sync(next, pieces, b"")  # an error while there is still a status to say so
    name = quote(path.rpartition("/")[2])
    headers = {
        "content-disposition": f"attachment; filename*=UTF-8''{name}",
        "content-length": str(state.size),
        "etag": f'"{state.digest.hex()}"',
    }

    async def all_pieces() -> Any:
        yield first
        async for piece in iterate_in_threadpool(pieces):
            yield piece

    return StreamingResponse(all_pieces(), headers=headers, media_type="application/octet-stream")


@router.post("/transactions/{txid}/undo", operation_id="undo", responses=shapes.shown(shapes.Undone))
async def undo(engine: TheEngine, _caller: Writer, txid: TxId, back: Back) -> dict[str, Any]:
    """Takes it back, by a new one: files, the run's state, messages that were not sent."""
    done = await engine.undo(txid, force=back.force, paths=back.paths, dry_run=back.dry_run)
    return done.as_dict()


@router.post("/transactions/{txid}/revert", operation_id="revert", responses=shapes.shown(shapes.Undone))
async def revert(engine: TheEngine, _caller: Writer, txid: TxId, back: Back) -> dict[str, Any]:
    """Goes back to right after it: all that its run has done since is undone as one."""
    done = await engine.revert(txid, force=back.force, paths=back.paths, dry_run=back.dry_run)
    return done.as_dict()
