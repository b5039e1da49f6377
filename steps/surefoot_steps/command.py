"""Running a command (a coding agent, a script, a compiler) as part of a step."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from surefoot import CommandFailed, InputError, Transaction

LOG_TAIL_CHARS = 2_000


@dataclass(frozen=True)
class CommandResult:
    """What a command left behind."""

    result: bytes  # content of the named result file
    log: str  # stdout and stderr together
    seconds: float


def run_command(
    tx: Transaction,
    argv: Sequence[str],
    *,
    result: str,
    give: Mapping[str, str | bytes] | None = None,
    timeout_s: float | None = None,
    env: Mapping[str, str] | None = None,
    result_bytes_max: int = 64 << 20,
) -> CommandResult:
    """Runs `argv` in a scratch directory of its own and returns the one file that it was asked for.

    Nothing else that the command writes there survives, and nothing of it is in the transaction until
    the step writes it. For sync steps; an async step calls it through `anyio.to_thread.run_sync`.
    When the attempt times out or is cancelled, or the command takes longer than `timeout_s`, its whole
    process group is killed. The command itself is not confined: it can reach what its user can reach.

    Args:
        tx: the transaction of the step that runs it.
        argv: the command and its arguments; no shell is involved.
        result: name of the file that the command must leave in its working directory.
        give: files put there before it starts, by name.
        timeout_s: seconds after which it is killed.
        env: environment variables on top of this process's own.
        result_bytes_max: a larger result is refused.

    Raises:
        CommandFailed: it could not be started, exited with an error, took too long, or left no result.
    """
    _check(argv, [result, *(give or {})])
    started = time.monotonic()
    scratch = tempfile.mkdtemp(prefix="surefoot-command-")
    try:
        for name, content in (give or {}).items():
            with open(os.path.join(scratch, name), "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
        log = _run(tx, argv, scratch, timeout_s, {**os.environ, **(env or {})})
        return CommandResult(
            _result(argv, scratch, result, result_bytes_max, log), log, time.monotonic() - started
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _check(argv: Sequence[str], names: Sequence[str]) -> None:
    if isinstance(argv, str) or not argv:
        raise InputError("run command", repr(argv), expected="a list of arguments", found=type(argv).__name__)
    for name in names:
        if not name or name in (".", "..") or "/" in name or "\0" in name:
            raise InputError("run command", argv[0], expected="plain names for its files", found=repr(name))


def _run(
    tx: Transaction, argv: Sequence[str], scratch: str, timeout_s: float | None, env: Mapping[str, str]
) -> str:
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(  # noqa: S603 - running the caller's command is the point
                argv,
                cwd=scratch,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a process group of its own, to be killed as a whole
            )
        except OSError as error:
            raise _failed(argv, f"{error.strerror}: {error.filename}", "", "is it installed?") from error
        try:
            tx.on_end(lambda: _kill(process))
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise _failed(argv, f"still running after {timeout_s} s", _text(output)) from error
        finally:
            _kill(process)
            process.wait()
        log = _text(output)
    tx.check()
    if code != 0:
        raise _failed(argv, f"exit code {code}" if code > 0 else f"killed by signal {-code}", log)
    return log


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The whole group: children that outlive their parent belong to nobody."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _text(output: object) -> str:
    output.seek(0)  # type: ignore[attr-defined]
    return str(output.read().decode(errors="replace"))  # type: ignore[attr-defined]


def _result(argv: Sequence[str], scratch: str, name: str, size_max: int, log: str) -> bytes:
    path = os.path.join(scratch, name)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise _failed(argv, f"no file {name!r} left behind ({error.strerror})", log) from error
    with open(fd, "rb") as file:
        size = os.fstat(fd).st_size
        if size > size_max:
            raise _failed(argv, f"a result of {size} bytes, more than result_bytes_max={size_max}", log)
        return file.read()


def _failed(argv: Sequence[str], found: str, log: str, hint: str = "") -> CommandFailed:
    tail = log[-LOG_TAIL_CHARS:].strip()
    return CommandFailed(
        "run command",
        argv[0],
        expected="exit code 0 and a result",
        found=f"{found}; its last words: {tail}" if tail else found,
        hint=hint,
    )
