"""An HTTP call as an effect: after the commit, from the durable outbox, repeated until it is answered."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import Field, PositiveFloat

from surefoot import Committed, InputError, SurefootError, Transaction

from .ready import ReadyStep, Values


class Http(ReadyStep):
    """Calls a URL once the step is committed.

    At least once: `Idempotency-Key` carries the effect's key, the same in every try. Texts in `body` and
    `url` may hold `{field}` of the input, and `{run_id}`.
    """

    url: str = Field(pattern=r"^https?://")
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = "POST"
    headers: dict[str, str] = Field(default_factory=dict)
    body: Any = None
    expect: list[int] = Field(default_factory=lambda: [200, 201, 202, 204], min_length=1)
    timeout_s: PositiveFloat = 10.0

    def run(self, tx: Transaction, values: Values) -> None:
        """Nothing: the call comes after the commit."""

    def tell(self, done: Committed) -> None:
        """Calls it.

        Raises:
            SurefootError: the answer is none of those expected; the outbox tries again.
            InputError: httpx is not installed.
        """
        try:
            import httpx
        except ImportError as error:
            raise InputError(
                "call", self.url, expected="httpx to be installed", found="it is not",
                hint='pip install "surefoot[steps]"',
            ) from error  # fmt: skip
        fields = {name: getattr(done.input, name) for name in type(done.input).model_fields}
        fields["run_id"] = done.run_id
        url = self.url.format(**fields)
        body = None if self.body is None else json.dumps(_filled(self.body, fields)).encode()
        headers = {"Idempotency-Key": done.key, "Content-Type": "application/json", **self.headers}
        answer = httpx.request(self.method, url, content=body, headers=headers, timeout=self.timeout_s)
        if answer.status_code not in self.expect:
            raise SurefootError(
                "call", url, expected=f"status {', '.join(map(str, self.expect))}",
                found=f"{answer.status_code}: {answer.text[:200]}",
            )  # fmt: skip


def _filled(value: Any, fields: dict[str, Any]) -> Any:
    if isinstance(value, str):
        return value.format(**fields)
    if isinstance(value, dict):
        return {key: _filled(inner, fields) for key, inner in value.items()}
    return [_filled(inner, fields) for inner in value] if isinstance(value, list) else value
