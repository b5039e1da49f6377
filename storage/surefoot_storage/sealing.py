"""A prepared transaction, put away whole, so that exactly this can be committed later or by somebody else.

It is kept in the store as a document (what was looked at, what shall be) with the new contents. Its name is
the digest of the document, which names each content by its own: who knows the name knows every byte.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeAlias

from .errors import Conflict, InputError, UnknownId
from .history import describe
from .log import Log
from .states import ABSENT, Absent, Directory, File, State, digest_of
from .transaction import FileTransaction
from .wants import Content, Existing, Gone, MakeDir, Mode, Put, Spool, Statement, Want

CONTENTS_BYTES_MAX = 64 << 20  # of one sealed transaction: they are kept in the database
EACH_MAX = 16  # sealed transactions of one owner: the oldest ones make room
_PREFIX_MIN = 6

Document: TypeAlias = "dict[str, Any]"
Write: TypeAlias = "Callable[[Sequence[Statement]], None]"


@dataclass(frozen=True)
class Sealed:
    """A prepared transaction in the store."""

    digest: str  # sha256 in hex
    owner: str
    made_at: float
    actor: str
    facts: Document  # what the layer above wants to know of it
    document: Document
    contents: bytes

    def put_into(self, tx: FileTransaction) -> None:
        """The transaction shall do exactly this.

        Raises:
            Conflict: something that was looked at is not what it was; nothing was changed.
        """
        for path, state in self.document["reads"].items():
            then = _state(state)
            try:
                found = tx.load(path).state
            except InputError as error:  # a link by now, or below a file
                raise _outdated(path, describe(then), error.found) from error
            if found != then:
                raise _outdated(path, describe(then), describe(found))
        for directory, names in self.document["listings"].items():
            now = tx.listing_of(directory)
            if now != (None if names is None else tuple(names)):
                raise _outdated(f"{directory or '.'}/*", "the listing that was seen", "another one")
        wants = {path: _want(want, self.contents) for path, want in self.document["wants"].items()}
        tx.adopt(wants, set(self.document["swaps"]))


class Sealing:
    """Puts prepared transactions away, and finds them."""

    def __init__(
        self,
        looking: Callable[[], AbstractContextManager[Log]],
        write: Write,
        read_spool: Callable[[str, Spool], bytes],
        user: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._looking = looking
        self._write = write
        self._read_spool = read_spool
        self._user = user
        self._clock = clock

    def seal(
        self, tx: FileTransaction, facts: Mapping[str, Any], *, leave_out: str = "", keep: bool = True
    ) -> str:
        """Its digest; with `keep` it is in the store, durable, when this returns. Plan it first.

        `leave_out` is a path that whoever commits it writes by itself.

        Raises:
            InputError: its new contents are too large.
            CommitFailed: the store does not take it.
        """
        contents = bytearray()
        document = {
            "facts": dict(facts),
            "reads": {p: _state_text(s.state) for p, s in sorted(tx.snapshots.items()) if p != leave_out},
            "listings": dict(tx.listings),
            "wants": {
                path: self._want_text(path, want, contents)
                for path, want in sorted(tx.wants.items())
                if path != leave_out
            },
            "swaps": sorted(tx.swaps),
        }
        text = json.dumps(document, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        if keep:
            self._keep(digest, tx.owner, text, bytes(contents))
        return digest

    def _keep(self, digest: str, owner: str, text: str, contents: bytes) -> None:
        oldest = (
            "DELETE FROM sealed WHERE owner = :owner AND digest NOT IN"
            " (SELECT digest FROM sealed WHERE owner = :owner ORDER BY made_at DESC, rowid DESC LIMIT :most)"
        )
        values = {
            "digest": digest, "owner": owner, "made_at": self._clock(), "actor": self._user,
            "document": text, "contents": contents,
        }  # fmt: skip
        self._write(
            [
                Statement(
                    "INSERT OR REPLACE INTO sealed VALUES"
                    " (:digest, :owner, :made_at, :actor, :document, :contents)",
                    values,
                    1,
                ),
                Statement(oldest, {"owner": owner, "most": EACH_MAX}),
            ]
        )

    def find(self, digest: str) -> Sealed:
        """By its digest, or the first characters of it.

        Raises:
            InputError: there is none, or more than one.
        """
        with self._looking() as log:
            return find_sealed(log, digest)

    # --- wants as text ---

    def _want_text(self, path: str, want: Want, contents: bytearray) -> Document:
        if isinstance(want, Gone):
            return {"want": "gone", "kind": want.kind, "must_exist": want.must_exist}
        if isinstance(want, MakeDir):
            return {"want": "directory", "mode": want.mode, "over": want.over}
        if isinstance(want, Mode):
            return {"want": "mode", "mode": want.mode}
        whole = {"want": "file", "mode": want.mode, "over": want.over, "like": want.like}
        if isinstance(want.content, Existing):
            place = {"of": want.content.path, "sha256": want.content.digest.hex(), "size": want.size}
        else:
            data = self._bytes(path, want.content, len(contents))
            place = {"at": len(contents), "sha256": digest_of(data).hex(), "size": len(data)}
            contents += data
        return {**whole, **place}

    def _bytes(self, path: str, content: bytes | Spool, before: int) -> bytes:
        size = len(content) if isinstance(content, bytes) else content.size
        if before + size > CONTENTS_BYTES_MAX:
            raise InputError(
                "keep the preview",
                path,
                expected=f"new contents of at most {CONTENTS_BYTES_MAX} bytes together",
                found=f"{before + size} and more",
                hint="so large a preview can be looked at, but not be committed: surefoot advance",
            )
        return content if isinstance(content, bytes) else self._read_spool(path, content)


def _want(text: Document, contents: bytes) -> Want:
    match text["want"]:
        case "gone":
            return Gone(text["kind"], text["must_exist"])
        case "directory":
            return MakeDir(text["mode"], text["over"])
        case "mode":
            return Mode(text["mode"])
    content: Content
    if "of" in text:
        content = Existing(text["of"], bytes.fromhex(text["sha256"]), text["size"])
    else:
        content = contents[text["at"] : text["at"] + text["size"]]
        if digest_of(content).hex() != text["sha256"]:
            raise InputError(
                "read the preview", "", expected="the contents that were sealed", found="others",
                hint="the store is damaged: surefoot doctor",
            )  # fmt: skip
    return Put(content, text["mode"], text["over"], text["like"])


def _state_text(state: State) -> Document:
    if isinstance(state, File):
        return {"sha256": state.digest.hex(), "size": state.size, "mode": state.mode}
    return {"mode": state.mode} if isinstance(state, Directory) else {}


def _state(text: Document) -> Absent | Directory | File:
    if "sha256" in text:
        return File(bytes.fromhex(text["sha256"]), text["size"], text["mode"])
    return Directory(text["mode"]) if "mode" in text else ABSENT


def _outdated(path: str, expected: str, found: str) -> Conflict:
    return Conflict(
        "commit the preview",
        path,
        expected=f"{expected}, as it was seen",
        found=found,
        hint="surefoot preview shows what the step would do now",
    )


def find_sealed(log: Log, digest: str) -> Sealed:
    """As `Sealing.find`, for somebody who only looks."""
    if len(digest) < _PREFIX_MIN or set(digest) - set("0123456789abcdef"):
        raise InputError(
            "find the preview",
            digest,
            expected=f"{_PREFIX_MIN} or more characters of its digest, in lower case",
            found=f"{digest!r}",
        )
    rows = log.query(
        "SELECT digest, owner, made_at, actor, document, contents FROM sealed"
        " WHERE substr(digest, 1, length(?1)) = ?1 LIMIT 2",
        (digest,),
    )
    if len(rows) != 1:
        raise (InputError if rows else UnknownId)(
            "find the preview",
            digest,
            expected="a preview of a run that has not moved since",
            found="several that begin like this" if rows else "none",
            hint="it is gone once its run moves on: surefoot preview makes a new one",
        )
    ((name, owner, made_at, actor, text, contents),) = rows
    document = json.loads(text)
    return Sealed(name, owner, made_at, actor, document["facts"], document, contents)
