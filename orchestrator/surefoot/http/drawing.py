"""What the page draws: the graph of a workflow, and figures over time, as SVG. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y = 132, 34, 44, 18


class Box(NamedTuple):
    """A step in the drawing."""

    name: str
    x: int
    y: int
    look: str  # done, current, waiting, error, ahead


class Line(NamedTuple):
    """Something can follow something."""

    path: str
    is_back: bool


class Drawing(NamedTuple):
    """All of it, in pixels."""

    width: int
    height: int
    boxes: tuple[Box, ...]
    lines: tuple[Line, ...]


def draw(workflow: Mapping[str, Any], looks: Mapping[str, str]) -> Drawing:
    """A workflow's graph from left to right; `looks` says where a run stands, by step."""
    follows = {step["name"]: step["follows"] for step in workflow["steps"]}
    columns = _columns(follows, workflow["begins_at"])
    rows: dict[int, int] = {}
    boxes = {}
    for name, column in columns.items():
        row = rows[column] = rows.get(column, -1) + 1
        x, y = 8 + column * (BOX_WIDTH + GAP_X), 8 + row * (BOX_HEIGHT + GAP_Y)
        boxes[name] = Box(name, x, y, looks.get(name, "ahead"))
    lines = [_line(boxes[one], boxes[other]) for one in follows for other in follows[one] if other != one]
    lines += [_loop(boxes[one]) for one in follows if one in follows[one]]
    width = max((box.x for box in boxes.values()), default=0) + BOX_WIDTH + 8
    height = max((box.y for box in boxes.values()), default=0) + BOX_HEIGHT + 30
    return Drawing(width, height, tuple(boxes.values()), tuple(lines))


def _columns(follows: Mapping[str, Sequence[str]], begins_at: Sequence[str]) -> dict[str, int]:
    """How far from the beginning each step is: by the longest way that repeats nothing and goes forward."""
    order = list(follows)
    columns = dict.fromkeys(order, 0)
    for name in order:  # declared in order: what leads back is drawn as leading back
        for other in follows[name]:
            if order.index(other) > order.index(name) and other not in begins_at:
                columns[other] = max(columns[other], columns[name] + 1)
    return columns


def _line(one: Box, other: Box) -> Line:
    middle = BOX_HEIGHT // 2
    x1, y1, x2, y2 = one.x + BOX_WIDTH, one.y + middle, other.x, other.y + middle
    if x2 > x1:
        bend = (x1 + x2) // 2
        return Line(f"M{x1},{y1} C{bend},{y1} {bend},{y2} {x2},{y2}", is_back=False)
    below = max(one.y, other.y) + BOX_HEIGHT + 14
    x1, x2 = one.x + BOX_WIDTH // 2, other.x + BOX_WIDTH // 2
    start, end = one.y + BOX_HEIGHT, other.y + BOX_HEIGHT
    return Line(f"M{x1},{start} C{x1},{below} {x2},{below} {x2},{end}", is_back=True)


def _loop(box: Box) -> Line:
    left, right, bottom = box.x + BOX_WIDTH // 3, box.x + 2 * BOX_WIDTH // 3, box.y + BOX_HEIGHT
    return Line(
        f"M{right},{bottom} C{right},{bottom + 18} {left},{bottom + 18} {left},{bottom}", is_back=True
    )


class Bar(NamedTuple):
    """A piece of time."""

    x: float
    height: float  # of all that happened, in percent
    failed: float  # the part of it that failed, in percent
    at: float
    text: str


def bars(
    found: Sequence[Mapping[str, Any]], *, name: str, now: float, hours: float, pieces: int
) -> list[Bar]:
    """One bar for each piece of time, empty ones included; the highest is 100 percent."""
    length = hours * 3_600 / pieces
    begin = now - hours * 3_600
    by_piece = {min(pieces - 1, max(0, round((one["at"] - begin) / length))): one for one in found}
    most = max((one[name] for one in found), default=0) or 1
    drawn = []
    for piece in range(pieces):
        one = by_piece.get(piece, {})
        count, failed = one.get(name) or 0, one.get("failed") or 0
        share = 100.0 * count / most
        drawn.append(Bar(
            piece, share, min(share, 100.0 * failed / most), begin + piece * length,
            f"{count} {name}, {failed} failed",
        ))  # fmt: skip
    return drawn


def looks_of(workflow: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, str]:
    """How each step of a run is drawn."""
    names = {step["name"] for step in workflow["steps"]}
    looks = {attempt["step"]: "done" for attempt in facts["attempts"] if attempt["step"] in names}
    words = {"due": "current", "parked": "waiting", "joining": "waiting", "error": "error"}
    for visit in facts["open"]:
        looks[visit["step"]] = words[str(visit["state"])]
    return looks


def timeline(facts: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A run's transitions: each line of its history with the attempts that led to it, the latest first."""
    attempts: dict[int, list[Mapping[str, Any]]] = {}
    for attempt in facts["attempts"]:
        attempts.setdefault(attempt["visit"], []).append(attempt)
    lines = []
    for entry in history:
        mine = [a for a in attempts.get(entry["visit"] or -1, []) if a["started_at"] <= entry["at"]]
        last = mine[-1] if mine else None
        took_s = None
        if last is not None and last["ended_at"] is not None:
            took_s = last["ended_at"] - last["started_at"]
        lines.append({**entry, "tries": len(mine), "took_s": took_s})
    return lines[::-1]
