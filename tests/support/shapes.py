"""Workflows of many shapes, whose files tell which of their steps were committed, and how often."""

from __future__ import annotations

import sys

import anyio

from surefoot import Done, Engine, Queue, Retry, Workflow

SHAPES = {}


def shape(make):
    flow = Workflow(make.__name__, directory=f"runs/{make.__name__}/{{run_id}}")
    make(flow)
    SHAPES[flow.name] = flow
    return flow


def note(tx, name):
    """Each visit has a file of its own, which it makes: written twice, it would say so."""
    path = f"{name}.{tx.key.split('/')[1]}"
    tx.write_text(path, tx.read_text(path, default="") + "x")


@shape
def line(flow):
    for n in range(3):
        flow.step(name=f"s{n}")(lambda tx, _, n=n: note(tx, f"s{n}"))


@shape
def diamond(flow):
    flow.step(name="top")(lambda tx, _: note(tx, "top"))
    for side in ("left", "right"):
        flow.step(name=side, after="top")(lambda tx, _, side=side: note(tx, side))
    flow.step(name="end", after=["left", "right"])(lambda tx, _: note(tx, "end"))


@shape
def fan(flow):
    flow.step(name="each", each=lambda tx, _: [1, 2, 3, 4, 5])(lambda tx, _, item: note(tx, "each"))
    flow.step(name="end")(lambda tx, _: note(tx, "end"))


@shape
def loop(flow):
    @flow.step
    def count(tx, _):
        tx.write_json("n.json", tx.read_json("n.json", default=0) + 1)
        note(tx, "count")

    @flow.step(outcomes={"again": "count", "done": Done()})
    def judge(tx, _):
        note(tx, "judge")
        return "done" if tx.read_json("n.json") == 3 else "again"


@shape
def sleeper(flow):
    @flow.step
    def first(tx, _):
        note(tx, "first")
        return tx.sleep(0.3)

    flow.step(name="end")(lambda tx, _: note(tx, "end"))


@shape
def asker(flow):
    answer = flow.signal("answer")

    @flow.step
    def ask(tx, _):
        note(tx, "ask")
        return tx.wait_for(answer)

    flow.step(name="end")(lambda tx, _: note(tx, "end"))


@shape
def flaky(flow):
    @flow.step(retry=Retry(attempts=20, initial_s=0.05, factor=1))
    def sometimes(tx, _):
        if tx.attempt % 3:
            raise ValueError("not this time")
        note(tx, "sometimes")


@shape
def broken(flow):
    @flow.step
    def never(tx, _):
        note(tx, "never")
        raise ValueError("never")


@shape
def parent(flow):
    @flow.step
    def spawn(tx, _):
        note(tx, "spawn")
        for _ in range(2):
            tx.start(SHAPES["line"], queue="children")
        return tx.wait_for_runs()

    flow.step(name="end")(lambda tx, _: note(tx, "end"))


EXPECTED = {  # files that a run has when it is over, one for each visit
    "line": 3, "diamond": 4, "fan": 6, "loop": 6, "sleeper": 2, "asker": 2, "flaky": 1, "broken": 0, "parent": 2,
}  # fmt: skip
QUEUES = [Queue("wide"), Queue("narrow", at_once=4), Queue("lanes"), Queue("children")]


async def work(root: str) -> None:
    async with Engine(root, SHAPES.values(), queues=QUEUES, lease_s=2.0, runs_max=24):
        print("ready", flush=True)
        await anyio.sleep_forever()


if __name__ == "__main__":
    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    anyio.run(work, sys.argv[1])
