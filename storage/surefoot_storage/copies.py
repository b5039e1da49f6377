"""Working copies of directories: made, looked at, sealed, removed.

Nothing in one is ever taken for the workspace's own files: a change set reaches them through a transaction,
like everything else. `remove` refuses to delete what was neither sealed nor given up.
"""

from __future__ import annotations

import contextlib

from .changes import Base, differences
from .copyfolders import BASE, SEALED, TRASH, WORK, refused
from .copysealing import ROUNDS_MAX, CopySealing
from .errors import CopyRefused
from .fsclones import Cloned, Leave
from .layout import read_note, write_note
from .paths import CONTROL_DIR, ancestors_of, leaf_of, parent_of

FORMAT = 1


class Copies(CopySealing):
    """All working copies of one workspace."""

    # --- making one ---

    def prepare(self, name: str, directory: str, leave: Leave) -> int:
        """A copy of a directory, as it was at one moment; returns how many entries it has. Twice is fine.

        Raises:
            CopyRefused: there is no such directory, it never stops changing, or the disk does not take it.
        """
        with self._copy(name, make=True) as copy:
            if read_note(self._fs, copy, BASE) is not None:
                return len(self._base(copy).rows)
            self._fs.remove_tree(copy, WORK)  # one that was never finished: nobody has worked in it
            try:
                return self._prepare(copy, directory, _without_own(directory, leave))
            except OSError as error:
                raise refused("copy", directory, "a directory that can be copied", error) from error

    def _prepare(self, copy: int, directory: str, leave: Leave) -> int:
        self._fs.mkdir(copy, WORK, 0o700)
        with self._live(directory) as source, self._fs.opened_dir(copy, WORK) as work:
            cloned = self._fs.clone_tree(source, work, leave)
            if not cloned.settled:
                self._settle(source, work, directory, leave, cloned)
        note = {"format": FORMAT, "directory": directory, "entries": cloned.rows}
        write_note(self._fs, copy, BASE, note, durable=True)
        return len(cloned.rows)

    def _settle(self, source: int, work: int, directory: str, leave: Leave, cloned: Cloned) -> None:
        """Clones what has changed meanwhile again, until a look sees what was cloned."""
        for _ in range(ROUNDS_MAX):
            base = Base(directory, cloned.rows)
            seen = {path: entry for path in base.rows if (entry := base.seen(path)) is not None}
            changed, _ = differences(seen, self._fs.look_through(source, leave), lambda _path: False)
            if not changed:
                return
            for path in _topmost(changed):
                self._clone_again(source, work, path, leave, cloned)
        raise CopyRefused(
            "copy", directory, expected="a directory that stands still for a moment",
            found=f"{changed[0]}, which keeps changing",
        )  # fmt: skip

    def _clone_again(self, source: int, work: int, path: str, leave: Leave, cloned: Cloned) -> None:
        """What has changed while it was cloned, with everything below it."""
        above, leaf = parent_of(path), leaf_of(path)
        for known in [p for p in cloned.rows if p == path or p.startswith(f"{path}/")]:
            del cloned.rows[known]
        try:
            with self._fs.opened_dir(work, above) as target:
                self._fs.remove_tree(target, leaf)
                with self._fs.opened_dir(source, above) as parent:
                    again = self._fs.clone_name(parent, target, leaf, leave, f"{above}/" if above else "")
        except (FileNotFoundError, NotADirectoryError):
            return  # its directory is gone by now: the next look says so
        cloned.rows.update(again.rows)

    def put(self, name: str, path: str, data: bytes | None, mode: int | None) -> int:
        """A file (None: a directory) in a copy that nobody works in yet, directories above it included.

        Returns its permission bits: those of the file that is there, unless `mode` says others.

        Raises:
            CopyRefused: the disk does not take it.
        """
        try:
            with self._copy(name) as copy, self._fs.opened_dir(copy, WORK) as work:
                for above in ancestors_of(path):
                    self._make(work, above, 0o755)
                if data is None:
                    return self._make(work, path, 0o755 if mode is None else mode)
                with self._fs.opened_dir(work, parent_of(path)) as parent:
                    return self._write(parent, leaf_of(path), data, mode)
        except OSError as error:
            raise refused("write", f"{name}/{path}", "room in the copy", error) from error

    def _make(self, work: int, path: str, mode: int) -> int:
        existing = contextlib.suppress(FileExistsError)
        with existing, self._fs.opened_dir(work, parent_of(path)) as parent:
            self._fs.mkdir(parent, leaf_of(path), mode)
        return mode

    def _write(self, parent: int, leaf: str, data: bytes, mode: int | None) -> int:
        there = self._fs.look_at(parent, leaf)
        if mode is None:
            mode = there.mode if there is not None and there.kind == "file" else 0o644
        self._fs.remove_tree(parent, leaf)
        fd = self._fs.create(parent, leaf)
        try:
            self._fs.write(fd, data)
            self._fs.chmod(fd, mode)
        finally:
            self._fs.close(fd)
        return mode

    def cut(self, name: str, path: str) -> None:
        """Removes something from a copy that nobody works in yet."""
        gone = contextlib.suppress(FileNotFoundError, NotADirectoryError)
        with gone, self._copy(name) as copy, self._fs.opened_dir(copy, f"{WORK}/{parent_of(path)}") as parent:
            self._fs.remove_tree(parent, leaf_of(path))

    def entries_below(self, name: str) -> list[str]:
        """Everything that is in a copy."""
        with self._copy(name) as copy, self._opened_work(copy, name) as work:
            return list(self._fs.look_through(work, lambda _path: False))

    def forget(self, path: str, digests: set[str]) -> None:
        """No copy has this path of the workspace any more, nor sealed contents with one of these digests."""
        for name in self.names():
            with contextlib.suppress(CopyRefused), self._copy(name) as copy:
                for digest in digests:
                    with contextlib.suppress(FileNotFoundError), self._fs.opened_dir(copy, SEALED) as sealed:
                        self._fs.unlink(sealed, digest)
                note = read_note(self._fs, copy, BASE)
                directory = note["directory"] if note is not None else ""
                if path.startswith(f"{directory}/" if directory else ""):
                    self.cut(name, path.removeprefix(f"{directory}/" if directory else ""))

    # --- its end ---

    def remove(self, name: str, *, discard: bool = False) -> None:
        """Removes all of it, what was sealed as well: for what is committed, unchanged or given up.

        Raises:
            CopyRefused: something in it was neither sealed nor is it to be discarded.
        """
        with self._copy(name) as copy:
            if not discard:
                self._refuse_unsealed(copy, name)
        with self._folder() as folder:
            self._fs.remove_tree(folder, name + TRASH)
            self._fs.rename_new(folder, name, folder, name + TRASH)
            self._fs.remove_tree(folder, name + TRASH)

    def sweep(self) -> None:
        """Finishes removals that were interrupted."""
        with contextlib.suppress(FileNotFoundError), self._folder() as folder:
            for name in self._fs.names(folder):
                if name.endswith(TRASH):
                    self._fs.remove_tree(folder, name)


def _topmost(paths: list[str]) -> list[str]:
    """Of sorted paths, those that do not lie below another one."""
    found: list[str] = []
    for path in paths:
        if not found or not path.startswith(f"{found[-1]}/"):
            found.append(path)
    return found


def _without_own(directory: str, leave: Leave) -> Leave:
    """Surefoot's own files are never copied; those of other filesystems lie on those, and stay there."""
    return leave if directory else lambda path: path == CONTROL_DIR or leave(path)
