"""Commands that move runs on."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import click

from surefoot import __version__, rows
from surefoot.declare import Workflow
from surefoot.doctor import UNFINISHED
from surefoot.engine import Engine
from surefoot.errors import InputRefused, RunRefused
from surefoot.loader import load_workflow
from surefoot.model import RunResult, RunState, TransitionResult
from surefoot.pipeline import SUFFIXES
from surefoot.schema import SCHEMA
from surefoot_storage import ReadOnlyWorkspace, SurefootError, TransactionClosed, Workspace

from .output import PAUSED_HINT, emit, emit_error, is_terminal, run_code, transition_code, transition_line

F = TypeVar("F", bound=Callable[..., Any])

workspace_option = click.option(
    "-w",
    "--workspace",
    default=".",
    envvar="SUREFOOT_WORKSPACE",
    show_default=True,
    help="The directory that holds the runs.",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def shared_options(command: F) -> F:
    """Every command has these."""
    return workspace_option(_json_option(command))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="surefoot")
@click.option("-v", "--verbose", count=True, help="Show events on stderr; twice shows more.")
def cli(verbose: int) -> None:
    """Run workflows whose steps land completely or not at all."""
    import structlog

    level = [logging.ERROR, logging.INFO, logging.DEBUG][min(verbose, 2)]
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


@cli.command()
@click.argument("reference", metavar="FILE.py:WORKFLOW")
@click.option("--id", "run_id", help="The run's id; starting twice with one id goes on with that run.")
@click.option("-i", "--input", "pairs", multiple=True, metavar="KEY=VALUE", help="One field of the input.")
@click.option("--input-json", metavar="JSON", help="The whole input; @FILE reads it from a file.")
@click.option("--adopt", is_flag=True, help="Take over a directory that already holds files.")
@click.option("--no-wait", is_flag=True, help="End as soon as the run waits for something.")
@click.option("--queue", default="", help="Only start it: workers of this queue move it on.")
@click.option("--priority", default=0, help="In its queue; lower goes first.")
@click.option("--lane", help="Runs of the queue that share it go one after the other.")
@click.option("--dedup", help="While a run of the queue with this key is not over, it is returned instead.")
@click.option("--delay", "delay_s", default=0.0, help="Not before so many seconds from now.")
@shared_options
def run(
    reference: str,
    run_id: str | None,
    pairs: tuple[str, ...],
    input_json: str | None,
    *,
    adopt: bool,
    no_wait: bool,
    workspace: str,
    as_json: bool,
    **placing: Any,
) -> int:
    """Start a run, or go on with it, and drive it to its end."""
    workflow = load_workflow(reference)
    given = _input(workflow, pairs, input_json)
    if placing["queue"]:
        with Engine(workspace, [workflow], resume=False) as engine:
            started = engine.start(
                workflow, given, run_id=run_id, adopt=adopt, source=_absolute(reference), **placing
            ).wait()
        emit(json.loads(started.status), f"{started.id}: in queue {started.queue}", as_json=as_json)
        return 0
    with (
        _progress(as_json=as_json) as show,
        Engine(workspace, [workflow], resume=False, on_transition=show) as engine,
    ):
        result = _told(
            engine,
            engine.run(
                workflow,
                given,
                run_id=run_id,
                adopt=adopt,
                source=_absolute(reference),
                delay_s=placing["delay_s"],
                through_waits=not no_wait,
            ).wait(),
        )
    emit(result.as_dict(), _run_text(result), as_json=as_json)
    return run_code(result)


@cli.command()
@click.argument("run_id", metavar="RUN")
@click.option("--from", "reference", metavar="FILE.py:WORKFLOW", help="Where the workflow is now.")
@click.option("--all", "to_the_end", is_flag=True, help="Drive the run to its end.")
@shared_options
def advance(run_id: str, reference: str | None, *, to_the_end: bool, workspace: str, as_json: bool) -> int:
    """Try the due step of a run once, now: the next one, or the one that failed."""
    with _progress(as_json=as_json) as show, engine_for(workspace, run_id, reference, show) as engine:
        if to_the_end:
            whole = _told(engine, engine.retry(run_id).wait())
            emit(whole.as_dict(), _run_text(whole), as_json=as_json)
            return run_code(whole)
        result = engine.advance(run_id).wait()
    emit(result.as_dict(), transition_line(result), as_json=as_json)
    return transition_code(result)


@cli.command()
@click.argument("run_id", metavar="RUN")
@click.option("--from", "reference", metavar="FILE.py:WORKFLOW", help="Where the workflow is now.")
@shared_options
def preview(run_id: str, reference: str | None, *, workspace: str, as_json: bool) -> int:
    """Show the exact diff of a run's next transition; change no file, send nothing."""
    with engine_for(workspace, run_id, reference) as engine:
        shown = engine.preview(run_id).wait()
    effects = "".join(f"would then tell: {name}\n" for name in shown.effects)
    text = f"{shown.diff}{effects}step {shown.step}, then {shown.next_step or 'end'}; nothing was changed\n"
    text += shown.not_kept or f"to do exactly this: surefoot commit {shown.digest[:16]}"
    emit(shown.as_dict(), text, as_json=as_json)
    return 0


