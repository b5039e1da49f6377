"""Makes committed files durable in their places."""

from __future__ import annotations

from .areas import Area
from .errors import SurefootError
from .fsops import FsOps
from .paths import leaf_of, parent_of
from .states import Directory, File, Op
from .tree import Tree

_SYNCFS_FILES_MIN = 64  # from here on one syncfs is cheaper than a flush for each file


def flush_files(fs: FsOps, tree: Tree, ops: list[Op]) -> list[Op]:
    """Flushes the files and directories of these changes; returns the files that failed to flush."""
    failed = []
    for mount in sorted({op.mount for op in ops}):
        area = tree.areas.of(mount)
        if area.recipe.name != "memory":
            failed += _flush_area(fs, tree, area, [op for op in ops if op.mount == mount])
    return failed


def _flush_area(fs: FsOps, tree: Tree, area: Area, ops: list[Op]) -> list[Op]:
    newest = {op.path: op for op in ops}
    files = [op for op in newest.values() if isinstance(op.new, File)]
    if area.recipe.syncfs_is_safe and len(newest) >= _SYNCFS_FILES_MIN:
        try:
            fs.sync_filesystem(area.stage)
        except OSError:
            return files  # nobody says which one failed
        return []
    failed = [op for op in files if not _flush_file(fs, tree, op)]
    folders = {parent_of(op.path) for op in newest.values()}
    folders |= {op.path for op in newest.values() if isinstance(op.new, Directory)}
    for folder in sorted(folders):
        _flush_folder(fs, tree, folder)
    fs.sync(area.stage)
    return failed


def _flush_file(fs: FsOps, tree: Tree, op: Op) -> bool:
    """False where the data could not be written: never flush that inode again."""
    try:
        directory = tree.open_parent(op.path, operation="flush")
        if directory is None:
            return True
        try:
            fd = fs.open_file(directory, leaf_of(op.path))
        finally:
            fs.close(directory)
    except (OSError, SurefootError):
        return True  # somebody else has put something else there
    try:
        fs.sync(fd)
    except OSError:
        return False
    finally:
        fs.close(fd)
    return True


def _flush_folder(fs: FsOps, tree: Tree, folder: str) -> None:
    try:
        fd = fs.open_dir(tree.root, folder, cross=True)
    except OSError:
        return  # removed, with everything in it
    try:
        fs.sync(fd)
    finally:
        fs.close(fd)
