"""A run while it is moved on here."""

from __future__ import annotations

import anyio

from .model import Run, Visit


class Live:
    """A run while it is moved on here: what its branches have made of it so far."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.gate = anyio.Lock()  # from deciding what becomes of the run to its commit
        self.lost = False  # another worker has taken it: nothing of ours may be committed any more

    def visit(self, number: int) -> Visit:
        """The open visit, as it is now."""
        visit = self.run.visit(number)
        assert visit is not None
        return visit
