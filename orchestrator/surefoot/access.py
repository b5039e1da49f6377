"""`engine.access`: tokens for those who come in by HTTP or MCP. Only their hashes are kept."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from anyio import to_thread

from surefoot_storage import InputError, UnknownId

from . import checks, rows
from .opened import OpenEngine
from .pending import Pender, Pending
from .rows import TokenRow

PREFIX = "sf_"
SCOPES: Final = {
    "read": "look at everything, diffs, logs and configuration included",
    "write": "start runs, move them on and take them back, stop agents, change configuration",
    "approve": "answer requests for approval by their id",
    "admin": "all of it, and: launch commands, add webhooks, forget contents, discard work",
}
"""What a token may be good for. `admin` includes the others, `write` and `approve` include `read`."""


@dataclass(frozen=True)
class Caller:
    """Who asks, and for what they may ask."""

    id: str  # of the token; "" is whoever works on this machine
    name: str
    scopes: frozenset[str]
    run_id: str = ""  # the only run that they may touch; "": every one

    def may(self, scope: str) -> bool:
        """Whether they may do this."""
        if scope in self.scopes or "admin" in self.scopes:
            return True
        return scope == "read" and bool(self.scopes)


LOCAL: Final = Caller("", "this machine", frozenset(SCOPES))


class Access:
    """Of one engine."""

    def __init__(self, engine: Callable[[], OpenEngine], pender: Pender) -> None:
        self._engine = engine
        self._pending = pender

    def create(
        self, name: str, scopes: Collection[str], *, run_id: str = "", expires_s: float | None = None
    ) -> Pending[tuple[str, TokenRow]]:
        """Makes a token: the only time that it is shown. Durable when this returns.

        Args:
            name: whose it is, for people.
            scopes: what it is good for, of `SCOPES`.
            run_id: the only run that it may touch; of every run unless given.
            expires_s: how long it opens the door; for ever unless given.

        Raises:
            InputError: an unknown scope, none at all, or a name that is no line of text.
        """
        checks.text("create token", name, "name", name, most=200, error=InputError)
        if isinstance(scopes, str) or not scopes:
            raise InputError(
                "create token", name, expected=f"some of {', '.join(SCOPES)}", found=checks.shown(scopes)
            )
        checks.choices("create token", name, "scopes", list(scopes), list(SCOPES), error=InputError)
        if expires_s is not None:
            checks.seconds("create token", name, "expires_s", expires_s, above=True, error=InputError)

        def work() -> tuple[str, TokenRow]:
            engine = self._engine()
            if run_id:
                rows.get_run(engine.workspace, run_id)
            token, now = PREFIX + secrets.token_urlsafe(32), engine.clock.now()
            expires_at = None if expires_s is None else now + expires_s
            row = TokenRow(
                secrets.token_hex(6), name, _hash(token), frozenset(scopes), run_id, now, expires_at
            )
            engine.workspace.write_rows([rows.insert_token(row)])
            return token, row

        return self._pending("access.create", lambda: to_thread.run_sync(work))

    def tokens(self) -> Pending[list[TokenRow]]:
        """All that were ever made, the latest first, and which of them were revoked."""
        return self._pending(
            "access.tokens", lambda: to_thread.run_sync(rows.tokens, self._engine().workspace)
        )

    def revoke(self, token_id: str) -> Pending[None]:
        """It opens nothing any more, in no process, once this returns.

        Raises:
            InputError: there is no such token, or it was revoked before.
        """

        def work() -> None:
            engine = self._engine()
            known = [token for token in rows.tokens(engine.workspace) if token.id == token_id]
            if not known or known[0].revoked_at is not None:
                raise UnknownId(
                    "revoke token", token_id, expected="the id of a token that is valid",
                    found="one that was revoked" if known else "none of that id", hint="surefoot token list",
                )  # fmt: skip
            engine.workspace.write_rows([rows.revoke_token(token_id, engine.clock.now())])

        return self._pending("access.revoke", lambda: to_thread.run_sync(work), token_id=token_id)

    def caller(self, token: str | None) -> Pending[Caller | None]:
        """Who has this token; without any, this machine, as long as the workspace has no token at all.

        None: nobody who may come in. Asks the store each time, so that revoking works at once.
        """

        def work() -> Caller | None:
            engine = self._engine()
            now = engine.clock.now()
            if token is None:
                return None if rows.has_tokens(engine.workspace, now) else LOCAL
            digest = _hash(token)
            row = rows.token_with_hash(engine.workspace, digest)
            if row is None or not hmac.compare_digest(row.hash, digest) or not row.is_valid(now):
                return None
            return Caller(row.id, row.name, row.scopes, row.run_id)

        return self._pending("access.caller", lambda: to_thread.run_sync(work))


def _hash(token: str) -> str:
    # Not a slow hash: a token has 256 random bits, and nobody tries those one by one.
    return hashlib.sha256(token.encode()).hexdigest()
