"""Approvals: tokens, answers, delegation, reminders, expiry, and what is approved; over restarts and kills."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import anyio
import pytest

from surefoot import (
    ApprovalRefused,
    ApprovalState,
    Conflict,
    DeclarationError,
    Done,
    Engine,
    InputError,
    RunState,
    Workflow,
    rows,
)
from surefoot.cli import main
from surefoot.doctor import findings
from surefoot.loader import load_workflow
from surefoot.testing import FakeClock
from surefoot_storage import Workspace

DAY_S = 86_400.0


def reviewed(*, outcomes=None, told=None, followed=None, **asking):
    """A workflow that writes a draft, has it approved, and publishes exactly that."""
    flow = Workflow("reviewed", directory="demos/{run_id}")
    asking.setdefault("of", ["draft.md"])

    @flow.step
    def draft(tx, _):
        tx.write_text("draft.md", "first draft")

    @flow.step(outcomes=outcomes)
    def review(tx, _):
        return tx.ask("Publish the draft?", **asking)

    @flow.step(after=[] if outcomes else None)
    def publish(tx, _):
        if followed is not None:
            followed(tx)
        tx.write_json("published.json", tx.approved())

    if "rework" in (outcomes or {}).values():

        @flow.step(after=[])
        def rework(tx, _):
            tx.write_json("why.json", tx.received())
            return Done()

    if told is not None:
        flow.notifier(told)
    return flow


async def waiting(engine, flow, run_id="r"):
    """A run that asks; and its request."""
    await engine.start(flow, run_id=run_id)
    await engine.resume(run_id, through_waits=False)
    assert (await engine.get(run_id)).state is RunState.WAITING
    (request,) = await engine.approvals.requests(run_id=run_id)
    return request


async def goes_on(engine, run_id="r"):
    return await engine.resume(run_id, through_waits=False)


def published(root, run_id="r"):
    return json.loads((root / f"demos/{run_id}/published.json").read_text())


# --- the way it is meant ---


async def test_a_person_approves_and_the_run_goes_on_with_what_they_said(root):
    told = []
    flow = reviewed(told=told.append)
    async with Engine(root, [flow], resume=False) as engine:
        request = await waiting(engine, flow)
        await engine.deliver()
        (asked,) = told
        assert (asked.title, asked.of, asked.reason, asked.person) == (
            "Publish the draft?", ("draft.md",), "asked", "",
        )  # fmt: skip
        after = await engine.approvals.approve(asked.token, by="ann", comment="fine\nby me")
        assert (after.state, after.events[-1].by) == (ApprovalState.APPROVED, "ann")
        assert (await goes_on(engine)).ok
    (vote,) = published(root)["votes"]
    assert (vote["by"], vote["decision"], vote["comment"]) == ("ann", "approved", "fine\nby me")
    assert published(root)["digest"] == request.digest


async def test_waiting_holds_nothing_and_survives_restarts(root):
    flow = reviewed()
    async with Engine(root, [flow], resume=False) as engine:
        request = await waiting(engine, flow)
        token = await engine.approvals.token(request.id)
        before = len(threading.enumerate())
        assert not engine._the_open.is_driven("r")
    async with Engine(root, resume=False) as engine:  # which knows no workflow
        assert await engine.approvals.token(request.id) == token
        await engine.approvals.approve(token, by="ann")
        assert len(threading.enumerate()) <= before + 1
    async with Engine(root, [flow]) as engine:
        with anyio.fail_after(20):
            while (await engine.get("r")).state is not RunState.COMPLETED:
                await anyio.sleep(0.02)


async def test_a_running_engine_goes_on_as_soon_as_another_process_has_the_answer(root):
    flow = reviewed()
    async with Engine(root, [flow]) as engine:
        await engine.start(flow, run_id="r", queue="q")
        with anyio.fail_after(20):
            while not (found := await engine.approvals.requests()):
                await anyio.sleep(0.02)
        code = [sys.executable, "-m", "surefoot", "approvals", "approve", found[0].id, "--by", "ann"]
        assert (await anyio.run_process([*code, "-w", str(root)])).returncode == 0
        await until(engine, RunState.COMPLETED)


def command(root, *arguments):
    with pytest.raises(SystemExit) as caught:
        main(["approvals", *arguments, "-w", str(root)])
    return caught.value.code


# --- tokens ---


async def test_only_the_hash_of_a_token_is_stored(root):
    told = []
    flow = reviewed(told=told.append, approvers=["ann", "bob"])
    async with Engine(root, [flow], resume=False) as engine:
        await waiting(engine, flow)
        await engine.deliver()
        await engine.approvals.delegate(told[0].token, "carol")
        await engine.deliver()
        await engine.flush()
    tokens = [asked.token for asked in told]
    assert len(set(tokens)) == 3
    assert all(len(token) > 50 for token in tokens)
    for path in root.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(token.encode() in content for token in tokens), path
    assert (root / ".surefoot/secret.json").stat().st_mode & 0o777 == 0o600


async def test_where_the_secret_is_lost_no_wrong_token_is_made_and_the_id_still_works(root):
    flow = reviewed()
    async with Engine(root, [flow], resume=False) as engine:
        request = await waiting(engine, flow)
        old = await engine.approvals.token(request.id)
    (root / ".surefoot/secret.json").unlink()
    async with Engine(root, [flow], resume=False) as engine:
        with pytest.raises(ApprovalRefused, match="is not what it was") as caught:
            await engine.approvals.token(request.id)
        assert request.id in caught.value.hint
        with pytest.raises(ApprovalRefused, match="one of anyone with the token"):
            await engine.approvals.token(request.id, "mallory")
        assert (await engine.approvals.get(old)).id == request.id  # what was sent before is still good
        await engine.approvals.approve(request.id, by="ann")
        assert (await goes_on(engine)).ok


@pytest.mark.parametrize("reference", ["sfa_nobody", "r/99", "sfa_" + "a" * 52])
async def test_an_unknown_token_is_a_clear_error_that_does_not_show_it(root, reference):
    flow = reviewed()
    async with Engine(root, [flow], resume=False) as engine:
        await waiting(engine, flow)
        with pytest.raises(ApprovalRefused, match="none of that token or id") as caught:
            await engine.approvals.approve(reference, by="ann")
        assert "a" * 20 not in str(caught.value)
        assert [a.state for a in await engine.approvals.requests()] == ["open"]


@pytest.mark.parametrize("first", ["approve", "reject"])
async def test_deciding_twice_changes_nothing_and_says_who_was_first(root, first):
    flow = reviewed(outcomes={"approved": "publish", "rejected": "rework"})
    async with Engine(root, [flow], resume=False) as engine:
        request = await waiting(engine, flow)
        await getattr(engine.approvals, first)(request.id, by="ann")
        for second in ("approve", "reject"):
            with pytest.raises(ApprovalRefused, match=f"one that is {first.rstrip('e')}.*ed by ann"):
                await getattr(engine.approvals, second)(request.id, by="bob")
        assert (await goes_on(engine)).ok
        with pytest.raises(ApprovalRefused, match="by ann"):
            await engine.approvals.approve(request.id, by="bob")
    assert (root / "demos/r/published.json").exists() == (first == "approve")


async def test_it_expires_after_seven_days_and_is_cleaned_up(root):
    clock = FakeClock(auto=False)
    flow = reviewed(outcomes={"approved": "publish", "expired": "rework"})
    async with Engine(root, [flow], clock=clock, resume=False) as engine:
        request = await waiting(engine, flow)
        assert request.expires_at == request.asked_at + 7 * DAY_S
        clock.advance(7 * DAY_S)
        for answer in ("approve", "reject"):
            with pytest.raises(ApprovalRefused, match="one that is expired"):
                await getattr(engine.approvals, answer)(request.id, by="late")
        assert await engine.approvals.requests() == []
    async with Engine(
        root, clock=clock, resume=False
    ) as engine:  # it ends although nobody knows its workflow
        (expired,) = await engine.approvals.requests(states=[])
        assert (expired.state, expired.events[-1].event) == ("expired", "expired")
    async with Engine(root, [flow], clock=clock, resume=False) as engine:
        assert (await goes_on(engine)).ok
        assert json.loads((root / "demos/r/why.json").read_text())["state"] == "expired"
    clock.advance(91 * DAY_S)
    async with Engine(root, clock=clock, resume=False) as engine:
        assert await engine.approvals.requests(states=[]) == []
        assert (await engine.approvals.figures())["size_bytes"] == 0


async def test_nobody_has_to_look_for_it_to_expire(root):
    clock = FakeClock(auto=False)
    flow = reviewed(outcomes={"approved": "publish", "expired": "rework"})
    async with Engine(root, [flow], clock=clock) as engine:
        await engine.start(flow, run_id="r", queue="q")
        await until(engine, RunState.WAITING)
        clock.advance(7 * DAY_S + 1)
        await until(engine, RunState.COMPLETED)
        assert [a.state for a in await engine.approvals.requests(states=[])] == ["expired"]


async def until(engine, state, run_id="r"):
    with anyio.fail_after(20):
        while (await engine.get(run_id)).state is not state:
            await anyio.sleep(0.02)


# --- who may answer ---


async def test_a_token_says_who_answers(root):
    told = []
    flow = reviewed(told=told.append, approvers=["ann", "bob"], quorum=2)
    async with Engine(root, [flow], resume=False) as engine:
        request = await waiting(engine, flow)
        await engine.deliver()
        tokens = {asked.person: asked.token for asked in told}
        with pytest.raises(ApprovalRefused, match="ann, whose token this is"):
            await engine.approvals.approve(tokens["ann"], by="bob")
        with pytest.raises(ApprovalRefused, match="one of ann, bob"):
            await engine.approvals.approve(request.id, by="mallory")
        with pytest.raises(ApprovalRefused, match="to know who it is"):
            await engine.approvals.approve(request.id)
        assert (await engine.approvals.approve(tokens["ann"])).state == "open"
        with pytest.raises(ApprovalRefused, match="ann has answered"):
            await engine.approvals.approve(tokens["ann"])
        assert not (await goes_on(engine)).transitions
        assert (await engine.approvals.approve(tokens["bob"])).state == "approved"
        assert (await goes_on(engine)).ok
    assert [vote["by"] for vote in published(root)["votes"]] == ["ann", "bob"]


async def test_one_rejection_rejects_whatever_the_quorum(root):
    flow = reviewed(
        outcomes={"approved": "publish", "rejected": "rework"}, approvers=["a", "b", "c"], quorum=3
    )
    async with Engine(root, [flow], resume=False) as engine:
        request = await waiting(engine, flow)
        await engine.approvals.approve(request.id, by="a")
        assert (await engine.approvals.reject(request.id, by="b", comment="no title")).state == "rejected"
        assert (await goes_on(engine)).ok
    why = json.loads((root / "demos/r/why.json").read_text())
    assert [(v["by"], v["decision"], v["comment"]) for v in why["votes"]] == [
        ("a", "approved", ""), ("b", "rejected", "no title"),
    ]  # fmt: skip


async def test_with_anyones_token_a_quorum_needs_different_people(root):
    flow = reviewed(quorum=2)
    async with Engine(root, [flow], resume=False) as engine:
        request = await waiting(engine, flow)
        token = await engine.approvals.token(request.id)
        await engine.approvals.approve(token, by="ann")
        with pytest.raises(ApprovalRefused, match="ann has answered"):
            await engine.approvals.approve(token, by="ann")
        assert (await engine.approvals.approve(token, by="bob")).state == "approved"


async def test_delegating_asks_somebody_else_and_ends_ones_own_token(root):
    told = []
    flow = reviewed(told=told.append, approvers=["ann"])
    async with Engine(root, [flow], resume=False) as engine:
        await waiting(engine, flow)
        await engine.deliver()
        ann = told[0].token
        after = await engine.approvals.delegate(ann, "bob", comment="on holiday")
        assert [(s.person, s.state, s.via) for s in after.seats] == [
            ("ann", "delegated", "asked"), ("bob", "open", "ann"),
        ]  # fmt: skip
        await engine.deliver()
        assert (told[1].person, told[1].reason) == ("bob", "delegated")
        with pytest.raises(ApprovalRefused, match="ann, who has asked bob instead"):
            await engine.approvals.approve(ann)
        with pytest.raises(ApprovalRefused, match="somebody who is not asked yet"):
            await engine.approvals.delegate(told[1].token, "ann")
        await engine.approvals.approve(told[1].token)
        assert (await goes_on(engine)).ok
    assert published(root)["votes"][0]["by"] == "bob"


async def test_people_are_reminded_and_others_asked_when_it_takes_long(root):
    clock, told = FakeClock(auto=False), []
    flow = reviewed(
        told=told.append, approvers=["ann", "bob"], quorum=2, remind_s=DAY_S, escalate_s=2.5 * DAY_S,
        escalate_to=["boss"],
    )  # fmt: skip
    async with Engine(root, [flow], clock=clock, resume=False) as engine:
        request = await waiting(engine, flow)
        await engine.deliver()
        await engine.approvals.approve(request.id, by="ann")
        for _ in range(8):
            clock.advance(DAY_S / 2)
            await goes_on(engine)
            await engine.deliver()
        assert [(a.person, a.reason) for a in told] == [
            ("ann", "asked"), ("bob", "asked"), ("bob", "reminder"), ("bob", "reminder"), ("boss", "escalated"),
            ("bob", "reminder"), ("boss", "reminder"), ("bob", "reminder"), ("boss", "reminder"),
        ]  # fmt: skip
        assert len({asked.key for asked in told}) == len(told)
        await engine.approvals.approve(told[4].token)
        assert (await goes_on(engine)).ok
    assert [vote["by"] for vote in published(root)["votes"]] == ["ann", "boss"]


async def test_a_worker_reminds_by_itself(root):
    clock, told = FakeClock(auto=False), []
    flow = reviewed(told=told.append, approvers=["ann"], remind_s=DAY_S)
    async with Engine(root, [flow], clock=clock) as engine:
        await engine.start(flow, run_id="r", queue="q")
        for count in range(1, 4):
            with anyio.fail_after(20):
                while len(told) < count:
                    await anyio.sleep(0.02)
            clock.advance(DAY_S)
        assert [asked.reason for asked in told[:3]] == ["asked", "reminder", "reminder"]


async def test_who_is_told_late_is_told_nothing_once_it_is_answered(root):
    told = []
    flow = reviewed(told=told.append)
    async with Engine(root, [flow], resume=False, effects_grace_s=0) as engine:
        async with engine._the_open.outbox._busy:  # nobody delivers anything meanwhile
            request = await waiting(engine, flow)
            await engine.approvals.approve(request.id, by="ann")
        assert await engine.deliver() == 0
    assert told == []


# --- what is approved ---


async def test_a_change_before_the_answer_ends_the_request(root):
    flow = reviewed(outcomes={"approved": "publish", "changed": "review"})
    async with Engine(root, [flow], resume=False) as engine:
        request = await waiting(engine, flow)
        (root / "demos/r/draft.md").write_text("another draft")
        with pytest.raises(ApprovalRefused, match="have changed since"):
            await engine.approvals.approve(request.id, by="ann")
        with pytest.raises(ApprovalRefused, match="one that is changed"):
            await engine.approvals.approve(request.id, by="ann")
        await goes_on(engine)
        (again,) = await engine.approvals.requests()
        assert again.id != request.id
        assert again.digest != request.digest
        await engine.approvals.approve(again.id, by="ann")
        assert (await goes_on(engine)).ok
    assert published(root)["digest"] == again.digest


async def test_a_change_after_the_answer_stops_the_run(root):
    flow = reviewed(of=["*.md"])
    async with Engine(root, [flow], resume=False) as engine:
        request = await waiting(engine, flow)
        await engine.approvals.approve(request.id, by="ann")
        (root / "demos/r/extra.md").write_text("one more")
        result = await goes_on(engine)
        assert (result.state, result.failure.error) == (RunState.ERROR, "StepReturnRefused")
        assert "'changed'" in result.failure.message
        assert not (root / "demos/r/published.json").exists()
        (root / "demos/r/extra.md").unlink()


async def test_a_retry_asks_again(root):
    flow = reviewed()
    async with Engine(root, [flow], resume=False) as engine:
        request = await waiting(engine, flow)
        await engine.approvals.reject(request.id, by="ann")
        assert (await goes_on(engine)).state is RunState.ERROR
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(retried, engine)
            with anyio.fail_after(20):
                while not (found := await engine.approvals.requests()):
                    await anyio.sleep(0.02)
            assert found[0].id == f"{request.id}/2"
            await engine.approvals.approve(found[0].id, by="ann")
        assert (await engine.get("r")).state is RunState.COMPLETED


async def retried(engine):
    await engine.retry("r")


async def test_the_step_that_follows_goes_on_with_what_was_approved_or_not_at_all(root):
    def somebody_writes(tx):
        (root / "demos/r/draft.md").write_text("slipped in")

    flow = reviewed(followed=somebody_writes)
    async with Engine(root, [flow], resume=False) as engine:
        request = await waiting(engine, flow)
        await engine.approvals.approve(request.id, by="ann")
        result = await goes_on(engine)
        assert (result.state, result.failure.error) == (RunState.ERROR, "ApprovalRefused")
    assert not (root / "demos/r/published.json").exists()


async def test_what_the_step_itself_writes_is_part_of_what_is_approved(root):
    flow = Workflow("f", directory="{run_id}")

    @flow.step
    def ask(tx, _):
        tx.write_text("docs/a.txt", "a")
        with tx.create("docs/big.bin") as file:
            file.write(b"b" * 400_000)
        return tx.ask("All of it?", of=["docs", "*.json"])

    @flow.step
    def end(tx, _):
        assert tx.approved()

    async with Engine(root, [flow], resume=False) as engine:
        await engine.start(flow, run_id="r")
        await engine.resume("r", through_waits=False)
        (request,) = await engine.approvals.requests()
        await engine.approvals.approve(request.id, by="ann")
        assert (await goes_on(engine)).ok  # the status file has changed, and is not part of it


# --- what else happens to runs ---


@pytest.mark.parametrize("how", ["cancel", "skip", "undo"])
async def test_a_run_that_goes_another_way_withdraws_its_request(root, how):
    flow = reviewed()
    async with Engine(root, [flow], resume=False) as engine:
        request = await waiting(engine, flow)
        if how == "cancel":
            await engine.cancel("r")
        elif how == "skip":
            await engine.skip("r", outcome="publish")
        else:
            await engine.undo(engine.history.of("r")[-1].txid)
        with pytest.raises(ApprovalRefused, match="one that is withdrawn"):
            await engine.approvals.approve(request.id, by="ann")
        if how == "undo":
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(retried, engine)
                with anyio.fail_after(20):
                    while not (found := await engine.approvals.requests()):
                        await anyio.sleep(0.02)
                await engine.approvals.approve(found[0].id, by="ann")
            assert (await engine.get("r")).state is RunState.COMPLETED


async def test_after_the_deadline_nobody_can_answer_and_a_retry_asks_again(root):
    clock, flow = FakeClock(auto=False), Workflow("f", directory="{run_id}")

    @flow.step(deadline_s=100)
    def ask(tx, _):
        return tx.ask("Really?")

    async with Engine(root, [flow], resume=False, clock=clock) as engine:
        request = await waiting(engine, flow)
        clock.advance(101)
        assert (await goes_on(engine)).failure.error == "DeadlineExceeded"
        with pytest.raises(ApprovalRefused, match="one that is withdrawn"):
            await engine.approvals.approve(request.id, by="ann")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(retried, engine)
            with anyio.fail_after(20):
                while not (found := await engine.approvals.requests()):
                    await anyio.sleep(0.02)
            await engine.approvals.approve(found[0].id, by="ann")
        assert (await engine.get("r")).state is RunState.COMPLETED


async def test_each_item_of_a_fan_out_asks_for_itself_and_an_answer_while_paused_counts(root):
    flow = Workflow("f", directory="{run_id}")

    @flow.step(each=lambda _tx, _given: [1, 2, 3])
    def ask(tx, _given, item):
        tx.write_text(f"{item}.md", "x")
        return tx.ask(f"Item {item}?", of=[f"{item}.md"])

    @flow.step
    def end(tx, _):
        tx.write_text("end", "")

    async with Engine(root, [flow], resume=False) as engine:
        await engine.start(flow, run_id="r")
        await goes_on(engine)
        await engine.pause("r")
        requests = await engine.approvals.requests()
        assert sorted(request.ask.title for request in requests) == ["Item 1?", "Item 2?", "Item 3?"]
        for request in requests:
            await engine.approvals.approve(request.id, by="ann")
        await engine.unpause("r")
        assert (await goes_on(engine)).state is RunState.COMPLETED


async def test_an_async_step_loads_what_was_approved_first(root):
    flow = Workflow("f", directory="{run_id}")
    loads = [False]

    @flow.step
    def ask(tx, _):
        tx.write_text("a.md", "a")
        return tx.ask("Really?", of=["*.md"])

    @flow.step
    async def end(tx, _):
        if loads[0]:
            await tx.load("*.md")
        tx.approved()

    async with Engine(root, [flow], resume=False) as engine:
        request = await waiting(engine, flow)
        await engine.approvals.approve(request.id, by="ann")
        assert (await goes_on(engine)).failure.error == "UndeclaredRead"
        loads[0] = True
        assert (await engine.retry("r")).ok


async def test_an_answer_that_is_undone_is_asked_for_again(root):
    flow = reviewed()
    async with Engine(root, [flow], resume=False) as engine:
        request = await waiting(engine, flow)
        await engine.approvals.approve(request.id, by="ann")
        await goes_on(engine)
        target = next(e for e in engine.history.of("r") if e.label == "r/review")
        await engine.revert(target.txid)
        assert not (root / "demos/r/published.json").exists()
        assert (await engine.get("r")).state is RunState.PAUSED
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(retried, engine)
            with anyio.fail_after(20):
                while not (found := await engine.approvals.requests()):
                    await anyio.sleep(0.02)
            assert found[0].id != request.id
            await engine.approvals.approve(found[0].id, by="bob")
    assert published(root)["votes"][0]["by"] == "bob"


DAMAGE = [
    "UPDATE approval SET ask = '{' WHERE run_id = 'bad'",
    "UPDATE approval SET digest = 'short' WHERE run_id = 'bad'",
    "UPDATE approval SET asked_at = 'yesterday' WHERE run_id = 'bad'",
    "UPDATE approval SET state = 'perhaps' WHERE run_id = 'bad'",
    "UPDATE approval SET ask = json_set(ask, '$.quorum', -1) WHERE run_id = 'bad'",
    "UPDATE approval_event SET at = 'soon' WHERE approval_id LIKE 'bad/%'",
]


@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_damaged_record_is_set_aside_and_does_not_stop_the_others(root, damage, monkeypatch):
    said = []
    monkeypatch.setattr("surefoot.deciding.logger", lambda **facts: SimpleNamespace(
        error=lambda event, **more: said.append((event, more["approval"])), info=lambda *_, **__: None
    ))  # fmt: skip
    flow = reviewed()
    async with Engine(root, [flow], resume=False) as engine:
        bad, good = await waiting(engine, flow, "bad"), await waiting(engine, flow, "good")
        engine._the_open.workspace.write_rows([rows_statement(damage)])
    async with Engine(root, [flow], resume=False) as engine:
        assert [a.id for a in await engine.approvals.requests()] == [good.id]
        assert [d.id for d in await engine.approvals.damaged()] == [bad.id]
        assert said == [("approval.damaged", bad.id)]
        with pytest.raises(ApprovalRefused, match="a damaged record"):
            await engine.approvals.approve(bad.id, by="ann")
        await engine.approvals.approve(good.id, by="ann")
        assert (await goes_on(engine, "good")).ok
        assert "damaged" in (await engine.why("bad")).sentence
        workspace = engine._the_open.workspace
        found = {finding.kind: finding for finding in findings(workspace, workspace.checkup, now=1e10)}
        assert found["approval-damaged"].remedy == f"surefoot approvals reissue {bad.id}"
        with pytest.raises(ApprovalRefused, match=bad.id):
            await engine.approvals.reissue(good.id)
        await engine.approvals.reissue(bad.id)
        assert await engine.approvals.damaged() == []
        await goes_on(engine, "bad")
        (again,) = await engine.approvals.requests()
        await engine.approvals.approve(again.id, by="ann")
        assert (await goes_on(engine, "bad")).ok


def rows_statement(sql):
    from surefoot_storage import Statement

    return Statement(sql, {})


async def test_its_number_and_size_are_known(root):
    flow = reviewed()
    async with Engine(root, [flow], resume=False) as engine:
        assert (await engine.approvals.figures())["count"] == 0
        request = await waiting(engine, flow)
        figures = await engine.approvals.figures()
        assert (figures["count"], figures["states"], figures["oldest_open_at"]) == (
            1, {"open": 1}, request.asked_at,
        )  # fmt: skip
        assert 200 < figures["size_bytes"] < 1_000


# --- several at once, and kills ---


async def test_of_two_who_answer_at_the_same_time_both_count(root):
    people = [f"p{n}" for n in range(8)]
    flow = reviewed(approvers=people, quorum=8)
    async with Engine(root, [flow], resume=False) as one, Engine(root, [flow], resume=False) as two:
        request = await waiting(one, flow)
        async with anyio.create_task_group() as tasks:
            for n, person in enumerate(people):
                tasks.start_soon(answer, (one, two)[n % 2], request.id, person)
        (after,) = await one.approvals.requests(states=[])
        assert after.state == "approved"
        assert sorted(event.by for event in after.events if event.by) == people


async def answer(engine, request_id, person):
    for _ in range(20):
        try:
            await engine.approvals.approve(request_id, by=person)
        except Conflict:
            continue
        return


async def test_of_two_opposite_answers_the_first_one_stands(root):
    flow = reviewed()
    async with Engine(root, [flow], resume=False) as one, Engine(root, [flow], resume=False) as two:
        request = await waiting(one, flow)
        outcomes = []

        async def decide(engine, name, by):
            try:
                outcomes.append((await getattr(engine.approvals, name)(request.id, by=by)).state)
            except ApprovalRefused:
                outcomes.append("refused")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(decide, one, "approve", "ann")
            tasks.start_soon(decide, two, "reject", "bob")
        (after,) = await one.approvals.requests(states=[])
        assert sorted(outcomes) == sorted([after.state, "refused"])


@pytest.mark.parametrize("what", ["ask", "answer"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_around_the_commit_it_is_there_whole_or_not_at_all(root, what, moment):
    flow = reviewed()
    if what == "answer":
        with Engine(root, [flow], resume=False) as engine:
            engine.start(flow, run_id="r").wait()
            engine.resume("r", through_waits=False).wait()
    code = f"""
