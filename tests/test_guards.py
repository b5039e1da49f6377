"""Guards: what they deny, what they clamp, and which of them nothing can meet."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surefoot import DeclarationError, Engine, GuardConflict, GuardDenied, RunState, Workflow, guards, rows
from surefoot.guardchecks import checked_guards
from surefoot.guards import Check, Count, Hold, Pace, Paths, Proposal, Range, Sizes, Window, judge
from surefoot.testing import FakeClock, Snapshot

MONDAY_NOON = datetime(2027, 3, 1, 12, 0, tzinfo=UTC).timestamp()


def writing(files, *limits, workflow=()):
    """A workflow of one step that writes these files."""
    flow = Workflow("flow", guards=workflow)

    @flow.step(guards=limits)
    def step(tx, _):
        for path, content in files.items():
            if isinstance(content, dict | list | int | float | str):
                tx.write_json(path, content)
            else:
                tx.write_bytes(path, content)

    return flow


async def attempt(root, flow, **engine):
    async with Engine(root, [flow], **engine) as opened:
        result = await opened.run(flow, run_id="r")
        return result, rows.audit_log(opened._the_open.workspace, "r")


# --- denied ---


@pytest.mark.parametrize(
    ("files", "limit", "code", "numbers"),
    [
        ({"a.md": b"x"}, Paths(allow=["*.txt"]), "path", ["*.txt", "runs/r/a.md"]),
        ({"deep/a.md": b"x"}, Paths(allow=["*.md"]), "path", ["deep/a.md"]),
        ({"secret/a.md": b"x"}, Paths(deny=["secret/**"]), "path", ["secret/**"]),
        ({"a.md": b"x"}, Paths(allow=["/shared/**"]), "path", ["/shared/**"]),
        ({"a.md": b"x" * 101}, Sizes(file_bytes_max=100), "file_size", ["100", "101"]),
        ({"a": b"x" * 60, "b": b"x" * 60}, Sizes(total_bytes_max=100), "total_size", ["100", "120"]),
        ({"a": b"", "b": b"", "c": b""}, Count(2), "file_count", ["2", "3"]),
        ({"p.json": {"price": 11}}, Range("p.json", "price", 0, 10), "range", ["from 0 to 10", "11"]),
        ({"p.json": {"a": [{"b": -1}]}}, Range("p.json", "a.0.b", at_least=0), "range", ["-1"]),
        ({"p.json": {"price": "much"}}, Range("p.json", "price", 0, 10), "not_a_number", ["'much'"]),
        ({"p.json": {"price": True}}, Range("p.json", "price", 0, 10, otherwise="clamp"), "not_a_number", ["True"]),
        ({"p.json": b"{"}, Range("p.json", "price", 0, 10), "not_json", ["price"]),
        ({"a": b""}, Hold(3600), "hold_time", ["3600"]),
        ({"a": b""}, Window(days=["tue"]), "time_window", ["Mon 12:00"]),
        ({"a": b""}, Window(begin="13:00", end="14:00"), "time_window", ["13:00", "Mon 12:00"]),
        ({"a": b""}, Window(begin="12:00", end="13:00", zone="Europe/Berlin"), "time_window", ["Mon 13:00"]),
        ({"a": b""}, Check(lambda p: f"{len(p.sizes)} is odd"), "check", ["1 is odd"]),
    ],
)  # fmt: skip
async def test_a_denied_transition_changes_nothing_and_says_why(root, files, limit, code, numbers):
    result, _ = await attempt(root, writing(files, limit), clock=FakeClock(MONDAY_NOON))
    assert (result.state, result.failure.error) == (RunState.ERROR, GuardDenied.__name__)
    assert result.failure.hint == f"guard_denied_{code}"
    assert limit.name in result.failure.message
    for number in numbers:
        assert number in result.failure.message
    assert Snapshot.of(root).files == {}


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"a.md": b"x"}, Paths(allow=["*.md"], deny=["b.md"])), ({"a.md": b"x" * 100}, Sizes(100, 100)),
        ({"a": b"", "b": b""}, Count(2)), ({"p.json": {"price": 10}}, Range("p.json", "price", 0, 10)),
        ({"p.json": {}}, Range("p.json", "price", 0, 10)), ({"other.json": {"price": 99}}, Range("p.json", "price", 0, 10)),
        ({"a": b""}, Window(days=["mon"], begin="12:00", end="12:01")), ({"a": b""}, Check(lambda p: None)),
    ],
)  # fmt: skip
async def test_what_is_within_the_limits_passes(root, files, limit):
    result, log = await attempt(root, writing(files, limit), clock=FakeClock(MONDAY_NOON))
    assert result.ok, result.failure
    assert log[-1]["notes"] == []
    assert len(Snapshot.of(root).files) == len(files)


async def test_a_deletion_is_judged_by_its_path_and_not_by_size(root):
    flow = Workflow("flow")
    flow.step(name="make")(lambda tx, _: tx.write_text("a.md", "x" * 500))
    flow.step(name="gone", guards=[Sizes(10), Paths(allow=["a.md"])])(lambda tx, _: tx.delete("a.md"))
    assert (await attempt(root, flow))[0].ok


# --- clamped ---


@pytest.mark.parametrize(
    ("value", "kept", "clamped"), [(11, 10, True), (-5, 2, True), (7, 7, False), (10.5, 10.0, True), (1e300, 10.0, True)]
)  # fmt: skip
async def test_a_value_is_clamped_to_what_all_guards_allow_and_it_is_recorded(root, value, kept, clamped):
    limits = [
        Range("p.json", "a.price", 0, 10, otherwise="clamp", name="budget"),
        Range("p.json", "a.price", at_least=2, otherwise="clamp", name="floor"),
    ]
    result, log = await attempt(root, writing({"p.json": {"a": {"price": value, "note": "ä"}}}, *limits))
    assert result.ok
    assert json.loads((root / "runs/r/p.json").read_text()) == {"a": {"price": kept, "note": "ä"}}
    notes = log[-1]["notes"]
    assert list(result.transitions[0].guards) == notes
    assert [n["code"] for n in notes] == (["guard_clamped_range"] if clamped else [])
    if clamped:
        assert (notes[0]["found"], notes[0]["became"]) == (value, kept)
        assert notes[0]["subject"] == "p.json:a.price"


async def test_a_clamped_preview_is_committed_as_it_was_shown(root):
    flow = writing({"p.json": {"n": 99}}, Range("p.json", "n", 0, 10, otherwise="clamp"))
    async with Engine(root, [flow], resume=False) as engine:
        await engine.start(flow, run_id="r")
        shown = await engine.preview("r")
        assert '"n": 10' in shown.diff
        assert shown.guards[0]["became"] == 10
        done = await engine.commit(shown.digest)
        assert done.guards[0]["became"] == 10
        assert rows.audit_log(engine._the_open.workspace, "r")[-1]["notes"] == list(done.guards)
    assert json.loads((root / "runs/r/p.json").read_text()) == {"n": 10}


@given(
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=1, max_size=4),
)
def test_clamping_is_deterministic_stays_within_and_touches_nothing_that_fits(value, pairs):
    limits = [Range("f", "x", min(p), max(p), otherwise="clamp") for p in pairs]
    low, high = guards.bounds(limits)
    if low > high:
        with pytest.raises(GuardConflict) as caught:
            checked_guards("s", limits)
        assert caught.value.code == "guard_conflict_unsatisfiable_range"
        return
    proposal = Proposal(
        "w", "s", "r", {"r/f": 1}, lambda _: json.dumps({"x": value}).encode(), 0.0, 0.0, lambda _: 0
    )
    first, second = judge(checked_guards("s", limits), proposal), judge(checked_guards("s", limits), proposal)
    assert first == second
    if low <= value <= high:
        assert first.notes == ()
    else:
        assert low <= json.loads(first.writes["r/f"])["x"] <= high


# --- rates ---


async def test_a_pace_is_kept_over_all_runs_and_forgets(root):
    clock = FakeClock(MONDAY_NOON, auto=False)
    flow = writing({"a": b""}, Pace(2, 60))
    async with Engine(root, [flow], clock=clock, resume=False) as engine:
        assert [(await engine.run(flow, run_id=f"r{n}")).ok for n in range(3)] == [True, True, False]
        assert "2 already" in (await engine.get("r2")).failure.message
        clock.advance(61)
        assert (await engine.retry("r2")).ok


@pytest.mark.parametrize("limit", [Pace(1, 60), Window(begin="12:00", end="13:00")])
async def test_a_preview_does_not_get_past_a_guard_of_the_time(root, limit):
    clock = FakeClock(MONDAY_NOON, auto=False)
    flow = writing({"a": b""}, limit)
    async with Engine(root, [flow], clock=clock, resume=False) as engine:
        for run_id in ("r", "s"):
            await engine.start(flow, run_id=run_id)
        digests = [(await engine.preview(run_id)).digest for run_id in ("r", "s")]
        assert (await engine.commit(digests[0])).ok
        clock.advance(30 if isinstance(limit, Pace) else 3600)
        with pytest.raises(GuardDenied):
            await engine.commit(digests[1])
        assert (await engine.get("s")).position == 0
        clock.advance(60 if isinstance(limit, Pace) else 7 * 86_400 - 3600)
        assert (await engine.commit(digests[1])).ok


# --- what nothing can meet ---


@pytest.mark.parametrize(
    ("limits", "code", "named"),
    [
        ([Range("f", "x", 10, 5)], "unsatisfiable_range", ["range", "10", "5"]),
        ([Range("f", "x", at_least=10, name="a"), Range("f", "x", at_most=5, name="b")], "unsatisfiable_range", ["a", "b"]),
        ([Range("f", "x", at_least=float("nan"))], "not_a_number", ["nan"]),
        ([Range("f", "x", at_most=float("inf"))], "not_a_number", ["inf"]),
        ([Range("f", "x")], "invalid_range", ["neither"]), ([Range("", "x", 1)], "invalid_range", []),
        ([Range("f", "x", 1, otherwise="maybe")], "invalid_range", ["maybe"]),
        ([Hold(0)], "invalid_hold_time", ["0"]), ([Hold(-3)], "invalid_hold_time", ["-3"]),
        ([Hold(float("nan"))], "invalid_hold_time", ["nan"]),
        ([Pace(0, 60)], "invalid_rate_limit", ["0"]), ([Pace(5, -1)], "invalid_rate_limit", ["-1"]),
        ([Pace(1.5, 60)], "invalid_rate_limit", ["1.5"]),
        ([Sizes()], "invalid_size_limit", []), ([Sizes(file_bytes_max=0)], "invalid_size_limit", ["0"]),
        ([Count(0)], "invalid_count_limit", ["0"]), ([Count(True)], "invalid_count_limit", ["True"]),
        ([Paths(allow="*.md")], "invalid_paths", []), ([Paths(allow=[""])], "invalid_paths", []),
        ([Paths(allow=[])], "exclusive_paths", []), ([Paths(allow=["a"], deny=["**"])], "exclusive_paths", []),
        ([Paths(allow=["a/*"], name="p"), Paths(allow=["b/*"], name="q")], "exclusive_paths", ["p", "q", "a/*"]),
        ([Window(days=["mon"], name="p"), Window(days=["tue"], name="q")], "exclusive_windows", ["p", "q"]),
        ([Window(begin="08:00", end="12:00"), Window(begin="12:00", end="18:00")], "exclusive_windows", ["08:00"]),
        ([Window(begin="18:00", end="08:00")], "invalid_window", ["18:00"]),
        ([Window(days=["moonday"])], "invalid_window", ["moonday"]), ([Window(begin="25:00")], "invalid_window", []),
        ([Window(zone="Atlantis")], "invalid_window", ["Atlantis"]), ([Check("no")], "invalid_check", ["no"]),
        (["no guard"], "unknown_guard", ["no guard"]),
    ],
)  # fmt: skip
def test_guards_that_nothing_can_meet_are_refused_when_they_are_declared(limits, code, named):
    flow = Workflow("flow")
    for refused in (
        lambda: Workflow("w", guards=limits),
        lambda: flow.step(name="s", guards=limits)(lambda tx, _: None),
    ):
        with pytest.raises(GuardConflict) as caught:
            refused()
        assert caught.value.code == f"guard_conflict_{code}"
        assert caught.value.as_dict()["code"] == caught.value.code
        for word in named:
            assert word in str(caught.value)
    assert isinstance(caught.value, DeclarationError)


def test_a_steps_guards_are_combined_with_its_workflows():
    flow = Workflow("flow", guards=[Range("f", "x", at_most=5, name="all")])
    with pytest.raises(GuardConflict) as caught:
        flow.step(name="s", guards=[Range("f", "x", at_least=6, name="mine")])(lambda tx, _: None)
    assert caught.value.guards == ("all", "mine")
