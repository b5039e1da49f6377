"""Does the lab see? Every flush, check and order in commit and recovery, broken one at a time.

    python tests/crash/mutation.py list
    python tests/crash/mutation.py run STATES [WORD]     only those whose name has the word
    python tests/crash/mutation.py one SITE STATES       in this process, on the simulated disk

The breaks are made in the source as it is imported, so the list is never out of date:

    flush   a call that flushes or waits for write-out does nothing
    check   a condition that refuses, or that decides in recovery, is never true
    order   two statements, one of which makes something durable, change places

Some change nothing that can be seen; `HARMLESS` says why. Any other break is seen when the simulated disk finds a violation or, where it is about something else than power cuts
(races, full disks, broken files), when one of the `TESTS` fails. Prints a line for each, then JSON.
"""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).parent
PACKAGE = HERE.parents[1] / "storage" / "surefoot_storage"
FLUSHES = {"sync", "sync_data", "sync_filesystem", "wait_writeback", "start_writeback"}
DURABLE = {
    *FLUSHES,
    "mark_checkpointed",
    "write_note",
    "checkpointed",
    "wait",
    "keep_conflict",
    "rename_over",
}
FLUSHED = (
    "applying", "checkpoint", "conflicts", "flusher", "layout", "opening", "rollforward", "spooling", "staging", "store",
    "upkeep",
)  # fmt: skip
CHECKED = ("applying", "checkpoint", "committing", "contents", "layout", "progress", "rollforward", "staging")
DECIDING = ("displaced", "mark", "recovery")  # every condition counts
ORDERED = ("applying", "checkpoint", "committing", "conflicts", "flusher", "layout", "rollforward", "staging")
TESTS = (
    "test_order", "test_recovery", "test_commit", "test_files", "test_trees", "test_policies", "test_streams",
    "test_filesystems", "test_spares", "test_opening", "test_undo", "test_formats", "test_workspace_machine",
    "test_processes",
)  # fmt: skip
VARIABLE = "SUREFOOT_MUTANT"
_SHORTCUT = "a shortcut: what follows reads the content and comes to the same"
_TWO_LOOKS = (
    "something that vanishes between two looks: an error that is tried again, instead of nothing to do"
)
_ANY_ORDER = "two flushes, or two notes of one fact: either order will do"
HARMLESS = {  # (kind, module, beginning of the line): why
    ("check", "applying", "if error.errno not in _NO_LINKS"): "what is there is looked at in any case",
    (
        "check",
        "applying",
        "if not isinstance(top.old, Absent)",
    ): "the log finishes the change in the same way",
    (
        "check",
        "applying",
        "if self._fs.lstat(to_dir, to_name)",
    ): "rename(2) refuses it: only directories come here",
    ("check", "displaced", "if op.old_stamp is not None"): _SHORTCUT,
    ("check", "displaced", "if trust_stamp and"): _SHORTCUT,
    ("check", "displaced", "if found is None"): _TWO_LOOKS,
    ("check", "displaced", "if not fsops.is_regular(found)"): "opening refuses links and devices by itself",
    (
        "check",
        "recovery",
        "if isinstance(chain.states[-1], Directory)",
    ): "what is outside sorts before what is inside",
    ("check", "rollforward", "if error.errno not in (errno.ENOTEMPTY"): "what resists is set aside",
    ("check", "rollforward", "if isinstance(new, Absent) and (not keep_odd)"): _TWO_LOOKS,
    ("flush", "spooling", "self._fs.start_writeback"): "speed: the flush at the end covers it",
    ("order", "applying", "self._fs.rename_over"): "it looks at a second name that was made before both",
    ("order", "checkpoint", "self._database.mark_checkpointed"): _ANY_ORDER,
    ("order", "checkpoint", "self._progress.checkpointed"): _ANY_ORDER,
    (
        "order",
        "committing",
        "progress.blocked.append",
    ): "an error in between is noted by `_unfinished` as well",
    ("order", "flusher", "for folder in sorted(folders)"): _ANY_ORDER,
    ("order", "staging", "self._fs.sync(area.keep)"): _ANY_ORDER,
    ("order", "staging", "if kept"): "what is looked at, the inode and its time, does not change in between",
}


