"""The log behind its seam, in memory: commits in order, each whole or not there at all.

That SQLite keeps this promise is not assumed by the lab: `replay.py` takes the real one apart. Here a cut takes
any number of the last records that no barrier had covered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from record import Change, Event, Record

from surefoot_storage.database import BLOCKED, COMMITTED
from surefoot_storage.log import Log
from surefoot_storage.records import Head, Identity, Member, op_row, row_op
from surefoot_storage.states import Op


class State:
    """What the tables hold."""

    def __init__(self) -> None:
        self.txns: dict[int, tuple[str, int, int, list[Op]]] = {}  # seq -> (txid, batch, status, changes)
        self.blobs: dict[bytes, bytes | None] = {}
        self.foreign: list[tuple[int, str, str]] = []
        self.checkpointed = 0
        self.epoch = "before"

    def copy(self) -> State:
        made = State()
        made.txns, made.blobs, made.foreign = dict(self.txns), dict(self.blobs), list(self.foreign)
        made.checkpointed, made.epoch = self.checkpointed, self.epoch
        return made


Step = Callable[[State], None]


class SimLog(Log):
    """A `Log` whose tables are dictionaries. `steps` is every record since it was opened."""

    is_made = True
    log_is_long = False

    def __init__(self, state: State, record: Record | None = None) -> None:
        self.state = state
        self.steps: list[Step] = []
        self.record_of = record
        self._versions = 0

    def _do(self, step: Step, *, durable: bool) -> None:
        step(self.state)
        if self.record_of is not None:
            self.steps.append(step)
            self.record_of.changes.append(Change("log", -1, 0, "", len(self.steps)))
            if durable:
                self._barrier()

    def _barrier(self) -> None:
        assert self.record_of is not None
        self.record_of.events.append(Event(len(self.record_of.changes), "sync", -1))

    # --- the commit point ---

    def commit(
        self,
        members: Sequence[Member],
        *,
        at: float,
        durable: bool = True,
        waiting: Callable[[], AbstractContextManager[None]] | None = None,
    ) -> list[Any]:
        del at, waiting
        batch = max(self.state.txns, default=0) + 1
        seqs = list(range(batch, batch + len(members)))
        entries = [
            (seq, member.txid, member.blobs, [row_op(op_row(seq, 0, op)) for op in member.ops])
            for seq, member in zip(seqs, members, strict=True)
        ]  # as they come out of a table

        def step(state: State) -> None:
            for seq, txid, blobs, ops in entries:
                state.txns[seq] = (txid, batch, COMMITTED, ops)
                for digest, (_, data) in blobs.items():
                    if state.blobs.get(digest) is None:
                        state.blobs[digest] = data

        self._do(step, durable=durable)
        return seqs

    def _status(self, seq: int, status: int) -> Step:
        def step(state: State) -> None:
            txid, batch, _, ops = state.txns[seq]
            state.txns[seq] = (txid, batch, status, ops)

        return step

    def mark_blocked(self, seq: int, cause: str) -> None:
        del cause
        self._do(self._status(seq, BLOCKED), durable=False)

    def mark_unblocked(self, seq: int) -> None:
        self._do(self._status(seq, COMMITTED), durable=False)

    def mark_checkpointed(self, seq: int, epoch: str) -> None:
        def step(state: State) -> None:
            state.checkpointed, state.epoch = max(state.checkpointed, seq), epoch

        self._do(step, durable=True)

    def note_foreign_edit(self, seq: int, path: str, kept_as: str, found: str, kept: str, at: float) -> None:
        del found, kept, at
        self._do(lambda state: state.foreign.append((seq, path, kept_as)), durable=False)

    # --- questions ---

    def data_version(self) -> int:
        self._versions += 1
        return self._versions

    def identity(self) -> Identity:
        return Identity("uuid", max(self.state.txns, default=0))

    def head(self) -> Head:
        return Head(max(self.state.txns, default=0), self.state.checkpointed)

    def _where(self, fits: Callable[[int, int], bool]) -> list[tuple[int, list[Op]]]:
        return [
            (seq, list(ops)) for seq, (_, _, status, ops) in sorted(self.state.txns.items())
            if fits(seq, status) and ops
        ]  # fmt: skip

    def last_batch(self) -> list[tuple[int, list[Op]]]:
        if not self.state.txns:
            return []
        batch = self.state.txns[max(self.state.txns)][1]
        return self._where(lambda seq, _status: seq >= batch)

    def blocked_ops(self) -> list[tuple[int, list[Op]]]:
        return self._where(lambda _seq, status: status == BLOCKED)

    def unchecked_ops(self, upto: int | None = None) -> list[tuple[int, list[Op]]]:
        done = self.state.checkpointed
        return self._where(lambda seq, _status: done < seq <= (upto or seq))

    def count_ops(self, after: int) -> tuple[int, int]:
        ops = [op for seq, (_, _, _, ops) in self.state.txns.items() if seq > after for op in ops]
        return len(ops), sum(getattr(op.new, "size", 0) for op in ops)

    def ops_of(self, seq: int) -> list[Op]:
        return list(self.state.txns[seq][3]) if seq in self.state.txns else []

    def op_of(self, txid: str, idx: int) -> tuple[int, Op] | None:
        for seq, (name, _, _, ops) in self.state.txns.items():
            if name == txid and idx < len(ops):
                return seq, ops[idx]
        return None

    def mounts(self) -> list[str]:
        return []

    def blob(self, digest: bytes) -> bytes | None:
        return self.state.blobs.get(digest)

    def holds(self, digest: bytes) -> bool:
        return digest in self.state.blobs

    def epoch(self) -> str:
        return self.state.epoch

    def is_superseded(self, seq: int, path: str) -> bool:
        del seq, path
        return False
