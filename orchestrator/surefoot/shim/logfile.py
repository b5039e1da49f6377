"""What a command says: kept in pieces that are named by their offset, the oldest ones let go.

`log.<offset>` holds what was said from that byte on, so that offsets stay true whatever has been let go.
Secrets are replaced before anything is written, also where one is torn between two reads.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence

SHOWN = b"[secret]"
PIECES = 8
SECRET_BYTES_MIN = 4  # what is shorter would hide ordinary words


class Log:
    """One command's output."""

    def __init__(self, keep_bytes: int, secrets: Sequence[str], done_line: str | None) -> None:
        self._piece_bytes = max(4096, keep_bytes // PIECES)
        self._secrets = sorted(
            (s.encode() for s in secrets if len(s.encode()) >= SECRET_BYTES_MIN), key=len, reverse=True
        )
        self._done = re.compile(done_line.encode()) if done_line else None
        self._held = b""  # may be the beginning of a secret
        self._line = b""
        self._pieces: list[int] = []
        self._fd = -1
        self.size = 0  # of everything that was said
        self.is_done = False

    def take(self, data: bytes) -> None:
        """The next bytes."""
        text = self._held + data
        for secret in self._secrets:
            text = text.replace(secret, SHOWN)
        held = max((_overlap(text, secret) for secret in self._secrets), default=0)
        self._held = text[len(text) - held :]
        self._write(text[: len(text) - held])

    def flush(self) -> None:
        """Nothing more for now: what was held back cannot become a secret any more, or may wait for ever."""
        held, self._held = self._held, b""
        self._write(held)

    def _write(self, data: bytes) -> None:
        if not data:
            return
        if self._done is not None and not self.is_done:
            self._look(data)
        while data:
            if self._fd < 0 or self.size - self._pieces[-1] >= self._piece_bytes:
                self._turn()
            room = self._piece_bytes - (self.size - self._pieces[-1])
            piece, data = data[:room], data[room:]
            with contextlib.suppress(OSError):  # a full disk: what is said is lost, the command goes on
                os.write(self._fd, piece)
            self.size += len(piece)

    def _look(self, data: bytes) -> None:
        assert self._done is not None
        *lines, self._line = (self._line + data).split(b"\n")
        self._line = self._line[-65536:]
        self.is_done = any(self._done.fullmatch(line.rstrip(b"\r")) for line in (*lines, self._line))

    def _turn(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        name = f"log.{self.size:020d}"
        self._fd = os.open(name, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._pieces.append(self.size)
        if len(self._pieces) > PIECES:
            os.unlink(f"log.{self._pieces.pop(0):020d}")


def _overlap(text: bytes, secret: bytes) -> int:
    """How many of the last bytes may be the beginning of a secret."""
    for length in range(min(len(secret) - 1, len(text)), 0, -1):
        if text.endswith(secret[:length]):
            return length
    return 0
