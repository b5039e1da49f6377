"""After a crash or a failed apply: what the log says is compared with what the disk shows.

`decide` is pure. The direction follows from one durable fact: a transaction that is in the log goes
forward, one that is not has only staged files, which are dropped. Nothing is decided by the clock.

| the path shows …                        | after a kill (page cache survived) | after a power cut   |
|-----------------------------------------|------------------------------------|---------------------|
| the newest version in the log           | done                               | done                |
| an older version in the log             | apply                              | apply               |
| a logged version under another's mode   | apply                              | apply               |
| nothing, where no version says so       | foreign: somebody deleted it       | apply               |
| empty, zeros, or a torn newest version  | foreign                            | apply, odd one kept |
| anything else                           | foreign: it stays                  | foreign: it stays   |

An odd one is kept where it has the size of no version: then it may be somebody's after all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from .states import Absent, Directory, File, Op, State

STAGED_DIRECTORY_MODE = 0o700  # as it is made, before its chmod


class Action(Enum):
    """What recovery does with one path."""

    DONE = "done"
    APPLY = "apply"
    REPAIR = "repair"  # apply, and keep what was there
    FOREIGN = "foreign"  # leave it alone, and report it


@dataclass(frozen=True, slots=True)
class Chain:
    """The versions that one path went through since its files were last known to be durable."""

    path: str
    states: tuple[State, ...]  # oldest first
    last: Op
    seq: int


def chains(transactions: Sequence[tuple[int, Sequence[Op]]]) -> list[Chain]:
    """One chain for each path, in the order in which they can be applied."""
    found: dict[str, Chain] = {}
    for seq, ops in transactions:
        for op in ops:
            before = found[op.path].states if op.path in found else (op.old,)
            found[op.path] = Chain(op.path, (*before, op.new), op, seq)
    return sorted(found.values(), key=_order)


def _order(chain: Chain) -> tuple[int, int, str]:
    """Directories to make first and outermost first, directories to remove last and innermost first."""
    depth = chain.path.count("/")
    if isinstance(chain.states[-1], Directory):
        return 0, depth, chain.path
    if isinstance(chain.states[-1], Absent) and any(isinstance(s, Directory) for s in chain.states):
        return 2, -depth, chain.path
    return 1, 0, chain.path


def decide(
    states: Sequence[State],
    now: State | None,
    *,
    power_cut: bool,
    torn: bool = False,
    newest_inode: bool = False,
) -> Action:
    """What to do with a path that shows `now` (None: a link, a device).

    `torn`: the file is empty, all zeros, or a beginning of a logged version followed by zeros.
    `newest_inode`: it is the very file that was staged, unchanged since.
    """
    if now is not None and (now == states[-1] or (newest_inode and not power_cut)):
        return Action.DONE
    if now is not None and now in states[:-1]:
        return Action.APPLY
    if _same_but_mode(states, now):
        return Action.APPLY
    if not power_cut:
        return Action.FOREIGN
    if isinstance(now, Absent):
        return Action.APPLY
    if isinstance(now, File) and torn:
        return Action.REPAIR
    return Action.FOREIGN


def _same_but_mode(states: Sequence[State], now: State | None) -> bool:
    """A logged version under permission bits that some version had.

    btrfs can show a new directory after a power cut as it was before its chmod.
    """
    modes = {state.mode for state in states if not isinstance(state, Absent)}
    if isinstance(now, File):
        digests = {state.digest for state in states if isinstance(state, File)}
        return now.digest in digests and now.mode in modes
    if isinstance(now, Directory):
        return any(isinstance(s, Directory) for s in states) and now.mode in modes | {STAGED_DIRECTORY_MODE}
    return False


def looks_torn(data: bytes, version: bytes) -> bool:
    """Whether `data` is what a power cut can leave of a `version` whose data was not all written."""
    if not data.strip(b"\0"):
        return True
    shown = data.rstrip(b"\0")
    return len(shown) < len(data) and version.startswith(shown)


def looks_half_written(data: bytes, old: bytes, new: bytes) -> bool:
    """Whether `data` is `new` written over `old` up to some point (zeros beyond, where it grew)."""
    same = 0
    for mine, theirs in zip(data, new, strict=False):
        if mine != theirs:
            break
        same += 1
    rest = data[same:]
    return rest in (old[same : len(data)], b"", b"\0" * len(rest))
