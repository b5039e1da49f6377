"""Spans for OpenTelemetry: one for each run and each transition, made from the audit log.

A run is one trace whichever processes work on it: its id gives the trace's, so that spans of a worker that
was killed and of the one that went on belong together. Needs `pip install "surefoot[otel]"`.
"""

from __future__ import annotations

import hashlib
from typing import Any

import anyio
from anyio import to_thread
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import NonRecordingSpan, SpanContext, Status, StatusCode, TraceFlags

from . import rows
from .engine import Engine

LOOK_S = 0.5
PIECE = 500
ATTEMPTS = ("step", "failed", "interrupted")
ENDS = ("completed", "cancelled")


class _Ids(IdGenerator):
    """The ids that the log gives, instead of random ones."""

    def __init__(self) -> None:
        self.trace_id = self.span_id = 1

    def generate_trace_id(self) -> int:
        return self.trace_id

    def generate_span_id(self) -> int:
        return self.span_id


class Tracing:
    """Follows the audit log of an engine's workspace, whoever writes it, and hands spans to a processor.

    Args:
        engine: an open engine.
        processor: what becomes of spans: `BatchSpanProcessor(OTLPSpanExporter(…))`, say.
        service: the name under which they are shown.
    """

    def __init__(self, engine: Engine, processor: SpanProcessor, *, service: str = "surefoot") -> None:
        self._engine = engine
        self._ids = _Ids()
        resource = Resource.create({"service.name": service})
        self._provider = TracerProvider(id_generator=self._ids, resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("surefoot")

    async def follow(self, after: int | None = None) -> None:
        """Until cancelled: spans of everything behind a cursor, or from now on."""
        cursor = await self._engine.facts.last_line() if after is None else after
        try:
            while True:
                cursor = await self.catch_up(cursor)
                await anyio.sleep(LOOK_S)
        finally:
            with anyio.CancelScope(shield=True):
                await self.catch_up(cursor)
                await to_thread.run_sync(self._provider.shutdown)

    async def catch_up(self, after: int) -> int:
        """Spans of everything behind a cursor; returns the next one."""
        while lines := await self._engine.audit(after=after, limit=PIECE):
            for line in lines:
                await self._show(line)
            after = lines[-1]["id"]
        return after

    async def _show(self, line: dict[str, Any]) -> None:
        run_id, status = line["run_id"], line["status"]
        if line["event"] in ATTEMPTS:
            began = await to_thread.run_sync(self._began, run_id, line)
            name = f"{status['workflow']}/{line['step']}"
            self._span(run_id, f"{run_id}/{line['revision']}", name, began, line, is_root=False)
        if status["state"] in ENDS:
            name = f"run {status['workflow']}"
            self._span(run_id, run_id, name, status["created_at"], line, is_root=True)

    def _began(self, run_id: str, line: dict[str, Any]) -> float:
        attempts = rows.attempts_of(self._engine._the_open.workspace, run_id)  # noqa: SLF001 - the engine's half
        mine = [
            a["started_at"] for a in attempts if a["step"] == line["step"] and a["started_at"] <= line["at"]
        ]
        return max(mine, default=line["at"])  # type: ignore[no-any-return]

    def _span(
        self, run_id: str, key: str, name: str, began: float, line: dict[str, Any], *, is_root: bool
    ) -> None:
        self._ids.trace_id, self._ids.span_id = _id(run_id, 16), _id(key, 8)
        parent = SpanContext(self._ids.trace_id, _id(run_id, 8), is_remote=False, trace_flags=TraceFlags(1))
        context = None if is_root else trace.set_span_in_context(NonRecordingSpan(parent))
        facts = {
            "surefoot.run": run_id,
            "surefoot.step": line["step"],
            "surefoot.event": line["event"],
            "surefoot.transaction": line["txid"],
            "surefoot.outcome": line["outcome"],
            "surefoot.state": line["status"]["state"],
        }
        span = self._tracer.start_span(
            name, context, start_time=int(began * 1e9),
            attributes={key: value for key, value in facts.items() if value is not None},
        )  # fmt: skip
        if line["failure"]:
            failure = line["failure"]
            span.set_status(Status(StatusCode.ERROR, f"{failure['error']}: {failure['message']}"))
        span.end(int(line["at"] * 1e9))


def _id(text: str, size: int) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:size], "big") or 1
