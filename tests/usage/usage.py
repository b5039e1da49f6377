"""How the public names are used, for type checkers: `make check` runs mypy and pyright over this file.

Nothing here is executed. A line with `type: ignore` is one that must be an error.
"""

from __future__ import annotations

from typing import Any, assert_type

from pydantic import BaseModel

from surefoot import (
    Agent,
    Cached,
    Committed,
    Done,
    Engine,
    Limits,
    Next,
    Preview,
    Queue,
    Rate,
    Record,
    Retry,
    Run,
    RunResult,
    Signal,
    Step,
    Transaction,
    TransitionResult,
    Undone,
    Wait,
    Work,
    Workflow,
    guards,
)
from surefoot import Approval as Request
from surefoot.testing import FakeClock, Snapshot
from surefoot_steps import Http, Write


class Brief(BaseModel):
    topic: str


class Approval(BaseModel):
    by: str


flow = Workflow("demo", input=Brief, guards=[guards.Count(10), guards.Range("p.json", "n", 0, 1)])
approve = flow.signal("approve", Approval)
assert_type(approve, Signal[Approval])


@flow.step(reads=["a.json"], retry=Retry(attempts=3), timeout_s=3)
def outline(tx: Transaction, brief: Brief) -> None:
    tx.write_text("a.md", brief.topic)


assert_type(outline.name, str)
declared: Step[[Transaction, Brief], None] = outline


@outline.effect
async def tell(done: Committed) -> None:
    print(done.key)


@outline.part(reads=["b.md"])
def check(tx: Transaction, brief: Brief) -> None: ...


@flow.step(after=outline, outcomes={"good": "publish", "bad": [outline], "never": Done()})
async def judge(tx: Transaction, brief: Brief) -> str:
    return "good"


@flow.step(each="a.json", at_once=4)
def each(tx: Transaction, brief: Brief, item: dict[str, Any]) -> None: ...


@flow.step
def ask(tx: Transaction, brief: Brief) -> Wait:
    return tx.wait_for(approve, timeout_s=60)


@flow.step
def publish(tx: Transaction, brief: Brief) -> Next | Done | Wait:
    answer = tx.received(approve)
    assert_type(answer, Approval)
    run_id = tx.start(flow, {"topic": answer.by}, queue="q")
    assert_type(run_id, str)
    return Next(outline) if answer.by else Done()


Write(path="a", text="b").declare(flow, "write", after=publish)
Http(url="http://localhost/").declare(flow, "call")
flow.schedule("nightly", "0 3 * * *", zone="Europe/Berlin", input=Brief(topic="x"), overlap="queue")


async def in_async_code() -> None:
    async with Engine(".", [flow], queues=[Queue("q", at_once=2, rate=Rate(5, 1.0)), "r"]) as engine:
        assert_type(await engine.run(flow, Brief(topic="x"), run_id="r"), RunResult)
        assert_type(await engine.start(flow, {"topic": "x"}, queue="q", lane="a", dedup="k"), Run)
        assert_type(await engine.advance("r"), TransitionResult)
        assert_type(await engine.send("r", approve, Approval(by="me"), key="k"), bool)
        assert_type(await engine.preview("r"), Preview)
        assert_type(await engine.undo("tx"), Undone)
        assert_type((await engine.why("r")).sentence, str)
        assert_type(await engine.runs(states=["error"], limit=5), list[Run])
        await engine.control.pause_queue("q", "why")
        assert_type(await engine.approvals.approve("token", by="me"), Request)
        limits = engine.configuration("limits", Brief)
        assert_type((await limits.get()).value, Brief)
        assert_type((await limits.update({"topic": "y"}, based_on=0)).value, Brief)
        assert_type(await engine.cache("rates", lambda key: key).get("eur"), Cached)
        assert_type(await engine.records.submit("event", 1, on_full="refuse"), Record)
        assert_type((await engine.status("r")).revision, int)
        assert_type(await engine.agents.wait("r/2"), Work)
        await engine.agents.launch(Agent(argv=("make",), limits=Limits(wall_s=60)), directory="src")
        assert_type((await engine.agents.logs("r/2", 100)).text, str)


def in_sync_code() -> None:
    with Engine(".", [flow], clock=FakeClock()) as engine:
        assert_type(engine.run(flow).wait(), RunResult)
        assert_type(engine.approvals.requests(states=["open"]).wait(), list[Request])
        assert_type(engine.sync_checkpoint().wait(), int)
        assert_type(engine.skip("r", outcome="good").wait(), Run)
        assert_type(engine.bulk("retry", states=["error"], per_s=2.0).wait().done, tuple[str, ...])
    assert_type(Snapshot.of(".").changes(Snapshot({})), dict[str, tuple[str | None, str | None]])


def with_agents(tx: Transaction) -> Wait:
    assert_type(tx.run(["make"], directory="docs").log, str)
    assert_type(tx.take(tx.work("draft"), paths=["*.md"], theirs=["*.json"]), list[str])
    assert_type(tx.works(), list[Work])
    tx.ask("Commit this?", work=tx.work())
    return tx.agent(driver="claude", retry={"attempts": 3}, verify=[["make", "check"]])


def what_must_be_an_error(tx: Transaction, brief: Brief, engine: Engine) -> None:
    outline(brief, tx)  # type: ignore[arg-type]
    engine.bulk("explode")  # type: ignore[arg-type]
    Retry(attempts="3")  # type: ignore[arg-type]
    flow.signal("x", int)  # type: ignore[type-var]
    guards.Count()  # type: ignore[call-arg]
    engine.records.submit("event", 1, on_full="drop")  # type: ignore[arg-type]
    tx.take("r/2")  # type: ignore[arg-type]
    engine.agents.logs("r/2", "begin")  # type: ignore[arg-type]
    engine.configuration("limits", int)  # type: ignore[type-var]