import os, sys
sys.path[:0] = {[os.path.dirname(__file__), *sys.path]!r}
from test_approvals import reviewed
from surefoot import Engine
from surefoot_storage import Workspace
flow = reviewed()
real = Workspace.commit_all
def commit_all(self, transactions):
    mine = any(tx.label in ("r/review", "r/approve") for tx in transactions)
    if mine and {moment!r} == "before":
        os._exit(9)
    done = real(self, transactions)
    if mine:
        os._exit(9)
    return done
Workspace.commit_all = commit_all
with Engine({str(root)!r}, [flow], resume=False) as engine:
    if {what!r} == "ask":
        engine.start(flow, run_id="r").wait()
        engine.resume("r", through_waits=False).wait()
    else:
        (request,) = engine.approvals.requests().wait()
        engine.approvals.approve(request.id, by="ann").wait()
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    with Engine(root, [flow], resume=False) as engine:
        engine.resume("r", through_waits=False).wait()
        found = engine.approvals.requests(states=[]).wait()
        assert len(found) == 1
        if what == "answer":
            assert (found[0].state == "approved") == (moment == "after")
            assert (root / "demos/r/published.json").exists() == (moment == "after")


# --- refused at once ---


@pytest.mark.parametrize(
    "wrong",
    [
        {"title": ""}, {"title": 7}, {"title": "x" * 5_000}, {"of": "draft.md"}, {"of": ["../x"]}, {"of": [7]},
        {"approvers": "ann"}, {"approvers": ["ann", "ann"]}, {"approvers": [""]}, {"quorum": 0}, {"quorum": True},
        {"quorum": 2, "approvers": ["ann"]}, {"expires_s": 0}, {"expires_s": -1}, {"expires_s": float("nan")},
        {"expires_s": "1d"}, {"remind_s": 0}, {"escalate_s": 60}, {"escalate_to": ["boss"]},
        {"escalate_s": -1, "escalate_to": ["boss"]}, {"approvers": [f"p{n}" for n in range(101)]},
    ],
    ids=lambda wrong: str(wrong)[:40],
)  # fmt: skip
async def test_what_cannot_be_asked_is_refused_with_its_name(root, wrong):
    flow = Workflow("f", directory="{run_id}")
    title = wrong.get("title", "Really?")
    rest = {key: value for key, value in wrong.items() if key != "title"}

    @flow.step
    def ask(tx, _):
        return tx.ask(title, **rest)

    async with Engine(root, [flow], resume=False) as engine:
        result = await engine.run(flow, run_id="r")
        assert result.failure.error in ("InputError", "PathRefused"), result
        assert await engine.approvals.requests() == []


