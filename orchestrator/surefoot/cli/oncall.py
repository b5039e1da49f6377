"""Commands for whoever is called at night: what is wrong, and what to send to somebody who can help."""

from __future__ import annotations

import json
import os
import time

import click

from surefoot import __version__
from surefoot.doctor import bundle, findings
from surefoot.errors import InputRefused
from surefoot.schema import SCHEMA
from surefoot_storage import Finding, ReadOnlyWorkspace

from .main import cli, shared_options
from .output import EXIT_FAILED, emit


@cli.command()
@click.option("--deep", is_flag=True, help="Also compare every committed file with the store.")
@shared_options
def doctor(*, deep: bool, workspace: str, as_json: bool) -> int:
    """Say what is wrong, how one sees it, and the command that mends it. Changes nothing.

    Works beside an engine that runs, that is frozen, or that is gone.
    """
    with ReadOnlyWorkspace(workspace, schemas=[SCHEMA]) as opened:
        found = findings(opened, opened.checkup, now=time.time(), deep=deep)
    text = "\n".join(_text(finding) for finding in found)
    emit([finding.as_dict() for finding in found], text or "nothing is wrong", as_json=as_json)
    return EXIT_FAILED if any(finding.is_problem for finding in found) else 0


def _text(finding: Finding) -> str:
    lines = [f"{'problem' if finding.is_problem else 'note':<8}{finding.what}"]
    if finding.evidence:
        lines.append(f"        {finding.evidence}")
    if finding.remedy:
        lines.append(f"        hint: {finding.remedy}")
    return "\n".join(lines)


@cli.command()
@click.argument("target", metavar="FILE", required=False)
@shared_options
def diagnose(target: str | None, *, workspace: str, as_json: bool) -> int:
    """Write facts about the workspace to FILE, for somebody who cannot look at it; without FILE, show them.

    Versions, states, counts, times and kinds of errors. No contents, inputs, messages or names of files.
    """
    with ReadOnlyWorkspace(workspace, schemas=[SCHEMA]) as opened:
        facts = bundle(opened, opened.checkup, version=__version__, now=time.time())
    if target is None:
        emit(facts, json.dumps(facts, indent=2), as_json=as_json)
        return 0
    try:
        with open(target, "x", encoding="utf-8") as file:
            json.dump(facts, file, indent=2)
    except OSError as error:
        raise InputRefused("diagnose", target, expected="a new file", found=str(error)) from error
    written = {"file": os.path.abspath(target), "size_bytes": os.path.getsize(target)}
    emit(written, f"wrote {target}: read it before you send it", as_json=as_json)
    return 0
