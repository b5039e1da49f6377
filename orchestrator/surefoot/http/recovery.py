"""After a failure: what is wrong, what differs, what was not stored, and what mends it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from anyio import to_thread
from fastapi import APIRouter, Path, Query
from pydantic import Field

from surefoot import __version__
from surefoot_storage import Retention

from . import shapes
from .doors import Admin, Reader, TheEngine, Writer
from .keys import KeyedRoute
from .runs import Body, FilePath, Whole

router = APIRouter(tags=["recovery"], route_class=KeyedRoute)
DumpName = Annotated[str, Path(pattern=r"^[A-Za-z0-9._-]{1,200}$")]
T = TypeVar("T")


class Decision(Body):
    """Whose version it shall be."""

    use: Literal["ours", "theirs"]


class Kept(Body):
    """What is kept of old versions."""

    days: float = Field(30.0, ge=0, le=36_500)
    transactions: Whole = Field(1_000, ge=0, le=1_000_000)
    size_bytes: Whole = Field(1 << 30, ge=0, le=1 << 50)
    dry_run: bool = True


class Forgotten(Body):
    """Whose kept contents are removed."""

    path: FilePath
    dry_run: bool = True


@router.get("/doctor", operation_id="doctor", responses=shapes.shown(list[shapes.Finding]))
async def doctor(
    engine: TheEngine, _caller: Reader, *, deep: Annotated[bool, Query()] = False
) -> list[dict[str, Any]]:
    """What is wrong, how one sees it, and what mends it; problems first."""
    return [finding.as_dict() for finding in await engine.facts.findings(deep=deep)]


@router.get("/restart", operation_id="what_happened_at_restart")
async def restart(engine: TheEngine, _caller: Reader) -> dict[str, Any]:
    """What opening had to finish after a crash, or left alone because somebody had changed it."""
    found = engine.recovered
    return {"completed": list(found.completed), "foreign": list(found.foreign)}


@router.get("/diagnosis", operation_id="diagnose")
async def diagnose(engine: TheEngine, _caller: Reader) -> dict[str, Any]:
    """Facts for somebody who helps: no contents, inputs, messages or names of files."""
    return await engine.facts.diagnosis(__version__)


@router.get("/verify", operation_id="verify")
async def verify(engine: TheEngine, _caller: Reader) -> list[dict[str, str]]:
    """Compares every committed file and kept content with the store. Takes as long as reading all of them."""
    found = await _in_thread(lambda: list(engine.history.verify()))
    return [{"path": d.path, "expected": d.expected, "found": d.found} for d in found]


@router.post("/settle", operation_id="settle")
async def settle(engine: TheEngine, _caller: Writer) -> list[dict[str, str]]:
    """Tries again to put committed files in place; answers with what is left, and why."""
    return [{"path": path, "cause": cause} for path, cause in await engine.settle()]


@router.post("/checkpoint", operation_id="checkpoint")
async def checkpoint(engine: TheEngine, _caller: Writer) -> dict[str, int]:
    """Everything is durable in its own place when this answers: records, rows, and the files themselves."""
    return {"sequence": await engine.sync_checkpoint()}


@router.get("/conflicts", operation_id="list_conflicts")
async def list_conflicts(
    engine: TheEngine, _caller: Reader, *, everything: Annotated[bool, Query()] = False
) -> list[dict[str, Any]]:
    """Edits by others that met a commit: which version is in place, and where the other one is."""
    found = await _in_thread(lambda: engine.upkeep.conflicts(unresolved_only=not everything))
    return [edit.as_dict() for edit in found]


@router.post("/conflicts/{number}/resolve", operation_id="resolve_conflict")
async def resolve_conflict(
    engine: TheEngine, _caller: Writer, number: Annotated[int, Path(ge=1, le=1 << 53)], decision: Decision
) -> dict[str, Any]:
    """Whose version it shall be."""
    edit = await _in_thread(lambda: engine.upkeep.resolve(number, decision.use))
    return {**edit.as_dict(), "resolution": decision.use}


@router.get("/dumps", operation_id="list_dumps")
async def list_dumps(engine: TheEngine, _caller: Reader) -> list[str]:
    """Records that the store did not take."""
    return await engine.records.dumps()


@router.get("/dumps/{name}", operation_id="get_dump")
async def get_dump(engine: TheEngine, _caller: Reader, name: DumpName) -> dict[str, Any]:
    """What is in one."""
    return (await engine.records.dump(name)).as_dict()


@router.post("/dumps/{name}/replay", operation_id="replay_dump")
async def replay_dump(engine: TheEngine, _caller: Writer, name: DumpName) -> dict[str, Any]:
    """Stores what is in it; what is there already stays as it is."""
    return vars(await engine.records.replay(name))


@router.get("/usage", operation_id="usage")
async def usage(engine: TheEngine, _caller: Reader) -> dict[str, Any]:
    """What the store uses on the disk."""
    return await _in_thread(lambda: dict(engine.upkeep.usage()))


@router.post("/collect", operation_id="collect")
async def collect(engine: TheEngine, _caller: Admin, kept: Kept) -> dict[str, Any]:
    """Lets old versions go: what they belong to cannot be undone any more. Only says so, unless told to."""
    retention = Retention(kept.days, kept.transactions, kept.size_bytes)
    pruned = await _in_thread(lambda: engine.upkeep.collect(retention=retention, dry_run=kept.dry_run))
    return {**pruned.__dict__, "done": not kept.dry_run}


@router.post("/forget", operation_id="forget")
async def forget(engine: TheEngine, _caller: Admin, what: Forgotten) -> dict[str, Any]:
    """Removes every kept content of a path, for good. Only says what it would do, unless told to."""
    upkeep = engine.upkeep
    gone = await _in_thread(lambda: (upkeep.forgettable if what.dry_run else upkeep.forget)(what.path))
    return {**gone.__dict__, "done": not what.dry_run}


@router.get("/statistics", operation_id="statistics")
async def statistics(
    engine: TheEngine, _caller: Reader, since: Annotated[float, Query(ge=0, le=3e9)] = 0.0
) -> dict[str, Any]:
    """Runs by workflow and attempts by step: how many, and how long they took."""
    return await engine.analytics(since=since)


async def _in_thread(work: Callable[[], T]) -> T:
    return await to_thread.run_sync(work)
