"""The API on loopback: requests a second and how long they take, beside the same calls without HTTP.

A server process, some clients in another one. Reads, starts (one commit each), and the floor: an answer that
asks nothing of the engine.

python bench/api.py [SECONDS CLIENTS]
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import structlog

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/support"))

import webflow
from serving import served

from surefoot import Engine


async def load(url: str, clients: int, seconds: float, make) -> tuple[float, list[float]]:
    """(requests a second, how long each took): by bare sockets, so that it is the server that is measured."""
    took: list[float] = []
    until = time.perf_counter() + seconds
    place = urlsplit(url)

    async def one(number: int) -> None:
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        count = 0
        while (begun := time.perf_counter()) < until:
            method, path, body = make(number, count)
            content = json.dumps(body) if body else ""
            head = f"{method} {path} HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n{content}".encode())
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert answer.startswith((b"http/1.1 200", b"http/1.1 201")), answer
            await reader.readexactly(int(re.search(rb"content-length: (\d+)", answer)[1]))
            took.append(time.perf_counter() - begun)
            count += 1
        writer.close()

    await asyncio.gather(*(one(number) for number in range(clients)))
    return len(took) / seconds, sorted(took)


def measure(url: str, name: str, clients: int, seconds: float, results) -> None:
    makes = {
        "health": lambda _n, _c: ("GET", "/v1/health", None),
        "status": lambda _n, _c: ("GET", "/v1/runs/seen/status", None),
        "list": lambda _n, _c: ("GET", "/v1/runs?limit=20", None),
        "start": lambda n, c: (
            "POST", "/v1/runs",
            {"workflow": "article", "run_id": f"{time.time_ns()}-{n}-{c}", "queue": None, "input": {}},
        ),
    }  # fmt: skip
    results.put(asyncio.run(load(url, clients, seconds, makes[name])))


def direct(folder: Path, seconds: float, clients: int) -> float:
    """Starts a second by the engine itself, as many at once."""

    async def main() -> int:
        done = 0
        until = time.perf_counter() + seconds

        async def one(engine: Engine, number: int) -> None:
            nonlocal done
            count = 0
            while time.perf_counter() < until:
                await engine.start(webflow.flow, {}, run_id=f"{time.time_ns()}-{number}-{count}")
                done, count = done + 1, count + 1

        async with Engine(folder, [webflow.flow], resume=False) as engine:
            await asyncio.gather(*(one(engine, number) for number in range(clients)))
        return done

    return asyncio.run(main()) / seconds


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 3.0
    clients = int(sys.argv[2]) if len(sys.argv) > 2 else 16
    base = Path(tempfile.mkdtemp(prefix="surefoot-bench-"))
    (base / "w").mkdir()
    (base / "d").mkdir()
    context = multiprocessing.get_context("spawn")
    found: dict[str, list[tuple[float, list[float]]]] = {}
    own = []
    with served(base / "w", "--rate", "1000000") as server:
        body = {"workflow": "article", "run_id": "seen", "queue": None, "input": {}}
        httpx.post(f"{server.url}/v1/runs", json=body).raise_for_status()
        for _ in range(3):
            for name in ("health", "status", "list", "start"):
                results = context.Queue()
                process = context.Process(target=measure, args=(server.url, name, clients, seconds, results))
                process.start()
                found.setdefault(name, []).append(results.get())
                process.join()
            own.append(direct(base / "d", seconds, clients))
    for name, rounds in found.items():
        rate = statistics.median(rate for rate, _ in rounds)
        took = sorted(one for _, each in rounds for one in each)
        p50, p99 = took[len(took) // 2], took[int(len(took) * 0.99)]
        print(
            f"{name:<8}{rate:8.0f} a second, half within {p50 * 1000:.1f} ms, 99 % within {p99 * 1000:.1f} ms"
        )
    starts = statistics.median(rate for rate, _ in found["start"])
    mine = statistics.median(own)
    print(f"starts without HTTP: {mine:.0f} a second; over HTTP {starts / mine:.2f} of that")


if __name__ == "__main__":
    main()
