"""The server as a process: live updates through its death, attacks on its socket, and who is told by it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.server
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
import pytest
import webflow
from serving import served, until
from websockets.sync.client import connect

from surefoot import Engine, Workflow
from surefoot.testing import FakeClock


@pytest.fixture
def anyio_backend():
    return "asyncio"


def start(url, run_id, **more):
    body = {"workflow": "article", "run_id": run_id, "input": {}, **more}
    return httpx.post(f"{url}/v1/runs", json=body, timeout=20)


def stream(url, after, count, *, headers=None):
    """So many events, as (id, data), from a server-sent stream."""
    found, fields = [], {}
    with httpx.stream(
        "GET", f"{url}/v1/events/stream", params={"after": after}, headers=headers, timeout=20
    ) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if name in ("id", "data", "event"):
                fields[name] = value
            elif not line and "data" in fields:
                found.append((int(fields["id"]), json.loads(fields["data"])))
                fields = {}
                if len(found) == count:
                    return found
    raise AssertionError("the stream has ended")


def test_who_comes_back_with_the_last_cursor_misses_nothing_through_kill_9(root):
    with served(root) as server:
        start(server.url, "one")
        first = stream(server.url, 0, 4)
        server.stop(signal.SIGKILL)
    with Engine(root, [webflow.flow], resume=False) as engine:  # somebody else writes, with no server there
        engine.run(webflow.flow, {}, run_id="two", through_waits=False).wait()
    with served(root) as server:
        rest = stream(server.url, 0, 4, headers={"Last-Event-ID": str(first[-1][0])})
        everything = httpx.get(f"{server.url}/v1/events").json()
        last = everything[-1]["sequence"]
        threading.Timer(0.3, start, (server.url, "three")).start()
        ((_, event),) = stream(server.url, last, 1)  # it comes while one listens
    assert [number for number, _ in first + rest] == [event["sequence"] for event in everything]
    assert {event["run_id"] for _, event in rest} == {"two"}
    assert (event["run_id"], event["event"]) == ("three", "started")


def test_the_same_over_a_websocket_and_only_with_a_token_once_there_is_one(root):
    with served(root) as server:
        start(server.url, "one")
        url = server.url.replace("http", "ws") + "/v1/events/ws"
        with connect(url + "?after=1") as socket_:
            events = [json.loads(socket_.recv(timeout=20)) for _ in range(3)]
        assert [event["sequence"] for event in events] == [2, 3, 4]
        with (
            pytest.raises(Exception, match="403|1008|rejected"),
            connect(url, origin="https://evil.example") as refused,
        ):
            refused.recv(timeout=5)
        with Engine(root, resume=False) as engine:
            token, _ = engine.access.create("reader", ["read"]).wait()
        with pytest.raises(Exception, match="403|1008|rejected"), connect(url) as refused:
            refused.recv(timeout=5)
        with connect(url, additional_headers={"authorization": f"Bearer {token}"}) as socket_:
            assert json.loads(socket_.recv(timeout=20))["sequence"] == 1
        with httpx.stream(
            "GET", f"{server.url}/v1/events/stream", headers={"authorization": f"Bearer {token}"}, timeout=20
        ) as answer:
            lines = answer.iter_lines()
            next(lines)
            with Engine(root, resume=False) as engine:
                engine.access.revoke(engine.access.tokens().wait()[0].id).wait()
                engine.access.create("another", ["read"]).wait()
                engine.cancel("one").wait()
            list(lines)  # it ends: the token opens nothing any more


def test_what_was_answered_is_there_after_kill_9(root):
    """A client that counts only what was acknowledged loses nothing, and a key makes the rest certain."""
    acknowledged, stop = [], threading.Event()

    def client(url, number):
        with httpx.Client(base_url=url, timeout=5) as http:
            for index in range(1_000):
                run_id = f"c{number}-{index}"
                body = {"workflow": "article", "run_id": run_id, "queue": None, "input": {}}
                try:
                    if http.post("/v1/runs", json=body).status_code == 201:
                        acknowledged.append(run_id)
                except httpx.HTTPError:
                    return
                if stop.is_set():
                    return

    with served(root, "--rate", "100000") as server:
        threads = [threading.Thread(target=client, args=(server.url, n)) for n in range(4)]
        for thread in threads:
            thread.start()
        while len(acknowledged) < 60:
            time.sleep(0.01)
        server.stop(signal.SIGKILL)
        stop.set()
        for thread in threads:
            thread.join()
    with Engine(root, resume=False) as engine:
        there = {run.id for run in engine.runs().wait()}
        assert set(acknowledged) <= there
        assert list(engine.history.verify()) == []


def test_sigterm_lets_it_finish_and_listeners_go(root):
    with served(root) as server:
        start(server.url, "one")
        with httpx.stream("GET", f"{server.url}/v1/events/stream", timeout=20) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            list(lines)  # it ends by itself
        assert server.process.wait(timeout=20) == 0


@pytest.mark.parametrize("host", ["127.0.0.2", "0.0.0.0", "::"])
def test_others_come_in_only_where_there_is_a_token(root, host):
    command = [sys.executable, "-m", "surefoot", "serve", "-w", str(root), "--host", host, "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "expected a token" in done.stderr
    assert "hint: surefoot token create" in done.stderr
    if host != "127.0.0.2":
        return  # tests listen on loopback only
    with Engine(root, resume=False) as engine:
        engine.access.create("reader", ["read"]).wait()
    with served(root, "--host", host) as server:
        assert httpx.get(f"{server.url}/v1/health").status_code == 200
        assert httpx.get(f"{server.url}/v1/runs").status_code == 401


def test_an_address_that_is_taken_is_said_so(root):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "surefoot", "serve", "-w", str(root), "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "already in use" in done.stderr


RAW = [
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",  # a header without an end
    b"POST /v1/runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    b"POST /v1/runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    b"POST /v1/runs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nZZ",
    b"GET /\x00\r\n HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS, where none is spoken
]


@pytest.mark.parametrize("request_", RAW, ids=range(len(RAW)))
def test_what_is_no_request_is_refused_and_the_server_goes_on(served_once, request_):
    with socket.create_connection(("127.0.0.1", urlsplit(served_once.url).port), timeout=20) as raw:
        raw.sendall(request_)
        raw.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := raw.recv(65_536):
            answer += piece
    assert not answer or re.match(rb"HTTP/1\.1 4\d\d ", answer)
    assert httpx.get(f"{served_once.url}/v1/health").status_code == 200


def test_a_slow_sender_holds_nothing_but_itself(served_once):
    """A hundred bodies that never come: others are answered, and each is told off after a while."""
    port = urlsplit(served_once.url).port
    head = b"POST /v1/runs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    slow = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(100)]
    for one in slow:
        one.sendall(head)
    started = time.monotonic()
    assert httpx.get(f"{served_once.url}/v1/runs").status_code == 200
    assert time.monotonic() - started < 5
    assert slow[0].recv(100).startswith(b"HTTP/1.1 408")
    for one in slow:
        one.close()


@pytest.fixture(scope="module")
def served_once(tmp_path_factory):
    with served(tmp_path_factory.mktemp("once"), "--rate", "100000") as server:
        yield server


# --- webhooks ---


@contextmanager
def receiver(statuses=()):
    """A real server that keeps what it is told; it answers 200 once `statuses` are used up."""
    told, left = [], list(statuses)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            told.append((dict(self.headers.items()), body))
            status = left.pop(0) if left else 200
            self.send_response(status)
            if status == 302:
                self.send_header("location", "http://127.0.0.1:9/")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            """Quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook", told
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def signed_by(secret, headers, body):
    """As https://www.standardwebhooks.com says a receiver shall check it."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    text = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = "v1," + base64.b64encode(hmac.new(key, text, hashlib.sha256).digest()).decode()
    return hmac.compare_digest(expected, headers["webhook-signature"])


async def test_a_webhook_is_told_every_change_in_order_signed_and_again_until_it_takes_it(root):
    with receiver([500, 302]) as (url, told):
        clock = FakeClock(1_000_000.0)
        async with Engine(root, [webflow.flow], clock=clock, resume=False) as engine:  # nothing expires
            secret, _ = await engine.webhooks.add(url, workflow="article")
            await engine.run(webflow.flow, {}, run_id="rivers", through_waits=False)

            async def all_told():
                clock.advance(5_000)
                await engine.deliver()
                return len(told) == 6

            await until(all_told)
        assert all(signed_by(secret, headers, body) for headers, body in told)
        assert not signed_by("whsec_" + base64.b64encode(b"x" * 32).decode(), *told[0])
        events = [json.loads(body) for _, body in told]
        assert [event["event"] for event in events] == ["started"] * 3 + ["step"] * 3
        assert [event["revision"] for event in events] == [1, 1, 1, 2, 3, 4]
        assert len({headers["webhook-id"] for headers, _ in told}) == 4  # the same for each attempt
        assert secret not in (root / ".surefoot/surefoot.db").read_bytes().decode("latin-1")


async def test_only_the_events_that_somebody_wants_and_nothing_once_it_is_removed(root):
    with receiver() as (url, told):
        async with Engine(root, [webflow.flow], resume=False) as engine:
            _, hook = await engine.webhooks.add(url, events=["failed"])
            await engine.webhooks.add(url, workflow="another")
            await engine.run(webflow.flow, {"fails": True}, run_id="rivers")
            await engine.deliver()
            await engine.webhooks.remove(hook.id)
            await engine.run(webflow.flow, {"fails": True}, run_id="lakes")
            await engine.deliver()
        assert [json.loads(body)["event"] for _, body in told] == ["failed"]


async def test_a_webhook_that_never_answers_ends_as_a_dead_letter_and_stops_nobody_else(root):
    flow, heard = Workflow("told", directory="{run_id}"), []

    @flow.step
    def write(tx, _given):
        tx.write_text("a.txt", "a")

    @write.effect
    def tell(done):
        heard.append(done.run_id)

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused at once
        clock = FakeClock(1_000_000.0)
        async with Engine(root, [flow], clock=clock) as engine:
            await engine.webhooks.add(f"http://127.0.0.1:{taken.getsockname()[1]}/")
            await engine.run(flow, run_id="one")

            async def dead():
                clock.advance(5_000)
                await engine.deliver()
                return await engine.control.dead_letters()

            (letter, *_) = await until(dead)
            assert letter["attempts"] == 8
            assert "Connect" in letter["last_error"]
            assert heard == ["one"]
            await engine.control.redeliver(letter["id"])


@pytest.mark.parametrize(
    "url", ["", "ftp://x/", "http://", "http://user:pw@x/", "http://x:99999/", "x" * 3000, "http://[::1"]
)
async def test_what_cannot_be_told_is_refused(root, url):
    from surefoot import InputError

    async with Engine(root, resume=False) as engine:
        with pytest.raises(InputError):
            await engine.webhooks.add(url)
        assert await engine.webhooks.all() == []
