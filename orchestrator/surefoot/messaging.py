"""Messages to runs: durable before the call returns, received by the step that waits for them."""

from __future__ import annotations

import json
from typing import Any

from anyio import to_thread
from pydantic import BaseModel

from surefoot_storage import InputError

from . import checks, rows
from .errors import InputRefused, RunRefused
from .model import Run
from .names import checked_name
from .opened import OpenEngine
from .waits import Signal

PAYLOAD_BYTES_MAX = 256 << 10


async def send(
    engine: OpenEngine, run_id: str, signal: Signal[Any] | str, payload: Any, *, key: str | None, sender: str
) -> bool:
    """Sends it; False where a message with that key is there already."""
    name = signal.name if isinstance(signal, Signal) else checked_name("signal", signal)
    if key is not None:
        checks.text("send", run_id, "key", key, error=InputError)
    checks.text("send", run_id, "sender", sender, empty=True, error=InputError)
    run = await engine.get(run_id)
    if run.state.is_over:
        raise _over(run)
    text = _payload(engine, run, name, payload)

    def work() -> list[dict[str, Any]]:
        before = rows.messages_with_key(engine.workspace, run_id, name, key) if key else []
        if not before:
            arrived = rows.insert_message(run_id, name, text, key=key, sender=sender)
            engine.workspace.write_rows([arrived, *rows.wake(run_id)])
        return before

    before = await to_thread.run_sync(work)
    if before and before[0]["payload"] != json.loads(text):
        raise InputRefused(
            "send", f"{run_id}/{name}", expected="a key of its own, or the same payload as before",
            found=f"another message with key {key!r}", hint="choose another key",
        )  # fmt: skip
    if not before and (await engine.get(run_id)).state.is_over:
        raise _over(run)
    engine.wake(run_id)
    return not before


def _payload(engine: OpenEngine, run: Run, name: str, payload: Any) -> str:
    """JSON, by the signal's model where the workflow is known here; otherwise the receiver checks it."""
    workflow = engine.workflows.get(run.workflow)
    if workflow is None:
        text = _json(name, payload)
    elif name not in workflow.signals:
        known = ", ".join(workflow.signals) or "none"
        raise InputError(
            "send", f"{run.id}/{name}", expected=f"a signal of workflow {run.workflow}: {known}", found=name,
            hint=f'{run.workflow}.signal("{name}") declares it',
        )  # fmt: skip
    else:
        text = workflow.signals[name].parse(payload).model_dump_json()
    if len(text.encode()) > PAYLOAD_BYTES_MAX:
        raise InputRefused(
            "send", f"{run.id}/{name}", expected=f"at most {PAYLOAD_BYTES_MAX} bytes of payload",
            found=str(len(text.encode())), hint="write it to a file, and send the file's name",
        )  # fmt: skip
    return text


def _json(name: str, payload: Any) -> str:
    if isinstance(payload, BaseModel):
        return payload.model_dump_json()
    try:
        if isinstance(payload, str | bytes):
            return json.dumps(json.loads(payload), allow_nan=False)
        return json.dumps({} if payload is None else payload, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputRefused("send", name, expected="a payload that JSON can hold", found=str(error)) from error


def _over(run: Run) -> RunRefused:
    return RunRefused("send to", run.id, expected="a run that is not over", found=run.state.value)
