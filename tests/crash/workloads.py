"""Every transaction of up to three changes, and what a directory holds after it. Knows nothing of the product.

In the style of ACE (Mohan et al., OSDI 2018): kinds of changes x small or large x same or another directory.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Tree = dict[str, tuple[bytes | None, int]]  # path -> (content, None for a directory; mode)

SMALL_BYTES, LARGE_BYTES = 40, 150
LINK = 0o777  # the mode that symlinks have, and nothing else here


@dataclass(frozen=True)
class Op:
    """One change of a path of its own."""

    kind: str
    large: bool = False
    elsewhere: bool = False

    def __str__(self) -> str:
        return self.kind + "+large" * self.large + "@d" * self.elsewhere


Size = Callable[[bool], int]


def content(name: str, version: str, size: int) -> bytes:
    text = f"{name} {version} ".encode()
    return (text * (size // len(text) + 1))[:size]


@dataclass(frozen=True)
class Workload:
    """Changes that are made together, then taken back together."""

    ops: tuple[Op, ...]
    small: int = SMALL_BYTES
    big: int = LARGE_BYTES

    def __str__(self) -> str:
        return " ".join(map(str, self.ops))

    @property
    def is_refused(self) -> bool:
        """Links are neither followed nor replaced: all of it is refused."""
        return any(op.kind == "symlink" for op in self.ops)

    def trees(self) -> tuple[Tree, Tree]:
        """Before and after."""
        old: Tree = {"stays": (b"stays", 0o644)}
        new: Tree = dict(old)
        for number, op in enumerate(self.ops):
            for tree, part in ((old, _old(self, number, op)), (new, _new(self, number, op))):
                if op.elsewhere:
                    tree["d"] = (None, 0o755)
                tree.update(part)
        if any(op.elsewhere for op in self.ops):
            old["d"] = new["d"] = (None, 0o755)
        return old, new

    def write(self, tx: Any) -> None:
        """Puts the changes into a transaction."""
        _, new = self.trees()
        for number, op in enumerate(self.ops):
            _act(tx, op, path_of(number, op), new)

    def undo(self, tx: Any) -> None:
        """Puts into a transaction what takes them back."""
        old, _ = self.trees()
        for number, op in enumerate(self.ops):
            _act_back(tx, op, path_of(number, op), old)


def path_of(number: int, op: Op) -> str:
    return f"{'d/' if op.elsewhere else ''}{op.kind}{number}"


def _old(world: Workload, number: int, op: Op) -> Tree:
    path, size = path_of(number, op), world.big if op.large else world.small
    file = (content(path, "old", size), 0o644)
    match op.kind:
        case "create" | "mkdir":
            return {}
        case "rmdir":
            return {path: (None, 0o750)}
        case "symlink":
            return {path: (b"stays", LINK)}
        case "dir-to-file" | "rmtree" | "swap":
            return {path: (None, 0o755), f"{path}/in": file, f"{path}/other": (b"other", 0o600)}
    return {path: file}


def _new(world: Workload, number: int, op: Op) -> Tree:
    path, size = path_of(number, op), world.big if op.large else world.small
    file = (content(path, "new", size + 7), 0o644)
    match op.kind:
        case "create" | "replace" | "dir-to-file":
            return {path: file}
        case "mkdir":
            return {path: (None, 0o755)}
        case "chmod":
            return {path: (_old(world, number, op)[path][0], 0o600)}
        case "case":
            return {path.replace("case", "CASE"): _old(world, number, op)[path]}
        case "file-to-dir":
            return {path: (None, 0o755), f"{path}/in": file}
        case "swap":
            return {path: (None, 0o755), f"{path}/in": file, f"{path}/other": (b"other", 0o600)}
    return {}


def _act(tx: Any, op: Op, path: str, new: Tree) -> None:
    match op.kind:
        case "create" | "replace":
            tx.write_bytes(path, new[path][0])
        case "symlink":
            tx.write_bytes(path, b"through the link")
        case "delete":
            tx.delete(path)
        case "mkdir":
            tx.mkdir(path)
        case "rmdir":
            tx.rmdir(path)
        case "rmtree":
            tx.rmtree(path)
        case "chmod":
            tx.chmod(path, 0o600)
        case "case":
            tx.rename(path, path.replace("case", "CASE"))
        case "file-to-dir":
            tx.delete(path)
            tx.write_bytes(f"{path}/in", new[f"{path}/in"][0])
        case "dir-to-file":
            tx.rmtree(path)
            tx.write_bytes(path, new[path][0])
        case "swap":
            tx.swap(path)
            tx.write_bytes(f"{path}/in", new[f"{path}/in"][0])


def _act_back(tx: Any, op: Op, path: str, old: Tree) -> None:
    match op.kind:
        case "create":
            tx.delete(path)
        case "mkdir":
            tx.rmdir(path)
        case "chmod":
            tx.chmod(path, 0o644)
        case "case":
            tx.rename(path.replace("case", "CASE"), path)
        case "file-to-dir":
            tx.rmtree(path)
        case "dir-to-file":
            tx.delete(path)
        case "swap":
            tx.swap(path)
    if op.kind not in ("create", "mkdir", "chmod", "case"):
        make(tx, {p: what for p, what in old.items() if p == path or p.startswith(f"{path}/")}, op.kind)


def make(tx: Any, tree: Tree, kind: str = "") -> None:
    """Everything of a tree, outermost first."""
    for path, (data, mode) in sorted(tree.items()):
        if data is None:
            if kind != "swap":
                tx.mkdir(path, mode=mode)
        elif not (kind == "swap" and path.endswith("/other")):
            tx.write_bytes(path, data, mode=mode)


KINDS = (
    "create", "replace", "delete", "mkdir", "rmdir", "rmtree", "file-to-dir", "dir-to-file", "chmod", "case", "swap",
)  # fmt: skip
_WITHOUT_SIZE = ("mkdir", "rmdir", "case", "symlink")


def all_workloads(kinds: tuple[str, ...] = KINDS, **sizes: int) -> Iterator[Workload]:
    """Of one, two and three changes."""
    ops = [
        Op(kind, large, elsewhere)
        for kind in kinds for large in (False, True) for elsewhere in (False, True)
        if not (large and kind in _WITHOUT_SIZE)
    ]  # fmt: skip
    for count in (1, 2, 3):
        for chosen in itertools.combinations_with_replacement(ops, count):
            yield Workload(chosen, **sizes)