async def test_answers_of_the_wrong_kind_are_refused(root):
    flow = reviewed()
    async with Engine(root, [flow], resume=False) as engine:
        request = await waiting(engine, flow)
        for wrong in ("", 7, None, "x" * 5_000):
            with pytest.raises((InputError, ApprovalRefused)):
                await engine.approvals.approve(wrong, by="ann")
            with pytest.raises((InputError, ApprovalRefused)):
                await engine.approvals.approve(request.id, by=wrong)
            with pytest.raises(InputError):
                await engine.approvals.delegate(request.id, wrong, by="ann")
        for wrong in (7, None, "x" * 30_000):
            with pytest.raises(InputError):
                await engine.approvals.approve(request.id, by="ann", comment=wrong)
        with pytest.raises(InputError):
            await engine.approvals.requests(states=["unknown"])
        with pytest.raises(InputError):
            await engine.approvals.clean(kept_s=-1)
        assert [a.state for a in await engine.approvals.requests()] == ["open"]


# --- in pipelines ---

PIPELINE = """
workflow = "brief"
directory = "demos/{run_id}"

[input]
topic = "str"

[steps.draft]
use = "write"
path = "{topic}.md"
text = "About {{ topic }}"

[steps.review]
use = "approve"
title = "Publish?"
of = ["{topic}.md"]
approvers = ["ann"]
outcomes = { approved = "publish", rejected = "draft" }

[steps.publish]
use = "copy"
source = "{topic}.md"
target = "published.md"
after = []
"""


