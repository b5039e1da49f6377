"""What this process knows of the shared log: how far it goes, and how far its files are.

Others commit too. Whoever enters the critical section first catches up: where the last batch is not its
own and the applied mark does not cover it, its author may have died half-way, and the batch is finished
before anything else. Nobody commits on top of an unfinished batch, so only the last one can be unfinished.
"""

from __future__ import annotations

import contextlib

from .backlog import Backlog, Unsynced
from .ballast import Ballast
from .errors import CommitFailed
from .log import Log
from .mark import AppliedMark
from .policy import Policy
from .rollforward import Outcome, RollForward
from .states import Op

_NO_ROOM = "ENOSPC"


class Progress:
    """The log as far as it was looked at. Everything here happens inside the critical section."""

    def __init__(
        self, database: Log, forward: RollForward, mark: AppliedMark, policy: Policy, ballast: Ballast
    ) -> None:
        self._ballast = ballast
        self._policy = policy
        self._database = database
        self._forward = forward
        self._mark = mark
        self._version = -1
        self.last_seq = 0
        self.checkpointed_seq = 0
        self._counted_seq = 0
        self.backlog = Backlog()
        self.blocked: list[tuple[int, list[Op]]] = []
        self.unapplied: tuple[tuple[str, str], ...] = ()

    def covers(self, seq: int) -> bool:
        """Whether the files of commits up to `seq` are in place. Also outside the section."""
        return self._mark.read() >= seq

    def catch_up(self) -> Outcome:
        """Looks at what others have done, and finishes what one of them left behind."""
        version = self._database.data_version()
        if version == self._version:
            return Outcome()
        outcome = Outcome()
        head = self._database.head()
        if head.last_seq > self.last_seq and not self.covers(head.last_seq):
            outcome = self._finish(self._database.last_batch())
        if head.checkpointed_seq > self.checkpointed_seq:
            self.backlog.drop(head.checkpointed_seq)
        after = max(self._counted_seq, head.checkpointed_seq)
        self.backlog.add_theirs(head.last_seq, *self._database.count_ops(after))
        self._counted_seq = head.last_seq
        self.last_seq, self.checkpointed_seq = head.last_seq, head.checkpointed_seq
        self.blocked = self._database.blocked_ops()
        self.applied()
        self._version = self._database.data_version()
        return outcome

    def recover(self, *, power_cut: bool) -> Outcome:
        """At open: what a dead process left behind; after a reboot, everything that is not durable.

        Killed anywhere, it is simply run again.
        """
        head = self._database.head()
        doubtful = self._database.unchecked_ops() if power_cut else self._database.blocked_ops()
        if not power_cut and not self.covers(head.last_seq):
            known = {seq for seq, _ in doubtful}
            doubtful += [entry for entry in self._database.last_batch() if entry[0] not in known]
        outcome = self._forward.run(doubtful, power_cut=power_cut, on_foreign=self._policy.on_recovery)
        self.note_failed(doubtful, outcome)
        if not outcome.failed:
            for seq, _ in self._database.blocked_ops():
                self._database.mark_unblocked(seq)
        self.last_seq = head.last_seq
        self.catch_up()
        return outcome

    def _finish(self, batch: list[tuple[int, list[Op]]]) -> Outcome:
        outcome = self._forward.run(batch, power_cut=False, on_foreign=self._policy.on_recovery)
        self.note_failed(batch, outcome)
        return outcome

    def note_failed(self, transactions: list[tuple[int, list[Op]]], outcome: Outcome) -> None:
        """Rows and memory of what could not be put in place."""
        failed = dict(outcome.failed)
        for seq, ops in transactions:
            causes = [f"{op.path}: {failed[op.path]}" for op in ops if op.path in failed]
            if causes:
                with contextlib.suppress(CommitFailed):  # a hint: the last batch is looked at anyway
                    self._database.mark_blocked(seq, "; ".join(causes))
                if seq not in [known for known, _ in self.blocked]:
                    self.blocked.append((seq, list(ops)))
        self.unapplied = tuple(outcome.failed)

    def settle(self) -> None:
        """Tries once more to put committed changes in place."""
        if not self.blocked:
            return
        outcome = self._try_blocked()
        if any(_NO_ROOM in cause for _, cause in outcome.failed) and self._ballast.give_up():
            outcome = self._try_blocked()
        failed = {path for path, _ in outcome.failed}
        done = [(seq, ops) for seq, ops in self.blocked if not failed & {op.path for op in ops}]
        self.blocked = [entry for entry in self.blocked if entry not in done]
        self.note_failed(self.blocked, outcome)
        for seq, ops in done:
            with contextlib.suppress(CommitFailed):
                self._database.mark_unblocked(seq)
            if seq > self.checkpointed_seq:
                self.backlog.add(Unsynced(seq, ops))
        self.applied()

    def _try_blocked(self) -> Outcome:
        blocks = "block" in (self._policy.on_race, self._policy.on_recovery)
        on_foreign = "block" if blocks else self._policy.on_recovery
        return self._forward.run(self.blocked, power_cut=False, on_foreign=on_foreign)

    def checkpointed(self, upto: int) -> None:
        """The files of commits up to here are durable."""
        self.checkpointed_seq = max(self.checkpointed_seq, upto)
        self.backlog.drop(upto)

    def logged(self, seq: int) -> None:
        """Commits of this process are in the log."""
        self.last_seq = self._counted_seq = max(self.last_seq, seq)

    def applied(self) -> None:
        """Tells readers, unless something is not in place yet."""
        if not self.blocked:
            self.unapplied = ()
            with contextlib.suppress(OSError):
                self._mark.write(self.last_seq)
