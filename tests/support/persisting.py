"""Makes one of every call that changes something, and says how many flushes each has waited for.

    LD_PRELOAD=shim.so python tests/support/persisting.py FOLDER

The process ends without closing anything. Prints a JSON line for each call.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import structlog
from pydantic import BaseModel
from shim import Shim

from surefoot import Done, Engine, Workflow
from surefoot.dumping import write_dump
from surefoot.rows import Record

flow = Workflow("job", directory="runs/{run_id}")
asker = Workflow("asker", directory="runs/{run_id}")
answer = asker.signal("answer")
flow.schedule("nightly", "0 0 * * *")


class Limits(BaseModel):
    at_once: int = 1


@flow.step
def first(tx: Any, _given: Any) -> None:
    tx.write_text("a.txt", "first")


@flow.step(outcomes={"mended": Done(), "done": Done()})
def second(tx: Any, _given: Any) -> str:
    if not tx.exists("mended"):
        raise ValueError("not mended")
    return "done"


@asker.step
def ask(tx: Any, _given: Any) -> Any:
    return tx.ask("Really?", approvers=["ann"])


def main(root: str) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    shim = Shim()

    def did(name: str, call: Callable[[], Any]) -> Any:
        shim.arm()
        result = call()
        flushes = shim.flushes
        shim.disarm()
        print(json.dumps({"call": name, "flushes": flushes}), flush=True)
        return result

    with Engine(root, [flow, asker], resume=False, effects_grace_s=0) as engine:
        control, approvals, records = engine.control, engine.approvals, engine.records
        did("start", lambda: engine.start(flow, run_id="a").wait())
        did("advance", lambda: engine.advance("a").wait())
        did("resume", lambda: engine.resume("a").wait())
        did("retry", lambda: engine.retry("a").wait())
        did("skip", lambda: engine.skip("a", outcome="mended").wait())
        did("run", lambda: engine.run(flow, run_id="b").wait())
        did("fork", lambda: engine.fork("b", "second", new_id="c").wait())
        did("pause", lambda: engine.pause("c").wait())
        did("unpause", lambda: engine.unpause("c").wait())
        did("cancel", lambda: engine.cancel("c").wait())
        engine.start(flow, run_id="d").wait()
        preview = did("preview", lambda: engine.preview("d").wait())
        did("commit", lambda: engine.commit(preview.digest).wait())
        did("undo", lambda: engine.undo(engine.history.of("d")[-1].txid).wait())
        did("revert", lambda: engine.revert(engine.history.of("a")[0].txid).wait())
        did("control.pause_queue", lambda: control.pause_queue("night").wait())
        did("control.resume_queue", lambda: control.resume_queue("night").wait())
        for run_id in ("yes", "no", "other", "signal"):
            engine.start(asker, run_id=run_id).wait()
            engine.resume(run_id, through_waits=False).wait()
        did("send", lambda: engine.send("signal", answer).wait())
        did("approvals.approve", lambda: approvals.approve("yes/2", by="ann").wait())
        did("approvals.reject", lambda: approvals.reject("no/2", by="ann").wait())
        did("approvals.delegate", lambda: approvals.delegate("other/2", "bob", by="ann").wait())
        limits = engine.configuration("limits", Limits)
        did("configuration.update", lambda: limits.update({"at_once": 2}, based_on=0).wait())
        did("cache.get", lambda: engine.cache("rates", lambda _key: 7).get().wait())
        did("records.submit", lambda: records.submit("event", 1).wait())
        did("records.flush", lambda: records.flush().wait())
        record = Record("another-session", 1, "event", "", 1.0, {"n": 1})
        name = write_dump(engine._the_open.records.dumps, [record], "full", 1.0)
        did("records.replay", lambda: records.replay(name).wait())
        did("flush", lambda: engine.flush().wait())
        did("sync_checkpoint", lambda: engine.sync_checkpoint().wait())
        agents = engine.agents
        held = did("agents.launch", lambda: agents.launch(["sleep", "60"], poll_s=0.05).wait())
        did("agents.stop_all", lambda: agents.stop_all("an incident").wait())
        agents.wait(held.id).wait()
        did("agents.start_again", lambda: agents.start_again().wait())
        made = agents.launch(["sh", "-c", "echo made > made.txt"], poll_s=0.05, skip=["runs"]).wait()
        agents.wait(made.id).wait()
        did("agents.commit", lambda: agents.commit(made.id).wait())
        other = agents.launch(["sleep", "60"], poll_s=0.05).wait()
        did("agents.stop", lambda: agents.stop(other.id, "enough").wait())
        agents.wait(other.id).wait()
        did("agents.discard", lambda: agents.discard(other.id).wait())
        access, webhooks = engine.access, engine.webhooks
        _, row = did("access.create", lambda: access.create("ann", ["read"]).wait())
        did("access.revoke", lambda: access.revoke(row.id).wait())
        _, kept = did("webhooks.add", lambda: webhooks.add("http://127.0.0.1:9/").wait())
        did("webhooks.remove", lambda: webhooks.remove(kept.id).wait())
        webhooks.add("http://127.0.0.1:9/kept").wait()
        os._exit(9)


if __name__ == "__main__":
    main(sys.argv[1])
