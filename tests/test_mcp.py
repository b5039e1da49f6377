"""Tools for language models, by a real client of the protocol: over stdio, and over HTTP."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import webflow
from mcp import Client, StdioServerParameters
from pydantic import BaseModel
from serving import served, until

from surefoot import Engine, Workflow
from surefoot.access import Caller
from surefoot.mcp import as_caller, supervisor, worker

FLOW = Path(__file__).parent / "support/webflow.py"


class Question(BaseModel):
    question: str


class Finished(BaseModel):
    summary: str
    succeeded: bool


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
async def engine(root):
    async with Engine(root, [webflow.flow]) as opened:
        yield opened


async def call(client, name, **arguments):
    """What a tool has answered: a value, or the text of its refusal."""
    answer = await client.call_tool(name, arguments)
    if answer.is_error:
        raise AssertionError(answer.content[0].text)
    structured = answer.structured_content
    return structured["result"] if structured and set(structured) == {"result"} else structured


async def refusal(client, name, **arguments):
    answer = await client.call_tool(name, arguments)
    assert answer.is_error
    return answer.content[0].text


async def test_a_supervisor_starts_waits_looks_and_takes_back(engine, root):
    async with Client(supervisor(engine)) as client:
        (flow,) = await call(client, "list_workflows")
        assert flow["name"] == "article"
        assert "topic" in flow["input_schema"]["properties"]
        await call(client, "start_run", workflow="article", input={"agent": True}, run_id="rivers")
        waited = await call(client, "wait_for_run", run_id="rivers", timeout_s=60)
        assert (waited["state"], waited["timed_out"]) == ("completed", False)
        history = await call(client, "run_history", run_id="rivers")
        txid = next(line["txid"] for line in history if line["step"] == "take")
        assert "+<b>made</b>" in await call(client, "diff", txid=txid)
        would = await call(client, "undo", txid=txid)
        assert would["txid"] is None
        assert (root / "articles/rivers/made.txt").exists()
        await call(client, "undo", txid=txid, dry_run=False)
        assert not (root / "articles/rivers/made.txt").exists()
        status = await call(client, "run_status", run_id="rivers")
        assert (status["state"], status["why"]["kind"]) == ("paused", "paused")
        assert [line["run_id"] for line in await call(client, "list_runs")] == ["rivers"]


async def test_a_preview_is_committed_by_its_digest(engine, root):
    async with Client(supervisor(engine)) as client:
        await engine.start(webflow.flow, {}, run_id="seen")
        shown = await call(client, "preview_run", run_id="seen")
        assert not (root / "articles/seen/brief.md").exists()
        await call(client, "commit_preview", digest=shown["digest"])
        assert (root / "articles/seen/brief.md").exists()


async def test_no_tool_answers_for_a_person_unless_that_is_asked_for(engine):
    await engine.start(webflow.flow, {}, run_id="rivers", queue="q")

    async def asked():
        return await engine.approvals.requests()

    (request,) = await until(asked)
    async with Client(supervisor(engine)) as client:
        names = {tool.name for tool in (await client.list_tools()).tools}
        assert not any("approve" in name or "answer" in name for name in names)
        (shown,) = await call(client, "list_approvals")
        assert shown["id"] == request.id
        assert "token" not in json.dumps(shown)
    async with Client(supervisor(engine, decides=True)) as client:
        with as_caller(Caller("t", "reader", frozenset({"read", "write"}))):
            async with Client(supervisor(engine, decides=True)) as reader:
                assert "no scope 'approve'" in await refusal(
                    reader, "answer_approval", approval_id=request.id, answer="approve", by="ann"
                )
        await call(client, "answer_approval", approval_id=request.id, answer="approve", by="ann")
    assert (await engine.approvals.get(request.id)).state == "approved"


async def test_what_is_refused_says_why_and_what_helps(engine):
    async with Client(supervisor(engine)) as client:
        assert "hint: surefoot list" in await refusal(client, "run_status", run_id="none")
        assert "topic" in await refusal(client, "start_run", workflow="article", input={"topic": 1})
        assert "article" in await refusal(client, "start_run", workflow="none")


async def test_a_worker_tells_of_its_run_and_of_no_other(engine):
    await engine.start(webflow.flow, {}, run_id="rivers")
    with as_caller(Caller("t", "robot", frozenset({"write"}), "rivers")):
        async with Client(worker(engine)) as client:
            assert await call(client, "progress", message="half") == "kept"
            assert "ask" in await refusal(
                client, "ask_a_person", question="May I?"
            )  # it declares no such signal
            assert await call(client, "answers") == []
    (record,) = await engine.records.find(kind="progress", run_id="rivers")
    assert record.data == {"message": "half"}
    async with Client(worker(engine)) as client:
        assert "token for one run" in await refusal(client, "progress", message="x")


async def test_a_worker_asks_a_person_gets_the_answer_and_says_that_it_is_done(root):
    """Its workflow decides who is asked, and what follows."""
    flow = Workflow("worked", directory="{run_id}")
    question, done = flow.signal("ask", Question), flow.signal("finish", Finished)

    @flow.step
    def work(tx, _given):
        return tx.wait_for(question)

    @flow.step(outcomes={"approved": "wait", "rejected": "wait"})
    def ask(tx, _given):
        return tx.ask(tx.received(question).question, approvers=["ann"])

    @flow.step(after=[])
    def wait(tx, _given):
        return tx.wait_for(done)

    @flow.step(after="wait")
    def end(tx, _given):
        tx.write_text("summary.txt", tx.received(done).summary)

    async with Engine(root, [flow]) as engine:
        await engine.start(flow, run_id="r", queue="q")
        with as_caller(Caller("t", "robot", frozenset({"write"}), "r")):
            async with Client(worker(engine)) as client:
                assert await call(client, "ask_a_person", question="May I delete it?") == "asked"

                async def asked():
                    return await engine.approvals.requests()

                (request,) = await until(asked)
                assert (await call(client, "answers"))[0]["state"] == "open"
                await engine.approvals.reject(request.id, by="ann", comment="never")
                (answer,) = await call(client, "answers")
                assert answer == {
                    "question": "May I delete it?", "state": "rejected",
                    "answers": [{"by": "ann", "answer": "rejected", "comment": "never"}],
                }  # fmt: skip
                assert await call(client, "finish", summary="left it") == "the run goes on"
                assert await call(client, "finish", summary="left it") == "it was said before"

                async def over():
                    return (await engine.get("r")).state == "completed"

                await until(over)
    assert (root / "r/summary.txt").read_text() == "left it"


async def test_over_stdio_by_the_command(root):
    command = StdioServerParameters(
        command=sys.executable,
        args=["-m", "surefoot", "mcp", f"{FLOW}:flow", "-w", str(root)],
        env={**os.environ},
    )
    async with Client(command) as client:
        await call(client, "start_run", workflow="article", input={"topic": "lakes"}, run_id="lakes")
        waited = await call(client, "wait_for_run", run_id="lakes", timeout_s=60)
        assert [one["ask"]["title"] for one in waited["asks"]] == ["Publish <this>?"]
    async with Engine(root, resume=False) as engine:
        token, _ = await engine.access.create("robot", ["write"], run_id="lakes")
    command.env = {**os.environ, "SUREFOOT_TOKEN": token}
    async with Client(command) as client:
        assert {tool.name for tool in (await client.list_tools()).tools} == {
            "progress", "ask_a_person", "answers", "finish",
        }  # fmt: skip
        await call(client, "progress", message="half")
        assert (await call(client, "answers"))[0]["state"] == "open"


async def test_over_http_with_a_token(root):
    import httpx2
    from mcp.client.streamable_http import streamable_http_client

    async with Engine(root, resume=False) as engine:
        token, _ = await engine.access.create("robot", ["read"])
    with served(root) as server:
        async with httpx2.AsyncClient() as client:
            answer = await client.post(f"{server.url}/mcp", json={})
            assert answer.status_code == 401
        async with (
            httpx2.AsyncClient(headers={"authorization": f"Bearer {token}"}, timeout=30) as http,
            Client(streamable_http_client(f"{server.url}/mcp", http_client=http)) as client,
        ):
            assert await call(client, "list_runs") == []
            assert "no scope 'write'" in await refusal(client, "start_run", workflow="article")
