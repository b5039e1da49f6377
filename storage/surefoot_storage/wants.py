"""What a transaction wants each path to be. Pure values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias


@dataclass(frozen=True, slots=True)
class Spool:
    """Content that was streamed into a staged file."""

    name: str  # in the stage of the path's filesystem
    digest: bytes
    size: int


@dataclass(frozen=True, slots=True)
class Existing:
    """The content that another path has now."""

    path: str
    digest: bytes
    size: int


Content: TypeAlias = "bytes | Spool | Existing"


@dataclass(frozen=True, slots=True)
class Put:
    """The path shall be a file with this content."""

    content: Content
    mode: int | None = None  # None keeps the old file's mode, or takes the umask's
    over: bool = False  # the directory that is there goes, as the transaction has said
    like: str = ""  # the path whose owner and attributes it takes: it is renamed

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.size


@dataclass(frozen=True, slots=True)
class Gone:
    """The path shall not exist."""

    kind: Literal["file", "directory"]
    must_exist: bool


@dataclass(frozen=True, slots=True)
class MakeDir:
    """The path shall be a directory."""

    mode: int | None = None
    over: bool = False  # the file that is there goes, as the transaction has said


@dataclass(frozen=True, slots=True)
class Mode:
    """The path keeps its content and gets these permission bits."""

    mode: int


Want: TypeAlias = "Put | Gone | MakeDir | Mode"


@dataclass(frozen=True, slots=True)
class Statement:
    """One change of rows. `:seq`, `:txid` and `:at` are filled in by the commit.

    `rows` is how many rows it must change: any other number is a conflict and nothing happens.
    """

    sql: str
    values: Mapping[str, Any] = field(default_factory=dict)
    rows: int | None = None


def want_name(want: Want) -> str:
    """The word for messages."""
    names = {Put: "a file", Gone: "deleted", MakeDir: "a directory", Mode: "a new mode"}
    return names[type(want)]
