"""What commands print: text for people, one JSON document for programs, and errors with their hints.

Data goes to stdout, everything else to stderr. Exit codes are a promise; README.md lists them.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import click

from surefoot.model import RunResult, RunState, TransitionResult
from surefoot_storage import SurefootError

EXIT_FAILED = 1
EXIT_UNFINISHED = 3
EXIT_CONFLICT = 4
EXIT_WORKSPACE = 5
EXIT_COMMIT = 6


def emit(facts: Any, text: str, *, as_json: bool) -> None:
    """One result, in the form that was asked for."""
    click.echo(json.dumps(facts, indent=2, ensure_ascii=False, default=str) if as_json else text)


def emit_error(error: SurefootError, *, as_json: bool) -> None:
    """One error: its facts on stdout for programs, its message on stderr for people."""
    if as_json:
        click.echo(json.dumps(error.as_dict(), indent=2, ensure_ascii=False))
    else:
        click.echo(f"error: {error}", err=True)


def moment(seconds: float | None) -> str:
    """Local time, to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds is not None else "-"


def transition_line(result: TransitionResult) -> str:
    """One transition, for people."""
    if result.ok:
        follows = result.next_step or "end"
        note = "" if result.outcome == "committed" else "  (not all files in place yet)"
        return f"{result.step}: committed {len(result.files)} file(s), next: {follows}{note}"
    failure = result.failure
    if failure is None:
        return f"{result.step}: {result.outcome}"
    hint = f"\nhint: {failure.hint}" if failure.hint else ""
    cause = f"{failure.error}: {failure.message}"
    return f"{result.step}: {result.outcome} (attempt {result.attempt}): {cause}{hint}"


def transition_code(result: TransitionResult) -> int:
    """The exit code of one transition."""
    if result.outcome == "committed":
        return 0
    if result.failure is not None and result.failure.error == "Conflict":
        return EXIT_CONFLICT
    codes = {"unapplied": EXIT_COMMIT, "retrying": EXIT_UNFINISHED, "blocked": EXIT_WORKSPACE}
    return codes.get(result.outcome, EXIT_FAILED)


PAUSED_HINT = "hint: a transition was undone; surefoot advance does the step again"


def run_code(result: RunResult) -> int:
    """The exit code of a whole run."""
    if result.state is RunState.COMPLETED:
        last = result.transitions[-1] if result.transitions else None
        return EXIT_COMMIT if last is not None and last.outcome == "unapplied" else 0
    if result.transitions and not result.transitions[-1].ok:
        return transition_code(result.transitions[-1])
    waits = result.state.is_due or result.state is RunState.PAUSED
    return EXIT_UNFINISHED if waits else EXIT_FAILED


def is_terminal() -> bool:
    """Whether somebody is watching."""
    return sys.stderr.isatty()
