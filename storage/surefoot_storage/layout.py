"""The control directory `.surefoot/`: what lies where, and open descriptors of it.

surefoot.db, -wal, -shm   the log (only SQLite opens these)
stage/<txid>.<n>          new versions before the swap, displaced old ones after it
keep/<txid>.<n>           second name of a large new version, until it is durable in its place
blobs/<aa>/<sha256>       large old versions, kept for undo
conflicts/<name>          what somebody else had written where a commit put its own version
workspace.json            format and identity: written last when a workspace is made
holder.json               which process holds the lock; a note for people, proves nothing
"""

from __future__ import annotations

import contextlib
import errno
import json
from dataclasses import dataclass
from typing import Any

from .errors import UnreadableFile
from .fsops import FsOps
from .paths import CONTROL_DIR
from .states import digest_of

DATABASE = "surefoot.db"
MARKER = "workspace.json"
HOLDER = "holder.json"
DAMAGED = "database-damaged"  # present: the log failed to flush; copy it to new blocks before trusting it
FOLDERS = ("stage", "keep", "blobs", "conflicts")


@dataclass(frozen=True)
class Layout:
    """Open descriptors of the control directory."""

    fs: FsOps
    control: int
    stage: int
    keep: int
    blobs: int
    conflicts: int

    @classmethod
    def open(cls, fs: FsOps, root: int) -> Layout:
        """The directory must exist with all its folders."""
        fds: list[int] = []
        try:
            fds.append(fs.open_dir(root, CONTROL_DIR))
            fds.extend(fs.open_dir(fds[0], name) for name in FOLDERS)
        except BaseException:
            for fd in fds:
                fs.close(fd)
            raise
        return cls(fs, *fds)

    def close(self) -> None:
        """Gives all descriptors back; the lock goes with the control directory's."""
        for fd in (self.stage, self.keep, self.blobs, self.conflicts, self.control):
            self.fs.close(fd)

    # --- small notes ---

    def write_note(self, name: str, value: dict[str, Any], *, durable: bool) -> None:
        """A JSON file, replaced whole."""
        write_note(self.fs, self.control, name, value, durable=durable)

    def read_note(self, name: str) -> dict[str, Any] | None:
        """The JSON file, None where it is missing or torn."""
        return read_note(self.fs, self.control, name)

    # --- large contents ---

    def store_blob(self, digest: bytes, data: bytes) -> None:
        """Keeps content as a file that is durable when this returns."""
        name = digest.hex()
        with contextlib.suppress(FileExistsError):
            self.fs.mkdir(self.blobs, name[:2], 0o700)
        with self.fs.opened_dir(self.blobs, name[:2]) as folder:
            if self.fs.lstat(folder, name) is not None:
                return
            temporary = f"{name}.new"
            self.fs.unlink(folder, temporary)
            write_durably(self.fs, folder, temporary, data)
            self.fs.rename_over(folder, temporary, folder, name)
            self.fs.sync(folder)
        self.fs.sync(self.blobs)

    def read_blob(self, digest: bytes) -> bytes:
        """Content kept by `store_blob`, checked.

        Raises:
            UnreadableFile: it is gone or damaged.
        """
        name = digest.hex()
        with contextlib.suppress(OSError), self.fs.opened_dir(self.blobs, name[:2]) as folder:
            data, _ = self.fs.read(folder, name)
            if digest_of(data) == digest:
                return data
        raise UnreadableFile("read the kept content", name, expected="a file with this sha256", found="none")


def write_durably(fs: FsOps, directory: int, name: str, data: bytes) -> None:
    """A new file whose data is on the device when this returns (its name is not)."""
    fd = fs.create(directory, name)
    try:
        fs.write(fd, data)
        fs.sync_data(fd)
    finally:
        fs.close(fd)


def write_note(fs: FsOps, control: int, name: str, value: dict[str, Any], *, durable: bool) -> None:
    """A JSON file in the control directory, replaced whole."""
    temporary = f"{name}.new"
    fs.unlink(control, temporary)
    fd = fs.create(control, temporary)
    try:
        fs.write(fd, json.dumps(value).encode() + b"\n")
        if durable:
            fs.sync_data(fd)
    finally:
        fs.close(fd)
    fs.rename_over(control, temporary, control, name)
    if durable:
        fs.sync(control)


def read_note(fs: FsOps, control: int, name: str) -> dict[str, Any] | None:
    """The JSON file, None where it is missing or torn."""
    try:
        value = json.loads(fs.read(control, name)[0])
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOENT, errno.EACCES):
            raise
        return None
    return value if isinstance(value, dict) else None
