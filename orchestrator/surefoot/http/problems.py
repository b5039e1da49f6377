"""Errors as RFC 9457 problem details: the same words and hints as on the command line."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from surefoot.errors import (
    ConfigConflict,
    GuardDenied,
    LockNotTaken,
    RecordsFull,
    RunRefused,
    TransitionFailed,
    UnknownApproval,
)
from surefoot.log import logger
from surefoot_storage import (
    InputError,
    SurefootError,
    UnknownId,
    UnreadableFile,
    WorkspaceBusy,
    WorkspaceError,
)
from surefoot_storage.errors import CommitError

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1
STATUS: tuple[tuple[type[SurefootError], int], ...] = (  # the first that fits
    (UnknownId, 404),
    (UnknownApproval, 404),
    (RunRefused, 409),
    (GuardDenied, 409),
    (ConfigConflict, 412),
    (TransitionFailed, 409),
    (LockNotTaken, 503),
    (RecordsFull, 503),
    (WorkspaceBusy, 503),
    (WorkspaceError, 503),
    (CommitError, 500),
    (UnreadableFile, 409),  # an old version that was let go, say
    (InputError, 422),
)


class Problem(BaseModel):
    """What went wrong, on what, and what helps (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    operation: str = ""
    subject: str = ""
    expected: str = ""
    found: str = ""
    hint: str = ""


def status_of(error: SurefootError) -> int:
    """The status code; everything else that refuses something is 409: the state is not what was expected."""
    return next((status for kind, status in STATUS if isinstance(error, kind)), 409)


def problem(status: int, code: str, detail: str, **facts: str) -> Response:
    """An answer that says what is wrong."""
    body = Problem(
        type=f"urn:surefoot:problem:{code}", title=HTTPStatus(status).phrase, status=status, detail=detail,
        code=code, **facts,
    )  # fmt: skip
    headers = {"retry-after": str(RETRY_AFTER_S)} if status in (429, 503) else {}
    return Response(body.model_dump_json(), status, headers, MEDIA_TYPE)


def of_error(error: SurefootError) -> Response:
    """The answer to an error of the engine."""
    facts = error.as_dict()
    detail = str(error).split("\nhint: ", maxsplit=1)[0]
    code, _ = facts.pop("code"), facts.pop("error")
    return problem(status_of(error), code, detail, **facts)


def handle_all(app: FastAPI) -> None:
    """No error leaves the application in another form."""

    @app.exception_handler(SurefootError)
    async def of_engine(_request: Request, error: Exception) -> Response:
        assert isinstance(error, SurefootError)
        return of_error(error)

    @app.exception_handler(RequestValidationError)
    async def of_input(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        found = "; ".join(_place(one) for one in error.errors()[:10])
        return problem(
            422, "request", "the request is not what the API describes", operation="read request",
            expected="what /v1/openapi.json says", found=found,
        )  # fmt: skip

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        answer = problem(error.status_code, "http", str(error.detail))
        answer.headers.update(error.headers or {})
        methods = _methods(app, request)
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED and methods:
            answer.headers["allow"] = ", ".join(sorted(methods))
        return answer

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        logger(path=request.url.path).error("http.failed", error=f"{type(error).__name__}: {error}")
        return problem(500, "internal", "an error in Surefoot itself", hint="its log says which")


def _methods(app: FastAPI, request: Request) -> set[str]:
    """Everything that can be done at this path: it may be several routes."""
    found: set[str] = set()
    for template, operations in app.openapi()["paths"].items():
        if re.fullmatch(re.sub(r"\\\{[^}]*\\\}", "[^/]+", re.escape(template)), request.url.path):
            found |= {method.upper() for method in operations}
    return found


def _place(error: dict[str, Any]) -> str:
    """Where, and what: never the value itself, which may be a secret."""
    return f"{'.'.join(map(str, error['loc']))}: {error['msg']}"


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The answers that every route may give, and these."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in sorted({400, 401, 403, 404, 409, 413, 415, 422, 429, 500, 503, *statuses})
    }
