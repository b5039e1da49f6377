"""The HTTP API: the engine's answers, once they are durable; nothing of it for those who may not."""

from __future__ import annotations

import json

import anyio
import pytest
import webflow
from serving import client_of, until
from webflow import Limits

from surefoot import Engine
from surefoot.http import Options
from surefoot.http.security import Limits as Taken


@pytest.fixture
def anyio_backend():
    return "asyncio"  # what servers of ASGI applications run on


@pytest.fixture
async def engine(root):
    async with Engine(root, [webflow.flow]) as opened:
        yield opened


@pytest.fixture
async def client(engine):
    async with client_of(engine, Options(configurations={"limits": Limits})) as asked:
        yield asked


async def started(client, run_id="rivers", **given):
    answer = await client.post("/v1/runs", json={"workflow": "article", "run_id": run_id, "input": given})
    assert answer.status_code == 201, answer.text
    return answer.json()


async def reaches(client, run_id, state):
    async def look():
        facts = (await client.get(f"/v1/runs/{run_id}")).json()
        return facts if facts["state"] == state else None

    return await until(look)


async def asked(client, run_id="rivers"):
    async def look():
        return (await client.get("/v1/approvals", params={"run_id": run_id})).json()

    return (await until(look))[0]


async def test_a_run_is_started_looked_at_approved_and_taken_back(client, root):
    shown = await started(client)
    assert (shown["run_id"], shown["directory"]) == ("rivers", "articles/rivers")
    request = await asked(client)
    approved = await client.post(
        f"/v1/approvals/{request['id']}/approve", json={"by": "ann", "comment": "fine"}
    )
    assert approved.json()["state"] == "approved"
    facts = await reaches(client, "rivers", "completed")
    assert [attempt["step"] for attempt in facts["attempts"]] == ["begin", "write", "ask", "publish"]
    history = (await client.get("/v1/runs/rivers/history")).json()
    txid = history[-1]["txid"]
    one = (await client.get(f"/v1/transactions/{txid}")).json()
    assert next(change["path"] for change in one["changes"]) == "articles/rivers/demo.status.json"
    (diff,) = [
        c for c in (await client.get(f"/v1/transactions/{txid}/diff")).json() if "published" in c["path"]
    ]
    assert "+" in diff["diff"]
    content = await client.get(
        f"/v1/transactions/{txid}/content", params={"path": "articles/rivers/published.json"}
    )
    assert json.loads(content.content)["state"] == "approved"
    assert content.headers["content-disposition"].startswith("attachment")
    would = await client.post(f"/v1/transactions/{txid}/undo", json={"dry_run": True})
    assert would.json()["txid"] is None
    assert (root / "articles/rivers/published.json").exists()
    done = await client.post(f"/v1/transactions/{txid}/undo", json={})
    assert done.json()["state"] == "paused"
    assert not (root / "articles/rivers/published.json").exists()


async def test_a_failure_is_explained_and_tried_again(client):
    await started(client, fails=True)
    facts = await reaches(client, "rivers", "error")
    assert facts["error"]["message"] == "<script>alert(1)</script>"
    assert "traceback" not in facts["error"]
    why = (await client.get("/v1/runs/rivers/why")).json()
    assert "write" in why["sentence"]
    tried = (await client.post("/v1/runs/rivers/advance")).json()
    assert (tried["outcome"], tried["step"]) == ("failed", "write")
    assert "traceback" not in str(tried)
    again = await client.post("/v1/runs/rivers/retry")
    assert again.status_code == 200
    skipped = await client.post("/v1/runs/rivers/skip", json={"step": "write"})
    assert skipped.status_code == 200, skipped.text
    forked = await client.post("/v1/runs/rivers/fork", json={"step": "write", "new_id": "two"})
    assert forked.json()["run_id"] == "two"
    await client.post("/v1/runs/two/pause")
    assert (await client.get("/v1/runs/two")).json()["state"] in ("paused", "error")
    await client.post("/v1/runs/two/unpause")
    ended = await client.post("/v1/runs/two/cancel")
    assert ended.json()["state"] == "cancelled"
    assert (await client.post("/v1/runs/two/cancel")).status_code == 409
    listed = await client.post(
        "/v1/runs:bulk",
        json={"action": "cancel", "states": ["error", "running", "waiting", "paused"], "dry_run": True},
    )
    assert listed.json()["done"] == ["rivers"]


