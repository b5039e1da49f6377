"""Sealing a working copy: what has changed in it is kept by content, and cannot change any more."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

from .changes import Base, ChangeSet, Entry, PathChange, Version, differences, why_blocked
from .copyfolders import BASE, CHANGES, SEALED, WORK, CopyFolders, refused
from .errors import CopyRefused
from .fsclones import Leave
from .layout import read_note, write_note

ROUNDS_MAX = 5
EACH_MAX = 64  # contents that are flushed one by one
_COMMITS = (".git/objects/", ".git/refs/")
CHUNK = 1 << 20


class CopySealing(CopyFolders):
    """The half that looks at copies and keeps what it finds."""

    # --- what has become of it ---

    def seal(self, name: str, ignore: Leave) -> ChangeSet:
        """Keeps what has changed in the copy, for good; nobody may be working in it. Twice is fine.

        Args:
            name: of the copy.
            ignore: says of a path whether its changes are left out.

        Raises:
            CopyRefused: it was never ready, it keeps changing, or the disk does not take it.
        """
        with self._copy(name) as copy:
            if (sealed := self._read(copy)) is not None:
                return sealed
            try:
                return self._seal(name, copy, ignore)
            except OSError as error:
                raise refused("seal", name, "room for what has changed", error) from error

    def _seal(self, name: str, copy: int, ignore: Leave) -> ChangeSet:
        base = self._base(copy)
        then = base.copied()
        with contextlib.suppress(FileExistsError):
            self._fs.mkdir(copy, SEALED, 0o700)
        for _ in range(ROUNDS_MAX):
            with self._fs.opened_dir(copy, SEALED) as sealed, self._opened_work(copy, name) as work:
                now = self._fs.look_through(work, lambda _path: False)
                taken, left_out = differences(then, now, ignore)
                found = self._collect(work, sealed, base, taken, (then, now))
                if found is not None and all(self._look_at(work, path) == now.get(path) for path in taken):
                    sizes = tuple((path, now[path].size if path in now else 0) for path in left_out)
                    result = ChangeSet(base.directory, found[0], found[1], sizes, found[2])
                    self._make_durable(sealed, result)
                    work_then = {path: now.get(path) for path in (*taken, *left_out)}
                    facts = {**result.as_dict(), "work": work_then}
                    write_note(self._fs, copy, CHANGES, facts, durable=True)
                    return result
        raise CopyRefused(
            "seal", name, expected="a working copy that nobody writes to", found="one that keeps changing",
            hint="surefoot agent doctor shows which processes are left",
        )  # fmt: skip

    def _look_at(self, directory: int, path: str) -> Entry | None:
        above, _, leaf = path.rpartition("/")
        try:
            with self._fs.opened_dir(directory, above) as parent:
                return self._fs.look_at(parent, leaf)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _make_durable(self, sealed: int, changes: ChangeSet) -> None:
        """A few files one by one; many by one call, which flushes everybody's data."""
        contents = {c.new.sha256 for c in changes.changes if c.new is not None and not c.new.is_directory}
        if len(contents) > EACH_MAX:
            self._fs.sync_filesystem(sealed)
            return
        for content in contents:
            fd = self._fs.open_file(sealed, content)
            try:
                self._fs.sync(fd)
            finally:
                self._fs.close(fd)
        self._fs.sync(sealed)

    def _collect(
        self, work: int, sealed: int, base: Base, paths: list[str],
        looks: tuple[dict[str, Entry], dict[str, Entry]],
    ) -> tuple[tuple[PathChange, ...], tuple[tuple[str, str], ...], tuple[str, ...]] | None:  # fmt: skip
        """(changes, what is blocked, conflicts); None where something moved meanwhile."""
        then, now = looks
        changes, blocked, conflicts = [], [], []
        with self._live(base.directory, missing=True) as live:
            for path in paths:
                why = why_blocked(then.get(path), now.get(path)) or _unspeakable(path)
                if why:
                    blocked.append((path, why))
                    continue
                try:
                    new = self._version(work, path, now.get(path), sealed)
                except (FileNotFoundError, NotADirectoryError):
                    return None
                old, foreign = self._live_version(live, path, base)
                if old == new:
                    continue  # somebody has made the same change
                if foreign:
                    conflicts.append(path)
                changes.append(PathChange(path, old, new))
        return tuple(changes), tuple(blocked), tuple(conflicts)

    def _version(self, directory: int, path: str, entry: Entry | None, sealed: int | None) -> Version | None:
        """A file's or directory's version; into `sealed`, where that is given, goes a file's content."""
        if entry is None:
            return None
        if entry.kind == "directory":
            return Version(entry.mode)
        above, _, leaf = path.rpartition("/")
        with self._fs.opened_dir(directory, above) as parent:
            if sealed is None:
                digest, found = self._fs.digest(parent, leaf)
                return Version(entry.mode, digest.hex(), found.st_size)
            return self._keep(parent, leaf, entry, sealed)

    def _keep(self, parent: int, leaf: str, entry: Entry, sealed: int) -> Version:
        """Copies a file's content under its digest: taken of the copy, which nobody else can reach."""
        temporary = "new"
        self._fs.unlink(sealed, temporary)
        source, target = self._fs.open_file(parent, leaf), self._fs.create(sealed, temporary)
        try:
            self._fs.copy(source, target)
        finally:
            self._fs.close(source)
            self._fs.close(target)
        digest, found = self._fs.digest(sealed, temporary)
        self._fs.rename_over(sealed, temporary, sealed, digest.hex())
        return Version(entry.mode, digest.hex(), found.st_size)

    def _live_version(self, live: int, path: str, base: Base) -> tuple[Version | None, bool]:
        """(what there is in the workspace now, whether somebody has changed it since it was copied)."""
        try:
            entry = self._look_at(live, path)
        except OSError:  # a symlink is on the way by now
            return None, True
        if entry is None or entry.kind not in ("file", "directory"):
            return None, entry is not None or path in base.rows
        foreign = not entry.still_has(base.seen(path))
        if entry.kind == "directory":
            with self._fs.opened_dir(live, path) as inside:
                appeared = any(f"{path}/{name}" not in base.rows for name in self._fs.names(inside))
            return Version(entry.mode), foreign or appeared
        return self._version(live, path, entry, None), foreign

    def sealed(self, name: str) -> ChangeSet | None:
        """The sealed change set; None where there is none (yet).

        Raises:
            CopyRefused: there is no such copy.
        """
        with self._copy(name) as copy:
            return self._read(copy)

    def read(self, name: str, sha256: str) -> bytes:
        """A sealed content.

        Raises:
            CopyRefused: it is gone, or not what was sealed.
        """
        pieces = b"".join(self.stream(name, sha256))
        if hashlib.sha256(pieces).hexdigest() != sha256:
            raise CopyRefused(
                "read", f"{name}/{sha256[:12]}", expected="the content that was sealed", found="another one"
            )
        return pieces

    def stream(self, name: str, sha256: str) -> Iterator[bytes]:
        """The same, in pieces; whoever reads them checks the digest."""
        try:
            with self._copy(name) as copy, self._fs.opened_dir(copy, SEALED) as sealed:
                fd = self._fs.open_file(sealed, sha256)
                try:
                    while piece := self._fs.read_chunk(fd, CHUNK):
                        yield piece
                finally:
                    self._fs.close(fd)
        except OSError as error:
            raise refused("read", f"{name}/{sha256[:12]}", "a sealed content", error) from error

    def strays(self, name: str) -> list[str]:
        """Paths of the copy that are not as they were sealed: nobody has kept them.

        Raises:
            CopyRefused: there is no such copy.
        """
        with self._copy(name) as copy:
            return self._strays(copy)

    def unsealed(self, name: str) -> list[str]:
        """Paths of the copy that nobody has kept, for whatever reason.

        Raises:
            CopyRefused: there is no such copy.
        """
        with self._copy(name) as copy:
            return self._unsealed(copy)

    def _unsealed(self, copy: int) -> list[str]:
        """What was changed after the sealing, what cannot be sealed, and commits made in its `.git`."""
        kept = read_note(self._fs, copy, CHANGES)
        if kept is None or self._fs.lstat(copy, WORK) is None:
            return self._strays(copy)
        then = kept["work"]
        blocked = [path for path, _ in kept["blocked"] if then.get(path) and then[path][0] == "file"]
        commits = [path for path, _ in kept["left_out"] if path.startswith(_COMMITS) and then.get(path)]
        return sorted({*self._strays(copy), *blocked, *commits})

    def _refuse_unsealed(self, copy: int, name: str) -> None:
        unsealed = self._unsealed(copy)
        if unsealed:
            raise CopyRefused(
                "remove", name, expected="a working copy of which everything is sealed",
                found=f"{len(unsealed)} paths that are not, as {unsealed[0]!r}",
                hint=f"it lies in {self.path(name)}; surefoot workspace discard gives it up",
            )  # fmt: skip

    def _strays(self, copy: int) -> list[str]:
        kept = read_note(self._fs, copy, CHANGES)
        if kept is not None:
            then = self._base(copy).copied() | {
                p: Entry._make(e) for p, e in kept["work"].items() if e is not None
            }
            then = {path: entry for path, entry in then.items() if kept["work"].get(path, ()) is not None}
        elif read_note(self._fs, copy, BASE) is not None:
            then = self._base(copy).copied()
        else:
            return []  # it was never ready
        try:
            with self._fs.opened_dir(copy, WORK) as work:
                now = self._fs.look_through(work, lambda _path: False)
        except FileNotFoundError:
            return []
        return sorted(path for path, entry in now.items() if entry != then.get(path))


def _unspeakable(path: str) -> str:
    """Why no row of the log can hold a name; "" where one can."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    return ""
