"""The page in a real browser: what it shows, what it does, and what somebody else's text cannot do to it."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path

import httpx
import pytest
from machines import not_run
from serving import served

REPOSITORY = Path(__file__).parents[1]
CONFIG = f"limits={Path(__file__).parent}/support/webflow.py:Limits"


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None or importlib.util.find_spec("playwright") is None:
        not_run("there is no Chromium, or no Playwright", missing_package=True)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def server(root):
    with served(root, "--config", CONFIG) as server, httpx.Client(base_url=server.url, timeout=20) as client:
        server.client = client
        yield server


@pytest.fixture
def page(browser, server, request):
    """A page without any error on its console; a picture of its last state is kept."""
    context = browser.new_context(base_url=server.url, viewport={"width": 1100, "height": 800})
    page, errors = context.new_page(), []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.set_default_timeout(15_000)
    page.errors = errors
    yield page
    folder = REPOSITORY / ".artefacts"
    folder.mkdir(exist_ok=True)
    page.screenshot(path=folder / f"{request.node.name}.png", full_page=True)
    context.close()


def start(server, run_id="rivers", **given):
    body = {"workflow": "article", "run_id": run_id, "input": given}
    assert server.client.post("/v1/runs", json=body).status_code == 201


def wait_for(server, run_id, state):
    etag = None
    for _ in range(100):
        answer = server.client.get(
            f"/v1/runs/{run_id}", params={"wait_s": 10}, headers={"if-none-match": etag or ""}
        )
        if answer.status_code == 200:
            etag = answer.headers["etag"]
            if answer.json()["state"] == state:
                return
    raise AssertionError(answer.text)


def test_the_board_shows_a_run_that_begins_while_one_looks_and_why_it_waits(page, server):
    page.goto("/")
    page.get_by_text("No run yet").wait_for()
    start(server)
    page.get_by_text("ask asks ann, bob").wait_for()  # live, and the reason
    assert page.get_by_role("heading", name="1 waits for people").is_visible()
    page.get_by_role("link", name="rivers", exact=True).click()
    assert page.get_by_role("img", name=re.compile("write: done")).is_visible()
    assert page.errors == []


def test_a_person_approves_with_the_diff_beside_it(page, server, root):
    start(server)
    wait_for(server, "rivers", "waiting")
    page.goto("/approvals")
    page.get_by_role("link", name="Publish <this>?").click()
    page.get_by_text("+All about rivers.").wait_for()
    page.get_by_label("Who are you?").fill("ann")
    page.get_by_label("Comment").fill("<i>fine</i>")
    page.get_by_role("button", name="Approve").click()
    page.get_by_role("heading", name="Your answer is kept").wait_for()
    wait_for(server, "rivers", "completed")
    assert (root / "articles/rivers/published.json").exists()
    page.goto("/approvals/rivers/4")
    page.get_by_text("<i>fine</i>").wait_for()
    assert page.errors == []


def test_a_link_shows_everything_and_decides_only_by_its_form(page, server, root):
    from surefoot import Engine

    start(server)
    wait_for(server, "rivers", "waiting")
    with Engine(root, resume=False) as engine:
        (asked,) = engine.approvals.requests().wait()
        token = engine.approvals.token(asked.id, "bob").wait()
        page.goto(f"/answer/{token}")  # a link preview or a virus scanner does no more than this
        page.get_by_text("+All about rivers.").wait_for()
        assert engine.approvals.get(asked.id).wait().state == "open"
        forged = server.client.post(f"/answer/{token}", data={"answer": "approve"})
        assert forged.status_code == 403
        assert engine.approvals.get(asked.id).wait().state == "open"
        page.get_by_label("Comment").fill("no")
        page.get_by_role("button", name="Reject").click()
        page.get_by_text("Your answer is kept").wait_for()
        assert engine.approvals.get(asked.id).wait().state == "rejected"
        page.goto(f"/answer/{token}")
        page.get_by_text("It is over: rejected").wait_for()
    assert server.client.get("/answer/sfa_wrong").status_code == 404


def test_a_failure_is_shown_as_text_tried_again_previewed_and_skipped(page, server):
    start(server, fails=True)
    wait_for(server, "rivers", "error")
    page.goto("/runs/rivers")
    page.get_by_text("ValueError: <script>alert(1)</script>").first.wait_for()
    page.get_by_text("stopped before phase 3").wait_for()
    page.get_by_role("button", name="Preview next step").click()
    page.get_by_role("heading", name="This was not done").wait_for()
    page.goto("/runs/rivers")
    page.get_by_role("button", name="Try again").click()
    page.get_by_text("· attempt 2").first.wait_for()  # live
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Skip write").click()
    page.get_by_text("skipped write").wait_for()
    assert not any("alert" in error for error in page.errors)


def test_a_transition_is_undone_after_one_has_seen_what_that_does(page, server, root):
    start(server, agent=True)
    wait_for(server, "rivers", "completed")
    page.goto("/runs/rivers")
    page.get_by_role("link", name="Diff and undo of step take").click()
    page.get_by_text("+<b>made</b>").wait_for()
    page.get_by_role("button", name="What would undoing do?").click()
    page.get_by_text("-<b>made</b>").wait_for()
    assert (root / "articles/rivers/made.txt").exists()
    page.get_by_role("button", name="Undo it").click()
    page.get_by_text("paused").first.wait_for()
    assert not (root / "articles/rivers/made.txt").exists()
    page.goto("/agents")
    page.get_by_role("link", name="rivers/3").click()
    page.get_by_text("working\ndone").wait_for()
    assert page.errors == []


def test_an_agents_log_grows_while_one_looks(page, server, root):
    from surefoot import Engine

    (root / "a.txt").write_text("a\n")
    with Engine(root, resume=False) as engine:
        command = ["sh", "-c", "echo first; while [ ! -e go ]; do sleep 0.05; done; echo '<b>second</b>'"]
        agent = engine.agents.launch(command, confine="none").wait()
        page.goto(f"/agents/{agent.id}")
        log = page.get_by_role("log")
        log.get_by_text("first").wait_for()
        Path(engine.agents._engine().workspace.copies.path(agent.id), "go").write_text("")
        log.get_by_text("<b>second</b>").wait_for()
        engine.agents.wait(agent.id).wait()
        page.get_by_text("It is over: succeeded").wait_for()
    assert page.errors == []


def test_unsaved_configuration_is_marked_and_a_stale_save_shows_the_difference(page, server):
    page.goto("/configurations/limits")
    page.get_by_label("Words Max").fill("120")
    page.get_by_text("Not saved yet.").wait_for()
    saved = server.client.put("/v1/configurations/limits", json={"words_max": 90}, headers={"If-Match": "0"})
    assert saved.status_code == 200
    page.get_by_role("button", name="Save").click()
    page.get_by_role("heading", name="Somebody has saved another revision meanwhile").wait_for()
    assert page.get_by_label("Words Max").input_value() == "120"  # taken along
    row = page.get_by_role("row", name=re.compile("words_max"))
    assert (row.get_by_role("cell").nth(0).inner_text(), row.get_by_role("cell").nth(1).inner_text()) == (
        "90",
        "120",
    )
    page.get_by_role("button", name="Save").click()
    page.get_by_role("heading", name="limits revision 2").wait_for()
    assert server.client.get("/v1/configurations/limits").json()["value"]["words_max"] == 120
    page.get_by_label("Words Max").fill("many")
    page.get_by_role("button", name="Save").click()
    page.get_by_text("words_max: Input should be a valid integer").wait_for()


def test_every_page_works_in_the_dark_on_a_phone_and_by_the_keyboard(browser, server):
    start(server)
    start(server, "broken", fails=True)
    wait_for(server, "broken", "error")
    wait_for(server, "rivers", "waiting")
    context = browser.new_context(
        base_url=server.url,
        viewport={"width": 360, "height": 700},
        color_scheme="dark",
        has_touch=True,
        is_mobile=True,
    )
    page = context.new_page()
    pages = ["/", "/runs/rivers", "/approvals", "/approvals/rivers/4", "/agents", "/queues", "/figures"]
    for path in [*pages, "/configurations", "/configurations/limits", "/recovery"]:
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 22, 26)"
        assert page.locator("h1").count() == 1, path
    page.goto("/")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.textContent"))
    assert "broken" in reached
    context.close()


def test_who_has_no_token_is_asked_for_one_and_who_may_only_read_changes_nothing(page, server, root):
    from surefoot import Engine

    start(server)
    wait_for(server, "rivers", "waiting")
    with Engine(root, resume=False) as engine:
        token, row = engine.access.create("reader", ["read"]).wait()
        page.goto("/runs/rivers")
        page.get_by_role("heading", name="A token is needed").wait_for()
        page.get_by_label("Token").fill("sf_wrong")
        page.get_by_role("button", name="Come in").click()
        page.get_by_text("This token opens nothing").wait_for()
        page.get_by_label("Token").fill(token)
        page.get_by_role("button", name="Come in").click()
        page.get_by_text("ask asks ann, bob").wait_for()
        page.goto("/runs/rivers")
        assert page.get_by_role("button", name="Cancel").count() == 0
        csrf = page.locator("input[name=csrf]").first.get_attribute("value")
        answer = page.request.post("/act/cancel", form={"csrf": csrf, "run_id": "rivers"})
        assert answer.status == 403
        assert page.evaluate("document.cookie") == ""
        engine.access.revoke(row.id).wait()
        other, _ = engine.access.create("other", ["read"]).wait()
        page.goto("/")
        page.get_by_role("heading", name="A token is needed").wait_for()
        del other


def test_no_script_of_somebody_else_runs_here(page, server):
    page.goto("/")
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.bad = 1'}))"
    )
    assert page.evaluate("window.bad") is None
    assert any("Content Security Policy" in error for error in page.errors)


def test_what_is_vendored_is_what_its_notice_says():
    import hashlib

    folder = REPOSITORY / "orchestrator/surefoot/http/static"
    notice = (folder / "NOTICE.md").read_text()
    for name in ("htmx.min.js", "htmx-sse.min.js"):
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() in notice


def test_a_preview_is_committed_as_it_was_shown_and_a_request_is_handed_on(page, server, root):
    body = {"workflow": "article", "run_id": "seen", "input": {}, "queue": None}
    assert server.client.post("/v1/runs", json=body).status_code == 201
    page.goto("/runs/seen")
    page.get_by_role("button", name="Preview next step").click()
    page.get_by_text("+# rivers").wait_for()
    assert not (root / "articles/seen/brief.md").exists()
    page.get_by_role("button", name="Do exactly this").click()
    page.get_by_text("step begin").first.wait_for()
    assert (root / "articles/seen/brief.md").exists()
    start(server)
    wait_for(server, "rivers", "waiting")
    page.goto("/approvals/rivers/4")
    page.get_by_label("Who are you?").fill("ann")
    page.get_by_text("Let somebody else decide").click()
    page.get_by_label("Who?", exact=True).fill("carl")
    page.get_by_role("button", name="Delegate").click()
    page.get_by_role("heading", name="Your answer is kept").wait_for()
    page.goto("/approvals/rivers/4")
    page.get_by_text("carl (open)").wait_for()
    assert page.errors == []


def test_what_was_left_by_failures_is_mended_on_the_page(browser, root):
    from surefoot import Engine, Retry, Workflow
    from surefoot.dumping import write_dump
    from surefoot.rows import Record

    flow = Workflow("told", directory="{run_id}")

    @flow.step
    def write(tx, _given):
        tx.write_text("a.txt", "a")

    @write.effect(retry=Retry(attempts=1))
    def tell(done):
        raise OSError("nobody there")

    with Engine(root, [flow], resume=False) as engine:
        engine.run(flow, run_id="one").wait()
        engine.deliver().wait()
        write_dump(engine._the_open.records.dumps, [Record("s", 1, "note", "", 1.0, {"n": 1})], "full", 1.0)
    (root / "one/a.txt").write_text("edited")
    with served(root) as server:
        start_at = httpx.post(
            f"{server.url}/v1/runs", json={"workflow": "article", "run_id": "q", "input": {}}
        )
        assert start_at.status_code == 201
        page = browser.new_page(base_url=server.url)
        page.goto("/queues")
        page.get_by_text("OSError: nobody there").wait_for()
        page.get_by_role("button", name="Send again").click()
        page.get_by_text("Every message was delivered, or is on its way.").wait_for()
        page.get_by_role("button", name="Replay").click()
        page.get_by_text(".replayed").wait_for()
        page.get_by_role("button", name="Pause").first.click()
        page.get_by_role("button", name="Resume").first.click()
        page.get_by_role("button", name="Pause").first.wait_for()
        page.goto("/recovery")
        page.get_by_role("button", name="Verify every committed file").click()
        page.get_by_role("heading", name="1 difference(s)").wait_for()
        page.goto("/figures")
        page.get_by_role("img", name="steps by half hour").wait_for()
        page.close()
    with Engine(root, resume=False) as engine:
        assert [record.data for record in engine.records.find(kind="note").wait()] == [{"n": 1}]