async def test_a_run_of_no_queue_goes_on_when_somebody_tries_it_again(client):
    body = {"workflow": "article", "run_id": "alone", "input": {"fails": True}, "queue": None}
    await client.post("/v1/runs", json=body)
    for _ in range(2):
        await client.post("/v1/runs/alone/advance")
    assert (await client.get("/v1/runs/alone")).json()["state"] == "error"
    await client.post("/v1/runs/alone/retry")

    async def tried():
        attempts = (await client.get("/v1/runs/alone")).json()["attempts"]
        return [attempt["step"] for attempt in attempts].count("write") == 2

    await until(tried)


async def test_a_preview_is_committed_by_its_digest(client, root):
    await client.post("/v1/runs", json={"workflow": "article", "run_id": "seen", "input": {}, "queue": None})
    shown = (await client.post("/v1/runs/seen/preview")).json()
    assert any(change["path"].endswith("brief.md") for change in shown["changes"])
    assert not (root / "articles/seen/brief.md").exists()
    done = (await client.post(f"/v1/previews/{shown['digest']}/commit")).json()
    assert done["outcome"] == "committed"
    assert (root / "articles/seen/brief.md").exists()
    gone = await client.post(f"/v1/previews/{shown['digest']}/commit")
    assert (gone.status_code, gone.json()["code"]) == (404, "unknown")


async def test_a_request_with_a_key_is_done_once_and_answered_as_before(client, engine):
    given = {"workflow": "article", "input": {}}
    first = await client.post("/v1/runs", json=given, headers={"Idempotency-Key": "one"})
    again = await client.post("/v1/runs", json=given, headers={"Idempotency-Key": "one"})
    assert (again.status_code, again.json()) == (201, first.json())
    assert again.headers["idempotency-replayed"] == "true"
    assert len(await engine.runs()) == 1
    other = await client.post("/v1/runs", json={**given, "priority": 1}, headers={"Idempotency-Key": "one"})
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key")
    wrong = await client.post("/v1/runs", json={"workflow": "no"}, headers={"Idempotency-Key": "two"})
    assert (
        wrong.status_code
        == (
            await client.post("/v1/runs", json={"workflow": "no"}, headers={"Idempotency-Key": "two"})
        ).status_code
        == 404
    )
    answers = []

    async def send(number):
        answers.append(
            await client.post(
                "/v1/runs/{}/cancel".format(first.json()["run_id"]), headers={"Idempotency-Key": "c"}
            )
        )

    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(send, number)
    assert {a.status_code for a in answers} <= {200, 409}
    assert 200 in {a.status_code for a in answers}


async def test_a_request_whose_server_died_is_done_again_where_that_is_safe_and_refused_where_not(
    client, engine
):
    """As the row is that a killed server leaves."""
    workspace = engine._the_open.workspace
    given = {"workflow": "article", "input": {}}
    for path, key, body in (("/v1/runs", "start", given), ("/v1/queues/http/pause", "pause", {})):
        await client.post(path, json=body, headers={"Idempotency-Key": key})
    from surefoot_storage import Statement

    await anyio.to_thread.run_sync(
        lambda: workspace.write_rows([Statement("UPDATE request SET status = NULL, answer = NULL", {})])
    )
    again = await client.post("/v1/runs", json=given, headers={"Idempotency-Key": "start"})
    assert again.status_code == 201
    assert len(await engine.runs()) == 1
    refused = await client.post("/v1/queues/http/pause", json={}, headers={"Idempotency-Key": "pause"})
    assert refused.status_code == 409
    assert "nobody knows" in refused.json()["detail"]


async def test_an_answer_that_is_kept_is_given_to_nobody_else(client, engine):
    """Not to whoever knows the key, nor to a token that was revoked meanwhile."""
    given = {"workflow": "article", "input": {}, "queue": None}
    made = await client.post("/v1/runs", json=given, headers={"Idempotency-Key": "k"})
    tokens = [await engine.access.create(name, ["write"]) for name in ("ann", "bob")]
    keyed = [{"Idempotency-Key": "k", "authorization": f"Bearer {token}"} for token, _ in tokens]
    assert (await client.post("/v1/runs", json=given, headers={"Idempotency-Key": "k"})).status_code == 401
    ann = await client.post("/v1/runs", json=given, headers=keyed[0])
    bob = await client.post("/v1/runs", json=given, headers=keyed[1])
    assert len({answer.json()["run_id"] for answer in (made, ann, bob)}) == 3
    await engine.access.revoke(tokens[0][1].id)
    assert (await client.post("/v1/runs", json=given, headers=keyed[0])).status_code == 401
    assert engine._the_open.workspace.query("SELECT count(*) FROM request") == [(3,)]


