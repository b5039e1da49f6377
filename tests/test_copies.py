"""Working copies: made as of one moment, sealed by content, committed against what is there, never lost."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import stat
import time
from pathlib import Path

import pytest
from agentflow import QUICK, drafting, scripted, spec
from faulty import Hooked, Once
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from surefoot import ChangesRefused, Conflict, CopyRefused, Engine, RunState
from surefoot.agentspec import matcher
from surefoot.tending import copy_name
from surefoot_storage import ChangeSet, PathChange, Version, Workspace, fsclones
from surefoot_storage.changes import Entry

A_WHILE_NS = 20_000_000


def nothing(_path):
    return False


def tree_of(folder):
    """What is in a directory: contents, modes and links by path."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        name, mode = str(path.relative_to(folder)), stat.S_IMODE(path.lstat().st_mode)
        if path.is_symlink():
            found[name] = ("link", os.readlink(path))
        elif path.is_dir():
            found[name] = ("directory", mode)
        elif path.is_file():
            found[name] = (path.read_bytes(), mode)
        else:
            found[name] = ("special", mode)
    return found


@pytest.fixture
def live(root):
    folder = root / "live"
    (folder / "deep/er").mkdir(parents=True)
    (folder / "a.txt").write_text("a\n")
    (folder / "deep/b.txt").write_text("b\n")
    (folder / "deep/er/c.bin").write_bytes(os.urandom(200_000))
    (folder / "script.sh").write_text("#!/bin/sh\n")
    (folder / "script.sh").chmod(0o755)
    (folder / "secret").mkdir(mode=0o500)
    (folder / "link").symlink_to("a.txt")
    (folder / "nowhere").symlink_to("/no/such/thing")
    return folder


# --- making one ---


def test_a_copy_is_what_it_was_made_of(workspace, live):
    workspace.copies.prepare("one", "live", nothing)
    copied = tree_of(workspace.copies.path("one"))
    assert copied == tree_of(live)
    assert (
        Path(workspace.copies.path("one"), "a.txt").stat().st_mtime_ns == (live / "a.txt").stat().st_mtime_ns
    )
    Path(workspace.copies.path("one"), "a.txt").write_text("changed\n")
    assert (live / "a.txt").read_text() == "a\n"


def test_what_is_to_be_left_out_is_not_copied_and_surefoots_own_never(workspace, live):
    root = Path(workspace.root)
    (root / "node_modules/deep").mkdir(parents=True)
    workspace.copies.prepare("one", "", matcher(["node_modules", "**/*.bin"]))
    copied = tree_of(workspace.copies.path("one"))
    assert ".surefoot" not in copied
    assert not [name for name in copied if "node_modules" in name or name.endswith(".bin")]
    assert "live/deep/b.txt" in copied


def test_pipes_sockets_and_devices_are_not_copied_and_harm_nothing(workspace, live):
    os.mkfifo(live / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(live / "socket"))
        workspace.copies.prepare("one", "live", nothing)
    assert not {"pipe", "socket"} & set(tree_of(workspace.copies.path("one")))
    assert workspace.copies.seal("one", nothing).changes == ()


def test_a_file_that_changes_while_it_is_copied_is_copied_again(root, live):
    """So that the copy is of one moment."""

    def edit():
        (live / "a.txt").write_text("edited meanwhile\n")
        (live / "new").mkdir()
        (live / "new/file.txt").write_text("new\n")
        shutil.rmtree(live / "deep/er")

    with Workspace(root, fs=Hooked(Once("clone_names", edit, nth=2))) as workspace:
        workspace.copies.prepare("one", "live", nothing)
        assert tree_of(workspace.copies.path("one")) == tree_of(live)
        assert workspace.copies.seal("one", nothing).changes == ()


@pytest.mark.parametrize("when", [None, "cloned", "not yet", "both", "gone", "new"])
def test_a_directory_at_rest_is_seen_once_and_a_change_meanwhile_makes_it_no_mix(
    root, live, monkeypatch, when
):
    monkeypatch.setattr(fsclones, "_SETTLED_NS", A_WHILE_NS)
    for number in range(20):
        (live / f"sibling{number}").write_text("before\n")
    before, looks = tree_of(live), []

    def hook(name, arguments):
        if name == "look_through":
            looks.append(arguments)
        if name != "clone_names" or arguments[2][1] != "deep/er/":
            return
        if when in ("cloned", "both"):
            for path in [path for path, row in arguments[3].rows.items() if row[0] == "file"]:
                (live / path).write_text("after\n")
        if when in ("not yet", "both"):
            (live / "deep/er/c.bin").write_text("after\n")
        if when == "gone":
            (live / "deep/er/c.bin").unlink()
        if when == "new":
            (live / "deep/er/new.txt").write_text("after\n")

    rest(live)
    with Workspace(root, fs=Hooked(hook)) as workspace:
        workspace.copies.prepare("one", "live", nothing)
        assert bool(looks) == (when not in (None, "cloned"))
        assert tree_of(workspace.copies.path("one")) in (before, tree_of(live))


