"""The public surface: documented, typed, small; and the rules of the house that a tool can check."""

from __future__ import annotations

import ast
import inspect
import typing
from pathlib import Path

import pytest

import surefoot
import surefoot_steps
import surefoot_storage

REPOSITORY = Path(__file__).parents[1]
SOURCES = sorted(p for d in ("orchestrator", "steps", "storage") for p in (REPOSITORY / d).rglob("*.py"))


@pytest.mark.parametrize("package", [surefoot, surefoot_steps, surefoot_storage], ids=lambda p: p.__name__)
def test_every_public_name_is_documented_and_typed(package):
    assert package.__all__ == sorted(package.__all__)
    for name in package.__all__:
        value = getattr(package, name)
        assert inspect.getdoc(value), name
        if inspect.isclass(value):
            for method_name, method in vars(value).items():
                if inspect.isfunction(method) and not method_name.startswith("_"):
                    assert inspect.getdoc(method), f"{name}.{method_name}"
                    _assert_typed(method, f"{name}.{method_name}")
        elif inspect.isfunction(value):
            _assert_typed(value, name)


def _assert_typed(function, name):
    hints = typing.get_type_hints(function) if not _has_forward(function) else function.__annotations__
    parameters = [p for p in inspect.signature(function).parameters if p != "self"]
    assert "return" in hints, name
    assert set(parameters) <= set(hints), name


def _has_forward(function):
    try:
        typing.get_type_hints(function)
    except NameError:
        return True
    return False


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 70, node.name


TOUCHES_DISK = {"open", "rename", "replace", "unlink", "remove", "mkdir", "rmdir", "link", "symlink", "fsync",
                "fdatasync", "write", "read", "listdir", "stat", "lstat", "scandir", "truncate", "ftruncate"}  # fmt: skip


@pytest.mark.parametrize("path", [p for p in SOURCES if "surefoot_storage" in p.parts], ids=lambda p: p.name)
def test_only_the_seam_touches_the_disk(path):
    if path.name in (
        "fsops.py",
        "fstrees.py",
        "fsnames.py",
        "fsreuse.py",
        "fsclones.py",
        "syscalls.py",
        "processes.py",
    ):
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            assert node.attr not in TOUCHES_DISK, f"{path.name}:{node.lineno}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "open", f"{path.name}:{node.lineno}"


def test_importing_configures_nothing_and_stays_light():
    import subprocess
    import sys

    code = (
        "import sys, surefoot, logging\n"
        "assert not logging.getLogger().handlers\n"
        "heavy = {'structlog', 'jinja2', 'rich', 'click', 'asyncio.runners'} & set(sys.modules)\n"
        "print(sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("[]", "['asyncio.runners']")
