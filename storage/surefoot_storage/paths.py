"""Workspace-relative paths: one spelling for each file, and none that leads outside.

Pure: nothing here looks at the disk. What only the disk can tell (symlinks, mount points,
case collisions with existing names) is checked where the path is resolved.
"""

from __future__ import annotations

import functools
import os
import unicodedata
from typing import TypeAlias

from .errors import PathRefused

CONTROL_DIR = ".surefoot"
STAGE_DIR = ".surefoot-stage"  # at the top of each other filesystem below the workspace
NAME_BYTES_MAX = 255  # NAME_MAX of every filesystem that Surefoot writes to
PATH_BYTES_MAX = 4000  # PATH_MAX is 4096, the workspace's own prefix is reached by descriptor

PathLike: TypeAlias = "str | os.PathLike[str]"


def normalise(path: PathLike, *, operation: str) -> str:
    """The one spelling of `path`: relative, `/` between names, no `.`, no `..`.

    Raises:
        PathRefused: it is absolute, contains `..`, NUL or an over-long name, or is empty.
    """
    if type(path) is str:  # asking for a PathLike first costs more than all the rest
        return _spell(path, operation)
    text: object = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(text, str):
        raise PathRefused(operation, repr(path), expected="a path as text", found=type(path).__name__)
    return _spell(text, operation)


@functools.lru_cache(maxsize=4096)  # a step names the same few paths over and over
def _spell(text: str, operation: str) -> str:
    if text.startswith("/"):
        raise PathRefused(
            operation, text, expected="a path relative to the workspace", found="an absolute path"
        )
    names = [name for name in text.split("/") if name not in ("", ".")]
    _check_names(names, text, operation)
    return "/".join(names)


def _check_names(names: list[str], text: str, operation: str) -> None:
    def refuse(found: str, expected: str = "a name inside the workspace", hint: str = "") -> None:
        raise PathRefused(operation, repr(text), expected=expected, found=found, hint=hint)

    if not names:
        refuse("an empty path")
    if ".." in names:
        refuse("'..'", "a path that stays inside", "name the file from the directory that the step works in")
    if names[0] == CONTROL_DIR:
        refuse(f"Surefoot's own directory {CONTROL_DIR}")
    if STAGE_DIR in names:
        refuse(f"Surefoot's own directory {STAGE_DIR}")
    if "\0" in text:
        refuse("a NUL character", "a file name")
    try:
        longest = max(len(os.fsencode(name)) for name in names)
        total = len(os.fsencode(text))
    except UnicodeEncodeError:
        refuse("a character that no file name can hold", "a file name")
    else:
        if longest > NAME_BYTES_MAX:
            refuse(f"a name of {longest} bytes", f"names of at most {NAME_BYTES_MAX} bytes")
        if total > PATH_BYTES_MAX:
            refuse(f"a path of {total} bytes", f"paths of at most {PATH_BYTES_MAX} bytes")


def visible(directory: str, names: list[str]) -> tuple[str, ...]:
    """The names in a directory without Surefoot's own."""
    return tuple(name for name in names if name != STAGE_DIR and (directory or name != CONTROL_DIR))


@functools.lru_cache(maxsize=4096)
def parent_of(path: str) -> str:
    """The directory part; `""` is the workspace itself."""
    return path.rpartition("/")[0]


@functools.lru_cache(maxsize=4096)
def leaf_of(path: str) -> str:
    """The last name."""
    return path.rpartition("/")[2]


@functools.lru_cache(maxsize=4096)
def ancestors_of(path: str) -> tuple[str, ...]:
    """`a/b/c` gives `("a", "a/b")`: the directories above, outermost first."""
    names = path.split("/")[:-1]
    return tuple("/".join(names[: i + 1]) for i in range(len(names)))


@functools.lru_cache(maxsize=4096)
def folded(name: str) -> str:
    """What a case-insensitive or normalising filesystem would take this name for."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
