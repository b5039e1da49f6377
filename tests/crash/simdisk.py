"""A disk in memory behind the filesystem seam: what programs see, and a record of what a power cut may take.

`SimFs` is an `FsOps`; the product works on it as on a real filesystem. Each change is written down singly: each
write, each directory entry. `models.py` builds from such a record the states that may be found after a cut.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from typing import Any

from record import TOP, Change, Event, Inode, Record, Stat, count_links, resized, spliced

from surefoot_storage import FsOps

MAGIC = {"journal": 0xEF53, "flush": 0x9123683E}


def _fail(number: int, name: object = "") -> OSError:
    return OSError(number, os.strerror(number), name)


class SimFs(FsOps):
    """One process's view of the disk. `record` is None where nobody asks what a cut would leave."""

    def __init__(self, inodes: dict[int, Inode], recipe: str, record: Record | None = None) -> None:
        self.inodes = inodes
        self.record_of = record
        self._magic = MAGIC[recipe]
        self._fds: dict[int, list[int]] = {}
        self._next_fd = 1000
        self._next_inode = max(inodes) + 1
        self._clock = max(inode.stamp for inode in inodes.values()) + 1
        count_links(inodes)

    # --- writing it down ---

    def _note(self, *changes: Change) -> None:
        record = self.record_of
        if record is None:
            return
        record.groups += 1
        record.changes += [change._replace(group=record.groups) for change in changes]

    def _event(self, kind: str, inode: int) -> None:
        if self.record_of is not None:
            self.record_of.events.append(Event(len(self.record_of.changes), kind, inode))

    def _make(self, mode: int, *, directory: bool) -> int:
        number = self._next_inode
        self._next_inode += 1
        self.inodes[number] = Inode(mode, b"", {} if directory else None, self._tick())
        if self.record_of is not None:
            self.record_of.made[number] = (mode, directory)
        return number

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    # --- names ---

    def _open(self, number: int) -> int:
        self._next_fd += 1
        self._fds[self._next_fd] = [number, 0]
        return self._next_fd

    def _number(self, fd: int) -> int:
        return self._fds[fd][0]

    def _at(self, directory: int, name: str) -> tuple[int, str]:
        """(directory's inode, leaf) of a path below an open directory."""
        number = self._fds[directory][0]
        if "/" in name:
            above, _, name = name.rpartition("/")
            number = self._walk_down(number, above)
        return number, name

    def _walk_down(self, number: int, path: str) -> int:
        for part in path.split("/"):
            if part in ("", "."):
                continue
            entries = self.inodes[number].entries
            if entries is None:
                raise _fail(errno.ENOTDIR, path)
            if part not in entries:
                raise _fail(errno.ENOENT, path)
            number = entries[part]
        if self.inodes[number].entries is None:
            raise _fail(errno.ENOTDIR, path)
        return number

    def _find(self, directory: int, name: str) -> int:
        number, leaf = self._at(directory, name)
        entries = self._entries(number)
        if leaf in (".", ""):
            return number
        if leaf not in entries:
            raise _fail(errno.ENOENT, name)
        return entries[leaf]

    def _entries(self, number: int) -> dict[str, int]:
        entries = self.inodes[number].entries
        if entries is None:
            raise _fail(errno.ENOTDIR)
        return entries

    def _set(self, number: int, name: str, inode: int) -> Change:
        entries = self._entries(number)
        before = entries.pop(name, 0)
        if before:
            self.inodes[before].links -= 1
        if inode:
            entries[name] = inode
            self.inodes[inode].links += 1
        return Change("entry", number, 0, name, inode)

    def open_root(self, path: str) -> int:
        del path
        return self._open(TOP)

    def open_dir(self, root: int, path: str, *, cross: bool = False) -> int:
        del cross
        return self._open(self._walk_down(self._number(root), path))

    @contextlib.contextmanager
    def opened_dir(self, root: int, path: str, *, cross: bool = False) -> Iterator[int]:
        fd = self.open_dir(root, path, cross=cross)
        try:
            yield fd
        finally:
            self.close(fd)

    def close(self, fd: int) -> None:
        del self._fds[fd]

    def lstat(self, directory: int, name: str) -> Any:
        try:
            number = self._find(directory, name)
        except FileNotFoundError:
            return None
        return Stat(number, self.inodes[number])

    def fstat(self, fd: int) -> Any:
        number = self._number(fd)
        return Stat(number, self.inodes[number])

    def names(self, directory: int) -> list[str]:
        return sorted(self._entries(self._number(directory)))

    def may_write_in(self, directory: int) -> bool:
        del directory
        return True

    def facts(self, directory: int, name: str) -> tuple[int, int]:
        del directory, name
        return 0, 1

    def filesystem(self, fd: int) -> tuple[int, str]:
        del fd
        return self._magic, "simulated"

    # --- contents ---

    def read(self, directory: int, name: str) -> tuple[bytes, Any]:
        number = self._file(directory, name)
        return self.inodes[number].data, Stat(number, self.inodes[number])

    def _file(self, directory: int, name: str) -> int:
        number = self._find(directory, name)
        if self.inodes[number].entries is not None:
            raise _fail(errno.EISDIR, name)
        return number

    def read_with_attributes(self, directory: int, name: str) -> tuple[bytes, Any, dict[str, bytes]]:
        data, found = self.read(directory, name)
        return data, found, dict(self.inodes[found.st_ino].xattrs)

    def digest(self, directory: int, name: str) -> tuple[bytes, Any]:
        data, found = self.read(directory, name)
        return hashlib.sha256(data).digest(), found

    def read_chunk(self, fd: int, size: int) -> bytes:
        number, place = self._fds[fd]
        found = self.inodes[number].data[place : place + size]
        self._fds[fd][1] += len(found)
        return found

    def copy(self, source: int, target: int) -> None:
        self.write(target, self.inodes[self._number(source)].data)

    def open_file(self, directory: int, name: str) -> int:
        return self._open(self._find(directory, name))

    def open_to_overwrite(self, directory: int, name: str) -> int:
        return self._open(self._file(directory, name))

    open_again = open_to_overwrite

    def open_record(self, directory: int, name: str) -> int:
        try:
            return self._open(self._file(directory, name))
        except FileNotFoundError:
            return self.create(directory, name)

    def create(self, directory: int, name: str) -> int:
        parent, leaf = self._at(directory, name)
        if leaf in self._entries(parent):
            raise _fail(errno.EEXIST, name)
        number = self._make(0o600, directory=False)
        self._note(self._set(parent, leaf, number))
        return self._open(number)

    def write(self, fd: int, data: bytes | memoryview) -> None:
        self._write(self._fds[fd][0], bytes(data), self._fds[fd][1])
        self._fds[fd][1] += len(data)

    def write_at(self, fd: int, data: bytes, offset: int) -> None:
        self._write(self._number(fd), data, offset)

    def _write(self, number: int, data: bytes, offset: int) -> None:
        inode = self.inodes[number]
        inode.data = spliced(inode.data, data, offset)
        inode.stamp = self._tick()
        self._note(Change("data", number, 0, "", offset, data))

    def read_at(self, fd: int, size: int, offset: int) -> bytes:
        return self.inodes[self._number(fd)].data[offset : offset + size]

    def truncate(self, fd: int, size: int) -> None:
        inode = self.inodes[self._number(fd)]
        inode.data = resized(inode.data, size)
        self._note(Change("size", self._number(fd), 0, "", size))

    def forget_pages(self, fd: int, size: int) -> None:
        self._write(self._number(fd), bytes(min(size, len(self.inodes[self._number(fd)].data))), 0)

    def take_lease(self, fd: int) -> bool:
        return fd in self._fds

    def has_writer(self, directory: int, name: str) -> bool:
        del directory, name
        return False

    def end_lease(self, fd: int) -> bool:
        return fd in self._fds

    def attributes(self, fd: int) -> dict[str, bytes]:
        return dict(self.inodes[self._number(fd)].xattrs)

    # --- metadata ---

    def chmod(self, fd: int, mode: int) -> None:
        number = self._number(fd)
        self.inodes[number].mode = mode
        self._note(Change("mode", number, 0, "", mode))

    def chown(self, fd: int, uid: int, gid: int) -> None:
        """Everything belongs to one user here."""

    def xattrs(self, directory: int, name: str) -> dict[str, bytes]:
        return dict(self.inodes[self._find(directory, name)].xattrs)

    def touch(self, directory: int, name: str) -> None:
        self.inodes[self._find(directory, name)].stamp = self._tick()

    # --- durability ---

    def start_writeback(self, fd: int, offset: int = 0, size: int = 0) -> None:
        """Promises nothing."""

    def wait_writeback(self, fd: int) -> None:
        self._event("written", self._number(fd))

    def sync_data(self, fd: int) -> None:
        self._event("sync", self._number(fd))

    sync = sync_data

    def sync_filesystem(self, fd: int) -> None:
        del fd
        self._event("sync", 0)

    # --- moving names ---

    def exchange(self, from_dir: int, from_name: str, to_dir: int, to_name: str) -> None:
        first, second = self._find(from_dir, from_name), self._find(to_dir, to_name)
        source, target = self._at(from_dir, from_name), self._at(to_dir, to_name)
        self._note(self._set(*target, first), self._set(*source, second))

    def rename_new(self, from_dir: int, from_name: str, to_dir: int, to_name: str) -> None:
        number, target = self._find(from_dir, from_name), self._at(to_dir, to_name)
        if target[1] in self._entries(target[0]):
            raise _fail(errno.EEXIST, to_name)
        self._note(self._set(*target, number), self._set(*self._at(from_dir, from_name), 0))

    def rename_over(self, from_dir: int, from_name: str, to_dir: int, to_name: str) -> None:
        number, target = self._find(from_dir, from_name), self._at(to_dir, to_name)
        there = self._entries(target[0]).get(target[1])
        if there is not None and self.inodes[there].entries is not None:
            raise _fail(errno.EISDIR, to_name)
        self._note(self._set(*target, number), self._set(*self._at(from_dir, from_name), 0))

    def link(self, from_dir: int, from_name: str, to_dir: int, to_name: str) -> None:
        number, target = self._find(from_dir, from_name), self._at(to_dir, to_name)
        if target[1] in self._entries(target[0]):
            raise _fail(errno.EEXIST, to_name)
        self._note(self._set(*target, number))

    def unlink(self, directory: int, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._file(directory, name)
            self._note(self._set(*self._at(directory, name), 0))

    def mkdir(self, directory: int, name: str, mode: int) -> None:
        parent, leaf = self._at(directory, name)
        if leaf in self._entries(parent):
            raise _fail(errno.EEXIST, name)
        number = self._make(0o700, directory=True)
        self._note(self._set(parent, leaf, number))
        if mode != 0o700:
            self.inodes[number].mode = mode
            self._note(Change("mode", number, 0, "", mode))

    def rmdir(self, directory: int, name: str) -> None:
        if self._entries(self._find(directory, name)):
            raise _fail(errno.ENOTEMPTY, name)
        self._note(self._set(*self._at(directory, name), 0))

    def remove_tree(self, directory: int, name: str) -> None:
        found = self.lstat(directory, name)
        if found is None:
            return
        if stat.S_ISDIR(found.st_mode):
            with self.opened_dir(directory, name) as fd:
                for child in self.names(fd):
                    self.remove_tree(fd, child)
            self.rmdir(directory, name)
        else:
            self.unlink(directory, name)

    # --- process-wide ---

    def umask(self) -> int:
        return 0o022

    def try_lock(self, fd: int) -> bool:
        return fd in self._fds

    def now_ns(self) -> int:
        return self._clock + 10**10  # long after every change: nothing is racy
