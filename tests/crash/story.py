"""A workload whose every state can be told from its number alone: the oracle of the crash lab.

Knows nothing of the product: `state(n)` is what the directory holds after transaction n.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

SMALL = tuple(f"f{n}" for n in range(6))


def content(name: str, n: int, size: int) -> bytes:
    """Whole or not: the first line says what follows."""
    seed = f"{name} {n} "
    body = (seed.encode() * (size // len(seed) + 1))[:size]
    return f"{n} {hashlib.sha256(body).hexdigest()}\n".encode() + body


def is_whole(data: bytes) -> bool:
    head, _, body = data.partition(b"\n")
    return head.partition(b" ")[2].decode(errors="replace") == hashlib.sha256(body).hexdigest()


def state(n: int) -> dict[str, bytes]:
    """Small files that change each time, a large one, one that comes and goes, trees that are born, swapped, removed."""
    if n == 0:
        return {}
    found = {f"small/{name}": content(name, n, 300 + 40 * (n % 5)) for name in SMALL}
    found["large"] = content("large", n - n % 3, 300_000)
    if n % 2:
        found["flip"] = content("flip", n, 50)
    tree = n - n % 4
    for leaf in ("a", "sub/b", "sub/deep/c"):
        found[f"tree{tree % 3}/{leaf}"] = content(leaf, tree, 900)
    found["swapped/same"] = content("same", 1, 700)
    found[f"swapped/x{n % 2}"] = content("x", n, 800)
    if n % 6 < 3:
        found["kind"] = content("kind", n - n % 3, 60)
    else:
        found["kind/inner"] = content("inner", n - n % 3, 60)
    return found


def directories(n: int) -> set[str]:
    """Those that hold something."""
    return {parent for path in state(n) for parent in _parents(path)}


def _parents(path: str) -> Iterator[str]:
    while path := path.rpartition("/")[0]:
        yield path


def write(tx: object, n: int) -> None:
    """Puts into a transaction what leads from state n - 1 to state n."""
    before, after = state(n - 1), state(n)
    gone = directories(n - 1) - directories(n)
    tops = {d for d in gone if not any(parent in gone for parent in _parents(d))}
    for directory in tops:
        tx.rmtree(directory)  # type: ignore[attr-defined]
    for path in before.keys() - after.keys():
        if not any(path.startswith(f"{top}/") for top in tops):
            tx.delete(path)  # type: ignore[attr-defined]
    if n > 1 and "swapped" in directories(n - 1):
        tx.swap("swapped")  # type: ignore[attr-defined]
    for path, data in after.items():
        if before.get(path) != data:
            tx.write_bytes(path, data)  # type: ignore[attr-defined]


def read(root: Path) -> dict[str, bytes]:
    """What anybody sees."""
    found = {}
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if not name.startswith(".surefoot")]
        for name in files:
            path = Path(folder) / name
            found[str(path.relative_to(root))] = path.read_bytes()
    return found


def torn(found: dict[str, bytes]) -> list[str]:
    """Before recovery: files that are empty, cut, or mixed."""
    return sorted(path for path, data in found.items() if not is_whole(data))


def number_of(found: dict[str, bytes], numbers: range) -> int | None:
    """After recovery: which state this is, exactly; None: none of them."""
    return next((n for n in numbers if state(n) == found), None)
