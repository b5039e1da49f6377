"""Emergency dumps: records that the store did not take, as files that somebody replays later."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from surefoot_storage import Dumps, InputError, Workspace

from . import rows
from .errors import InputRefused
from .rows import Record

FORMAT = 1
REPLAYED = ".replayed"


@dataclass(frozen=True)
class Dump:
    """What one file holds."""

    name: str
    session: str
    at: float
    error: str
    records: tuple[Record, ...]

    @property
    def is_replayed(self) -> bool:
        """Whether its records are in the store."""
        return self.name.endswith(REPLAYED)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name, "session": self.session, "at": self.at, "error": self.error,
            "count": len(self.records), "replayed": self.is_replayed,
            "records": [record.as_dict() for record in self.records],
        }  # fmt: skip


@dataclass(frozen=True)
class Replayed:
    """What came of it: records that are stored now, and those that were before."""

    name: str
    stored: int
    known: int


def write_dump(dumps: Dumps, records: Sequence[Record], error: str, now: float) -> str:
    """Durable when this returns; returns its name.

    Raises:
        OSError: the disk does not take it either.
    """
    session = records[0].session
    name = f"{session}-{records[0].number:09d}.json"
    facts = {
        "format": FORMAT, "session": session, "at": now, "error": error, "count": len(records),
        "records": [record.as_dict() for record in records],
    }  # fmt: skip
    dumps.write(name, json.dumps(facts, indent=1).encode() + b"\n")
    return name


def read_dump(dumps: Dumps, name: str) -> Dump:
    """A dump, checked.

    Raises:
        UnreadableFile: there is none of that name. InputRefused: it is damaged, or of a later version.
    """
    data = dumps.read(name)
    try:
        facts = json.loads(data)
        version = facts["format"]
        if version == FORMAT:
            records = tuple(Record(**record) for record in facts["records"])
            if len(records) == facts["count"] and all(isinstance(r.number, int) for r in records):
                return Dump(name, facts["session"], facts["at"], facts["error"], records)
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged(name, f"{type(error).__name__}: {error}") from error
    if isinstance(version, int) and version > FORMAT:
        raise InputRefused(
            "read dump", name, expected=f"format {FORMAT} or older", found=f"format {version}",
            hint="a later version of Surefoot wrote it: replay it with that one",
        )  # fmt: skip
    raise _damaged(name, "another number of records than it says")


def replay(workspace: Workspace, dumps: Dumps, name: str) -> Replayed:
    """Its records are stored, durably; those that are there already stay as they are. Again: nothing more.

    Raises:
        UnreadableFile, InputRefused: as `read_dump`.
        CommitFailed: the store does not take them; the dump stays.
    """
    dump = read_dump(dumps, name)
    known = rows.count_known(workspace, dump.records)
    workspace.write_rows([rows.insert_records(dump.records)])
    if not dump.is_replayed:
        dumps.rename(name, name + REPLAYED)
    return Replayed(name, len(dump.records) - known, known)


def _damaged(name: str, found: str) -> InputError:
    return InputRefused(
        "read dump", name, expected="the JSON of a dump", found=found,
        hint="look at the file below .surefoot/dumps: what can be read of it can be written by hand",
    )  # fmt: skip
