"""`make demo`: publishes a site twice, and pulls the plug in the middle of the second time.

    python examples/site/demo.py [WORKSPACE] [-- AGENT COMMAND …]

The process that publishes version 2 sends itself SIGKILL when half of the pages are swapped in. Then the
demo looks at the site as a visitor would, starts the engine again, and looks once more.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import structlog
from pipeline import AGENT, site

from surefoot import Engine, FsOps

HERE = Path(__file__).resolve()
REPOSITORY = HERE.parents[2]
TITLE = "Surefoot, its own documents"


class PullThePlug(FsOps):
    """The engine's seam to the disk, until the given number of pages is in place."""

    def __init__(self, pages: int) -> None:
        self._left = pages

    def exchange(self, from_dir: int, from_name: str, to_dir: int, to_name: str) -> None:
        if to_name.endswith(".html"):
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self._left -= 1
        super().exchange(from_dir, from_name, to_dir, to_name)

    def rename_over(self, from_dir: int, from_name: str, to_dir: int, to_name: str) -> None:
        """On filesystems without exchange."""
        if to_name.endswith(".html"):
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self._left -= 1
        super().rename_over(from_dir, from_name, to_dir, to_name)


def prepare(workspace: Path) -> int:
    """A workspace with real documents: this project's own Markdown and sources."""
    shutil.rmtree(workspace, ignore_errors=True)
    source = workspace / "source"
    found = [
        path
        for pattern in ("*.md", "*/surefoot*/**/*.py", "examples/**/*.py", "tests/**/*.py", "bench/*.py")
        for path in REPOSITORY.glob(pattern)
        if "build" not in path.relative_to(REPOSITORY).parts
    ]
    for path in found:
        target = source / path.relative_to(REPOSITORY)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return len(found)


def publish(workspace: Path, version: str, agent: list[str], fs: FsOps | None = None) -> None:
    """One run, from the documents to the site."""
    with Engine(workspace, [site], fs=fs, resume=False) as engine:
        result = engine.run(site, {"title": f"{TITLE} ({version})", "agent": agent}, run_id=version).wait()
    for transition in result.transitions:
        print(f"  {transition.step}: {transition.outcome}, {len(transition.files)} files")
    result.or_raise()


def look(workspace: Path) -> dict[str, str]:
    """The version that each page shows; anything torn or empty ends the demo."""
    versions = {}
    for page in sorted((workspace / "site").glob("*.html")):
        text = page.read_text(encoding="utf-8")
        stamp = re.search(r"version (v\d)", text)
        if stamp is None or not text.startswith("<!doctype html>") or not text.endswith("</html>\n"):
            sys.exit(f"torn or empty: {page}")
        versions[page.name] = stamp.group(1)
    return versions


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    arguments = sys.argv[1:]
    split = arguments.index("--") if "--" in arguments else len(arguments)
    command = arguments[split + 1 :] or AGENT
    workspace = Path(*(arguments[:split] or [REPOSITORY / "build" / "demo"])).resolve()
    if os.environ.get("SUREFOOT_DEMO_CHILD"):
        pages = len(list((workspace / "site").glob("*.html")))
        publish(workspace, "v2", command, PullThePlug(pages // 2))
        sys.exit("the plug was not pulled")

    print(f"workspace {workspace}: {prepare(workspace)} documents")
    print("publishing v1")
    publish(workspace, "v1", command)
    before = look(workspace)
    print(f"  checked: {len(before)} pages, all v1")

    print("publishing v2, with SIGKILL in the middle of its last transition")
    child = subprocess.run(
        [sys.executable, HERE, *sys.argv[1:]], env={**os.environ, "SUREFOOT_DEMO_CHILD": "1"}
    )
    if child.returncode != -signal.SIGKILL:
        sys.exit(f"the publishing process ended with {child.returncode} instead of SIGKILL")
    mixed = look(workspace)
    count = {version: list(mixed.values()).count(version) for version in ("v1", "v2")}
    print(f"  killed; before recovery: {count['v1']} pages v1, {count['v2']} pages v2, none torn or empty")
    if not (count["v1"] and count["v2"]):
        sys.exit("the kill was meant to hit the middle of the swap")

    print("starting again")
    with Engine(workspace, [site]) as engine:
        print(f"  recovery put {len(engine.recovered.completed)} files in place")
        result = engine.resume("v2").wait().or_raise()
    after = look(workspace)
    if set(after.values()) != {"v2"} or len(after) != len(before):
        sys.exit("after recovery the pages are not all of one version")
    print(f"  checked: run {result.run_id} {result.state.value}, {len(after)} pages, all v2")
    print(f"open {workspace / 'site' / 'index.html'}")


if __name__ == "__main__":
    main()
