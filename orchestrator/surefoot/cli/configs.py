"""Commands for configuration, and for what is kept of slow sources."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from surefoot import rows
from surefoot.engine import Engine
from surefoot.errors import InputRefused
from surefoot.loader import load_model
from surefoot.schema import SCHEMA
from surefoot_storage import ReadOnlyWorkspace

from .main import cli, shared_options
from .output import emit, moment


@cli.group("config")
def config_group() -> None:
    """Look at configuration, and change it."""


@config_group.command("list")
@shared_options
def config_list(*, workspace: str, as_json: bool) -> int:
    """Show each configuration and its revision."""
    with ReadOnlyWorkspace(workspace, schemas=[SCHEMA]) as opened:
        facts = [{"name": name, "revision": revision} for name, revision in rows.config_names(opened)]
    lines = [f"{fact['name']:<24} revision {fact['revision']}" for fact in facts]
    emit(facts, "\n".join(lines) or "no configuration", as_json=as_json)
    return 0


@config_group.command("show")
@click.argument("name", metavar="NAME")
@shared_options
def config_show(name: str, *, workspace: str, as_json: bool) -> int:
    """Show all revisions of one, the newest first."""
    with ReadOnlyWorkspace(workspace, schemas=[SCHEMA]) as opened:
        found = rows.config_history(opened, name)
        known = ", ".join(other for other, _ in rows.config_names(opened)) or "none"
    if not found:
        raise InputRefused(
            "show configuration", name, expected=f"one of {known}", found="no revision of it",
            hint="surefoot config list",
        )  # fmt: skip
    facts = [{**vars(row), "document": json.loads(row.document or "{}")} for row in found]
    lines = [
        f"revision {fact['revision']}, {moment(fact['at'])}{' by ' + fact['by'] if fact['by'] else ''}:"
        f" {json.dumps(fact['document'])}"
        for fact in facts
    ]
    emit(facts, "\n".join(lines), as_json=as_json)
    return 0


@config_group.command("set")
@click.argument("name", metavar="NAME")
@click.argument("fields", metavar="FIELD=JSON…", nargs=-1, required=True)
@click.option("--model", required=True, metavar="FILE.py:MODEL", help="Which checks it.")
@click.option("--based-on", type=click.IntRange(min=0), required=True, help="The revision you have seen.")
@click.option("--by", default="", help="Who it is.")
@shared_options
def config_set(
    name: str,
    fields: tuple[str, ...],
    *,
    model: str,
    based_on: int,
    by: str,
    workspace: str,
    as_json: bool,
) -> int:
    """Save a new revision; refused, with the difference, where there is a newer one than you have seen."""
    change, checked_by = dict(_field(field) for field in fields), load_model(model)
    with Engine(workspace, resume=False) as engine:
        updated = engine.configuration(name, checked_by).update(change, based_on=based_on, by=by).wait()
    facts = {"name": name, "revision": updated.revision, "document": updated.value.model_dump(mode="json")}
    emit(facts, f"{name}: revision {updated.revision}", as_json=as_json)
    return 0


def _field(given: str) -> tuple[str, Any]:
    name, equals, text = given.partition("=")
    if not equals or not name:
        raise InputRefused("set", given, expected="FIELD=JSON", found="no =", hint="at_once=4")
    try:
        return name, json.loads(text)
    except ValueError:
        return name, text  # a word needs no quotes


@cli.group("cache")
def cache_group() -> None:
    """Look at what is kept of slow sources."""


@cache_group.command("list")
@shared_options
def cache_list(*, workspace: str, as_json: bool) -> int:
    """Show each answer that is kept, and its age. None of them is ever deleted by time."""
    now = time.time()
    with ReadOnlyWorkspace(workspace, schemas=[SCHEMA]) as opened:
        facts = rows.list_cached(opened, now)
    lines = [f"{f['cache']}/{f['key']}  {f['age_s']:.0f} s old, {f['size_bytes']} bytes" for f in facts]
    emit(facts, "\n".join(lines) or "nothing is kept", as_json=as_json)
    return 0
