"""The shape of a workflow: which steps follow which, and what is wrong with it. Pure.

A step comes after the steps that its `after=` names, or after an outcome of a step that declares outcomes.
Where several follow one, all of them start: parallel branches. A step that several lead to is a *join*.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from .errors import DeclarationError
from .patterns import may_meet

VISITS_MAX = 1_000
"""How often a run may come by one step, unless the step says otherwise."""


@dataclass(frozen=True)
class Node:
    """What the shape needs to know of a step."""

    name: str
    after: tuple[str, ...]
    explicit: bool = True  # `after` was given, not taken from the order of declaration
    outcomes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    writes: tuple[str, ...] = ()
    fans_out: bool = False
    visits_max: int = VISITS_MAX
    deadline_s: float | None = None


@dataclass(frozen=True)
class Graph:
    """All steps of a workflow, in the order of their declaration."""

    workflow: str
    nodes: Mapping[str, Node]

    @classmethod
    def of(cls, workflow: str, nodes: Iterable[Node]) -> Graph:
        """The shape."""
        return cls(workflow, {node.name: node for node in nodes})

    # --- questions ---

    @cached_property
    def roots(self) -> tuple[str, ...]:
        """Where a run begins: steps that follow nothing and that no outcome leads to."""
        led_to = {name for node in self.nodes.values() for names in node.outcomes.values() for name in names}
        first = next(iter(self.nodes), None)
        return tuple(
            n.name for n in self.nodes.values() if n.name == first or not (n.after or n.name in led_to)
        )

    @cached_property
    def followers(self) -> Mapping[str, tuple[str, ...]]:
        """By step: what starts after it where it chooses nothing."""
        found: dict[str, list[str]] = {name: [] for name in self.nodes}
        for node in self.nodes.values():
            for before in node.after:
                if before in self.nodes and not self.nodes[before].outcomes:
                    found[before].append(node.name)
        return {name: tuple(names) for name, names in found.items()}

    @cached_property
    def edges(self) -> Mapping[str, tuple[str, ...]]:
        """By step: everything that can come right after it."""
        chosen = {
            node.name: [name for names in node.outcomes.values() for name in names]
            for node in self.nodes.values()
        }
        return {name: tuple(dict.fromkeys([*self.followers[name], *chosen[name]])) for name in self.nodes}

    @cached_property
    def leads_to(self) -> Mapping[str, frozenset[str]]:
        """By step: everything that can come after it, itself only in a loop."""
        return _closure(self.edges)

    @cached_property
    def joins(self) -> frozenset[str]:
        """Steps that several others lead to."""
        count = dict.fromkeys(self.nodes, 0)
        for names in self.edges.values():
            for name in names:
                count[name] = count.get(name, 0) + 1
        return frozenset(name for name, n in count.items() if n > 1)

    def check(self) -> None:
        """Refuses what can never work.

        Raises:
            DeclarationError: an unknown or unreachable step, a circle that nothing leaves, two branches
                that write one file at the same time; with the names.
        """
        if not self.nodes:
            raise DeclarationError("run workflow", self.workflow, expected="at least one step", found="none")
        for node in self.nodes.values():
            self._check_names(node)
        self._check_circles()
        self._check_reach()
        self._check_ends()
        self._check_writers()

    # --- checks ---

    def _wrong(self, step: str, expected: str, found: str, hint: str = "") -> DeclarationError:
        return DeclarationError(
            "declare workflow", f"{self.workflow}/{step}", expected=expected, found=found, hint=hint
        )

    def _check_names(self, node: Node) -> None:
        known = ", ".join(self.nodes)
        for name in node.after:
            if name not in self.nodes:
                raise self._wrong(node.name, f"after= one of {known}", name)
        for outcome, names in node.outcomes.items():
            for name in names:
                if name not in self.nodes:
                    raise self._wrong(node.name, f"outcome {outcome!r} to lead to one of {known}", name)

    def _check_circles(self) -> None:
        """`after=` alone must not go round: only an outcome can choose to leave a circle."""
        reach = _closure(self.followers)
        circle = [name for name in self.nodes if name in reach[name]]
        if circle:
            raise self._wrong(
                circle[0],
                "no circle of after=",
                f"one through {' → '.join(circle)}",
                "a loop needs a step that chooses: outcomes={'again': …, 'done': …}",
            )

    def _check_reach(self) -> None:
        reached = set(self.roots)
        for root in self.roots:
            reached |= self.leads_to[root]
        for node in self.nodes.values():
            if node.name in reached:
                continue
            chooser = next((b for b in node.after if self.nodes[b].outcomes), None)
            raise self._wrong(
                node.name,
                "a step that can be reached",
                f"none of {chooser}'s outcomes leads to it" if chooser else "nothing that leads to it",
                f"name it in the outcomes of {chooser}" if chooser else "",
            )
        for node in self.nodes.values():
            idle = [b for b in node.after if self.nodes[b].outcomes and node.name not in self.edges[b]]
            if node.explicit and idle:
                raise self._wrong(
                    node.name, f"after={idle[0]!r} to mean something", f"no outcome of {idle[0]} leads to it",
                    f"name it in the outcomes of {idle[0]}",
                )  # fmt: skip

    def _check_ends(self) -> None:
        ends = {name for name in self.nodes if self._can_end(name)}
        for name in self.nodes:
            if name not in ends and not ends & self.leads_to[name]:
                raise self._wrong(
                    name, "a way to the end of the run", "only ways that lead round",
                    "an outcome that leads to Done()",
                )  # fmt: skip

    def _can_end(self, name: str) -> bool:
        node = self.nodes[name]
        if node.outcomes:
            return any(not names for names in node.outcomes.values())
        return not self.followers[name]

    def _check_writers(self) -> None:
        for node in self.nodes.values():
            fixed = [p for p in node.writes if "{item" not in p and "{index" not in p]
            if node.fans_out and fixed:
                raise self._wrong(
                    node.name, "a file of its own for each item", f"writes {fixed[0]!r} for all of them",
                    "put {index} or {item} into the name, or let one item be worked on at a time: at_once=1",
                )  # fmt: skip
        for first, second in self.parallel_pairs:
            for one in self.nodes[first].writes:
                for other in self.nodes[second].writes:
                    if may_meet(one, other):
                        raise self._wrong(
                            first,
                            f"branches beside each other to write different files (the other is {second})",
                            f"both write {one!r}" if one == other else f"{one!r} and {other!r} may meet",
                            f"let one follow the other: after={first!r}",
                        )  # fmt: skip

    @cached_property
    def parallel_pairs(self) -> tuple[tuple[str, str], ...]:
        """Steps that may be worked on at the same time, loops apart."""
        forward = self._forward
        reach = _closure(forward)
        pairs: dict[tuple[str, str], None] = {}
        forks = [*(self.followers[name] for name in self.nodes), self.roots]
        forks += [names for node in self.nodes.values() for names in node.outcomes.values()]
        for branches in forks:
            for i, left in enumerate(branches):
                for right in branches[i + 1 :]:
                    for a in (left, *sorted(reach[left])):
                        for b in (right, *sorted(reach[right])):
                            if a != b and a not in reach[b] and b not in reach[a]:
                                pairs[min(a, b), max(a, b)] = None
        return tuple(pairs)

    @property
    def _forward(self) -> Mapping[str, tuple[str, ...]]:
        """The edges without those that go back: in a loop everything comes after everything."""
        place = {name: number for number, name in enumerate(self.nodes)}
        return {a: tuple(b for b in names if place[b] > place[a]) for a, names in self.edges.items()}


def _closure(edges: Mapping[str, Sequence[str]]) -> Mapping[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {}
    for start in edges:
        seen: set[str] = set()
        left = list(edges[start])
        while left:
            name = left.pop()
            if name not in seen:
                seen.add(name)
                left += edges.get(name, ())
        found[start] = frozenset(seen)
    return found
