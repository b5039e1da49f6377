"""Ready-made steps, and pipelines in files."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from surefoot import DeclarationError, Engine, RunState, SurefootError, Workflow
from surefoot.loader import load_workflow
from surefoot.pipeline import json_schema, load_pipeline, ready_steps
from surefoot.testing import FakeClock
from surefoot_steps import Copy, Delete, Edit, Function, Http, Move, Render, Wait, Write

EXAMPLES = Path(__file__).parents[1] / "examples"


def one(step, **options):
    flow = Workflow("flow", templates=options.pop("templates", "templates"))
    step.declare(flow, "step", **options)
    return flow


async def run(root, flow, **engine):
    async with Engine(root, [flow], **engine) as opened:
        return await opened.run(flow, run_id="r", adopt=True)


def put(root, files):
    for name, content in files.items():
        path = root / "runs/r" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


# --- one by one ---


@pytest.mark.parametrize(
    ("step", "before", "after"),
    [
        (Write(path="a/{run_id}.txt", text="{{ run_id }}!"), {}, {"a/r.txt": "r!"}),
        (Write(path="a.json", value={"x": ["{{ run_id }}", 1]}), {}, {"a.json": '{\n  "x": [\n    "r",\n    1\n  ]\n}\n'}),
        (Copy(source="a", target="b/c"), {"a": "A"}, {"a": "A", "b/c": "A"}),
        (Move(source="a", target="b"), {"a/x": "A"}, {"b/x": "A"}),
        (Delete(path="a"), {"a": "A", "b": "B"}, {"b": "B"}),
        (Delete(path="a"), {"a/x": "A", "a/y/z": "B", "b": "B"}, {"b": "B"}),
        (Delete(path="a", missing_ok=True), {"b": "B"}, {"b": "B"}),
        (Edit(path="a.json", set={"x.y": 2, "l.1": "n"}, remove=["z"]), {"a.json": '{"z": 1, "l": [0]}'},
         {"a.json": '{\n  "l": [\n    0,\n    "n"\n  ],\n  "x": {\n    "y": 2\n  }\n}\n'}),
        (Edit(path="a.toml", set={"t.n": 2}), {"a.toml": "# why\n[t]\nn = 1 # one\nm = 3\n"},
         {"a.toml": "# why\n[t]\nn = 2 # one\nm = 3\n"}),
        (Edit(path="a.yaml", set={"n": 2}, remove=["m"]), {"a.yaml": "# why\nn: 1 # one\nm: 3\n"},
         {"a.yaml": "# why\nn: 2 # one\n"}),
    ],
)  # fmt: skip
async def test_what_each_step_does_to_files(root, step, before, after):
    put(root, before)
    result = await run(root, one(step))
    assert result.ok, result.failure
    found = {
        str(p.relative_to(root / "runs/r")): p.read_text()
        for p in (root / "runs/r").rglob("*")
        if p.is_file()
    }
    del found["demo.status.json"]
    assert found == after


@pytest.mark.parametrize(
    ("step", "before", "words"),
    [
        (Copy(source="a", target="b"), {}, ["a"]), (Delete(path="a"), {}, ["a"]), (Move(source="a", target="b"), {}, ["a"]),
        (Edit(path="a.json", set={"x": 1}), {"a.json": "{"}, ["JSON"]),
        (Edit(path="a.toml", set={"x": 1}), {"a.toml": "= 1"}, ["TOML"]),
        (Edit(path="a.yaml", set={"x": 1}), {"a.yaml": "a: [1"}, ["YAML"]),
        (Edit(path="a.json", remove=["x.y"]), {"a.json": '{"x": {}}'}, ["x.y"]),
        (Edit(path="a.json", set={"x.5": 1}), {"a.json": '{"x": [1]}'}, ["x.5"]),
        (Edit(path="a.json", set={"x.y": 1}), {"a.json": '{"x": 3}'}, ["x.y"]),
        (Write(path="a", text="{{ nothing }}"), {}, ["nothing"]), (Write(path="a", text="{{"), {}, ["a text"]),
        (Function(call="os:nothing"), {}, ["os:nothing"]), (Function(call="no_such_module:f"), {}, ["no_such_module"]),
        (Render(template="none.j2", path="a"), {}, ["none.j2"]),
    ],
)  # fmt: skip
async def test_a_step_that_cannot_do_it_says_why_and_changes_nothing(root, step, before, words):
    put(root, before)
    result = await run(root, one(step))
    assert result.state is RunState.ERROR
    for word in words:
        assert word in result.failure.message
    assert {p.name for p in (root / "runs/r").iterdir()} == {*before, "demo.status.json"}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("write", {"path": "a"}), ("write", {"path": "a", "text": "x", "value": 1}), ("write", {"text": "x"}),
        ("write", {"path": "", "text": "x"}), ("write", {"path": "a", "text": 3}), ("write", {"path": "a", "text": "x", "extra": 1}),
        ("write", {"path": "../a", "text": "x"}), ("write", {"path": "/a", "text": "x"}), ("write", {"path": "{none}", "text": "x"}),
        ("copy", {"source": "a"}), ("move", {"source": "a", "target": "../b"}), ("delete", {"path": 3}),
        ("edit", {"path": "a.json"}), ("edit", {"path": "a.txt", "set": {"x": 1}}), ("render", {"path": "a"}),
        ("http", {"url": "ftp://x"}), ("http", {"url": "http://x", "method": "LOOK"}), ("http", {"url": "http://x", "timeout_s": 0}),
        ("http", {"url": "http://x", "expect": []}), ("wait", {}), ("wait", {"seconds": -1}), ("wait", {"seconds": 1, "signal": "s"}),
        ("wait", {"signal": "unknown"}), ("wait", {"until": "2030-01-01T00:00:00"}), ("wait", {"seconds": 1, "timeout_s": 3}),
        ("python", {"call": "no colon"}), ("workflow", {}), ("command", {"argv": [], "result": "r", "path": "p"}),
    ],
)  # fmt: skip
def test_wrong_options_are_refused_when_they_are_declared(kind, options):
    flow = Workflow("flow")
    with pytest.raises(DeclarationError) as caught:
        ready_steps()[kind].from_options("flow", "step", options).declare(flow, "step")
    assert caught.value.expected
    assert caught.value.found


async def test_a_wait_and_a_fan_out_of_ready_made_steps(root):
    flow = Workflow("flow")
    Write(path="items.json", value=["x", "y"]).declare(flow, "plan")
    Write(path="{index}-{item}.txt", text="{{ item }}").declare(flow, "each", each="items.json")
    Wait(seconds=3600).declare(flow, "wait")
    Copy(source="0-x.txt", target="copy.txt").declare(flow, "copy")
    clock = FakeClock()
    assert (await run(root, flow, clock=clock)).ok
    assert clock.now() >= 1_800_000_000 + 3600
    assert (root / "runs/r/copy.txt").read_text() == "x"


class Server(http.server.BaseHTTPRequestHandler):
    seen: list  # set by the test
    answers: list

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append((self.path, self.headers["Idempotency-Key"], json.loads(body)))
        self.send_response(self.answers.pop(0))
        self.end_headers()

    def log_message(self, *arguments):
        pass


async def test_an_http_call_comes_after_the_commit_and_is_repeated_with_its_key(root):
    Server.seen, Server.answers = [], [503, 200]
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/runs/{{run_id}}"
        flow = one(Http(url=url, body={"run": "{run_id}"}))
        clock = FakeClock()
        async with Engine(root, [flow], clock=clock) as engine:
            assert (await engine.run(flow, run_id="r")).ok
            for _ in range(3):
                await engine.deliver()
                clock.advance(60)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert Server.seen == [("/runs/r", "r/1/step/step", {"run": "r"})] * 2


# --- files ---


def test_the_example_runs_from_the_command_line(root, monkeypatch):
    def surefoot(*arguments, code=0):
        done = subprocess.run(
            [sys.executable, "-m", "surefoot", *arguments, "-w", root], capture_output=True, text=True
        )
        assert done.returncode == code, done.stderr
        return done.stdout

    at = str(EXAMPLES / "newsletter/newsletter.toml")
    surefoot("run", at, "--id", "n", "--queue", "q", "-i", "topic=rivers")
    worker = subprocess.Popen(
        [sys.executable, "-m", "surefoot", "work", at, "-w", root], stderr=subprocess.PIPE, text=True
    )
    try:
        assert "working" in worker.stderr.readline()
        while json.loads(surefoot("status", "n", "--json"))["waits_for"] is None:
            pass
        surefoot("send", "n", "approve", '{"by": "me"}')
        while json.loads(surefoot("status", "n", "--json"))["state"] != "completed":
            pass
    finally:
        worker.terminate()
        assert worker.wait(20) == 0
        worker.stderr.close()
    folder = root / "newsletters/n"
    assert (folder / "settings.yaml").read_text() == "title: All about rivers\nsent: true  # not yet\n"
    assert (folder / "parts/2.md").read_text() == "## rivers\n\nAbout rivers.\n"


GOOD = """
workflow = "p"
[input]
topic = "str"
[steps.a]
use = "write"
path = "a"
text = "x"
[steps.b]
use = "delete"
path = "a"
"""


def loaded(tmp_path, text, suffix="toml"):
    path = tmp_path / f"p.{suffix}"
    path.write_text(text)
    return load_pipeline(str(path))


def test_toml_and_yaml_say_the_same(tmp_path):
    yaml = "workflow: p\ninput: {topic: str}\nsteps:\n  a: {use: write, path: a, text: x}\n  b: {use: delete, path: a}\n"
    one, other = loaded(tmp_path, GOOD), loaded(tmp_path, yaml, "yaml")
    assert one.graph == other.graph
    assert one.input.model_json_schema() == other.input.model_json_schema()


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('workflow = "p"', 'workflow = "no good"', "no good"), ('workflow = "p"', "workflow = 3", "workflow"),
        ('workflow = "p"', 'flow = "p"', "workflow"), ('topic = "str"', 'topic = "text"', "input.topic"),
        ('topic = "str"', "topic = 3", "input.topic"), ('use = "delete"', 'use = "explode"', "b.use"),
        ('use = "delete"', 'user = "delete"', "steps.b.use"), ('path = "a"\ntext', 'pat = "a"\ntext', "a.path"),
        ('text = "x"', 'text = "x"\nafter = "nowhere"', "nowhere"), ('text = "x"', 'text = "x"\nafter = 3', "after"),
        ('text = "x"', 'text = "x"\nretry = { attempts = 0 }', "attempts"),
        ('text = "x"', 'text = "x"\nretry = { tries = 3 }', "retry.tries"),
        ('text = "x"', 'text = "x"\noutcomes = { x = "zzz" }', "zzz"), ('text = "x"', 'text = "x"\nat_once = 0', "at_once"),
        ('text = "x"', 'text = "x"\nstep_timeout_s = -1', "timeout_s"), ('text = "x"', 'text = "x"\nreads = "a"', "reads"),
        ('text = "x"', 'text = "x"\nreads = ["../a"]', "../a"), ('text = "x"', 'text = "x"\nvisits_max = 0', "visits_max"),
        ("[input]", '[schedules.s]\ncron = "never"\ninput = {topic = "x"}\n[input]', "s"), ("[input]", "[schedules.s]\n[input]", "schedules.s.cron"),
        ("[input]", 'directory = "/abs"\n[input]', "/abs"), ("[input]", "deadline_s = 0\n[input]", "deadline_s"),
        ("[input]", "pinned = true\n[input]", "version"), ("[input]", 'extra = "x"\n[input]', "extra"),
    ],
)  # fmt: skip
def test_every_wrong_key_is_refused_with_its_path(tmp_path, old, new, key):
    assert old in GOOD
    with pytest.raises(DeclarationError) as caught:
        loaded(tmp_path, GOOD.replace(old, new, 1))
    assert key in str(caught.value)
    assert caught.value.expected
    assert caught.value.found


@pytest.mark.parametrize("text", ["", "steps = 3", "[steps]", "= 3", "\x00", "workflow = 'w'"])
@pytest.mark.parametrize("suffix", ["toml", "yaml"])
def test_a_file_that_is_no_pipeline_is_refused(tmp_path, text, suffix):
    with pytest.raises(SurefootError):
        loaded(tmp_path, text, suffix)
    for missing in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(SurefootError):
            load_workflow(f"{missing}.toml" if missing == tmp_path else str(missing))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                    lambda c: st.lists(c, max_size=3) | st.dictionaries(st.text(max_size=8), c, max_size=3), max_leaves=12))  # fmt: skip
def test_no_yaml_whatsoever_is_more_than_an_error(tmp_path, document):
    (tmp_path / "p.yaml").write_text(json.dumps(document))
    with pytest.raises(SurefootError):
        load_pipeline(str(tmp_path / "p.yaml"))


def test_the_published_schema_is_current_and_knows_every_step():
    published = json.loads((EXAMPLES.parent / "steps/surefoot_steps/pipeline.schema.json").read_text())
    assert published == json_schema()
    assert [variant["title"] for variant in published["$defs"]["StepOf"]["oneOf"]] == sorted(ready_steps())


def test_a_step_of_another_package_is_found_by_its_entry_point(root, tmp_path):
    (tmp_path / "theirs.py").write_text(
        "from surefoot_steps import ReadyStep\n"
        "class Shout(ReadyStep):\n"
        "    word: str\n"
        "    def run(self, tx, values):\n"
        "        tx.write_text('shout', self.word.upper() + values.given['topic'])\n"
    )
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[surefoot.steps]\nshout = theirs:Shout\n")
    (tmp_path / "p.toml").write_text(
        'workflow = "p"\n[input]\ntopic = "str"\n[steps.s]\nuse = "shout"\nword = "hey "\n'
    )

    def surefoot(*arguments, code=0):
        done = subprocess.run(
            [sys.executable, "-m", "surefoot", *arguments, "-w", root], capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    surefoot("run", str(tmp_path / "p.toml"), "--id", "r", "-i", "topic=you")
    assert (root / "runs/r/shout").read_text() == "HEY you"
    assert '"shout"' in surefoot("schema")
    (tmp_path / "p.toml").write_text((tmp_path / "p.toml").read_text().replace("word", "wrod"))
    assert "word" in surefoot("run", str(tmp_path / "p.toml"), code=2)
