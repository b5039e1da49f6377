"""Looking into a workspace without a lock and without changing anything."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from . import fsops, opening
from .checkup import Checkup
from .fsops import FsOps
from .history import History
from .layout import DATABASE
from .log import Log
from .paths import CONTROL_DIR
from .records import Row
from .schema import STORAGE, Schema
from .sealing import Sealed, find_sealed


class ReadOnlyWorkspace:
    """The rows of a workspace, also while another process has it open, and on a read-only disk.

    Raises:
        WorkspaceUnusable: there is no workspace, it is another user's, or another version made it.
    """

    def __init__(
        self, root: str | os.PathLike[str], *, schemas: Sequence[Schema] = (), fs: FsOps | None = None
    ) -> None:
        self.root = os.path.abspath(os.fspath(root))
        seam = fs or FsOps()
        with contextlib.ExitStack() as undo:
            top = opening.open_root(seam, self.root)
            undo.callback(seam.close, top)
            with opening.explained(self.root):
                self._check(seam, top)
            self._log = Log(os.path.join(self.root, CONTROL_DIR, DATABASE), read_only=True)
            undo.callback(self._log.close)
            self._log.refuse_newer([STORAGE, *schemas])
            self._log.refuse_older(schemas)
            self.history = History(seam, top, lambda: contextlib.nullcontext(self._log))
            """What was committed here."""
            self.checkup = Checkup(seam, self.root, top, self._log, self.history)
            """What is wrong here."""
            self._close = undo.pop_all().close

    def _check(self, fs: FsOps, root: int) -> None:
        found = fs.lstat(root, CONTROL_DIR)
        if found is None or not fsops.is_directory(found):
            hint = "surefoot run makes one; or name another directory with --workspace"
            raise opening.unusable(self.root, f"no {CONTROL_DIR} in it", "a workspace", hint)
        with fs.opened_dir(root, CONTROL_DIR) as control:
            opening.check_format(fs, control, self.root)
            if fs.lstat(control, DATABASE) is None:
                raise opening.unusable(self.root, f"no {CONTROL_DIR}/{DATABASE}", "a workspace's database")

    def query(self, sql: str, values: Mapping[str, Any] | Sequence[Any] = ()) -> list[Row]:
        """Rows of a SELECT."""
        return self._log.query(sql, values)

    def sealed(self, digest: str) -> Sealed:
        """A prepared transaction that is kept.

        Raises:
            InputError: there is none of that digest.
        """
        return find_sealed(self._log, digest)

    def close(self) -> None:
        """Gives everything back."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
