"""Changes as rows of the log, and back."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from .states import ABSENT, Directory, File, Op, Stamp, State
from .wants import Statement

Row: TypeAlias = "tuple[Any, ...]"

OP_COLUMNS = (
    "seq, idx, path, old_kind, old_mode, old_size, old_digest, old_ino, old_mtime_ns,"
    " new_kind, new_mode, new_size, new_digest, stage, stage_ino, stage_mtime_ns, kept, uid, gid, xattrs,"
    " mount, within, in_place"
)
INSERT_OP = f"INSERT INTO file_op ({OP_COLUMNS}) VALUES ({', '.join('?' * 23)})"  # noqa: S608 - only constants are put in


@dataclass(frozen=True, slots=True)
class Member:
    """What one caller puts into a batch: a transaction, or (without `txid`) rows alone."""

    statements: Sequence[Statement] = ()
    txid: str = ""
    label: str = ""
    owner: str = ""
    level: str = "full"
    actor: str = ""
    ops: Sequence[Op] = ()
    blobs: Mapping[bytes, tuple[int, bytes | None]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Identity:
    """Which database this is."""

    uuid: str
    last_seq: int  # ever given, void ones included


@dataclass(frozen=True, slots=True)
class Head:
    """How far the log goes."""

    last_seq: int
    checkpointed_seq: int  # the files of transactions up to here are durable


def _state_columns(state: State) -> tuple[str, int | None, int | None, bytes | None]:
    if isinstance(state, File):
        return "file", state.mode, state.size, state.digest
    if isinstance(state, Directory):
        return "directory", state.mode, None, None
    return "absent", None, None, None


def _column_state(kind: str, mode: int, size: int, digest: bytes) -> State:
    if kind == "file":
        return File(digest, size, mode)
    return Directory(mode) if kind == "directory" else ABSENT


def op_row(seq: int, idx: int, op: Op) -> Row:
    """The columns of `file_op`, in their order."""
    stamp = op.old_stamp
    return (
        seq,
        idx,
        os.fsencode(op.path),
        *_state_columns(op.old),
        stamp.ino if stamp else None,
        stamp.mtime_ns if stamp else None,
        *_state_columns(op.new),
        op.stage,
        op.stage_ino,
        op.stage_mtime_ns,
        op.kept,
        op.uid,
        op.gid,
        json.dumps({name: value.hex() for name, value in op.xattrs.items()}) if op.xattrs else "{}",
        os.fsencode(op.mount),
        os.fsencode(op.within),
        op.in_place,
    )


def row_op(row: Row) -> Op:
    """From the columns of `file_op`, in their order."""
    old = _column_state(*row[3:7])
    size = old.size if isinstance(old, File) else 0
    return Op(
        path=os.fsdecode(row[2]),
        old=old,
        new=_column_state(*row[9:13]),
        old_stamp=Stamp(row[7], size, row[8], 0, 0, 0, 0) if row[7] is not None else None,
        stage=row[13],
        stage_ino=row[14],
        stage_mtime_ns=row[15],
        kept=bool(row[16]),
        uid=row[17],
        gid=row[18],
        xattrs={name: bytes.fromhex(value) for name, value in json.loads(row[19]).items()},
        mount=os.fsdecode(row[20]),
        within=os.fsdecode(row[21]),
        in_place=bool(row[22]),
    )
