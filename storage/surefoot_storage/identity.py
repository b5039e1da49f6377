"""Is this the workspace that it says it is? Notes in `workspace.json` against what is found."""

from __future__ import annotations

import os
from typing import Any

from .errors import WorkspaceUnusable
from .fsops import FsOps
from .layout import MARKER, Layout, read_note
from .log import Log
from .paths import CONTROL_DIR
from .recipes import keeps_inode_numbers

_ADOPT = "if that is what you want: surefoot adopt"


def place_of(fs: FsOps, control: int) -> list[str]:
    """Filesystem and inode of the control directory: the same after a rename, another one for a copy."""
    return [fs.filesystem(control)[1], str(fs.fstat(control).st_ino)]


def refuse_nested(fs: FsOps, path: str) -> None:
    """Two workspaces that share files would not know of each other's commits.

    Raises:
        WorkspaceUnusable: a directory above is a workspace.
    """
    above = os.path.dirname(os.path.realpath(path))
    while True:
        if fs.is_workspace(above):
            raise WorkspaceUnusable(
                "open the workspace",
                path,
                expected="a directory outside every other workspace",
                found=f"one inside the workspace {above}",
                hint=f"work in {above}; or remove its {CONTROL_DIR} if it is not meant to be one",
            )
        if os.path.dirname(above) == above:
            return
        above = os.path.dirname(above)


def refuse_wrong_store(fs: FsOps, control: int, path: str, database: Log) -> None:
    """The database of another workspace, an older one, or a copy of everything.

    Raises:
        WorkspaceUnusable: nothing was changed; `adopt` says that it is meant.
    """
    marker = read_note(fs, control, MARKER)
    if marker is None or not database.is_made:
        return
    found = database.identity()
    if found.uuid != marker.get("uuid"):
        raise _wrong(path, "the workspace's own database", "the database of another workspace")
    if found.last_seq < int(marker.get("seq", 0)):
        raise _wrong(
            path,
            f"a database that knows transaction {marker['seq']}",
            f"an older one, which ends at {found.last_seq}: was it restored from a backup?",
        )
    place = place_of(fs, control)
    if keeps_inode_numbers(fs, control) and marker.get("place", place) != place:
        raise _wrong(
            path,
            "the workspace where it was made",
            "a copy of it: its unfinished runs and undelivered messages would be carried out twice",
        )


def _wrong(path: str, expected: str, found: str) -> WorkspaceUnusable:
    return WorkspaceUnusable("open the workspace", path, expected=expected, found=found, hint=_ADOPT)


def note_of(fs: FsOps, layout: Layout, *, version: int, uuid: str, seq: int) -> dict[str, Any]:
    """What `workspace.json` holds."""
    return {"format": version, "uuid": uuid, "seq": seq, "place": place_of(fs, layout.control)}
