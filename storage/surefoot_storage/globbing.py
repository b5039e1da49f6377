"""Matching patterns against the files that a transaction sees."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from typing import Protocol


class Seen(Protocol):
    """The view that a pattern is matched against."""

    def children(self, directory: str) -> list[str] | None:
        """Names in a directory, pending changes included."""

    def is_plain_file(self, path: str) -> bool:
        """Whether it is a regular file."""

    def is_plain_dir(self, path: str) -> bool:
        """Whether it is a directory."""


def matches(seen: Seen, pattern: str) -> list[str]:
    """The files that match, sorted: `*`, `?`, `[…]` within a name, `**` for any directories.

    Names that begin with a dot match only a pattern part that does too.
    """
    return sorted(set(_match(seen, "", pattern.split("/"))))


def _match(seen: Seen, directory: str, parts: list[str]) -> Iterator[str]:
    head, rest = parts[0], parts[1:]
    if head == "**":
        yield from _match(seen, directory, rest or ["*"])
        for path in _subdirectories(seen, directory):
            yield from _match(seen, path, parts)
        return
    for name in _matching_names(seen, directory, head):
        path = f"{directory}/{name}" if directory else name
        if not rest:
            if seen.is_plain_file(path):
                yield path
        elif seen.is_plain_dir(path):
            yield from _match(seen, path, rest)


def _matching_names(seen: Seen, directory: str, pattern: str) -> list[str]:
    names = seen.children(directory) or []
    if not set(pattern) & set("*?["):
        return [pattern] if pattern in names else []
    return [
        name
        for name in names
        if fnmatch.fnmatchcase(name, pattern) and (pattern.startswith(".") or not name.startswith("."))
    ]


def _subdirectories(seen: Seen, directory: str) -> list[str]:
    prefix = f"{directory}/" if directory else ""
    names = [name for name in seen.children(directory) or [] if not name.startswith(".")]
    return [prefix + name for name in names if seen.is_plain_dir(prefix + name)]
