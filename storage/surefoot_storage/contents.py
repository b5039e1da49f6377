"""Where the bytes of a version are, and how they get into a new file without passing through memory whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from .areas import Areas
from .errors import SurefootError, UnreadableFile
from .fsops import FsOps
from .layout import Layout
from .log import Log
from .states import Op

_CHUNK_BYTES = 1 << 20


class Contents:
    """Logged versions: in the log, under their second name, or among the blobs."""

    def __init__(self, fs: FsOps, layout: Layout, areas: Areas, database: Log) -> None:
        self._fs = fs
        self._layout = layout
        self._areas = areas
        self._database = database

    def write(self, digest: bytes, op: Op, target: int, *also: tuple[int, str]) -> None:
        """The version, checked, into an empty file; `also` names (directory, name) where it may be, too.

        Raises:
            UnreadableFile: nobody holds it any more.
        """
        data = self._database.blob(digest)
        if data is not None:
            self._fs.write(target, data)
            return
        for folder, name in self._holders(digest, op, *also):
            self.copy(folder, name, target)
            return
        raise UnreadableFile(
            "read the kept content", op.path, expected=f"sha256 {digest.hex()}", found="nobody who has it"
        )

    def holds(self, digest: bytes, op: Op) -> bool:
        """Whether `write` would find it."""
        return self._database.blob(digest) is not None or any(self._holders(digest, op))

    def _holders(self, digest: bytes, op: Op, *also: tuple[int, str]) -> Iterator[tuple[int, str]]:
        for folder, name in (*self._places(op), *self._blob_place(digest), *also):
            with contextlib.suppress(OSError):
                if self._fs.digest(folder, name)[0] == digest:
                    yield folder, name

    def _places(self, op: Op) -> list[tuple[int, str]]:
        area = self._areas.of(op.mount)
        return [(area.keep, op.stage), (area.stage, op.stage)] if op.stage else []

    def copy(self, folder: int, name: str, target: int) -> None:
        """A file's content into an empty one."""
        source = self._fs.open_file(folder, name)
        try:
            self._fs.copy(source, target)
        finally:
            self._fs.close(source)

    def is_torn(self, folder: int, name: str, digests: list[bytes], op: Op) -> bool:
        """Whether a large file is a beginning of one of these versions, and zeros beyond; or nothing else."""
        shown, size = self._without_zeros(folder, name)
        if shown == 0:
            return True
        return shown < size and any(self._begins(folder, name, shown, digest, op) for digest in digests)

    def _without_zeros(self, folder: int, name: str) -> tuple[int, int]:
        """(length without trailing zeros, length)."""
        shown = size = 0
        for chunk in self._chunks(folder, name):
            if stripped := chunk.rstrip(b"\0"):
                shown = size + len(stripped)
            size += len(chunk)
        return shown, size

    def _begins(self, folder: int, name: str, length: int, digest: bytes, op: Op) -> bool:
        for place, version in (*self._places(op), *self._blob_place(digest)):
            with contextlib.suppress(OSError):
                if self._fs.digest(place, version)[0] == digest:
                    return self._same_start(self._chunks(folder, name), self._chunks(place, version), length)
        return False

    def _same_start(self, mine: Iterator[bytes], theirs: Iterator[bytes], length: int) -> bool:
        for a, b in zip(mine, theirs, strict=False):
            if a[:length] != b[:length]:
                return False
            length -= len(a)
            if length <= 0:
                return True
        return False

    def _chunks(self, folder: int, name: str) -> Iterator[bytes]:
        fd = self._fs.open_file(folder, name)
        try:
            while chunk := self._fs.read_chunk(fd, _CHUNK_BYTES):
                yield chunk
        finally:
            self._fs.close(fd)

    def _blob_place(self, digest: bytes) -> list[tuple[int, str]]:
        return [(self._layout.blobs, f"{digest.hex()[:2]}/{digest.hex()}")]

    def small(self, digest: bytes) -> bytes | None:
        """A version that the log itself holds."""
        with contextlib.suppress(SurefootError):
            return self._database.blob(digest)
        return None