@dataclass(frozen=True)
class Site:
    """One break: kind, module, line, and where the line has several, which."""

    kind: str
    module: str
    line: int
    text: str

    @property
    def name(self) -> str:
        return f"{self.kind}:{self.module}:{self.line}"

    @property
    def harmless(self) -> str:
        """Why nobody can see it, "" where somebody must."""
        for (kind, module, beginning), why in HARMLESS.items():
            if (kind, module) == (self.kind, self.module) and self.text.startswith(beginning):
                return why
        return ""


def tree_of(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module}.py").read_text())


def called(node: ast.AST) -> set[str]:
    """Names of the methods and functions that are called in it."""
    calls = (n.func for n in ast.walk(node) if isinstance(n, ast.Call))
    return {f.attr if isinstance(f, ast.Attribute) else getattr(f, "id", "") for f in calls}


def is_flush(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Attribute)
        and node.value.func.attr in FLUSHES
    )


def bodies(tree: ast.AST) -> Iterator[list[ast.stmt]]:
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            found = getattr(node, name, None)
            if isinstance(found, list) and not isinstance(node, ast.ClassDef | ast.Module):
                yield found


def assigned(node: ast.stmt) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def used(node: ast.stmt) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def may_swap(first: ast.stmt, second: ast.stmt) -> bool:
    if not ((called(first) | called(second)) & DURABLE) or not called(first) or not called(second):
        return False
    leaves = any(isinstance(n, ast.Return | ast.Raise) for s in (first, second) for n in ast.walk(s))
    return not leaves and not assigned(first) & used(second) and not assigned(second) & used(first)


def sites() -> list[Site]:
    found: dict[str, Site] = {}

    def add(kind: str, module: str, node: ast.stmt) -> None:
        site = Site(kind, module, node.lineno, ast.unparse(node).splitlines()[0][:90])
        found[site.name] = site

    for module in sorted({*FLUSHED, *CHECKED, *DECIDING, *ORDERED}):
        for body in bodies(tree_of(module)):
            for statement in body:
                if module in FLUSHED and is_flush(statement):
                    add("flush", module, statement)
                refuses = isinstance(statement, ast.If) and isinstance(statement.body[-1], ast.Raise)
                if (refuses and module in CHECKED) or (module in DECIDING and isinstance(statement, ast.If)):
                    add("check", module, statement)
            for first, second in pairwise(body):
                if module in ORDERED and may_swap(first, second):
                    add("order", module, first)
    return sorted(found.values(), key=lambda s: (s.kind, s.module, s.line))


def broken(name: str) -> tuple[str, ast.Module]:
    """(module, its tree) with one thing broken."""
    kind, module, line = name.split(":")
    tree, done = tree_of(module), False
    for body in bodies(tree):
        for index, statement in enumerate(body):
            if statement.lineno != int(line) or done:
                continue
            if kind == "flush" and is_flush(statement):
                body[index], done = ast.copy_location(ast.Pass(), statement), True
            elif kind == "check" and isinstance(statement, ast.If):
                statement.test, done = ast.copy_location(ast.Constant(False), statement.test), True
            elif kind == "order" and index + 1 < len(body) and may_swap(statement, body[index + 1]):
                body[index], body[index + 1] = body[index + 1], statement
                done = True
    if not done:
        raise SystemExit(f"nothing to break at {name}")
    return module, ast.fix_missing_locations(tree)


