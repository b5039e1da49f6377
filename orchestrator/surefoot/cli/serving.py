"""The command that opens the HTTP door."""

from __future__ import annotations

import click

from surefoot import checks
from surefoot.engine import Engine
from surefoot.loader import load_model, load_workflow
from surefoot_storage import InputError

from .main import cli, shared_options
from .working import agents_option, limits_of


@cli.command()
@click.argument("references", metavar="[FILE.py:WORKFLOW]…", nargs=-1)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port", default=8765, show_default=True, type=click.IntRange(0, 65_535), help="0: a free one."
)
@click.option("--name", "names", multiple=True, metavar="HOST", help="A name by which it may be addressed.")
@click.option(
    "--config", "configs", multiple=True, metavar="NAME=FILE.py:MODEL", help="Can be changed there."
)
@click.option("--otlp", default="", metavar="URL", help="Send spans there by OTLP over HTTP.")
@click.option("--rate", default=200.0, show_default=True, help="Requests of one client, a second.")
@agents_option
@shared_options
def serve(
    references: tuple[str, ...], *, host: str, port: int, names: tuple[str, ...], configs: tuple[str, ...],
    otlp: str, rate: float, agents: tuple[str, ...], workspace: str, as_json: bool,
) -> int:  # fmt: skip
    """Be a worker with an HTTP API and a page; by default only for this machine.

    SIGTERM and Ctrl-C let it finish what it has begun; a second one ends it at once.
    """
    del as_json
    try:
        from surefoot.http import Options
        from surefoot.http.security import Limits
        from surefoot.http.serving import serve as serving
    except ModuleNotFoundError as error:
        raise checks.missing("serve", "http", error) from error
    import anyio

    models = dict(_named(one) for one in configs)
    limits = Limits(requests_per_s=rate, burst=max(1, int(rate * 2)))
    options = Options(
        hosts=frozenset({host, *names}), limits=limits,
        configurations={name: load_model(reference) for name, reference in models.items()},
    )  # fmt: skip
    workflows = [load_workflow(reference) for reference in references]

    async def main() -> None:
        await serving(
            workspace, workflows, host=host, port=port, options=options,
            engine_options={"agents": limits_of(agents)}, otlp=otlp,
            tell=lambda line: click.echo(line, err=True),
        )  # fmt: skip

    anyio.run(main)
    return 0


@cli.command()
@click.argument("references", metavar="[FILE.py:WORKFLOW]…", nargs=-1)
@click.option("--decide", is_flag=True, help="Also a tool that answers requests for approval.")
@shared_options
def mcp(references: tuple[str, ...], *, decide: bool, workspace: str, as_json: bool) -> int:
    """Talk to a language model over stdin and stdout: tools of the Model Context Protocol.

    Whose tools they are, SUREFOOT_TOKEN says; one for a run (--run) brings a worker's.
    """
    del as_json
    try:
        from surefoot.mcp.serving import serve_stdio
    except ModuleNotFoundError as error:
        raise checks.missing("serve mcp", "mcp", error) from error
    import os

    import anyio

    workflows = [load_workflow(reference) for reference in references]

    async def main() -> None:
        async with Engine(workspace, workflows) as engine:
            await serve_stdio(engine, os.environ.get("SUREFOOT_TOKEN"), decides=decide)

    anyio.run(main)
    return 0


def _named(given: str) -> tuple[str, str]:
    name, equals, reference = given.partition("=")
    if not equals or not name or not reference:
        raise InputError("serve", given, expected="--config NAME=FILE.py:MODEL", found=given)
    return name, reference