async def test_messages_with_a_key_are_sent_once(client):
    await client.post("/v1/runs", json={"workflow": "article", "run_id": "told", "input": {}, "queue": None})
    message = {"signal": "news", "payload": {"text": "hi"}, "key": "k"}
    assert (await client.post("/v1/runs/told/messages", json=message)).json() == {"sent": True}
    assert (await client.post("/v1/runs/told/messages", json=message)).json() == {"sent": False}
    wrong = await client.post("/v1/runs/told/messages", json={"signal": "news", "payload": {"text": 1}})
    assert wrong.status_code == 422
    assert "text" in wrong.json()["found"]


async def test_who_has_seen_a_revision_is_told_when_there_is_another(client, engine):
    await started(client)
    await asked(client)
    etag = (await client.get("/v1/runs/rivers")).headers["etag"]
    same = await client.get("/v1/runs/rivers", headers={"If-None-Match": etag})
    assert same.status_code == 304
    found = []

    async def wait():
        found.append(
            await client.get("/v1/runs/rivers", headers={"If-None-Match": etag}, params={"wait_s": 20})
        )

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await until(lambda: _waiting(client))
        await engine.cancel("rivers")
    assert found[0].json()["state"] == "cancelled"


async def _waiting(client):
    return client.app.state.feed._waiting


async def test_configuration_is_saved_by_revision_and_a_stale_save_shows_the_difference(client):
    shown = await client.get("/v1/configurations/limits")
    assert (shown.json()["value"]["words_max"], shown.headers["etag"]) == (100, '"0"')
    saved = await client.put("/v1/configurations/limits", json={"words_max": 7}, headers={"If-Match": '"0"'})
    assert saved.json()["revision"] == 1
    stale = await client.put("/v1/configurations/limits", json={"words_max": 8}, headers={"If-Match": '"0"'})
    assert stale.status_code == 412
    assert "words_max" in stale.json()["detail"]
    wrong = await client.put("/v1/configurations/limits", json={"words_max": "x"}, headers={"If-Match": "1"})
    assert wrong.status_code == 422
    assert [one["revision"] for one in (await client.get("/v1/configurations/limits/history")).json()] == [1]
    assert (await client.get("/v1/configurations/others")).status_code == 404


async def test_an_agent_is_seen_and_its_log_read_from_an_offset(client):
    await started(client, agent=True)
    await reaches(client, "rivers", "completed")
    (agent,) = (await client.get("/v1/agents", params={"run_id": "rivers"})).json()
    log = (await client.get(f"/v1/agents/{agent['id']}/logs")).json()
    assert log["text"] == "working\ndone\n"
    assert (await client.get(f"/v1/agents/{agent['id']}/logs", params={"offset": 8})).json()[
        "text"
    ] == "done\n"
    changes = (await client.get(f"/v1/agents/{agent['id']}/diff")).json()
    assert [c["path"] for c in changes["changes"]] == ["made.txt"]
    assert (await client.get(f"/v1/agents/{agent['id']}/evidence")).json()["evidence"]["exit"]["code"] == 0
    assert (await client.get(f"/v1/agents/{agent['id']}")).json()["outcome"] == "succeeded"
    assert (await client.post(f"/v1/agents/{agent['id']}/stop", json={})).status_code == 409
    assert (await client.get("/v1/agents/none")).status_code == 404


async def test_what_a_person_on_call_needs_is_there(client):
    await started(client, fails=True)
    await reaches(client, "rivers", "error")
    assert [f["kind"] for f in (await client.get("/v1/doctor")).json()] == ["run-in-error"]
    assert (await client.get("/v1/verify")).json() == []
    assert "findings" in (await client.get("/v1/diagnosis")).json()
    assert (await client.get("/v1/restart")).json() == {"completed": [], "foreign": []}
    for path in ("/v1/dumps", "/v1/conflicts", "/v1/dead-letters", "/v1/schedules", "/v1/cache"):
        assert (await client.get(path)).json() == [], path
    assert (await client.post("/v1/settle")).json() == []
    assert (await client.get("/v1/usage")).json()["database"]["size_bytes"] > 0
    assert (await client.post("/v1/collect", json={})).json()["done"] is False
    assert (await client.post("/v1/forget", json={"path": "articles/rivers/brief.md"})).json()[
        "done"
    ] is False
    assert (await client.get("/v1/statistics")).json()["workflows"][0]["failed"] == 1
    await client.post("/v1/queues/http/pause", json={"reason": "night"})
    assert (await client.get("/v1/queues")).json()[0]["paused"]
    await client.post("/v1/queues/http/resume")
    for path in ("/v1/dumps/none", "/v1/transactions/00000000"):
        assert (await client.get(path)).status_code == 404, path
    for path in ("/v1/dead-letters/7/retry", "/v1/schedules/none/pause"):
        assert (await client.post(path)).status_code == 404, path


