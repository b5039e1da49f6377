"""Commands for tokens, webhooks and what could not be delivered."""

from __future__ import annotations

import json

import pytest

from surefoot import Engine, Retry, Workflow
from surefoot.cli.main import main


@pytest.fixture
def surefoot(root, capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "-w", str(root)])
        shown = capsys.readouterr()
        return ended.value.code, shown.out, shown.err

    return run


def test_a_token_is_shown_once_listed_without_itself_and_revoked(surefoot):
    code, out, _ = surefoot(
        "token", "create", "ann", "--scope", "read", "--scope", "approve", "--days", "2", "--json"
    )
    made = json.loads(out)
    assert (code, made["scopes"], made["token"][:3]) == (0, ["approve", "read"], "sf_")
    _, listed, _ = surefoot("token", "list")
    assert "ann" in listed
    assert "until" in listed
    assert made["token"] not in listed
    assert surefoot("token", "revoke", made["id"])[0] == 0
    assert "REVOKED" in surefoot("token", "list")[1]
    code, _, err = surefoot("token", "revoke", made["id"])
    assert (code, "one that was revoked" in err) == (2, True)
    code, _, err = surefoot("token", "create", "x", "--scope", "read", "--run", "none")
    assert (code, "find run none" in err) == (2, True)


def test_webhooks_are_added_listed_and_removed(surefoot):
    code, out, _ = surefoot("webhook", "add", "http://127.0.0.1:9/x", "--event", "failed", "--json")
    made = json.loads(out)
    assert (code, made["secret"][:6], made["events"]) == (0, "whsec_", ["failed"])
    assert "http://127.0.0.1:9/x  failed" in surefoot("webhook", "list")[1]
    assert surefoot("webhook", "remove", made["id"])[0] == 0
    assert surefoot("webhook", "list")[1] == "nobody is told\n"
    assert surefoot("webhook", "remove", made["id"])[0] == 2
    assert surefoot("webhook", "add", "ftp://x")[0] == 2


def test_a_dead_letter_is_listed_and_sent_again(surefoot, root):
    flow, fails, heard = Workflow("told", directory="{run_id}"), [True], []

    @flow.step
    def write(tx, _given):
        tx.write_text("a.txt", "a")

    @write.effect(retry=Retry(attempts=1))
    def tell(done):
        if fails:
            raise OSError("nobody there")
        heard.append(done.key)

    with Engine(root, [flow], resume=False) as engine:
        engine.run(flow, run_id="one").wait()
        engine.deliver().wait()
    code, out, _ = surefoot("effects", "list", "--json")
    (letter,) = json.loads(out)
    assert (code, letter["last_error"]) == (0, "OSError: nobody there")
    assert "1 attempt(s)" in surefoot("effects", "list")[1]
    fails.clear()
    assert surefoot("effects", "retry", str(letter["id"]))[0] == 0
    assert surefoot("effects", "retry", str(letter["id"]))[0] == 2
    with Engine(root, [flow], resume=False) as engine:
        engine.deliver().wait()
    assert heard == [letter["key"]]
    assert surefoot("effects", "list")[1] == "no dead letters\n"


def test_the_new_doors_say_what_they_need(surefoot, root):
    code, _, err = surefoot("serve", "--config", "limits")
    assert (code, "--config NAME=FILE.py:MODEL" in err) == (2, True)
    with Engine(root, resume=False) as engine:
        engine.access.create("ann", ["read"]).wait()
    code, _, err = surefoot("mcp")
    assert (code, "SUREFOOT_TOKEN" in err) == (2, True)
