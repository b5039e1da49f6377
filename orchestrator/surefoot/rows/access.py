"""Who may come in from outside: tokens, and what requests with a key were answered."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from surefoot_storage import Statement

from .source import Source

_TOKEN = ("id", "name", "hash", "scopes", "run_id", "created_at", "expires_at", "revoked_at")


@dataclass(frozen=True)
class TokenRow:
    """A bearer token, as it is kept: by its hash."""

    id: str
    name: str
    hash: str
    scopes: frozenset[str]
    run_id: str  # "": of every run
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None

    def is_valid(self, now: float) -> bool:
        """It opens the door."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: without the hash."""
        return {k: v for k, v in asdict(self).items() if k != "hash"} | {"scopes": sorted(self.scopes)}


def insert_token(token: TokenRow) -> Statement:
    """A new one."""
    marks = ", ".join(f":{name}" for name in _TOKEN)
    values = {**asdict(token), "scopes": " ".join(sorted(token.scopes))}
    return Statement(f"INSERT INTO token ({', '.join(_TOKEN)}) VALUES ({marks})", values, 1)  # noqa: S608 - only constants are put in


def revoke_token(token_id: str, now: float) -> Statement:
    """It opens nothing any more."""
    return Statement(
        "UPDATE token SET revoked_at = :now WHERE id = :id AND revoked_at IS NULL",
        {"id": token_id, "now": now},
        1,
    )


def tokens(source: Source) -> list[TokenRow]:
    """All that were ever made, the latest first."""
    return _tokens(source, "ORDER BY created_at DESC, id", {})


def token_with_hash(source: Source, hash_: str) -> TokenRow | None:
    """The one with this hash."""
    found = _tokens(source, "WHERE hash = :hash", {"hash": hash_})
    return found[0] if found else None


def has_tokens(source: Source, now: float) -> bool:
    """Whether any of them is valid: then nobody comes in without one."""
    return bool(
        source.query(
            "SELECT 1 FROM token WHERE revoked_at IS NULL"
            " AND (expires_at IS NULL OR expires_at > :now) LIMIT 1",
            {"now": now},
        )
    )


def _tokens(source: Source, where: str, values: dict[str, Any]) -> list[TokenRow]:
    rows = source.query(f"SELECT {', '.join(_TOKEN)} FROM token {where}", values)  # noqa: S608 - only constants are put in
    return [
        TokenRow(id_, name, hash_, frozenset(scopes.split()), *rest)
        for id_, name, hash_, scopes, *rest in rows
    ]


@dataclass(frozen=True)
class Answered:
    """What became of a request with a key; without a `status` somebody works on it, or has died doing so."""

    fingerprint: str
    status: int | None
    answer: str | None  # JSON


def begin_request(caller: str, key: str, fingerprint: str, now: float) -> Statement:
    """This request has the key; conflicts where another one was faster."""
    return Statement(
        "INSERT INTO request (caller, key, fingerprint, at) VALUES (:caller, :key, :fingerprint, :at)"
        " ON CONFLICT DO NOTHING",
        {"caller": caller, "key": key, "fingerprint": fingerprint, "at": now},
        1,
    )


def answer_request(caller: str, key: str, status: int, answer: str) -> Statement:
    """It was answered like this."""
    return Statement(
        "UPDATE request SET status = :status, answer = :answer WHERE caller = :caller AND key = :key",
        {"caller": caller, "key": key, "status": status, "answer": answer},
        1,
    )


def drop_request(caller: str, key: str) -> Statement:
    """Nothing has come of it: the key may be used again."""
    return Statement(
        "DELETE FROM request WHERE caller = :caller AND key = :key", {"caller": caller, "key": key}
    )


def forget_requests(before: float) -> Statement:
    """Keys that nobody repeats any more."""
    return Statement("DELETE FROM request WHERE at < :before", {"before": before})


def find_request(source: Source, caller: str, key: str) -> Answered | None:
    """What is known of a key."""
    rows = source.query(
        "SELECT fingerprint, status, answer FROM request WHERE caller = :caller AND key = :key",
        {"caller": caller, "key": key},
    )
    return Answered(*rows[0]) if rows else None
