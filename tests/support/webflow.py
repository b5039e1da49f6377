"""The workflow of the tests that come in by HTTP: files, a person who is asked, a message, an agent, a failure."""

from __future__ import annotations

from pydantic import BaseModel

from surefoot import Workflow


class Brief(BaseModel):
    topic: str = "rivers"
    fails: bool = False
    agent: bool = False


class Limits(BaseModel):
    words_max: int = 100
    tone: str = "plain"


class Heard(BaseModel):
    text: str


flow = Workflow("article", input=Brief, directory="articles/{run_id}")
news = flow.signal("news", Heard)
AGENT = ["sh", "-c", "echo working; echo '<b>made</b>' > made.txt; echo done"]


@flow.step(outcomes={"write": "write", "launch": "launch"})
def begin(tx, brief):
    tx.write_text("brief.md", f"# {brief.topic}\n")
    return "launch" if brief.agent else "write"


@flow.step(after=[])
def launch(tx, _brief):
    return tx.agent(AGENT, confine="none")


@flow.step(after="launch")
def take(tx, _brief):
    tx.take(tx.work())


@flow.step(after=[])
def write(tx, brief):
    if brief.fails:
        raise ValueError("<script>alert(1)</script>")
    tx.write_text("article.md", f"All about {brief.topic}.\n")


@flow.step(after="write", outcomes={"approved": "publish", "rejected": "write", "changed": "ask"})
def ask(tx, _brief):
    return tx.ask("Publish <this>?", of=["*.md"], approvers=["ann", "bob"], quorum=1)


@flow.step(after=[])
def publish(tx, _brief):
    tx.write_json("published.json", tx.approved())
