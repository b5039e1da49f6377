"""`FILE.py:WORKFLOW` to a workflow, with every way in which that can go wrong told apart."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import traceback
from types import ModuleType

from pydantic import BaseModel

from surefoot_storage import SurefootError

from .declare import Workflow
from .errors import LoadError
from .pipeline import SUFFIXES, load_pipeline

_HINT = "name a file and a workflow in it: flows.py:publish"


def load_workflow(reference: str) -> Workflow:
    """The workflow that a reference names: `FILE.py:NAME`, or a pipeline file.

    The file is imported under a name of its own, and its folder goes to the *end* of the import path:
    neither can shadow an installed module.

    Raises:
        LoadError: the reference, the file or the name is wrong.
        SurefootError: what a wrong declaration in the file raises.
    """
    if reference.endswith(SUFFIXES):
        return load_pipeline(reference)
    return _pick(*_loaded(reference))


def load_model(reference: str) -> type[BaseModel]:
    """The pydantic model that a reference names: `FILE.py:NAME`.

    Raises:
        LoadError: the reference, the file or the name is wrong.
    """
    module, path, name = _loaded(reference)
    found = getattr(module, name, None) if name else None
    if not (isinstance(found, type) and issubclass(found, BaseModel)):
        what = f"no {name}" if found is None else f"{name}, a {type(found).__name__}"
        raise LoadError(
            "load", f"{path}:{name}", expected="a pydantic model", found=what if name else "no name",
            hint="name a file and a model in it: settings.py:Limits",
        )  # fmt: skip
    return found


def _loaded(reference: str) -> tuple[ModuleType, str, str]:
    """The module, its path, and the name in it, "" where none is given."""
    path, colon, name = reference.rpartition(":")
    if not colon:
        path, name = reference, ""
    if not path.endswith(".py"):
        raise LoadError(
            "load",
            reference,
            expected="FILE.py:WORKFLOW, or a .toml or .yaml file",
            found=repr(reference),
            hint=_HINT,
        )
    if not os.path.isfile(path):
        found = "a directory" if os.path.isdir(path) else "no such file"
        raise LoadError("load", path, expected="a Python file", found=found, hint=_HINT)
    return _import(os.path.abspath(path)), path, name


def _import(path: str) -> ModuleType:
    stem = os.path.splitext(os.path.basename(path))[0]
    module_name = f"_surefoot_{hashlib.sha256(path.encode()).hexdigest()[:12]}_{stem}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    folder = os.path.dirname(path)
    if folder not in sys.path:
        sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except SurefootError:
        del sys.modules[module_name]
        raise
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        raise LoadError(
            "load",
            path,
            expected="a file that imports",
            found=_where(error, path),
            hint=f"try: python {path}",
        ) from error
    return module


def _where(error: BaseException, path: str) -> str:
    """`NameError: name 'x' is not defined (line 7)`."""
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg} (line {error.lineno})"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    where = f" (line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {error}{where}"


def _pick(module: ModuleType, path: str, name: str) -> Workflow:
    found = {key: value for key, value in vars(module).items() if isinstance(value, Workflow)}
    names = ", ".join(found) or "none"
    if not name:
        if len(found) == 1:
            return next(iter(found.values()))
        raise LoadError(
            "load", path, expected="the name of a workflow", found=f"workflows: {names}", hint=_HINT
        )
    if name not in found:
        value = getattr(module, name, None)
        what = f"{name}, a {type(value).__name__}" if value is not None else f"no {name}"
        raise LoadError("load", f"{path}:{name}", expected="a workflow", found=f"{what}; workflows: {names}")
    return found[name]
