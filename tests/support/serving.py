"""A real `surefoot serve` on a free port of this machine, and one inside the test."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import httpx

from surefoot.http import create_app

FLOW = Path(__file__).with_name("webflow.py")


@contextlib.asynccontextmanager
async def client_of(engine, options=None, **more):
    """Asks an application of this engine, without a network."""
    app = create_app(engine, options)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=30, **more) as client,
    ):
        client.app = app
        yield client


class Served:
    """A server process."""

    def __init__(self, root, *arguments, flow=f"{FLOW}:flow"):
        command = [sys.executable, "-m", "surefoot", "serve", flow, "-w", str(root), "--port", "0"]
        self.process = subprocess.Popen(
            [*command, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self.lines = []
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"listening on (http://\S+)", line):
                self.url = found[1]
                return
        raise AssertionError("".join(self.lines))

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        try:
            self.process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        return self.process.returncode


@contextlib.contextmanager
def served(root, *arguments, **more):
    server = Served(root, *arguments, **more)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.stop(signal.SIGKILL)
        server.process.stderr.close()


async def until(look, *, seconds=20.0):
    """The first answer of `look` that says something."""
    with anyio.fail_after(seconds):
        while not (found := await look()):
            await anyio.sleep(0.02)
    return found
