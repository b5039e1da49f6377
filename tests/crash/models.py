"""What may be found on a disk after a power cut, from the record of what it was told.

weak      each unflushed write and each directory entry is lost or kept by itself (ALICE, Pillai et al., OSDI 2014)
ordered   ext4, xfs: changes of names and modes reach the disk in order, up to some point; the data of a file that
          was neither flushed nor written out before that point may be missing, or zeros
btrfs     a whole commit of the filesystem at some point, and on top of it each file and directory that was
          flushed since, with its names; the data of other files may be missing, or zeros

Up to 2^`EXHAUSTIVE_BITS` combinations at one point are all tried; of more than that a sample: lose one, keep one,
lose the last ones, lose all of a kind, and at random. A log record is there whole or not at all, in order.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from record import TOP, Change, Inode, Record, resized, spliced

EXHAUSTIVE_BITS = 16
NEVER = 1 << 60


@dataclass(frozen=True)
class Point:
    """A moment: so many changes and so many flushes had happened."""

    changes: int
    events: int


@dataclass(frozen=True)
class Found:
    """One state: which changes are on the disk, and how many records in the log."""

    applied: frozenset[int]
    logged: int
    zeros: tuple[tuple[int, int], ...] = ()  # (inode, size) of files that have a size, but no data


@dataclass
class Story:
    """A record, with what is asked of it again and again."""

    record: Record
    covered: list[int] = field(default_factory=list)  # by change: the flush that made it durable
    named: list[int] = field(default_factory=list)  # by change of an entry: the flush of what it names
    written: list[int] = field(default_factory=list)  # by change of data: the flush or write-out after it

    def __post_init__(self) -> None:
        for number, change in enumerate(self.record.changes):
            self.covered.append(self._first(number, change, {"sync"}))
            self.written.append(self._first(number, change, {"sync", "written"}))
            to_it = change._replace(inode=change.other) if change.kind == "entry" and change.other else change
            self.named.append(self._first(number, to_it, {"sync"}))

    def _first(self, number: int, change: Change, kinds: set[str]) -> int:
        for index, event in enumerate(self.record.events):
            reaches = event.inode == change.inode or (event.inode == 0 and change.kind != "log")
            if reaches and event.place > number and event.kind in kinds:
                return index
        return NEVER

    def points(self) -> list[Point]:
        """After each change and each flush, in order."""
        found = [Point(0, 0)]
        events = 0
        for place in range(len(self.record.changes) + 1):
            if place:
                found.append(Point(place, events))
            while events < len(self.record.events) and self.record.events[events].place == place:
                events += 1
                found.append(Point(place, events))
        return found

    def logged(self, point: Point) -> tuple[int, int]:
        """(records that must be there, records that may be)."""
        least = most = 0
        for number in range(point.changes):
            if self.record.changes[number].kind == "log":
                most += 1
                if self.covered[number] < point.events:
                    least = most
        return least, most


def weak(story: Story, point: Point, rng: random.Random, samples: int) -> Iterator[Found]:
    changes = story.record.changes
    must, free = [], []
    for number in range(point.changes):
        if changes[number].kind == "log":
            continue
        is_free = story.covered[number] >= point.events and changes[number].kind != "mode"
        (free if is_free else must).append(number)
    least, most = story.logged(point)
    if (most - least + 1) << len(free) <= min(1 << EXHAUSTIVE_BITS, samples):
        for logged in range(least, most + 1):
            for bits in range(1 << len(free)):
                yield Found(frozenset(must + [n for i, n in enumerate(free) if bits >> i & 1]), logged)
        return
    for lost in itertools.islice(some_losses(free, changes, rng), samples):
        yield Found(frozenset(must).union(free) - lost, rng.randint(least, most))


def some_losses(free: list[int], changes: list[Change], rng: random.Random) -> Iterator[frozenset[int]]:
    """Subsets worth a look, then random ones without end."""
    whole = frozenset(free)
    yield frozenset()
    yield whole
    for kind in ("data", "entry"):
        yield frozenset(n for n in free if changes[n].kind == kind)
    singles = rng.sample(free, min(len(free), 12))
    yield from (frozenset([n]) for n in singles)
    yield from (whole - {n} for n in singles)
    yield from (frozenset(n for n in free if n >= start) for start in singles)
    while True:
        chance = rng.choice((0.15, 0.5, 0.85))
        yield frozenset(n for n in free if rng.random() < chance)


def ordered(story: Story, point: Point, rng: random.Random, samples: int) -> Iterator[Found]:
    changes = story.record.changes
    metadata = [n for n in range(point.changes) if changes[n].kind in ("entry", "mode")]
    first = max([n + 1 for n in metadata if story.covered[n] < point.events], default=0)
    cuts = [first] + [n + 1 for n in metadata if n >= first and _ends_group(changes, n)]
    yield from _prefixes(story, point, rng, samples, sorted(set(cuts)), metadata, set())


def btrfs(story: Story, point: Point, rng: random.Random, samples: int) -> Iterator[Found]:
    changes, events = story.record.changes, story.record.events
    metadata = [n for n in range(point.changes) if changes[n].kind in ("entry", "mode")]
    whole = max((e.place for e in events[: point.events] if e.kind == "sync" and e.inode == 0), default=0)
    cuts = [whole] + [n + 1 for n in metadata if n >= whole and _ends_group(changes, n)]
    flushed = {n for n in metadata if min(story.covered[n], story.named[n]) < point.events}
    groups = {changes[n].group for n in flushed if changes[n].kind == "entry"}
    flushed |= {n for n in metadata if changes[n].group in groups}  # an old name goes with its new one
    yield from _prefixes(story, point, rng, samples, sorted(set(cuts)), metadata, flushed)


def _ends_group(changes: list[Change], number: int) -> bool:
    return number + 1 == len(changes) or changes[number + 1].group != changes[number].group


def _prefixes(
    story: Story, point: Point, rng: random.Random, samples: int, cuts: list[int], metadata: list[int],
    replayed: set[int],
) -> Iterator[Found]:  # fmt: skip
    """All changes of names and modes up to a cut; data by what was written out before it."""
    changes = story.record.changes
    data = [n for n in range(point.changes) if changes[n].kind in ("data", "size")]
    least, most = story.logged(point)
    cases = [(cut, logged) for cut in cuts for logged in range(least, most + 1)]
    rng.shuffle(cases)
    each = max(1, samples // max(1, len(cases)))
    for cut, logged in cases:
        meta = {n for n in metadata if n < cut or n in replayed}
        sure = {n for n in data if story.covered[n] < point.events or _was_written(story, n, cut, point)}
        open_ = sorted({changes[n].inode for n in data if n not in sure})
        for choice in _choices(open_, rng, each):
            there = {n for n in data if n in sure or choice.get(changes[n].inode) == "there"}
            zeros = tuple((i, _size(changes, i, data)) for i, what in choice.items() if what == "zeros")
            yield Found(frozenset(meta | there), logged, zeros)


def _size(changes: list[Change], inode: int, data: list[int]) -> int:
    """Of a file by what was written to it."""
    writes = (changes[n] for n in data if changes[n].inode == inode)
    return max(c.other + len(c.data) for c in writes)


def _was_written(story: Story, number: int, cut: int, point: Point) -> bool:
    """Written out, and the new size with the names that are there."""
    event = story.written[number]
    return event < point.events and story.record.events[event].place < cut


def _choices(inodes: list[int], rng: random.Random, most: int) -> Iterator[dict[int, str]]:
    whats = ("there", "missing", "zeros")
    if len(whats) ** len(inodes) <= most:
        for chosen in itertools.product(whats, repeat=len(inodes)):
            yield dict(zip(inodes, chosen, strict=True))
        return
    for _ in range(most):
        same = rng.choice((*whats, ""))  # of all files, or of each
        yield {inode: same or rng.choice(whats) for inode in inodes}


MODELS = {"weak": weak, "ordered": ordered, "btrfs": btrfs}


# --- a state as a disk ---


def assemble(base: dict[int, Inode], record: Record, found: Found) -> dict[int, Inode]:
    """The inodes of one state, those that can be reached."""
    inodes = {number: inode.copy() for number, inode in base.items()}
    for number in sorted(found.applied):
        change = record.changes[number]
        inode = inodes.get(change.inode)
        if inode is None:
            inode = inodes[change.inode] = _new(record, change.inode)
        if change.kind == "entry":
            assert inode.entries is not None
            inode.entries.pop(change.name, None)
            if change.other:
                inode.entries[change.name] = change.other
                if change.other not in inodes:
                    inodes[change.other] = _new(record, change.other)
        elif change.kind == "data":
            inode.data = spliced(inode.data, change.data, change.other)
        elif change.kind == "size":
            inode.data = resized(inode.data, change.other)
        else:
            inode.mode = change.other
    for number, size in found.zeros:
        if number in inodes:
            inodes[number].data = bytes(size)
    return _reachable(inodes)


def _new(record: Record, number: int) -> Inode:
    mode, is_directory = record.made[number]
    return Inode(mode, b"", {} if is_directory else None)


def _reachable(inodes: dict[int, Inode]) -> dict[int, Inode]:
    """Without what nothing leads to; a directory with two names becomes two."""
    kept: dict[int, Inode] = {}
    spare = itertools.count(max(inodes) + 1)

    def visit(number: int) -> int:
        inode = kept.get(number) or inodes[number]
        if inode.entries is None:
            kept[number] = inode
            return number
        if number in kept:
            inode = inode.copy()
            number = next(spare)
        kept[number] = inode
        assert inode.entries is not None
        for name, child in list(inode.entries.items()):
            inode.entries[name] = visit(child)
        return number

    visit(TOP)
    return kept


def fingerprint(inodes: dict[int, Inode], number: int = TOP) -> int:
    """Equal for equal trees, links included."""
    inode = inodes[number]
    if inode.entries is None:
        return hash((number, inode.mode, inode.data))
    inner: Iterable[object] = sorted(
        (name, fingerprint(inodes, child)) for name, child in inode.entries.items()
    )
    return hash((inode.mode, tuple(inner)))
