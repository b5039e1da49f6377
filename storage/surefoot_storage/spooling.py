"""Large contents, streamed into a staged file and out of a file, without ever being in memory whole."""

from __future__ import annotations

import contextlib
import hashlib
import io
import queue
import sys
import threading
from typing import Any

from .errors import StageFailed, TransactionClosed, UnreadableFile, os_error_text
from .fsops import FsOps
from .layout import stage_name
from .states import File, Snapshot
from .transaction import FileTransaction
from .tree import Tree
from .view import changed_while_read
from .wants import Spool

BUFFER_BYTES = 1 << 20  # one hop to a worker thread for each megabyte
_WRITEBACK_BYTES = 16 << 20  # sent on its way meanwhile, so that the final flush has little left to do


class Hasher:
    """sha256 in a thread of its own: it takes as long as writing does, and both let Python run on."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._pieces: queue.Queue[bytes | None] = queue.Queue(maxsize=4)  # megabytes in memory at most
        self._thread: threading.Thread | None = None

    def update(self, data: bytes) -> None:
        """The next bytes."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="surefoot-hash", daemon=True)
            self._thread.start()
        self._pieces.put(data)

    def _run(self) -> None:
        while (data := self._pieces.get()) is not None:
            self._hash.update(data)

    def digest(self) -> bytes:
        """Of everything; nothing may follow."""
        if self._thread is not None:
            self._pieces.put(None)
            self._thread.join()
            self._thread = None
        return self._hash.digest()

    def stop(self) -> None:
        """Nobody wants to know. Waits for nothing: the interpreter may be shutting down."""
        with contextlib.suppress(queue.Empty, queue.Full):
            while self._thread is not None:
                self._pieces.get_nowait()
        with contextlib.suppress(queue.Full):
            self._pieces.put_nowait(None)


class SpoolWriter(io.RawIOBase):
    """A staged file that is written once, from beginning to end. Closing it hands it to its transaction.

    Writes and the end exclude each other: a thread that is still writing after its attempt was
    cancelled finds the stream closed.
    """

    def __init__(
        self, fs: FsOps, tree: Tree, tx: FileTransaction, path: str, mode: int | None, worker: str
    ) -> None:
        super().__init__()
        self._fs = fs
        self._tx = tx
        self._mode = mode
        self._lock = threading.Lock()
        self._hash = Hasher()
        self._size = self._sent = 0
        self._ended = False
        self.path = tx.expect_stream(path, self)
        try:
            with tree.parents() as parents:
                area = tree.areas.of(parents.mount(self.path))
            self._stage, self._journal = area.stage, area.recipe.name == "journal"
            self._name = stage_name(worker, f"{tx.txid}.spool", tx.count_stream())
            self._fd = fs.create(self._stage, self._name)
        except BaseException as error:
            tx.end_stream(self.path, None)
            if isinstance(error, OSError):
                raise self._failed(error) from error
            raise

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, data: object) -> int:
        """All of it.

        Raises:
            StageFailed: the disk does not take it; the stream is given up.
            TransactionClosed: the attempt is over.
        """
        view = memoryview(data).cast("B")  # type: ignore[arg-type]
        piece = (
            data if isinstance(data, bytes) else bytes(view)
        )  # a buffer is used again: the hash needs its own
        with self._lock:
            if self._ended:
                raise TransactionClosed(f"the stream for {self.path} has ended with its attempt")
            try:
                self._fs.write(self._fd, view)
            except OSError as error:
                self._give_up()
                raise self._failed(error) from error
            self._hash.update(piece)
            self._size += len(view)
            if self._journal and self._size - self._sent >= _WRITEBACK_BYTES:
                self._fs.start_writeback(self._fd, self._sent, self._size - self._sent)
                self._sent = self._size
        return len(view)

    def close(self) -> None:
        """The path shall hold what was written."""
        super().close()
        with self._lock:
            if self._ended:
                return
            if sys.is_finalizing():  # nobody closed it, and the hashing thread does not run any more
                self._give_up()
                return
            self._ended = True
            self._fs.close(self._fd)
            spool = Spool(self._name, self._hash.digest(), self._size)
        self._tx.end_stream(self.path, spool, mode=self._mode)

    def abort(self) -> None:
        """Given up: nothing of it is left."""
        with self._lock:
            self._give_up()

    def _give_up(self) -> None:
        if not self._ended:
            self._ended = True
            self._hash.stop()
            self._fs.close(self._fd)
            with contextlib.suppress(OSError):  # what resists goes when the workspace is next opened
                self._fs.unlink(self._stage, self._name)
            self._tx.end_stream(self.path, None)
            super().close()

    def _failed(self, error: OSError) -> StageFailed:
        return StageFailed(
            "stream into",
            self.path,
            expected="room for the new version",
            found=os_error_text(error),
            hint="free some disk space; nothing was changed",
        )


class FileReader(io.RawIOBase):
    """A file, read in pieces, that is the version which the transaction knows, or an error at its end."""

    def __init__(self, fs: FsOps, tx: FileTransaction, snapshot: Snapshot) -> None:
        super().__init__()
        assert isinstance(snapshot.state, File)
        self._fs = fs
        self._state = snapshot.state
        self._path = snapshot.path
        self._hash = hashlib.sha256()
        self._size = 0
        self._fd = tx.open_to_read(snapshot)

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: object) -> int:
        """The next bytes.

        Raises:
            Conflict: somebody changed the file since it was first looked at.
            UnreadableFile: the disk does not give it.
        """
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        try:
            data = self._fs.read_chunk(self._fd, len(view))
        except OSError as error:
            raise UnreadableFile(
                "read", self._path, expected="its content", found=os_error_text(error)
            ) from error
        view[: len(data)] = data
        self._hash.update(data)
        self._size += len(data)
        if self._size > self._state.size or (not data and self._hash.digest() != self._state.digest):
            raise changed_while_read(self._path)
        return len(data)

    def close(self) -> None:
        """Gives the file back."""
        if not self.closed:
            super().close()
            self._fs.close(self._fd)


def open_writer(
    fs: FsOps, tree: Tree, tx: FileTransaction, path: str, mode: int | None, worker: str
) -> io.BufferedWriter:
    """A stream into a path, for one `with` block or until its `close`."""
    return _Writer(SpoolWriter(fs, tree, tx, path, mode, worker), BUFFER_BYTES)


def open_reader(fs: FsOps, tx: FileTransaction, path: str) -> io.BufferedReader:
    """A stream out of a path, as the transaction sees it."""
    found = tx.file_at(path)
    if isinstance(found, bytes):
        return io.BufferedReader(_Bytes(found))
    if found.data is not None:
        return io.BufferedReader(_Bytes(found.data))
    return io.BufferedReader(FileReader(fs, tx, found), BUFFER_BYTES)


class _Writer(io.BufferedWriter):
    """Leaving its `with` block by an exception gives the stream up."""

    def write(self, data: Any) -> int:
        """Large pieces go straight through."""
        if isinstance(data, bytes) and len(data) >= BUFFER_BYTES:
            self.flush()
            return int(self.raw.write(data) or 0)
        return super().write(data)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None:
            self.raw.abort()  # type: ignore[attr-defined]
        self.close()


class _Bytes(io.RawIOBase):
    """Content that is in memory already."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._data = memoryview(data)

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: object) -> int:
        """The next bytes."""
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        size = min(len(view), len(self._data))
        view[:size] = self._data[:size]
        self._data = self._data[size:]
        return size
