"""One path's change, for people: what kind it is, and the lines that differ."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from surefoot_storage import Absent, Change, Directory
from surefoot_storage.states import State


@dataclass(frozen=True)
class FileChange:
    """One path's change."""

    path: str
    kind: str  # created, changed, deleted, mode
    diff: str  # unified; a sentence where the content is no text

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"path": self.path, "kind": self.kind, "diff": self.diff}


def file_change(path: str, old: State, new: State, before: bytes | None, after: bytes | None) -> FileChange:
    """From two states and their contents; None for one that is too large, or not kept any more."""
    head = _mode_lines(path, old, new)
    kind = Change(path, old, new).kind
    if before is not None and after is not None:
        return FileChange(path, kind, head + _diff(path, old, new, before, after))
    return FileChange(path, kind, f"{head}not shown {path}: {old} -> {new}\n")


def _mode_lines(path: str, old: State, new: State) -> str:
    if isinstance(old, Absent) and isinstance(new, Directory):
        return f"new directory {path} (mode {new.mode:o})\n"
    if isinstance(new, Absent) and isinstance(old, Directory):
        return f"removed directory {path}\n"
    if not isinstance(old, Absent) and not isinstance(new, Absent) and old.mode != new.mode:
        return f"mode of {path}: {old.mode:o} -> {new.mode:o}\n"
    return ""


def _diff(path: str, old: State, new: State, before: bytes, after: bytes) -> str:
    if before == after and not (isinstance(old, Absent) or isinstance(new, Absent)):
        return ""
    if isinstance(new, Directory) or isinstance(old, Directory):
        return ""
    old_name = "/dev/null" if isinstance(old, Absent) else f"a/{path}"
    new_name = "/dev/null" if isinstance(new, Absent) else f"b/{path}"
    try:
        old_text, new_text = before.decode(), after.decode()
    except UnicodeDecodeError:
        return f"binary {path}: {len(before)} -> {len(after)} bytes\n"
    if not old_text and not new_text:
        return f"--- {old_name}\n+++ {new_name}\n"
    lines = difflib.unified_diff(_lines(old_text), _lines(new_text), old_name, new_name)
    return "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines
    )


def _lines(text: str) -> list[str]:
    """Lines as diff counts them: only a line feed ends one."""
    return [line for line in text.replace("\n", "\n\0").split("\0") if line]