def rest(directory):
    """Until the last change is a while ago."""
    newest = max(path.lstat().st_ctime_ns for path in [directory, *directory.rglob("*")])
    while time.time_ns() < newest + 2 * A_WHILE_NS:
        pass


def test_a_directory_that_never_stands_still_is_refused(root, live):
    def hook(name, _arguments):
        if name == "look_through":
            (live / "a.txt").write_text(str(time.monotonic_ns()))

    with (
        Workspace(root, fs=Hooked(hook)) as workspace,
        pytest.raises(CopyRefused, match=r"a\.txt, which keeps changing"),
    ):
        workspace.copies.prepare("one", "live", nothing)


@pytest.mark.parametrize(
    "call", ["mkdir", "look_through", "clone_tree", "create", "sync_data", "rename_over"]
)
def test_preparing_that_fails_is_simply_done_again(root, live, call):
    def fail():
        raise OSError(28, "No space left on device")

    with Workspace(root, fs=Hooked(hook := Once(call, fail, nth=10**9))) as workspace:
        hook._left = 1
        with pytest.raises((CopyRefused, OSError)):
            workspace.copies.prepare("one", "live", nothing)
        workspace.copies.prepare("one", "live", nothing)
        assert tree_of(workspace.copies.path("one")) == tree_of(live)


def test_twice_is_once(workspace, live):
    assert workspace.copies.prepare("one", "live", nothing) == 9
    Path(workspace.copies.path("one"), "mine.txt").write_text("mine\n")
    workspace.copies.prepare("one", "live", nothing)
    assert Path(workspace.copies.path("one"), "mine.txt").exists()


# --- sealing ---


def test_every_kind_of_change_is_seen_and_those_that_cannot_be_committed_are_named(workspace, live):
    workspace.copies.prepare("one", "live", nothing)
    work = Path(workspace.copies.path("one"))
    (work / "a.txt").write_text("changed\n")
    (work / "deep/b.txt").unlink()
    shutil.rmtree(work / "deep/er")
    (work / "script.sh").chmod(0o644)
    (work / "new/er").mkdir(parents=True)
    (work / "new/er/n.txt").write_text("new\n")
    (work / "link").unlink()
    (work / "loop").symlink_to("loop")
    os.mkfifo(work / "pipe")
    (work / "suid").write_text("")
    (work / "suid").chmod(0o4755)
    Path(os.fsdecode(os.fsencode(work) + b"/\xff\xfe")).write_text("not UTF-8")
    changes = workspace.copies.seal("one", nothing)
    assert {change.path: change.action for change in changes.changes} == {
        "a.txt": "modify", "deep/b.txt": "delete", "deep/er": "rmdir", "deep/er/c.bin": "delete",
        "new": "mkdir", "new/er": "mkdir", "new/er/n.txt": "add", "script.sh": "chmod",
    }  # fmt: skip
    assert {path for path, _ in changes.blocked} == {"link", "loop", "pipe", "suid", os.fsdecode(b"\xff\xfe")}
    assert ChangeSet.from_dict(json.loads(json.dumps(changes.as_dict()))) == changes
    assert workspace.copies.sealed("one") == changes


