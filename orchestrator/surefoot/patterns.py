"""Patterns of paths: `*` and `?` within a name, `**` across, `{field}` anything. Pure."""

from __future__ import annotations


def may_meet(one: str, other: str) -> bool:
    """Whether two patterns can name one file."""
    return _meet(_tokens(one), _tokens(other))


def matches(pattern: str, path: str) -> bool:
    """Whether a pattern names a path."""
    return _meet(_tokens(pattern), tuple(f"\\{c}" if c in "*?" else c for c in path))


def covers(one: str, other: str) -> bool:
    """Whether the first surely names all that the second does: it is the same, or names everything."""
    return one in ("**", "/**", other)


def _tokens(pattern: str) -> tuple[str, ...]:
    """Characters; "*" within a name, "**" across names, "?" one character."""
    tokens: list[str] = []
    i = 0
    while i < len(pattern):
        if pattern.startswith("**", i):
            tokens.append("**")
            i += 2
        elif pattern[i] == "{":
            tokens.append("**")
            i = pattern.find("}", i) + 1 or len(pattern)
        elif pattern[i] == "[":
            tokens.append("?")
            i = pattern.find("]", i) + 1 or len(pattern)
        else:
            tokens.append(pattern[i])
            i += 1
    return tuple(tokens)


def _meet(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether some text matches both: all pairs of places that can be reached together."""
    left, seen = [(0, 0)], {(0, 0)}
    while left:
        i, j = left.pop()
        if i == len(one) and j == len(other):
            return True
        a = one[i] if i < len(one) else None
        b = other[j] if j < len(other) else None
        nexts = []
        if a in ("*", "**"):
            nexts.append((i + 1, j))
        if b in ("*", "**"):
            nexts.append((i, j + 1))
        if a is not None and b is not None and _same(a, b):
            nexts.append((i if a in ("*", "**") else i + 1, j if b in ("*", "**") else j + 1))
        for place in nexts:
            if place not in seen:
                seen.add(place)
                left.append(place)
    return False


def _same(a: str, b: str) -> bool:
    """Whether one character can stand for both."""
    if "**" in (a, b):
        return True
    if a in ("*", "?"):
        return b != "/"
    if b in ("*", "?"):
        return a != "/"
    return a == b
