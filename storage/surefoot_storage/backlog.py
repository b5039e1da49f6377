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
    paths: int = 0
    size_bytes: int = 0
    others: bool = False  # some are another process's: the log knows which

    def add(self, entry: Unsynced) -> None:
        """One of this process's."""
        self.mine.append(entry)
        self.paths += len(entry.ops)
        self.size_bytes += entry.size_bytes

    def add_others(self, paths: int, size_bytes: int) -> None:
        """Another process's."""
        self.others = self.others or paths > 0
        self.paths += paths
        self.size_bytes += size_bytes

    def drop(self, upto: int) -> None:
        """Durable now; what came later stays."""
        left = [entry for entry in self.mine if entry.seq > upto]
        self.mine, self.paths, self.size_bytes, self.others = [], 0, 0, False
        for entry in left:
            self.add(entry)

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