def test_a_pipeline_file_asks_people(root, tmp_path):
    (tmp_path / "brief.toml").write_text(PIPELINE)
    flow = load_workflow(str(tmp_path / "brief.toml"))
    with Engine(root, [flow], resume=False) as engine:
        engine.start(flow, {"topic": "snow"}, run_id="r").wait()
        for verdict in ("reject", "approve"):
            engine.resume("r", through_waits=False).wait()
            (request,) = engine.approvals.requests().wait()
            getattr(engine.approvals, verdict)(request.id, by="ann").wait()
        assert engine.resume("r").wait().ok
    assert (root / "demos/r/published.md").read_text() == "About snow"


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ('title = "Publish?"', 'title = ""', "brief/review.title"),
        ('of = ["{topic}.md"]', 'of = ["../x"]', "of"),
        ('of = ["{topic}.md"]', 'of = ["{nothing}.md"]', "nothing"),
        ('approvers = ["ann"]', 'approvers = ["ann"]\nquorum = 2', "a quorum that 1 people can reach"),
        ('approvers = ["ann"]', 'approvers = ["ann", "ann"]', "different names"),
        ('approvers = ["ann"]', "expires_s = -1", "brief/review.expires_s"),
        ('approvers = ["ann"]', "escalate_s = 60", "escalate_s and escalate_to"),
        ('approvers = ["ann"]', 'approver = "ann"', "brief/review.approver"),
    ],
)
def test_what_nobody_could_answer_is_refused_in_the_file(tmp_path, old, new, found):
    (tmp_path / "brief.toml").write_text(PIPELINE.replace(old, new))
    with pytest.raises(DeclarationError) as caught:
        load_workflow(str(tmp_path / "brief.toml"))
    assert found in str(caught.value)