@cli.command()
@click.argument("digest", metavar="DIGEST")
@click.option("--from", "reference", metavar="FILE.py:WORKFLOW", help="Where the workflow is now.")
@shared_options
def commit(digest: str, reference: str | None, *, workspace: str, as_json: bool) -> int:
    """Commit a preview by its digest: what was shown, byte for byte; no step runs again."""
    with ReadOnlyWorkspace(workspace, schemas=[SCHEMA]) as opened:
        run_id = opened.sealed(digest).owner
    with _progress(as_json=as_json) as show, engine_for(workspace, run_id, reference, show) as engine:
        result = engine.commit(digest).wait()
    emit(result.as_dict(), transition_line(result), as_json=as_json)
    return transition_code(result)


@cli.command()
@click.argument("run_id", metavar="RUN")
@click.option("--from", "reference", metavar="FILE.py:WORKFLOW", help="Where the workflow is now.")
@shared_options
def cancel(run_id: str, reference: str | None, *, workspace: str, as_json: bool) -> int:
    """End a run where it stands."""
    del reference  # cancelling needs no code
    with Engine(workspace, resume=False) as engine:
        ended = engine.cancel(run_id).wait()
    emit(json.loads(ended.status), f"{run_id}: cancelled before {ended.last_step}", as_json=as_json)
    return 0


@cli.command()
@click.option("--resume", is_flag=True, help="Then drive every unfinished run to its end.")
@shared_options
def recover(*, resume: bool, workspace: str, as_json: bool) -> int:
    """Finish what a crash left undone in the files, and say which runs are unfinished."""
    with Workspace(workspace, schemas=[SCHEMA]) as opened:
        recovered, left = opened.recovered, opened.settle()
        unfinished = rows.list_runs(opened, states=UNFINISHED)
    facts: dict[str, Any] = {
        "completed": list(recovered.completed),
        "foreign": list(recovered.foreign),
        "unapplied": [{"path": path, "cause": cause} for path, cause in left],
        "unfinished": [{"run_id": r.id, "state": r.state.value, "step": r.step} for r in unfinished],
    }
    lines = [f"put in place: {path}" for path in recovered.completed]
    lines += [f"left alone, changed by somebody else: {path}" for path in recovered.foreign]
    lines += [f"not in place yet: {path}: {cause}" for path, cause in left]
    lines += [f"unfinished: {r.id} ({r.state.value} at {r.step})" for r in unfinished]
    code = 5 if left else 0
    if resume and not left:
        results = [_resume(workspace, run.id, as_json=as_json) for run in unfinished if run.state.is_due]
        facts["resumed"] = [result.as_dict() for result in results]
        lines += [_run_text(result) for result in results]
        code = max([run_code(result) for result in results], default=0)
    emit(facts, "\n".join(lines) or "nothing to recover", as_json=as_json)
    return code


def _resume(workspace: str, run_id: str, *, as_json: bool) -> RunResult:
    with _progress(as_json=as_json) as show, engine_for(workspace, run_id, None, show) as engine:
        return _told(engine, engine.resume(run_id, through_waits=False).wait())


def _told(engine: Engine, result: RunResult) -> RunResult:
    """A command that exits says what it could not deliver: so it tries first."""
    return replace(result, undelivered=engine.deliver(result.run_id).wait())


