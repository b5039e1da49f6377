"""Committed files that are not known to be durable in their places, and how many of them there may be."""

from __future__ import annotations

from dataclasses import dataclass, field

from .states import File, Op

TRANSACTIONS_MAX = 256
BYTES_MAX = 8 << 20
PATHS_MAX = 4096  # past these, a commit waits for a checkpoint: they bound the time that recovery takes
FULL_BYTES_MAX = 64 << 20


@dataclass(frozen=True, slots=True)
class Unsynced:
    """One applied transaction whose files are not known to be durable."""

    seq: int
    ops: list[Op]

    @property
    def size_bytes(self) -> int:
        """New contents whose data is not flushed yet."""
        return sum(op.new.size for op in self.ops if isinstance(op.new, File) and not op.kept)


@dataclass
class Backlog:
    """Committed files that are not known to be durable in their places."""

    mine: list[Unsynced] = field(default_factory=list)
    theirs: list[tuple[int, int, int]] = field(default_factory=list)  # (up to which commit, paths, bytes)
    paths: int = 0
    size_bytes: int = 0

    def add(self, entry: Unsynced) -> None:
        """One of this process's."""
        self.mine.append(entry)
        self.paths += len(entry.ops)
        self.size_bytes += entry.size_bytes

    def add_theirs(self, seq: int, paths: int, size_bytes: int) -> None:
        """Other processes', as far as `seq`: the log knows which they are."""
        if paths:
            self.theirs.append((seq, paths, size_bytes))
            self.paths += paths
            self.size_bytes += size_bytes

    def drop(self, upto: int) -> None:
        """Durable now; what came later stays, whosever it is."""
        mine = [entry for entry in self.mine if entry.seq > upto]
        theirs = [counted for counted in self.theirs if counted[0] > upto]
        self.mine, self.theirs, self.paths, self.size_bytes = [], [], 0, 0
        for entry in mine:
            self.add(entry)
        for counted in theirs:
            self.add_theirs(*counted)

    @property
    def is_long(self) -> bool:
        """Whether it is worth a checkpoint."""
        return len(self.mine) >= TRANSACTIONS_MAX or self.paths >= 4 * TRANSACTIONS_MAX or self.is_heavy

    @property
    def is_heavy(self) -> bool:
        """By the amount of data."""
        return self.size_bytes >= BYTES_MAX

    @property
    def is_full(self) -> bool:
        """Whether a commit has to wait for a checkpoint."""
        return self.paths > PATHS_MAX or self.size_bytes > FULL_BYTES_MAX