async def test_events_are_behind_a_cursor(client):
    await started(client)
    await asked(client)
    events = (await client.get("/v1/events")).json()
    assert [e["event"] for e in events] == ["started", "step", "step", "step"]
    assert [e["sequence"] for e in events] == sorted(e["sequence"] for e in events)
    after = events[1]["sequence"]
    assert (await client.get("/v1/events", params={"after": after})).json() == events[2:]
    assert (await client.get("/v1/events", params={"after": events[-1]["sequence"]})).json() == []


# --- who may come in ---


@pytest.fixture
async def tokens(engine):
    return {
        scope: (await engine.access.create(scope, [scope]))[0]
        for scope in ("read", "write", "approve", "admin")
    }


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("GET", "/v1/runs", "read"),
        ("GET", "/v1/doctor", "read"),
        ("POST", "/v1/runs/none/cancel", "write"),
        ("POST", "/v1/approvals/none/1/approve", "approve"),
        ("GET", "/v1/webhooks", "admin"),
        ("POST", "/v1/forget", "admin"),
    ],
)
async def test_each_route_wants_its_scope(client, tokens, method, path, scope):
    async def answer(token):
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return (
            await client.request(method, path, json={} if method == "POST" else None, headers=headers)
        ).status_code

    for name, token in tokens.items():
        may = scope in (name, "read") or name == "admin"
        assert (await answer(token) in (401, 403)) is not may, name
    assert await answer(None) == await answer("sf_wrong") == 401


async def test_a_token_that_was_revoked_or_has_ended_opens_nothing(client, engine, tokens):
    headers = {"authorization": f"Bearer {tokens['read']}"}
    assert (await client.get("/v1/runs", headers=headers)).status_code == 200
    (row,) = [token for token in await engine.access.tokens() if token.name == "read"]
    await engine.access.revoke(row.id)
    assert (await client.get("/v1/runs", headers=headers)).status_code == 401
    assert tokens["read"] not in str(await engine.access.tokens())


async def test_a_transaction_says_whose_token_has_asked_for_it(client, engine):
    token, _ = await engine.access.create("ann's laptop", ["write"])
    client.headers["authorization"] = f"Bearer {token}"
    await client.post("/v1/runs", json={"workflow": "article", "run_id": "seen", "input": {}, "queue": None})
    await client.post("/v1/runs/seen/advance")
    await client.post("/v1/runs/seen/pause")
    assert [entry.actor for entry in engine.history.of("seen")] == ["ann's laptop"] * 3
    await engine.unpause("seen")
    assert engine.history.of("seen")[-1].actor != "ann's laptop"


async def test_a_command_is_launched_by_who_may_do_everything(client, engine, root):
    (root / "src").mkdir()
    launched = await client.post(
        "/v1/agents", json={"agent": {"argv": ["sh", "-c", "echo made > made.txt"]}, "directory": "src"}
    )
    assert launched.status_code == 201
    agent_id = launched.json()["id"]
    assert (await engine.agents.wait(agent_id)).outcome == "succeeded"
    shown = (await client.get(f"/v1/agents/{agent_id}/diff")).json()
    refused = await client.post(f"/v1/agents/{agent_id}/commit", json={"digest": "0" * 64})
    assert refused.status_code == 409
    done = await client.post(f"/v1/agents/{agent_id}/commit", json={"digest": shown["digest"]})
    assert done.status_code == 200
    assert (root / "src/made.txt").read_text() == "made\n"
    assert (await client.post("/v1/checkpoint")).json()["sequence"] == done.json()["sequence"]
    wrong = await client.post("/v1/agents", json={"agent": {"argv": ["x"], "no_such": 1}})
    assert wrong.status_code == 422
    token, _ = await engine.access.create("writer", ["write"])
    answer = await client.post(
        "/v1/agents", json={"agent": {"argv": ["x"]}}, headers={"authorization": f"Bearer {token}"}
    )
    assert answer.status_code == 403


async def test_a_token_of_a_run_touches_no_other(client, engine):
    await started(client)
    token, _ = await engine.access.create("worker", ["write"], run_id="rivers")
    client.headers["authorization"] = f"Bearer {token}"
    assert (await client.get("/v1/runs/rivers")).status_code == 200
    for path in ("/v1/runs", "/v1/runs/other", "/v1/events", "/v1/agents", "/v1/doctor"):
        assert (await client.get(path)).status_code == 403, path
    assert (await client.post("/v1/runs", json={"workflow": "article"})).status_code == 403