class Breaker(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module of the product with something broken in it."""

    def __init__(self, name: str) -> None:
        module, self.tree = broken(name)
        self.module = f"surefoot_storage.{module}"
        self.path = str(PACKAGE / f"{module}.py")

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> Any:
        del path, target
        if fullname != self.module:
            return None
        return importlib.util.spec_from_file_location(fullname, self.path, loader=_AsLoader(self))

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.tree, self.path, "exec"), module.__dict__)


class _AsLoader(importlib.machinery.SourceFileLoader):
    def __init__(self, breaker: Breaker) -> None:
        super().__init__(breaker.module, breaker.path)
        self._breaker = breaker

    def exec_module(self, module: ModuleType) -> None:
        self._breaker.exec_module(module)


def install(name: str) -> None:
    sys.meta_path.insert(0, Breaker(name))


if os.environ.get(VARIABLE):  # as a pytest plugin
    install(os.environ[VARIABLE])


# --- is it seen? ---


def one(name: str, states: int) -> str:
    """In this process: what the simulated disk finds, "" where it finds nothing."""
    install(name)
    import simulate

    simulate.make_small()
    simulate.NESTED_EVERY = 5
    simulation = simulate.Simulation(1)
    worlds = list(simulate.all_workloads())
    simulation.random.shuffle(worlds)
    try:
        for model in simulate.RECIPES:
            limit = len(simulation.seen) + states
            simulation.run(limit, [model], worlds, 60, problems_max=1)
            if simulation.problems:
                return f"{model}: {simulation.problems[0].rpartition('): ')[2]}"
    except Exception as error:  # the commit itself does not work any more
        return f"{type(error).__name__}: {error}"
    return ""


def by_simulation(site: Site, states: int) -> str:
    command = [sys.executable, __file__, "one", site.name, str(states)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        return f"did not even run: {done.stderr.strip().splitlines()[-1:]}"
    return done.stdout.strip()


def by_tests(site: Site) -> str:
    files = [str(HERE.parent / f"{name}.py") for name in TESTS]
    command = [
        sys.executable, "-m", "pytest", "-x", "-q", "-m", "not long", "-p", "mutation", "-p", "no:cacheprovider", *files,
    ]  # fmt: skip
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, VARIABLE: site.name, "PYTHONPATH": path}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=HERE.parents[1], timeout=300
        )
    except subprocess.TimeoutExpired:
        return "the tests did not come to an end"
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed[0].partition(" - ")[0] if failed else "" if done.returncode == 0 else done.stdout[-200:]


def seen_by(site: Site, states: int) -> tuple[Site, str, str]:
    if site.harmless:
        return site, "harmless", site.harmless
    what = by_simulation(site, states)
    if what:
        return site, "simulated disk", what
    what = by_tests(site)
    return site, "tests" if what else "", what


def run(states: int, word: str = "", tell: Callable[[str], None] = print) -> dict[str, Any]:
    chosen = [site for site in sites() if any(w in site.name for w in word.split(","))]
    results = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for site, by, what in pool.map(lambda s: seen_by(s, states), chosen):
            tell(f"{by or 'NOT SEEN':15} {site.name:32} {site.text} | {what[:110]}")
            results.append({"site": site.name, "text": site.text, "by": by, "what": what[:200]})
    return {
        "mutants": len(results),
        "not_seen": [r["site"] for r in results if not r["by"]],
        "results": results,
    }


def page(results: list[dict[str, Any]]) -> str:
    """What was seen by what, for people."""
    seen = [r for r in results if r["by"] not in ("harmless", "")]
    blind, idle = (sum(r["by"] == by for r in results) for by in ("", "harmless"))
    lines = [
        "# Every flush, check and order, broken one at a time",
        "",
        f"Written by `make mutants`. {len(results)} places; {len(seen)} breaks are seen, {blind} are not, {idle} change nothing.",
        "",
        "| kind | module | what is broken | seen by | |",
        "|---|---|---|---|---|",
    ]
    for r in results:
        kind, module, _ = r["site"].split(":")
        what = r["what"].removeprefix("FAILED ").partition("::")[2] if r["by"] == "tests" else r["what"][:90]
        cells = [kind, module, f"`{r['text']}`", r["by"] or "**nothing**", what]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1] == "list":
        print("\n".join(f"{site.name:32} {site.text}" for site in sites()))
    elif sys.argv[1] == "one":
        print(one(sys.argv[2], int(sys.argv[3])))
    else:
        report = run(
            int(sys.argv[2]), *sys.argv[3:4], tell=lambda line: print(line, file=sys.stderr, flush=True)
        )
        print(json.dumps(report))
        if len(sys.argv) == 3:  # all of them
            (HERE / "MUTANTS.md").write_text(page(report["results"]))
        sys.exit(bool(report["not_seen"]))
