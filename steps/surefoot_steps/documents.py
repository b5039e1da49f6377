"""JSON, TOML and YAML documents that are edited without losing what else is in them."""

from __future__ import annotations

import io
import json
from typing import Any

from surefoot import InputError, UnreadableFile


class Document:
    """One of them, parsed. Made by `parse`."""

    def __init__(self, path: str, kind: str, root: Any) -> None:
        self._path, self._kind, self._root = path, kind, root

    @classmethod
    def parse(cls, path: str, text: str) -> Document:
        """By the name's suffix.

        Raises:
            UnreadableFile: it is not what its suffix says. InputError: the library for it is not installed.
        """
        kind = "yaml" if path.endswith((".yaml", ".yml")) else path.rpartition(".")[2]
        try:
            if kind == "json":
                root = json.loads(text)
            elif kind == "toml":
                root = _tomlkit().parse(text)
            else:
                root = _yaml().load(text)
        except InputError:
            raise
        except Exception as error:
            raise UnreadableFile("edit", path, expected=kind.upper(), found=str(error)[:200]) from error
        return cls(path, kind, {} if root is None else root)

    def set(self, field: str, value: Any) -> None:
        """The field shall hold the value; objects above it are made.

        Raises:
            InputError: the way there leads through something that has no fields.
        """
        parts = field.split(".")
        here = self._root
        for part in parts[:-1]:
            here = self._step(here, part, field, make=True)
        key = self._key(here, parts[-1], field, new=True)
        if isinstance(here, list) and key == len(here):
            here.append(value)
        else:
            here[key] = value

    def remove(self, field: str) -> None:
        """The field shall be gone; it must be there.

        Raises:
            InputError: it is not.
        """
        parts = field.split(".")
        here = self._root
        for part in parts[:-1]:
            here = self._step(here, part, field, make=False)
        del here[self._key(here, parts[-1], field, new=False)]

    def text(self) -> str:
        """As it is now."""
        if self._kind == "json":
            return json.dumps(self._root, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        if self._kind == "toml":
            return str(_tomlkit().dumps(self._root))
        out = io.StringIO()
        _yaml().dump(self._root, out)
        return out.getvalue()

    def _step(self, here: Any, part: str, field: str, *, make: bool) -> Any:
        if make and isinstance(here, dict) and part not in here:
            here[part] = {}
        return here[self._key(here, part, field, new=False)]

    def _key(self, here: Any, part: str, field: str, *, new: bool) -> Any:
        if isinstance(here, dict) and (new or part in here):
            return part
        if isinstance(here, list) and part.isdigit() and int(part) < len(here) + new:
            return int(part)
        raise InputError(
            "edit", f"{self._path}:{field}", expected=f"something that has {part!r}",
            found=f"{type(here).__name__} without it",
        )  # fmt: skip


def _tomlkit() -> Any:
    try:
        import tomlkit
    except ImportError as error:
        raise _missing("tomlkit") from error
    return tomlkit


def _yaml() -> Any:
    try:
        from ruamel.yaml import YAML
    except ImportError as error:
        raise _missing("ruamel.yaml") from error
    return YAML()


def _missing(library: str) -> InputError:
    return InputError(
        "edit",
        library,
        expected="it to be installed",
        found="it is not",
        hint='pip install "surefoot[steps]"',
    )
