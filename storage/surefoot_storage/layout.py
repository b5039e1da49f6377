"""The control directory `.surefoot/`: what lies where, and open descriptors of it.

surefoot.db, -wal, -shm   the log (only SQLite opens these)
stage/<worker>.<n>.<txid> new versions before the swap, displaced old ones after it
keep/<worker>.<n>.<txid>  second name of a large new version, until it is durable in its place
workers/<worker>          locked for as long as that worker has the workspace open
locks/<hash>              named locks of steps
blobs/<aa>/<sha256>       large old versions, kept for undo
copies/<name>             working copies, where there are any: see copyfolders
conflicts/<name>          what somebody else had written where a commit put its own version
workspace.json            format and identity: written last when a workspace is made
applied                   up to which commit the files are in place: a hint, never proof
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from .errors import UnreadableFile
from .fsops import FsOps
from .mark import APPLIED
from .paths import CONTROL_DIR
from .states import digest_of

DATABASE = "surefoot.db"
MARKER = "workspace.json"
SECRET = "secret.json"  # noqa: S105 - a file's name
DAMAGED = "database-damaged"  # present: the log failed to flush; copy it to new blocks before trusting it
STAGE_SUFFIXES = (".old", ".again", ".aside")  # a displaced version; a second try; one moved out of the way
SPARE_SUFFIX = ".spare"  # a displaced version that was looked at, and may be half written again since
FOLDERS = ("stage", "keep", "blobs", "conflicts", "workers", "locks")


@dataclass(frozen=True)
class Layout:
    """Open descriptors of the control directory."""

    fs: FsOps
    control: int
    stage: int
    keep: int
    blobs: int
    conflicts: int
    workers: int
    locks: int
    applied: int

    @classmethod
    def open(cls, fs: FsOps, root: int) -> Layout:
        """The directory must exist with all its folders."""
        fds: list[int] = []
        try:
            fds.append(fs.open_dir(root, CONTROL_DIR))
            for name in FOLDERS:
                fds.append(fs.open_dir(fds[0], name))
            fds.append(fs.open_record(fds[0], APPLIED))
        except BaseException:
            for fd in fds:
                fs.close(fd)
            raise
        return cls(fs, *fds)

    def close(self) -> None:
        """Gives all descriptors back."""
        folders = (self.stage, self.keep, self.blobs, self.conflicts, self.workers, self.locks)
        for fd in (*folders, self.applied, self.control):
            self.fs.close(fd)

    # --- small notes ---

    def write_note(self, name: str, value: dict[str, Any], *, durable: bool) -> None:
        """A JSON file, replaced whole."""
        write_note(self.fs, self.control, name, value, durable=durable)

    def read_note(self, name: str) -> dict[str, Any] | None:
        """The JSON file, None where it is missing or torn."""
        return read_note(self.fs, self.control, name)

    # --- large contents ---

    def store_blob(self, digest: bytes, directory: int, source: str, *, durable: bool = True) -> None:
        """Keeps a file's content, copied, `durable` when this returns. Its digest was taken before.

        Raises:
            OSError: EBUSY where it is another content by now.
        """
        name = digest.hex()
        with contextlib.suppress(FileExistsError):
            self.fs.mkdir(self.blobs, name[:2], 0o700)
        with self.blob_folder(digest) as folder:
            if self.fs.lstat(folder, name) is not None:
                self.fs.touch(folder, name)  # whoever lets old versions go leaves this one alone for a while
                return
            temporary = f"{name}.{os.urandom(4).hex()}.new"
            try:
                self._copy_checked(digest, directory, source, folder, temporary, durable=durable)
                self.fs.rename_over(folder, temporary, folder, name)
            except BaseException:
                self.fs.unlink(folder, temporary)
                raise
            if durable:
                self.fs.sync(folder)
        if durable:
            self.fs.sync(self.blobs)

    def _copy_checked(
        self, digest: bytes, directory: int, source: str, folder: int, name: str, *, durable: bool
    ) -> None:
        target = self.fs.create(folder, name)
        try:
            fd = self.fs.open_file(directory, source)
            try:
                self.fs.copy(fd, target)
            finally:
                self.fs.close(fd)
            if durable:
                self.fs.sync_data(target)
        finally:
            self.fs.close(target)
        if self.fs.digest(folder, name)[0] != digest:
            raise OSError(errno.EBUSY, "it changed while its old version was kept", source)

    def blob_digests(self) -> list[bytes]:
        """Everything that is kept as a file of its own."""
        found = []
        for folder in self.fs.names(self.blobs):
            with self.fs.opened_dir(self.blobs, folder) as fd:
                found += [bytes.fromhex(name) for name in self.fs.names(fd) if not name.endswith(".new")]
        return found

    def blob_folder(self, digest: bytes) -> AbstractContextManager[int]:
        """The folder in `blobs/` that a content belongs to."""
        return self.fs.opened_dir(self.blobs, digest.hex()[:2])

    def read_blob(self, digest: bytes) -> bytes:
        """Content kept by `store_blob`, checked.

        Raises:
            UnreadableFile: it is gone or damaged.
        """
        name = digest.hex()
        with contextlib.suppress(OSError), self.blob_folder(digest) as folder:
            data, _ = self.fs.read(folder, name)
            if digest_of(data) == digest:
                return data
        raise UnreadableFile("read the kept content", name, expected="a file with this sha256", found="none")


@contextlib.contextmanager
def opened_folder(fs: FsOps, root: str, name: str, *, make: bool) -> Iterator[int]:
    """A folder of the control directory that is not always there, made (durably) where that is asked for."""
    top = fs.open_root(root)
    try:
        with fs.opened_dir(top, CONTROL_DIR) as control:
            if make:
                with contextlib.suppress(FileExistsError):
                    fs.mkdir(control, name, 0o700)
                    fs.sync(control)
            with fs.opened_dir(control, name) as folder:
                yield folder
    finally:
        fs.close(top)


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


def stage_name(worker: str, txid: str, idx: int) -> str:
    """The name of a change's staged file: whose it is, and what of."""
    return f"{worker}.{idx}.{txid}"


def parse_stage_name(name: str) -> tuple[str, str, int] | None:
    """(worker, transaction, index); None for a name that is nobody's."""
    for suffix in (*STAGE_SUFFIXES, SPARE_SUFFIX):
        name = name.removesuffix(suffix)
    head, _, rest = name.partition(".")
    idx, _, txid = rest.partition(".")
    if txid and idx.isdecimal():
        return head, txid, int(idx)
    return ("", head, int(idx)) if idx.isdecimal() else None  # as the first version named them
