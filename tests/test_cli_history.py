"""The commands for what was committed, as a person or a program types them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

FLOW = """
from surefoot import Workflow
flow = Workflow("f", directory="demos/{run_id}")
@flow.step
def one(tx, _given):
    tx.write_text("a.txt", "one\\n")
    tx.write_bytes("data.bin", b"\\xff\\x00")
@flow.step
def two(tx, _given):
    tx.write_text("a.txt", "two\\n")
    tx.delete("data.bin")
@two.effect
def tell(done):
    pass
"""


@pytest.fixture
def cli(tmp_path):
    (tmp_path / "flow.py").write_text(FLOW)
    (tmp_path / "w").mkdir()

    def run(*arguments, code=0, text=False):
        command = [sys.executable, "-m", "surefoot", *arguments, "-w", "w", *([] if text else ["--json"])]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True)
        assert done.returncode == code, done.stdout + done.stderr
        if text:
            return (done.stdout + done.stderr).decode("utf-8", "surrogateescape")
        return json.loads(done.stdout)

    run("run", "flow.py:flow", "--id", "r")
    return run


@pytest.fixture
def txids(cli):
    return [entry["txid"] for entry in cli("log", "r")]


def test_show_tells_who_when_what_and_from_where_to_where(cli, txids):
    facts = cli("show", txids[2][:8])
    assert (facts["run_id"], facts["event"], facts["step"], facts["undone_by"]) == ("r", "step", "two", None)
    assert "@" in facts["actor"]
    changes = {change["path"]: change for change in facts["changes"]}
    assert changes["demos/r/a.txt"]["before"]["size_bytes"] == 4
    assert changes["demos/r/data.bin"]["after"] is None
    assert [effect["state"] for effect in facts["effects"]] == ["delivered"]
    text = cli("show", txids[2], text=True)
    assert "step two of run r" in text
    assert "deleted  demos/r/data.bin" in text


def test_diff_of_one_and_between_two(cli, txids):
    text = cli("diff", txids[2], text=True)
    assert "-one\n+two\n" in text
    assert "binary demos/r/data.bin: 2 -> 0 bytes" in text
    whole = {change["path"]: change["kind"] for change in cli("diff", txids[0], txids[2])}
    assert whole == {"demos/r/demo.status.json": "changed", "demos/r/a.txt": "created"}
    assert "one of them first" not in cli("diff", txids[2], txids[0], code=2, text=True)


def test_cat_gives_the_bytes_of_any_version(cli, txids):
    assert cli("cat", f"demos/r/a.txt@{txids[1]}", text=True) == "one\n"
    assert cli("cat", f"demos/r/a.txt@{txids[2]}", text=True) == "two\n"
    assert (
        cli("cat", f"demos/r/data.bin@{txids[1]}", text=True).encode("utf-8", "surrogateescape") == b"\xff\0"
    )
    assert cli("cat", f"demos/r/a.txt@{txids[2]}")["content"] == "two\n"
    assert "found nothing" in cli("cat", f"demos/r/data.bin@{txids[2]}", code=2, text=True)
    assert "PATH@TX" in cli("cat", "demos/r/a.txt", code=2, text=True)


def test_undo_of_a_run_and_of_the_undo(cli, txids, tmp_path):
    folder = tmp_path / "w/demos/r"
    would = cli("undo", "r", "--dry-run")
    assert (would["txid"], would["sent"]) == (None, ["r/2/two/tell"])
    assert (folder / "a.txt").read_text() == "two\n"
    done = cli("undo", "r")
    assert done["undone"] == [txids[2]]
    assert ((folder / "a.txt").read_text(), (folder / "data.bin").read_bytes()) == ("one\n", b"\xff\0")
    assert cli("status", "r")["state"] == "paused"
    assert "surefoot advance" in cli("status", "r", text=True)
    assert "surefoot advance" in cli("run", "flow.py:flow", "--id", "r", code=3, text=True)
    assert cli("show", txids[2])["undone_by"] == done["txid"]
    assert f"undoes {txids[2]}" in cli("log", "r", text=True)
    cli("undo", done["txid"][:10])
    assert (folder / "a.txt").read_text() == "two\n"
    assert cli("status", "r")["state"] == "completed"


def test_revert_and_go_on(cli, txids, tmp_path):
    cli("revert", txids[0])
    assert not (tmp_path / "w/demos/r/a.txt").exists()
    assert "no transition that stands" not in cli("undo", "r", code=2, text=True)
    assert cli("advance", "r", "--all")["state"] == "completed"
    assert (tmp_path / "w/demos/r/a.txt").read_text() == "two\n"


def test_what_was_edited_since_is_named_and_kept(cli, tmp_path):
    path = tmp_path / "w/demos/r/a.txt"
    path.write_text("mine\n")
    assert cli("verify", code=4)[0]["path"] == "demos/r/a.txt"
    refused = cli("undo", "r", code=4)
    assert refused["error"] == "UndoRefused"
    assert "demos/r/a.txt" in refused["found"]
    assert "--force" in refused["hint"]
    done = cli("undo", "r", "--force")
    assert done["overwritten"] == ["demos/r/a.txt"]
    assert path.read_text() == "one\n"
    assert cli("verify") == []
    cli("undo", done["txid"])
    assert path.read_text() == "mine\n"


def test_only_some_files(cli, tmp_path):
    done = cli("undo", "r", "--path", "demos/r/data.bin")
    assert done["files"] == ["demos/r/data.bin"]
    assert (tmp_path / "w/demos/r/data.bin").read_bytes() == b"\xff\0"
    assert (tmp_path / "w/demos/r/a.txt").read_text() == "two\n"
    assert cli("status", "r")["state"] == "completed"


def test_damage_in_the_store_is_found(cli, tmp_path):
    (tmp_path / "big.py").write_text(
        "from surefoot import Workflow\nflow = Workflow('b', directory='big')\n"
        "@flow.step\ndef one(tx, _): tx.write_bytes('x', b'1' * 900_000)\n"
        "@flow.step\ndef two(tx, _): tx.write_bytes('x', b'2' * 900_000)\n"
    )
    cli("run", "big.py:flow", "--id", "b")
    assert cli("verify") == []
    (kept,) = [path for path in (tmp_path / "w/.surefoot/blobs").glob("*/*") if path.is_file()]
    kept.chmod(0o600)
    kept.write_bytes(b"1" * 899_999 + b"0")
    assert ".surefoot/blobs" in cli("verify", code=4)[0]["path"]
    assert "none any more" in cli("undo", "b", code=4)["found"]


def test_looking_works_beside_an_older_format_only_after_it_was_brought_up_to_date(tmp_path):
    import tarfile
    from pathlib import Path

    with tarfile.open(Path(__file__).parent / "fixtures/v1_killed.tar.gz") as tar:
        tar.extractall(tmp_path / "w", filter="data")
    command = [sys.executable, "-m", "surefoot", "list", "-w", tmp_path / "w"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert "surefoot recover brings it up to date" in done.stderr
