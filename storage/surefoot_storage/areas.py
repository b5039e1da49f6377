"""A stage on each filesystem below the workspace: renames do not cross mount points.

The workspace's own is `.surefoot/stage`. Where another filesystem is mounted inside the workspace, its top
directory gets a `.surefoot-stage` with the same two folders, probed on its own.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass

from .fsops import FsOps
from .layout import Layout
from .paths import STAGE_DIR
from .recipes import Recipe, probe


@dataclass(frozen=True, slots=True)
class Area:
    """Where the files of one filesystem are staged, and how they are put in place there."""

    mount: str
    stage: int
    keep: int
    recipe: Recipe


class Areas:
    """The stages of one workspace, opened when they are needed."""

    def __init__(self, fs: FsOps, layout: Layout, root: int, recipe: Recipe) -> None:
        self._fs = fs
        self._root = root
        self.home = Area("", layout.stage, layout.keep, recipe)
        self._others: dict[str, Area] = {}
        self._opening = threading.Lock()
        self._home_mount = fs.facts(root, "")[1]

    def of(self, mount: str) -> Area:
        """The stage of the filesystem that begins at `mount`, made where it is missing.

        Raises:
            OSError: nothing is mounted there any more, or it cannot be written to.
            WorkspaceUnusable: it is a network filesystem.
        """
        if not mount:
            return self.home
        with self._opening:
            if mount not in self._others:
                self._others[mount] = self._open(mount)
            return self._others[mount]

    def _open(self, mount: str) -> Area:
        fs = self._fs
        with fs.opened_dir(self._root, mount, cross=True) as top:
            _make(fs, top, STAGE_DIR)
            with fs.opened_dir(top, STAGE_DIR) as folder:
                for name in ("stage", "keep"):
                    _make(fs, folder, name)
                if fs.lstat(folder, ".gitignore") is None:
                    fd = fs.create(folder, ".gitignore")
                    fs.write(fd, b"*\n")
                    fs.close(fd)
                stage, keep = fs.open_dir(folder, "stage"), fs.open_dir(folder, "keep")
        return Area(mount, stage, keep, probe(fs, stage))

    def mount_of(self, path: str, directory: int) -> str:
        """Where the filesystem of an open directory begins: `""` is the workspace's own."""
        mount = self._fs.facts(directory, "")[1]
        if mount == self._home_mount:
            return ""
        names = path.split("/")
        top = path
        for length in range(len(names) - 1, 0, -1):
            above = "/".join(names[:length])
            with self._fs.opened_dir(self._root, above, cross=True) as fd:
                if self._fs.facts(fd, "")[1] != mount:
                    break
            top = above
        return top

    def close(self) -> None:
        """Gives the descriptors back."""
        for area in self._others.values():
            self._fs.close(area.stage)
            self._fs.close(area.keep)
        self._others.clear()


def _make(fs: FsOps, directory: int, name: str) -> None:
    with contextlib.suppress(FileExistsError):
        fs.mkdir(directory, name, 0o700)
