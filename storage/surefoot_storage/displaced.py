"""Is what came out of its place the version that the transaction had read? If not, it is kept."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from . import fsops
from .fsops import FsOps
from .states import File, Op, Stamp


def is_expected(fs: FsOps, folder: int, name: str, op: Op, found: os.stat_result) -> bool:
    """By its stamp; where that differs (overlayfs gives copied-up files new inodes), by its content."""
    if not isinstance(op.old, File) or not fsops.is_regular(found):
        return False
    if op.old_stamp is not None and op.old_stamp.same_content(Stamp.of(found)):
        return True
    return found.st_size == op.old.size and fs.digest(folder, name)[0] == op.old.digest


def holds_version(fs: FsOps, folder: int, name: str, op: Op, *, trust_stamp: bool) -> bool:
    """Whether a file in the stage is one of the change's two versions, so that it may go."""
    found = fs.lstat(folder, name)
    if found is None:
        return True
    if not fsops.is_regular(found):
        return False
    if trust_stamp and op.old_stamp is not None and op.old_stamp.same_content(Stamp.of(found)):
        return True
    versions = [state.digest for state in (op.old, op.new) if isinstance(state, File)]
    sizes = [state.size for state in (op.old, op.new) if isinstance(state, File)]
    return found.st_size in sizes and fs.digest(folder, name)[0] in versions


def foreign_files(
    fs: FsOps, folder: int, name: str, path: str, within: Mapping[str, Op]
) -> Iterator[tuple[str, str]]:
    """(path, name in the stage) of files in a displaced directory that nobody expects there.

    A file with another name elsewhere is no loss: what a swap keeps is linked into the new directory.
    """
    with fs.opened_dir(folder, name) as directory:
        for leaf in fs.names(directory):
            found = fs.lstat(directory, leaf)
            below, inner = f"{path}/{leaf}", f"{name}/{leaf}"
            if found is None:
                continue
            if fsops.is_directory(found):
                yield from foreign_files(fs, folder, inner, below, within)
                continue
            op = within.get(below)
            expected = op is not None and (
                is_expected(fs, directory, leaf, op, found)
                or holds_version(fs, directory, leaf, op, trust_stamp=False)  # its own, never put in place
            )
            if not expected and not (op is None and found.st_nlink > 1):
                yield below, inner
