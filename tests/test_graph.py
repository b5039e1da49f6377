"""The shape of workflows: which steps follow which, and what is refused when it is declared."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from surefoot import DeclarationError, Done, Engine, Retry, Workflow, machine
from surefoot.graph import Graph, Node
from surefoot.model import RunState, VisitState
from surefoot.patterns import matches, may_meet


class Brief(BaseModel):
    topic: str = "t"


def step(tx, given):
    pass


def item_step(tx, given, item):
    pass


def flow_of(**declared):
    """By name: the options of each step."""
    flow = Workflow("flow", input=Brief)
    for name, options in declared.items():
        flow.step(name=name, **options)(item_step if "each" in options else step)
    return flow


# --- what is refused when it is declared ---


@pytest.mark.parametrize(
    ("declared", "named"),
    [
        ({"a": {"outcomes": {"x": "nowhere"}}}, ["a", "nowhere"]),
        ({"a": {"outcomes": {"x": "b"}}, "b": {}, "c": {"after": "a"}}, ["c", "a"]),
        ({"a": {"outcomes": {"x": Done()}}, "b": {}}, ["b", "a"]),
        ({"a": {"outcomes": {"again": "a"}}}, ["a", "end of the run"]),
        ({"a": {}, "b": {"outcomes": {"x": "a", "y": "b"}}}, ["a", "end of the run"]),
        ({"a": {}, "b": {"after": "a", "writes": ["x"]}, "c": {"after": "a", "writes": ["x"]}}, ["b", "c", "x"]),
        (
            {"a": {}, "b": {"after": "a", "writes": ["out/*.md"]}, "c": {"after": "a"},
             "d": {"after": "c", "writes": ["out/{topic}.md"]}},
            ["b", "d", "out/*.md"],
        ),
        ({"a": {"writes": ["x"]}, "b": {"after": [], "writes": ["x"]}}, ["a", "b", "x"]),
        ({"a": {"each": "items.json", "writes": ["one.md"]}}, ["a", "one.md"]),
    ],
)  # fmt: skip
def test_a_graph_that_cannot_work_is_refused_with_names(declared, named, root):
    flow = flow_of(**declared)
    for refused in (flow.check, lambda: Engine(root, [flow])):
        with pytest.raises(DeclarationError) as caught:
            refused()
        for name in named:
            assert name in str(caught.value)


def test_a_circle_of_predecessors_is_refused_with_its_names():
    graph = Graph.of("flow", [Node("a", ("c",)), Node("b", ("a",)), Node("c", ("b",))])
    with pytest.raises(DeclarationError, match="a → b → c"):
        graph.check()


@pytest.mark.parametrize(
    "declared",
    [
        {"a": {}, "b": {"after": "a", "writes": ["x"]}, "c": {"after": "b", "writes": ["x"]}},
        {
            "a": {"outcomes": {"l": "b", "r": "c"}},
            "b": {"writes": ["x"]},
            "c": {"after": [], "writes": ["x"]},
        },
        {"a": {}, "b": {"after": "a", "writes": ["b/*"]}, "c": {"after": "a", "writes": ["c/*"]}},
        {"a": {"each": "items.json", "writes": ["one.md"], "at_once": 1}},
        {"a": {"each": "items.json", "writes": ["{index}.md"]}},
        {"a": {}, "b": {"outcomes": {"again": "a", "done": Done()}}},
        {"a": {}, "b": {"after": "a"}, "c": {"after": "a"}, "d": {"after": ["b", "c"]}},
    ],
)
def test_a_graph_that_can_work_is_taken(declared):
    flow_of(**declared).check()


@pytest.mark.parametrize(
    "options",
    [
        {"at_once": 0, "each": "x"}, {"at_once": True, "each": "x"}, {"at_once": "2", "each": "x"},
        {"timeout_s": 0}, {"timeout_s": -1.0}, {"timeout_s": float("nan")}, {"timeout_s": float("inf")},
        {"timeout_s": "1"}, {"deadline_s": 0.0}, {"deadline_s": 1e18}, {"visits_max": 0}, {"visits_max": 10**9},
        {"outcomes": {}}, {"outcomes": []}, {"outcomes": {"": "a"}}, {"outcomes": {"x": 3}}, {"outcomes": {"x": [3]}},
        {"outcomes": {"a b": "a"}}, {"each": 3}, {"each": "../x"}, {"each": "{nothing}.json"}, {"reads": "notes.md"},
        {"reads": [3]}, {"writes": "x"}, {"writes": ["{item}"]}, {"locks": [""]}, {"locks": "hot"}, {"retry": 3},
        {"templates": [""]}, {"after": 3}, {"after": [3]}, {"reads_bytes_max": -1}, {"name": ""}, {"name": "x" * 200},
    ],
)  # fmt: skip
def test_wrong_options_of_a_step_are_refused_at_once(options):
    flow = Workflow("flow", input=Brief)
    with pytest.raises(DeclarationError) as caught:
        flow.step(**options)(item_step if "each" in options else step)
    assert caught.value.expected
    assert caught.value.found
    assert flow.steps == {}


@pytest.mark.parametrize(
    "make",
    [
        lambda: Retry(attempts=0), lambda: Retry(attempts=float("inf")), lambda: Retry(attempts=10**9),
        lambda: Retry(initial_s=-1), lambda: Retry(factor=float("nan")), lambda: Retry(max_s=float("inf")),
        lambda: Retry(on=()), lambda: Retry(on=(int,)), lambda: Retry(jitter=-0.1),
        lambda: Workflow("w", version=3), lambda: Workflow("w", pinned=True), lambda: Workflow("w", deadline_s=0),
        lambda: Workflow("w").signal("bad name"), lambda: Workflow("w").signal("s", dict),
        lambda: Workflow("w", input=dict), lambda: Workflow(3),
    ],
)  # fmt: skip
def test_wrong_declarations_are_refused(make):
    with pytest.raises(DeclarationError):
        make()


def test_two_names_of_one_kind_are_refused():
    flow = flow_of(a={})
    flow.signal("s")
    flow.schedule("nightly", "0 3 * * *")
    for again in (
        lambda: flow.step(name="a")(step),
        lambda: flow.signal("s"),
        lambda: flow.schedule("nightly", "0 3 * * *"),
    ):
        with pytest.raises(DeclarationError, match="name of its own"):
            again()


@pytest.mark.parametrize(
    "options",
    [
        {"cron": "every day"}, {"cron": ""}, {"cron": "0 0 30 2 *"}, {"cron": "61 * * * *"}, {"cron": 3},
        {"cron": "0 0 29 2 *", "zone": "Atlantis/Nowhere"}, {"cron": "* * * * *", "overlap": "perhaps"},
        {"cron": "* * * * *", "catch_up_s": -1}, {"cron": "* * * * *", "queue": "no queue"},
    ],
)  # fmt: skip
def test_a_schedule_that_cannot_work_is_refused(options):
    flow = flow_of(a={})
    with pytest.raises(DeclarationError):
        flow.schedule("name", **options)
    assert flow.schedules == {}


# --- patterns ---


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        ("a.md", "a.md", True), ("a.md", "b.md", False), ("*.md", "a.md", True), ("*.md", "a/b.md", False),
        ("**/b.md", "a/b.md", True), ("out/*", "out/{topic}", True), ("a*c", "ab*", True), ("a?", "ab", True),
        ("a?", "a/", False), ("[ab].md", "c.md", True), ("{run_id}", "x/y", True), ("x/*", "y/*", False),
    ],
)  # fmt: skip
def test_patterns_that_can_name_one_file(one, other, meet):
    assert may_meet(one, other) is meet
    assert may_meet(other, one) is meet


def test_a_name_with_wildcards_in_it_is_only_itself():
    assert matches("*", "[a]*?")
    assert not matches("a", "*")
    assert not matches("abc", "a*c")


# --- how runs move: for any graph ---


@st.composite
def graphs(draw):
    """Random graphs: each step follows some before it, some choose, some go back."""
    count = draw(st.integers(2, 7))
    names = [f"s{n}" for n in range(count)]
    nodes = []
    for n, name in enumerate(names):
        after = draw(st.lists(st.sampled_from(names[:n]), max_size=2, unique=True)) if n else []
        outcomes = {}
        if draw(st.booleans()):
            later = names[n + 1 :] or names
            outcomes = {
                "on": tuple(draw(st.lists(st.sampled_from(later), max_size=2, unique=True))),
                "back": (draw(st.sampled_from(names[: n + 1])),),
                "end": (),
            }
        nodes.append(Node(name, tuple(after), outcomes=outcomes, visits_max=6))
    return Graph.of("flow", nodes)


@given(graphs(), st.randoms())
def test_every_run_of_every_graph_comes_to_an_end(graph, random):
    """Whatever branches do, in whatever order: nothing is lost, no join waits for ever, numbers are unique."""
    run = machine.created("r", graph, "{}", "runs/r", source="", at=0.0)
    numbers = {visit.number for visit in run.open}
    for _ in range(300):
        if run.state is RunState.COMPLETED:
            assert run.open == ()
            return
        due = [visit for visit in run.open if visit.state is VisitState.DUE]
        assert due, f"nothing can go on: {run.open}"
        visit = random.choice(due)
        node = graph.nodes[visit.step]
        outcome = random.choice(list(node.outcomes)) if node.outcomes else None
        steps = node.outcomes[outcome] if outcome else graph.followers[visit.step]
        try:
            after = machine.stepped(
                run, visit.number, machine.Choice(outcome or "committed", steps), graph, 1.0
            )
        except machine.LapsExceeded:
            return  # the loop went round too often, which is an error of that step
        fresh = {v.number for v in after.open} - {v.number for v in run.open}
        assert not fresh & numbers
        numbers |= fresh
        assert after.revision == run.revision + 1
        for joining in (v for v in after.open if v.state is VisitState.JOINING):
            others = [v for v in after.open if v.number != joining.number]
            assert any(joining.step in graph.leads_to[v.step] for v in others)
        steps_joining = [v.step for v in after.open if v.state is VisitState.JOINING]
        assert len(steps_joining) == len(set(steps_joining))
        run = after
    pytest.fail("a run of 300 steps with at most 6 visits of each")