def engine_for(
    workspace: str,
    run_id: str,
    reference: str | None,
    show: Callable[[TransitionResult], None] = lambda _result: None,
) -> Engine:
    """An engine that knows the run's workflow, from where the run says that it was started."""
    if reference is None:
        with Workspace(workspace, schemas=[SCHEMA]) as opened:
            known = rows.get_run(opened, run_id)
        if not known.source:
            raise RunRefused(
                "move on",
                run_id,
                expected="a run that was started from the command line",
                found="one that a program started",
                hint="say where its workflow is: --from FILE.py:WORKFLOW",
            )
        reference = known.source
    return Engine(workspace, [load_workflow(reference)], resume=False, on_transition=show)


def _absolute(reference: str) -> str:
    import os

    if reference.endswith(SUFFIXES):
        return os.path.abspath(reference)
    path, colon, name = reference.rpartition(":")
    return f"{os.path.abspath(path)}:{name}" if colon else os.path.abspath(reference)


def _input(workflow: Workflow, pairs: tuple[str, ...], text: str | None) -> Any:
    """The input from `-i key=value` and `--input-json`, as the model takes it."""
    given: Any = {}
    if text is not None:
        if text.startswith("@"):
            try:
                with open(text[1:], encoding="utf-8") as file:
                    text = file.read()
            except (OSError, UnicodeDecodeError) as error:
                raise InputRefused("read input", text, expected="a JSON file", found=str(error)) from error
        try:
            given = json.loads(text)
        except ValueError as error:
            raise InputRefused("read input", text[:80], expected="JSON", found=str(error)) from error
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not isinstance(given, dict):
            raise InputRefused("read input", pair, expected="KEY=VALUE", found=pair)
        given[key] = value
    return workflow.parse_input(given)


def _run_text(result: RunResult) -> str:
    lines = [f"{result.run_id}: {result.state.value}" + (f" at {result.step}" if result.step else "")]
    if not result.ok and result.failure is not None:
        lines.append(f"{result.failure.error}: {result.failure.message}")
        if result.failure.hint:
            lines.append(f"hint: {result.failure.hint}")
        lines.append(
            f"hint: surefoot log {result.run_id} tells more; surefoot advance {result.run_id} tries again"
        )
    if result.state is RunState.WAITING:
        lines.append(f"hint: surefoot why {result.run_id} says what it waits for")
    if result.state is RunState.PAUSED:
        lines.append(PAUSED_HINT)
    if result.undelivered:
        lines.append(f"{result.undelivered} effect(s) not delivered yet")
    return "\n".join(lines)


@contextlib.contextmanager
def _progress(*, as_json: bool) -> Iterator[Callable[[TransitionResult], None]]:
    """Each transition as it happens, on stderr; on a terminal with the step that is being worked on."""
    if not is_terminal() or as_json:
        yield lambda result: click.echo(transition_line(result), err=True) if not as_json else None
        return
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("starting …") as status:

        def show(result: TransitionResult) -> None:
            console.print(transition_line(result), highlight=False, markup=False)
            status.update(f"{result.next_step or result.step} …")

        yield show


def main(arguments: list[str] | None = None) -> None:
    """Runs a command and exits with its code."""
    from . import (
        access,
        agents,
        approvals,
        configs,
        copies,
        dumps,
        history,
        inspecting,
        oncall,
        running,
        serving,
        upkeep,
        working,
    )  # they register their commands

    del access, agents, approvals, configs, copies, dumps, history, inspecting, oncall, running, serving
    del upkeep, working
    arguments = sys.argv[1:] if arguments is None else arguments
    as_json = "--json" in arguments
    try:
        code = cli.main(args=arguments, standalone_mode=False, prog_name="surefoot")
    except click.exceptions.Exit as exit_:
        code = exit_.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; what was not committed has changed nothing", err=True)
        code = 130
    except SurefootError as error:
        emit_error(error, as_json=as_json)
        code = error.exit_code
    except TransactionClosed as error:
        click.echo(f"error: {error}", err=True)
        code = 1
    except BrokenPipeError:
        sys.stderr.close()
        code = 141
    sys.exit(code if isinstance(code, int) else 0)
