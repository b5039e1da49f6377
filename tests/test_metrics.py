"""What is worth watching: figures by Prometheus' own parser, spans by OpenTelemetry's own exporters."""

from __future__ import annotations

import http.server
import json
import re
import threading
from pathlib import Path

import httpx
import pytest
import webflow
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families
from ruamel.yaml import YAML
from serving import client_of, served, until

from surefoot import Engine
from surefoot.tracing import Tracing

MONITORING = Path(__file__).parents[1] / "examples/monitoring"


@pytest.fixture
def anyio_backend():
    return "asyncio"


def parsed(text):
    """(name, labels as text) to value."""
    return {
        (sample.name, ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def busy(engine):
    """Something of everything."""
    await engine.run(webflow.flow, {"agent": True}, run_id="agent")
    await engine.start(webflow.flow, {}, run_id="asks", queue="q")
    await engine.start(webflow.flow, {"fails": True}, run_id="fails", queue="q")
    cache = engine.cache("rates", lambda _key: 7)
    await cache.get()
    await cache.get()
    await engine.records.submit("note", {"a": 1})
    await engine.records.flush()

    async def ready():
        return await engine.approvals.requests() and (await engine.get("fails")).state == "error"

    await until(ready)
    await engine.control.drain()


async def test_every_figure_to_watch_is_there_and_true(root):
    async with Engine(root, [webflow.flow]) as engine:
        await busy(engine)
    async with Engine(root, resume=False) as engine, client_of(engine) as client:
        answer = await client.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        found = parsed(answer.text)
    assert found["surefoot_runs", "state=error,workflow=article"] == 1
    assert found["surefoot_runs", "state=completed,workflow=article"] == 1
    assert found["surefoot_attempts_total", "outcome=committed,step=begin,workflow=article"] == 3
    assert found["surefoot_attempts_total", "outcome=failed,step=write,workflow=article"] == 1
    assert found["surefoot_queue_runs", "queue=q,state=error"] == 1
    assert found["surefoot_queue_taken_total", "queue=q"] >= 2
    assert found["surefoot_queue_run_seconds_total", "queue=q"] > 0
    assert found["surefoot_messages", "state=dead"] == 0
    assert found["surefoot_approvals", "state=open"] == 1
    assert found["surefoot_approvals_size_bytes", ""] > 100
    assert found["surefoot_agents", "kind=agent,state=succeeded"] == 1
    assert found["surefoot_agent_polling_errors", ""] == 0
    assert found["surefoot_records_total", "result=appended"] == 1
    assert found["surefoot_dumps_waiting", ""] == found["surefoot_transactions_unapplied", ""] == 0
    assert found["surefoot_cache_reads_total", "cache=rates,result=loaded"] == 1
    assert found["surefoot_cache_age_seconds", "cache=rates"] >= 0
    assert found["surefoot_runs_long_at_work", ""] == 0


async def test_the_rules_and_the_dashboard_name_only_figures_that_exist(root):
    async with Engine(root, [webflow.flow]) as engine, client_of(engine) as client:
        await busy(engine)
        text = (await client.get("/metrics")).text
    known = {
        name
        for family in text_string_to_metric_families(text)
        for name in [family.name, f"{family.name}_total"]
    }
    rules = YAML(typ="safe").load(MONITORING / "alerts.yml")["groups"][0]["rules"]
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    expressions = [rule["expr"] for rule in rules] + [t["expr"] for panel in panels for t in panel["targets"]]
    named = {name for one in expressions for name in re.findall(r"surefoot_[a-z_]+", one)}
    assert named <= known
    gauges = {name.removesuffix("_total") for name in named}
    assert {family.name for family in text_string_to_metric_families(text)} - gauges <= {
        "surefoot_info", "surefoot_queue_paused", "surefoot_approvals_size_bytes",
    }  # fmt: skip
    for rule in rules:
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["hint"]


async def test_figures_want_a_token_where_there_is_one(root):
    async with Engine(root, resume=False) as engine, client_of(engine) as client:
        token, _ = await engine.access.create("prometheus", ["read"])
        assert (await client.get("/metrics")).status_code == 401
        assert (await client.get("/metrics", headers={"authorization": f"Bearer {token}"})).status_code == 200


async def test_a_run_is_one_trace_whoever_has_worked_on_it(root):
    exporter = InMemorySpanExporter()
    async with Engine(root, [webflow.flow], resume=False) as engine:
        await engine.run(webflow.flow, {"fails": True}, run_id="rivers")
        await engine.run(webflow.flow, {"agent": True}, run_id="lakes")
    async with Engine(root, resume=False) as engine:  # another process would find the same
        tracing = Tracing(engine, SimpleSpanProcessor(exporter))
        cursor = await tracing.catch_up(0)
        await engine.cancel("rivers")
        await tracing.catch_up(cursor)
    spans = exporter.get_finished_spans()
    rivers = [span for span in spans if span.attributes["surefoot.run"] == "rivers"]
    assert [span.name for span in rivers] == ["article/begin", "article/write", "run article"]
    assert len({span.context.trace_id for span in rivers}) == 1
    root_span = rivers[-1]
    assert root_span.parent is None
    assert all(span.parent.span_id == root_span.context.span_id for span in rivers[:-1])
    assert (rivers[1].status.status_code.name, rivers[1].status.description) == (
        "ERROR", "ValueError: <script>alert(1)</script>",
    )  # fmt: skip
    assert all(span.start_time <= span.end_time for span in spans)
    assert len({span.context.span_id for span in spans}) == len(spans)


def test_a_server_sends_spans_to_a_collector(root):
    received = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            request = ExportTraceServiceRequest.FromString(body)
            received.extend(
                s.name for r in request.resource_spans for scope in r.scope_spans for s in scope.spans
            )
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            """Quiet."""

    collector = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=collector.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        with served(root, "--otlp", f"http://127.0.0.1:{collector.server_port}/v1/traces") as server:
            body = {"workflow": "article", "run_id": "rivers", "input": {"agent": True}}
            assert httpx.post(f"{server.url}/v1/runs", json=body, timeout=20).status_code == 201
            while httpx.get(f"{server.url}/v1/runs/rivers").json()["state"] != "completed":
                pass
            assert server.stop() == 0  # what has not been sent yet is sent now
    finally:
        collector.shutdown()
        thread.join()
        collector.server_close()
    assert sorted(set(received)) == ["article/begin", "article/launch", "article/take", "run article"]
