"""A server of one workspace: an engine that is a worker, and the application on a socket of this machine."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import anyio
import uvicorn

from surefoot import checks
from surefoot.declare import Workflow
from surefoot.engine import Engine
from surefoot_storage import InputError

from .app import Options, create_app
from .security import LOOPBACK

GRACE_S = 5
CONNECTIONS_MAX = 1_000


class Server(uvicorn.Server):
    """Signals are the engine's: it finishes what it has begun."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """None here."""
        yield


async def serve(
    workspace: str, workflows: Sequence[Workflow], *, host: str, port: int, options: Options,
    engine_options: Mapping[str, Any], tell: Callable[[str], None], otlp: str = "",
) -> None:  # fmt: skip
    """Until SIGTERM or SIGINT; a second one ends it at once.

    Args:
        workspace: which.
        workflows: whose runs it moves on.
        host: an address of this machine.
        port: 0 takes a free one.
        options: how the application is open.
        engine_options: of the engine.
        tell: is told where it listens.
        otlp: where spans are sent; nowhere, unless given.

    Raises:
        InputError: the address cannot be had, or is not this machine alone while there is no token.
    """
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with Engine(workspace, workflows, **engine_options) as engine:
            await _refuse_open_door(engine, host)
            with _bound(host, port) as listening:
                app = create_app(engine, options)
                config = uvicorn.Config(
                    app, log_config=None, access_log=False, server_header=False, date_header=False,
                    limit_concurrency=CONNECTIONS_MAX, timeout_graceful_shutdown=GRACE_S, lifespan="on",
                    h11_max_incomplete_event_size=32 << 10, ws_max_size=64 << 10, proxy_headers=False,
                )  # fmt: skip
                server = Server(config)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(_until_signalled, signals, server, app.state, tasks.cancel_scope)
                    if otlp:
                        tasks.start_soon(_traced(engine, otlp).follow)
                    name = f"[{host}]" if ":" in host else host
                    tell(f"listening on http://{name}:{listening.getsockname()[1]}")
                    await server.serve([listening])
                    await engine.control.drain()
                    tasks.cancel_scope.cancel()


def _traced(engine: Engine, otlp: str) -> Any:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        from surefoot.tracing import Tracing
    except ModuleNotFoundError as error:
        raise checks.missing("serve", "otel", error) from error
    return Tracing(engine, BatchSpanProcessor(OTLPSpanExporter(endpoint=otlp)))


async def _until_signalled(signals: Any, server: Server, state: Any, scope: anyio.CancelScope) -> None:
    async for _ in signals:
        if server.should_exit:
            scope.cancel()
            return
        server.should_exit = True
        state.feed.close()  # whoever listens is let go, so that nobody has to be cut off


async def _refuse_open_door(engine: Engine, host: str) -> None:
    if host in LOOPBACK or await engine.access.caller(None) is None:
        return
    raise InputError(
        "serve", host, expected="a token, where others than this machine can come in", found="none",
        hint="surefoot token create NAME --scope admin, or --host 127.0.0.1",
    )  # fmt: skip


@contextlib.contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Its protocol tells asyncio to send small answers at once; otherwise each waits 40 ms for an ACK.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
            listening.listen(CONNECTIONS_MAX)  # who comes before the application is there waits for it
        except (OSError, OverflowError) as error:
            raise InputError(
                "serve", f"{host}:{port}", expected="a free address of this machine", found=str(error),
                hint="--port 0 takes a free one",
            ) from error  # fmt: skip
        yield listening
