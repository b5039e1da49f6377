"""Every public call, tried with what it cannot take: refused at once, and nothing is changed."""

from __future__ import annotations

import pytest

from surefoot import Engine, InputError, Workflow, rows

WRONG = [None, 3, {}, "", "x" * 10_000, b"x", "\0", "a\nb", float("nan"), [1]]

flow = Workflow("f")
signal = flow.signal("s")
flow.step(name="a")(lambda tx, _: tx.write_text("a", "1"))

CALLS = {  # by name: the call, and what of the above it takes all the same
    "start": (lambda e, v: e.start(v), ()),
    "start run_id": (lambda e, v: e.start(flow, run_id=v), (None,)),
    "start input": (lambda e, v: e.start(flow, v), (None, {})),
    "start source": (lambda e, v: e.start(flow, source=v), ("",)),
    "start on_exists": (lambda e, v: e.start(flow, on_exists=v), ()),
    "start queue": (lambda e, v: e.start(flow, queue=v), ("",)),
    "start priority": (lambda e, v: e.start(flow, priority=v), (3,)),
    "start lane": (lambda e, v: e.start(flow, lane=v), (None,)),
    "start dedup": (lambda e, v: e.start(flow, dedup=v), (None,)),
    "start delay_s": (lambda e, v: e.start(flow, delay_s=v), (3,)),
    "start deadline_s": (lambda e, v: e.start(flow, deadline_s=v), (None, 3)),
    "run": (lambda e, v: e.run(v), ()),
    "send signal": (lambda e, v: e.send("r", v), ()),
    "send payload": (lambda e, v: e.send("r", signal, v), (None, {})),
    "send key": (lambda e, v: e.send("r", signal, key=v), (None,)),
    "send sender": (lambda e, v: e.send("r", signal, sender=v), ("",)),
    "skip step": (lambda e, v: e.skip("r", step=v), (None,)),
    "skip outcome": (lambda e, v: e.skip("r", outcome=v), (None,)),
    "fork step": (lambda e, v: e.fork("r", v), ()),
    "fork new_id": (lambda e, v: e.fork("r", "a", new_id=v), (None,)),
    "runs states": (lambda e, v: e.runs(states=v), ({},)),
    "runs workflow": (lambda e, v: e.runs(workflow=v), (None,)),
    "runs queue": (lambda e, v: e.runs(queue=v), (None,)),
    "runs limit": (lambda e, v: e.runs(limit=v), (None, 3)),
    "bulk": (lambda e, v: e.bulk(v, states=["error"]), ()),
    "bulk states": (lambda e, v: e.bulk("retry", states=v), ()),
    "bulk per_s": (lambda e, v: e.bulk("retry", states=["error"], per_s=v), (None, 3)),
    "bulk limit": (lambda e, v: e.bulk("retry", states=["error"], limit=v), (3,)),
    "deliver": (lambda e, v: e.deliver(v), (None,)),
    "pause_queue": (lambda e, v: e.control.pause_queue(v), ()),
    "pause_queue reason": (lambda e, v: e.control.pause_queue("q", v), ("",)),
    "resume_queue": (lambda e, v: e.control.resume_queue(v), ()),
    "pause_schedule": (lambda e, v: e.control.pause_schedule(v), ()),
    "resume_schedule": (lambda e, v: e.control.resume_schedule(v), ()),
    **{
        name: (lambda e, v, name=name: getattr(e, name)(v), ())
        for name in ("resume", "retry", "advance", "cancel", "pause", "unpause", "skip", "preview", "commit",
                     "undo", "revert", "get", "why")
    },
    "send": (lambda e, v: e.send(v, signal), ()),
    "fork": (lambda e, v: e.fork(v, "a"), ()),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
async def test_what_a_call_cannot_take_is_refused_and_changes_nothing(root, name):
    call, fine = CALLS[name]
    async with Engine(root, [flow], resume=False) as engine:
        await engine.start(flow, run_id="r")
        workspace = engine._the_open.workspace
        before = (rows.list_runs(workspace), workspace.query("SELECT count(*) FROM txn, message"))
        for wrong in WRONG:
            if any(wrong is one or (wrong == one and type(wrong) is type(one)) for one in fine):
                continue
            with pytest.raises(InputError) as caught:
                await call(engine, wrong)
            assert caught.value.expected, wrong
            assert caught.value.found, wrong
            assert len(str(caught.value)) < 1_000
        assert (rows.list_runs(workspace), workspace.query("SELECT count(*) FROM txn, message")) == before