def test_touching_is_no_change_and_a_time_that_is_put_back_hides_none(workspace, live):
    workspace.copies.prepare("one", "live", nothing)
    work = Path(workspace.copies.path("one"))
    before = (work / "a.txt").stat()
    (work / "deep/b.txt").touch()
    (work / "a.txt").write_text("b\n")  # as long as before
    os.utime(work / "a.txt", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert workspace.copies.seal("one", nothing).paths == ("a.txt",)


def test_what_was_sealed_does_not_change_with_the_copy(workspace, live):
    workspace.copies.prepare("one", "live", nothing)
    work = Path(workspace.copies.path("one"))
    (work / "a.txt").write_text("sealed\n")
    changes = workspace.copies.seal("one", nothing)
    (work / "a.txt").write_text("later\n")
    assert workspace.copies.seal("one", nothing) == changes
    assert workspace.copies.read("one", changes.changes[0].new.sha256) == b"sealed\n"
    assert workspace.copies.strays("one") == ["a.txt"]


def test_a_copy_that_somebody_still_writes_to_is_not_sealed(root, live):
    work = root / ".surefoot/copies/one/work"

    def hook(name, _arguments):
        if name in ("look_through", "digest") and work.exists():
            (work / "a.txt").write_text(str(time.monotonic_ns()))

    with Workspace(root) as workspace:
        workspace.copies.prepare("one", "live", nothing)
    with Workspace(root, fs=Hooked(hook)) as workspace:
        with pytest.raises(CopyRefused, match="nobody writes to"):
            workspace.copies.seal("one", nothing)
        assert workspace.copies.sealed("one") is None


def test_changes_that_are_left_out_are_listed_with_their_size(workspace, live):
    workspace.copies.prepare("one", "live", nothing)
    work = Path(workspace.copies.path("one"))
    (work / "deep/cache").write_bytes(b"x" * 1000)
    (work / "a.txt").write_text("changed\n")
    changes = workspace.copies.seal("one", matcher(["deep"]))
    assert (changes.paths, changes.left_out) == (("a.txt",), (("deep/cache", 1000),))


def test_the_digest_names_every_byte_and_mode(workspace, live):
    old, new = Version(0o644, "1" * 64, 1), Version(0o644, "2" * 64, 1)
    base = ChangeSet("d", (PathChange("p", old, new),))
    others = [
        ChangeSet("e", base.changes), ChangeSet("d", (PathChange("q", old, new),)),
        ChangeSet("d", (PathChange("p", None, new),)), ChangeSet("d", (PathChange("p", old, None),)),
        ChangeSet("d", (PathChange("p", old, Version(0o600, "2" * 64, 1)),)),
        ChangeSet("d", base.changes, conflicts=("p",)),
    ]  # fmt: skip
    assert len({change_set.digest for change_set in (base, *others)}) == 7


def test_names_that_differ_by_case_only_are_two_changes(root):
    (root / "README.md").write_text("text\n")
    with Engine(root, resume=False) as engine:
        row = engine.agents.launch(["mv", "README.md", "Readme.md"], **QUICK).wait()
        work = engine.agents.wait(row.id).wait()
        assert work.changes == (("delete", "README.md"), ("add", "Readme.md"))
        engine.agents.commit(row.id).wait()
    assert [p.name for p in root.iterdir() if p.name != ".surefoot"] == ["Readme.md"]


@pytest.mark.long
def test_twenty_thousand_files(root):
    for number in range(20_000):
        if number % 100 == 0:
            (root / f"big/{number // 100}").mkdir(parents=True)
        (root / f"big/{number // 100}/{number}.txt").write_text(f"{number}\n")
    with Workspace(root) as workspace:
        assert workspace.copies.prepare("one", "big", nothing) == 20_200
        work = Path(workspace.copies.path("one"))
        (work / "7/777.txt").write_text("changed\n")
        shutil.rmtree(work / "100")
        changes = workspace.copies.seal("one", nothing)
    assert len(changes.changes) == 1 + 101


# --- committing: what is there now ---

EDITS = {
    "modify": lambda work: (work / "old.txt").write_text("agent\n"),
    "delete": lambda work: (work / "old.txt").unlink(),
    "chmod": lambda work: (work / "old.txt").chmod(0o600),
    "add": lambda work: (work / "add.txt").write_text("agent\n"),
}
OTHERS = {
    "modify": lambda live: (live / "old.txt").write_text("person\n"),
    "delete": lambda live: (live / "old.txt").unlink(),
    "add": lambda live: (live / "add.txt").write_text("person\n"),
    "elsewhere": lambda live: (live / "elsewhere.txt").write_text("person\n"),
}
FREE = {("modify", "add"), ("delete", "add"), ("chmod", "add"), ("add", "modify"), ("add", "delete")}


@pytest.mark.parametrize("when", ["before it is sealed", "after it was sealed"])
@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("edit", EDITS)
def test_what_somebody_has_changed_meanwhile_is_a_conflict_and_never_overwritten(root, edit, other, when):
    (root / "old.txt").write_text("old\n")
    with Workspace(root) as workspace:
        copies = workspace.copies
        copies.prepare("one", "", nothing)
        EDITS[edit](Path(copies.path("one")))
        if when == "before it is sealed":
            OTHERS[other](root)
        changes = copies.seal("one", nothing)
        if when == "after it was sealed":
            OTHERS[other](root)
        before = tree_of(root)
        free = other == "elsewhere" or (edit, other) in FREE or (edit == other == "delete")
        if free:
            _commit(workspace, changes)
            assert "elsewhere.txt" not in tree_of(root) or (root / "elsewhere.txt").read_text() == "person\n"
            return
        with pytest.raises(Conflict):
            _commit(workspace, changes)
        visible = {k: v for k, v in before.items() if not k.startswith(".surefoot")}
        assert {k: v for k, v in tree_of(root).items() if not k.startswith(".surefoot")} == visible
        _commit(workspace, changes, theirs=lambda _path: True)
        assert {k: v for k, v in tree_of(root).items() if not k.startswith(".surefoot")} == visible
        _commit(workspace, changes, ours=lambda _path: True)
        assert tree_of(root).get("old.txt") == tree_of(copies.path("one")).get("old.txt")
        assert tree_of(root).get("add.txt") == tree_of(copies.path("one")).get("add.txt")


def _commit(workspace, changes, *, ours=nothing, theirs=nothing):
    from surefoot.taking import take

    files = workspace.begin(label="take")
    try:
        take(
            workspace, files, "one", changes, picked=lambda _p: True, ours=ours, theirs=theirs, subject="one"
        )
        return workspace.commit(files)
    finally:
        files.fence()


def test_a_file_that_appears_in_a_removed_directory_is_never_lost(root):
    (root / "gone").mkdir()
    (root / "gone/a.txt").write_text("a\n")
    for name, when in (("one", "before"), ("two", "after")):
        with Workspace(root) as workspace:
            workspace.copies.prepare("one", "", nothing) if name == "one" else None
            if when == "before":
                shutil.rmtree(workspace.copies.path("one") + "/gone")
            else:
                workspace.copies.remove("one", discard=True)
                (root / "gone/new.txt").unlink()
                workspace.copies.prepare("one", "", nothing)
                shutil.rmtree(workspace.copies.path("one") + "/gone")
                changes = workspace.copies.seal("one", nothing)
            (root / "gone/new.txt").write_text("a person's\n")
            if when == "before":
                changes = workspace.copies.seal("one", nothing)
            with pytest.raises((Conflict, Exception)):
                _commit(workspace, changes)
        assert (root / "gone/new.txt").read_text() == "a person's\n"
        assert (root / "gone/a.txt").read_text() == "a\n"


def test_a_directory_that_becomes_a_file_and_back(root):
    (root / "x").mkdir()
    (root / "x/in.txt").write_text("in\n")
    (root / "y").write_text("y\n")
    with Workspace(root) as workspace:
        workspace.copies.prepare("one", "", nothing)
        work = Path(workspace.copies.path("one"))
        shutil.rmtree(work / "x")
        (work / "x").write_text("now a file\n")
        (work / "y").unlink()
        (work / "y").mkdir()
        (work / "y/deep.txt").write_text("deep\n")
        _commit(workspace, workspace.copies.seal("one", nothing))
    assert (root / "x").read_text() == "now a file\n"
    assert (root / "y/deep.txt").read_text() == "deep\n"


def test_large_contents_are_streamed_and_checked(root):
    with Workspace(root) as workspace:
        (root / "small").write_text("s")
        workspace.copies.prepare("one", "", nothing)
        data = os.urandom(3 << 20)
        Path(workspace.copies.path("one"), "large.bin").write_bytes(data)
        changes = workspace.copies.seal("one", nothing)
        kept = root / ".surefoot/copies/one/sealed" / changes.changes[0].new.sha256
        kept.write_bytes(data[:-1] + b"!")
        with pytest.raises(ChangesRefused, match="the disk is damaged"):
            _commit(workspace, changes)
        assert not (root / "large.bin").exists()
        kept.write_bytes(data)
        _commit(workspace, changes)
    assert (root / "large.bin").read_bytes() == data


def test_five_hundred_changed_files_are_one_transaction(root):
    with Engine(root, resume=False) as engine:
        row = engine.agents.launch(spec("many", "500")).wait()
        engine.agents.wait(row.id).wait()
        count = lambda: engine._the_open.workspace.query("SELECT count(*) FROM txn")[0][0]  # noqa: E731
        before = count()
        commit = engine.agents.commit(row.id).wait()
        assert len([op for op in commit.ops if op.path.endswith(".txt")]) == 500
        assert count() == before + 1


# --- what is never deleted ---

ACTIONS = st.lists(
    st.sampled_from(["edit", "seal", "take", "discard", "remove", "clean", "sweep", "doctor", "reopen"]),
    min_size=1, max_size=12,
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(ACTIONS)
def test_no_clean_up_deletes_what_was_neither_committed_nor_sealed_nor_given_up(tmp_path_factory, actions):
    """Every way to delete is tried in every order; whatever the copy held is somewhere, or was given up."""
    root = tmp_path_factory.mktemp("keep")
    (root / "file.txt").write_text("v0\n")
    engine = Engine(root, resume=False)
    engine.__enter__()
    try:
        row = engine.agents.launch(["true"], **QUICK).wait()
        engine.agents.wait(row.id).wait()
        given_up, last = False, b""
        work = root / ".surefoot/copies" / copy_name(row.id) / "work"
        for number, action in enumerate(actions):
            copies = engine._the_open.workspace.copies
            if action == "edit" and work.exists():
                last = f"v{number + 1}\n".encode()
                (work / "file.txt").write_bytes(last)
            elif action == "reopen":
                engine.__exit__(None, None, None)
                engine = Engine(root, resume=False)
                engine.__enter__()
            else:
                with contextlib.suppress(CopyRefused, ChangesRefused, Conflict, OSError):
                    given_up = _do(engine, copies, row.id, action) or given_up
            if last and not given_up:
                assert _is_somewhere(root, row.id, last), (actions[: number + 1], action)
    finally:
        engine.__exit__(None, None, None)
        shutil.rmtree(root)


def _do(engine, copies, agent_id, action):
    """True where the work was given up."""
    name = copy_name(agent_id)
    if action == "seal":
        copies.seal(name, nothing)
    elif action == "take":
        engine.agents.commit(agent_id, ours=["**"]).wait()
    elif action == "discard":
        engine.agents.discard(agent_id).wait()
        return True
    elif action == "remove" and name in copies.names():
        sealed = copies.sealed(name)
        if sealed is None or not sealed.changes:  # what is sealed and undecided: only `clean` looks at that
            copies.remove(name)
    elif action == "clean":
        engine.agents.clean(kept_s=0).wait()
    elif action == "sweep":
        copies.sweep()
    elif action == "doctor":
        engine.agents.doctor().wait()
    return False


def _is_somewhere(root, agent_id, data):
    folder = root / ".surefoot/copies" / copy_name(agent_id)
    places = [root / "file.txt", folder / "work/file.txt", *(folder / "sealed").glob("*")]
    return any(place.is_file() and place.read_bytes() == data for place in places)


def test_removing_that_was_interrupted_is_finished_and_nothing_half_removed_is_taken_for_a_copy(root, live):
    def die():
        raise KeyboardInterrupt

    with Workspace(root) as workspace:
        workspace.copies.prepare("one", "live", nothing)
    with Workspace(root, fs=Hooked(hook := Once("remove_tree", die, nth=10**9))) as workspace:
        hook._left = 2
        with pytest.raises(KeyboardInterrupt):
            workspace.copies.remove("one")
        assert workspace.copies.names() == []
        workspace.copies.sweep()
    assert list((root / ".surefoot/copies").iterdir()) == []


def test_a_secret_that_is_forgotten_is_in_no_copy_either(root):
    with Engine(root, resume=False) as engine:
        workspace = engine._the_open.workspace
        files = workspace.begin()
        files.write_bytes("keys.txt", b"very-secret-4711\n")
        workspace.commit(files)
        for script in ("true", "cp keys.txt copied.txt"):
            engine.agents.wait(engine.agents.launch(["sh", "-c", script], **QUICK).wait().id).wait()
        (root / "keys.txt").unlink()
        engine.upkeep.forget("keys.txt")
    kept = [p for p in root.rglob("*") if p.is_file() and b"very-secret-4711" in p.read_bytes()]
    assert [p.name for p in kept] == ["copied.txt"]  # another path, in a copy that nobody has decided about


def test_what_cannot_be_sealed_and_commits_of_its_own_keep_a_copy_that_is_otherwise_committed(root):
    odd = "printf odd > \"$(printf '\\377')\""
    git = "git init -q && git add ok.txt && git -c user.name=a -c user.email=a@b commit -qm 1"
    with Engine(root, resume=False) as engine:
        for script in (odd, git):
            command = ["sh", "-ec", f"echo ok > ok.txt; {script}"]
            row = engine.agents.launch(command, git="copy", skip=["*"], **QUICK).wait()
            assert engine.agents.wait(row.id).wait().outcome == "succeeded"
            engine.agents.commit(row.id, paths=["ok.txt"]).wait()
            assert engine.agents.clean(kept_s=0).wait() == []
            assert [one["agent"] for one in engine.agents.doctor().wait()] == [row.id]
            engine.agents.discard(row.id).wait()
            assert engine._the_open.workspace.copies.names() == []
            (root / "ok.txt").unlink()


def test_what_nobody_has_decided_about_is_kept_however_old(root):
    with Engine(root, resume=False) as engine:
        undecided = engine.agents.launch(spec("good")).wait()
        unchanged = engine.agents.launch(["true"], **QUICK).wait()
        for row in (undecided, unchanged):
            engine.agents.wait(row.id).wait()
        assert engine.agents.clean(kept_s=3600).wait() == []
        engine.agents.clean(kept_s=0).wait()
        copies = engine._the_open.workspace.copies
        assert undecided.id in copies.names()
        engine.agents.commit(undecided.id).wait()
        assert undecided.id in engine.agents.clean(kept_s=0).wait()
        assert undecided.id not in copies.names()


def test_a_discarded_attempt_can_neither_be_committed_nor_looked_at(root):
    with Engine(root, resume=False) as engine:
        row = engine.agents.launch(spec("good")).wait()
        with pytest.raises(ChangesRefused, match="that is over"):
            engine.agents.discard(row.id).wait()
        engine.agents.wait(row.id).wait()
        engine.agents.discard(row.id).wait()
        engine.agents.discard(row.id).wait()
        for call in (engine.agents.commit, engine.agents.diff):
            with pytest.raises(ChangesRefused, match="discarded"):
                call(row.id).wait()
    assert not (root / "draft.md").exists()


def test_a_digest_that_was_not_looked_at_is_refused(root):
    with Engine(root, resume=False) as engine:
        row = engine.agents.launch(spec("good")).wait()
        engine.agents.wait(row.id).wait()
        with pytest.raises(ChangesRefused, match="surefoot workspace diff"):
            engine.agents.commit(row.id, digest="0" * 16).wait()


def test_guards_judge_what_an_agent_has_changed(root):
    from surefoot import Workflow
    from surefoot.guards import Paths

    flow = Workflow("guarded", directory="demos/{run_id}")

    @flow.step
    def draft(tx, _given):
        return tx.agent(scripted("good", "draft.md"), **QUICK)

    @flow.step(guards=[Paths(deny=["draft.md"])])
    def keep(tx, _given):
        tx.take(tx.work())

    with Engine(root, [flow], resume=False) as engine:
        result = engine.run(flow, run_id="r").wait()
    assert (result.state, result.failure.error) == (RunState.ERROR, "GuardDenied")
    assert not (root / "demos/r/draft.md").exists()


def test_part_of_the_work_may_be_taken(root):
    flow = drafting(scripted("good", "one.md", "two.md"), take={"paths": ["one.md"]})
    with Engine(root, [flow], resume=False) as engine:
        assert engine.run(flow, run_id="r").wait().ok
    assert (root / "demos/r/one.md").exists()
    assert not (root / "demos/r/two.md").exists()


# --- looks ---


def test_two_looks_that_are_equal_saw_the_same():
    entry = Entry("file", 0o644, 5, 1, 2, 3)
    assert entry == Entry("file", 0o644, 5, 1, 2, 3)
    assert entry.still_has(Entry("file", 0o644, 5, 1, 9, 3))  # exchanged: only its time of change is another
    assert not entry.still_has(Entry("file", 0o644, 5, 9, 2, 3))
    assert not entry.still_has(None)


@pytest.mark.parametrize(
    ("pattern", "path", "named"),
    [
        ("node_modules", "node_modules/x/y", True), ("node_modules", "a/node_modules", False),
        ("**/node_modules", "a/b/node_modules/c", True), ("**/node_modules", "node_modules", True),
        ("*.pyc", "a.pyc", True), ("*.pyc", "d/a.pyc", False), ("**/*.pyc", "d/a.pyc", True),
        ("a?", "ab", True), ("a?", "a/", False), ("**", "anything/at/all", True), ("a.b", "axb", False),
        ("build/", "build/x", True),
    ],
)  # fmt: skip
def test_patterns(pattern, path, named):
    assert matcher([pattern])(path) is named
