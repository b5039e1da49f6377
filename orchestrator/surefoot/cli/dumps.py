"""Commands for what the store did not take."""

from __future__ import annotations

import click

from surefoot.dumping import REPLAYED, read_dump
from surefoot.engine import Engine
from surefoot_storage import Dumps, FsOps

from .main import cli, shared_options
from .output import emit, moment


@cli.group("dumps")
def dumps_group() -> None:
    """Look at records that could not be stored, and store them now."""


@dumps_group.command("list")
@shared_options
def dumps_list(*, workspace: str, as_json: bool) -> int:
    """Show all dumps. Needs no store that works."""
    names = Dumps(FsOps(), workspace).names()
    facts = [{"name": name, "replayed": name.endswith(REPLAYED)} for name in names]
    emit(facts, "\n".join(names) or "no dumps", as_json=as_json)
    return 0


@dumps_group.command("show")
@click.argument("name", metavar="NAME")
@shared_options
def dumps_show(name: str, *, workspace: str, as_json: bool) -> int:
    """Show what is in one. Needs no store that works."""
    dump = read_dump(Dumps(FsOps(), workspace), name)
    lines = [f"{name}: {len(dump.records)} record(s), dumped {moment(dump.at)}: {dump.error.splitlines()[0]}"]
    lines += [f"    {r.number} {moment(r.at)} {r.kind} {r.run_id} {r.data}" for r in dump.records]
    emit(dump.as_dict(), "\n".join(lines), as_json=as_json)
    return 0


@dumps_group.command("replay")
@click.argument("names", metavar="[NAME]…", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Each that was not replayed yet.")
@shared_options
def dumps_replay(names: tuple[str, ...], *, everything: bool, workspace: str, as_json: bool) -> int:
    """Store what is in them; what is stored already stays as it is."""
    with Engine(workspace, resume=False) as engine:
        if everything:
            names = tuple(name for name in engine.records.dumps().wait() if not name.endswith(REPLAYED))
        done = [engine.records.replay(name).wait() for name in names]
    lines = [f"{r.name}: {r.stored} stored, {r.known} were there" for r in done]
    emit([vars(r) for r in done], "\n".join(lines) or "nothing to replay", as_json=as_json)
    return 0