# --- the command line ---


def test_the_commands_show_and_answer(root, capsys):
    flow = reviewed(approvers=["ann", "bob"], quorum=2)
    with Engine(root, [flow], resume=False) as engine:
        engine.start(flow, run_id="r").wait()
        engine.resume("r", through_waits=False).wait()
        (request,) = engine.approvals.requests().wait()
    capsys.readouterr()
    assert command(root, "list") == 0
    assert "Publish the draft?  [ann, bob]" in capsys.readouterr().out
    assert command(root, "token", request.id, "--person", "ann") == 0
    token = capsys.readouterr().out.strip()
    assert command(root, "approve", token, "--comment", "good") == 0
    assert command(root, "delegate", request.id, "carol", "--by", "bob") == 0
    assert command(root, "approve", request.id, "--by", "bob") == 1
    assert "hint: " in capsys.readouterr().err
    assert command(root, "reject", request.id, "--by", "carol", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["state"] == "rejected"
    assert "token_hash" not in json.dumps(shown)
    assert command(root, "show", request.id) == 0
    out = capsys.readouterr().out
    assert "approved by ann: good" in out
    assert "delegated carol by bob" in out
    assert command(root, "list") == 0
    assert "nothing waits" in capsys.readouterr().out
    assert command(root, "list", "--all", "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["id"] == request.id
    assert command(root, "show", "nothing") == 1
    assert command(root, "reissue", request.id) == 1


def test_looking_at_requests_changes_nothing(root):
    flow = reviewed()
    with Engine(root, [flow], resume=False) as engine:
        engine.start(flow, run_id="r").wait()
        engine.resume("r", through_waits=False).wait()
    before = (root / ".surefoot/surefoot.db").stat().st_mtime_ns
    assert command(root, "list") == 0
    assert (root / ".surefoot/surefoot.db").stat().st_mtime_ns == before
    with Workspace(root) as workspace:
        assert rows.approval_figures is not None
        assert workspace.query("SELECT 1") == [(1,)]
    assert os.path.exists(root / "demos/r/draft.md")