async def test_without_any_token_this_machine_may_do_all(client):
    assert (await client.get("/v1/about")).json()["caller"]["name"] == "this machine"
    assert (await client.get("/v1/runs", headers={"authorization": "Bearer sf_x"})).status_code == 401
    assert (await client.get("/v1/runs", headers={"authorization": "Basic eDp5"})).status_code == 401


# --- the usual attacks ---


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "", "localhost.", "[::1", "local host"]
)
async def test_a_name_that_somebody_pointed_here_is_refused(client, host):
    assert (await client.get("/v1/runs", headers={"host": host})).status_code == 400


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"origin": "http://localhost:81"},
    ],
)
async def test_a_page_of_another_origin_changes_nothing(client, headers):
    answer = await client.post("/v1/queues/http/pause", json={}, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "origin")
    assert not any(queue["paused"] for queue in (await client.get("/v1/queues")).json())


async def test_a_form_of_another_page_cannot_be_taken_for_json(client):
    body = '{"workflow": "article", "input": {}}'
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        answer = await client.post("/v1/runs", content=body, headers={"content-type": kind})
        assert answer.status_code in (415, 422), kind


SECRET = "/etc/passwd"


@pytest.mark.parametrize(
    "path",
    [
        SECRET,
        "../../../../../etc/passwd",
        "articles/../../../etc/passwd",
        ".surefoot/secret.json",
        "a\0b",
        "//etc/passwd",
        "articles/rivers",
    ],
)
async def test_no_path_reaches_a_file_that_was_not_committed(client, path):
    await started(client)
    history = (await client.get("/v1/runs/rivers/history")).json()
    answer = await client.get(f"/v1/transactions/{history[0]['txid']}/content", params={"path": path})
    assert answer.status_code in (404, 409, 422)
    assert b"root:" not in answer.content


@pytest.mark.parametrize(
    "path",
    [
        "/v1/dumps/..%2f..%2fsecret.json",
        "/v1/agents/..%2f..%2f..%2fsecret/logs",
        "/../etc/passwd",
        "/v1/../../etc/passwd",
        "/static/..%2f..%2fapp.py",
        "/static/%2e%2e/app.py",
    ],
)
async def test_no_url_reaches_a_file(client, path):
    answer = await client.get(path)
    assert answer.status_code in (404, 422)
    assert b"import" not in answer.content


async def test_a_body_has_a_size(client):
    answer = await client.post("/v1/runs", content=b"[" * (2 << 20))
    assert answer.status_code == 413

    async def pieces():
        for _ in range(40):
            yield b"x" * (64 << 10)

    assert (await client.post("/v1/runs", content=pieces())).status_code == 413
    deep = await client.post("/v1/runs", content=b"[" * 100_000, headers={"content-type": "application/json"})
    assert deep.status_code in (400, 422)


async def test_nobody_asks_more_often_than_the_limit(engine):
    options = Options(limits=Taken(requests_per_s=0.001, burst=5))
    async with client_of(engine, options) as client:
        answers = [await client.get("/v1/health") for _ in range(7)]
    assert [a.status_code for a in answers] == [200] * 5 + [429] * 2
    assert answers[-1].headers["retry-after"]


async def test_no_more_live_connections_than_the_limit(engine):
    async with client_of(engine, Options(limits=Taken(streams_max=0))) as client:
        answer = await client.get("/v1/events/stream")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


async def test_a_form_with_any_characters_in_its_token_is_refused_and_no_error_of_ours(client):
    await client.get("/login")
    for token in ("", "wrong", "%C3%A9"):
        form = f"csrf={token}&token=x"
        kind = {"content-type": "application/x-www-form-urlencoded"}
        assert (await client.post("/login", content=form, headers=kind)).status_code == 403


async def test_every_answer_says_what_a_browser_may_do_with_it(client):
    for path in ("/v1/runs", "/v1/none", "/none", "/"):
        headers = (await client.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff", path
        assert "default-src 'none'" in headers["content-security-policy"], path
        assert headers["referrer-policy"] == "same-origin"


async def test_what_is_wrong_with_a_request_is_said_without_repeating_it(client):
    answer = await client.post(
        "/v1/runs", json={"workflow": "article", "password": "hunter2", "priority": "hunter2"}
    )
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert "hunter2" not in answer.text
    assert "password" in answer.json()["found"]


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
async def test_what_cannot_be_done_says_what_can(client, method):
    answer = await client.request(method, "/v1/runs")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, POST")
