"""What lies below a directory, and what has changed there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from surefoot.model import STATUS_FILE
from surefoot_storage.paths import CONTROL_DIR


@dataclass(frozen=True)
class Snapshot:
    """Files and their contents by path, without the engine's own and without status files."""

    files: Mapping[str, bytes]

    @classmethod
    def of(cls, root: str | os.PathLike[str]) -> Snapshot:
        """What is there now."""
        found: dict[str, bytes] = {}
        top = os.fspath(root)
        for folder, folders, names in os.walk(top):
            folders[:] = sorted(name for name in folders if name != CONTROL_DIR)
            for name in sorted(names):
                path = os.path.join(folder, name)
                if name != STATUS_FILE and os.path.isfile(path):
                    with open(path, "rb") as file:
                        found[os.path.relpath(path, top)] = file.read()
        return cls(found)

    def changes(self, later: Snapshot) -> dict[str, tuple[str | None, str | None]]:
        """By path: (text before, text afterwards) of what differs; None where there was or is no file."""
        paths = sorted({*self.files, *later.files})
        return {
            path: (_text(self.files.get(path)), _text(later.files.get(path)))
            for path in paths
            if self.files.get(path) != later.files.get(path)
        }


def _text(data: bytes | None) -> str | None:
    return None if data is None else data.decode(errors="replace")
