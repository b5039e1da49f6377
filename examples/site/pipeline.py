"""From a folder of documents to a published site, in six steps; one of them is done by an agent.

    surefoot run examples/site/pipeline.py:site -w WORKSPACE -i title="My site"

The workspace holds the documents in `source/`; each run keeps its notes in `runs/<id>/`; the last
transition writes the whole of `site/` at once.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from markdown_it import MarkdownIt
from pydantic import BaseModel, Field
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_for_filename
from pygments.util import ClassNotFound

from surefoot import Committed, Next, Transaction, Wait, Workflow

AGENT = [sys.executable, str(Path(__file__).with_name("agent.py"))]


class Site(BaseModel):
    title: str
    agent: list[str] = Field(default=AGENT, min_length=1)  # any command that reads prompt.md


class Draft(BaseModel):
    introduction: str
    summaries: dict[str, str]


site = Workflow("site", input=Site)


@site.step(workspace_reads=["source/**"])
def collect(tx: Transaction, given: Site) -> None:
    """What there is to publish."""
    documents = []
    for path in tx.workspace.glob("source/**"):
        text = tx.workspace.read_text(path)
        documents.append(
            {
                "path": path.removeprefix("source/"),
                "page": path.removeprefix("source/").replace("/", "--") + ".html",
                "lines": text.count("\n"),
                "sha256": hashlib.sha256(text.encode()).hexdigest(),
                "opening": next((line.strip("# \"'\n") for line in text.splitlines() if line.strip()), ""),
            }
        )
    tx.write_json("documents.json", documents)


@site.step(reads=["documents.json"], templates=["prompt.md.j2"])
async def outline(tx: Transaction, given: Site) -> None:
    """A prompt for whoever writes the texts."""
    tx.write_text(
        "prompt.md", tx.render("prompt.md.j2", title=given.title, documents=tx.read_json("documents.json"))
    )


@site.step(result=Draft)
def draft(tx: Transaction, given: Site) -> Wait:
    """The agent works in a copy of the run's directory, where its draft must fit the model."""
    return tx.agent(
        given.agent,
        prompt="prompt.md",
        result="draft.json",
        limits={"wall_s": 500.0},
        retry={"attempts": 3, "on": ["failed", "lost", "stalled"], "initial_s": 0.5},
        poll_s=0.1,
    )


@site.step
def accept(tx: Transaction, given: Site) -> None:
    """Only the draft enters the transaction; whatever else the agent has written does not."""
    tx.take(tx.work(), paths=["draft.json"])


@site.step(reads=["documents.json", "draft.json", "problems.json"])
def check(tx: Transaction, given: Site) -> Next | None:
    """Every document needs a summary; one more draft is asked for where one is missing."""
    summaries = Draft.model_validate(tx.read_json("draft.json")).summaries
    missing = [d["path"] for d in tx.read_json("documents.json") if not summaries.get(d["path"])]
    earlier = tx.read_json("problems.json", default=[])
    tx.write_json("problems.json", [*earlier, missing])
    if missing and not any(earlier):
        return Next(draft)
    if missing:
        raise ValueError(f"{len(missing)} documents still have no summary, {missing[0]} among them")
    return None


@site.step(
    reads=["documents.json", "draft.json"],
    workspace_reads=["source/**", "site/*"],
    templates=["page.html.j2", "index.html.j2"],
)
def publish(tx: Transaction, given: Site) -> None:
    """All pages, the index, the style and the history: one transition."""
    documents = tx.read_json("documents.json")
    texts = Draft.model_validate(tx.read_json("draft.json"))
    wanted = {"index.html", "style.css", "history.json", *(d["page"] for d in documents)}
    for old in tx.workspace.glob("site/*"):
        if old.removeprefix("site/") not in wanted:
            tx.workspace.delete(old)
    for document in documents:
        body = _as_html(document["path"], tx.workspace.read_text(f"source/{document['path']}"))
        page = tx.render("page.html.j2", title=given.title, version=tx.run_id, document=document, body=body)
        tx.workspace.write_text(f"site/{document['page']}", page)
    index = tx.render("index.html.j2", title=given.title, version=tx.run_id, documents=documents, texts=texts)
    tx.workspace.write_text("site/index.html", index)
    tx.workspace.write_text("site/style.css", STYLE + HtmlFormatter().get_style_defs(".highlight"))
    history = tx.workspace.read_json("site/history.json", default=[])
    tx.workspace.write_json("site/history.json", [*history, {"version": tx.run_id, "pages": len(documents)}])


@publish.effect
async def announce(done: Committed) -> None:
    """Best effort, after the commit: here just a line on the terminal."""
    print(json.dumps({"published": done.run_id, "files": len(done.files), "key": done.key}))


def _as_html(path: str, text: str) -> str:
    if path.endswith(".md"):
        return MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    try:
        return highlight(text, get_lexer_for_filename(path), HtmlFormatter())
    except ClassNotFound:
        return highlight(text, get_lexer_for_filename("plain.txt"), HtmlFormatter())


STYLE = """\
body { font: 16px/1.55 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
a { color: #0a58ca; text-decoration: none } a:hover { text-decoration: underline }
pre { overflow-x: auto; background: #f6f8fa; padding: 1rem; border-radius: 6px; font-size: 13px }
code { font-size: 90% } table { border-collapse: collapse } td, th { border: 1px solid #ddd; padding: .3rem .6rem }
.meta { color: #777; font-size: 85% } li { margin: .25rem 0 }
"""
