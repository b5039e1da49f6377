"""Starting a command under its shim: what it is told, and what it is given of this process's environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from surefoot_storage import Copies

from .agentspec import Agent
from .errors import LaunchFailed

_SHIM = "import sys; sys.path.append(sys.argv[1]); from shim.main import main; sys.exit(main())"
RUN = "run"
"""The folder of the agent's own process, beside its copy; verifying commands have `verify-0` and so on."""
START_S = 30.0
_OWN_ENVIRONMENT = {"PATH": os.defpath, "LANG": "C.UTF-8"}  # of the shim: what is preloaded here is not there
_STRICT_EXTRA = ("/dev/null", "/dev/tty", "/dev/zero", "/dev/full", "/dev/pts", "/dev/shm")  # noqa: S108 - only named


def launch(
    copies: Copies, root: str, name: str, folder: str, spec: Agent, argv: Sequence[str], nonce: str,
    *, wall_s: float | None, extra: Mapping[str, str],
) -> None:  # fmt: skip
    """Starts a command in a working copy, unless one was started in that folder before.

    Returns once it is written down which process it is. Durable: whoever asks later finds it.

    Raises:
        LaunchFailed: it could not be started, and why.
    """
    place = copies.make_folder(name, folder)
    temporary = copies.make_folder(name, "tmp")
    work = copies.path(name)
    if spec.prompt is not None and not os.path.lexists(os.path.join(work, spec.prompt)):
        raise _failed(name, f"its prompt {spec.prompt!r} in the copy", "no such file")
    secrets = {key: _secret(name, key, source) for key, source in spec.secrets.items()}
    environment = {key: os.environ[key] for key in spec.pass_env if key in os.environ}
    environment |= {**spec.env, **secrets, **extra}
    environment |= {
        "TMPDIR": temporary, "SUREFOOT_AGENT": nonce,
        "GIT_CEILING_DIRECTORIES": os.path.dirname(work),  # a copy without .git is in no repository
    }  # fmt: skip
    own = folder == RUN
    told = {
        "folder": place, "cwd": work, "argv": [_filled(a, work, spec) for a in argv], "env": environment,
        "secrets": list(secrets.values()), "nonce": nonce, "result": spec.result or "",
        "stdin": os.path.join(work, spec.stdin) if own and spec.stdin else None,
        "keep_stdout": own and spec.result == "@stdout", "disk_before_bytes": 0,
        "limits": {**spec.limits.model_dump(), "wall_s": wall_s},
        "done": (spec.done if own else type(spec.done)()).model_dump(),
        "confine": _confinement(spec, root, [work, temporary]),
    }  # fmt: skip
    if spec.limits.disk_bytes is not None:
        told["disk_before_bytes"] = copies.size(name)
    _start(name, told)


def _start(name: str, told: dict[str, Any]) -> None:
    try:
        command = [sys.executable, "-I", "-S", "-c", _SHIM, str(Path(__file__).parent)]
        process = subprocess.run(  # noqa: S603 - our own program, and nothing of anybody else's
            command, env=_OWN_ENVIRONMENT, input=json.dumps(told), capture_output=True, text=True,
            timeout=START_S, cwd="/", check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _failed(name, "its shim to start", str(error)) from error
    begun = os.path.exists(os.path.join(told["folder"], "spawn.json"))  # and then it died: that is found out
    if process.returncode not in (0, 3) and not begun:  # 3: it was started before
        said = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
        raise _failed(name, "its shim to start", said[-1][-500:])


def _filled(argument: str, work: str, spec: Agent) -> str:
    prompt = os.path.join(work, spec.prompt or "")
    return argument.replace("{prompt}", prompt).replace("{copy}", work)


def _secret(name: str, key: str, source: str) -> str:
    kind, _, where = source.partition(":")
    if kind == "env":
        if where not in os.environ:
            raise _failed(name, f"secret {key} in this process's environment", f"no variable {where}")
        return os.environ[where]
    try:
        return Path(where).expanduser().read_text(encoding="utf-8").rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise _failed(name, f"secret {key} in {where}", str(error)) from error


def _confinement(spec: Agent, root: str, own: Sequence[str]) -> dict[str, Any]:
    level = "project" if spec.confine == "auto" else spec.confine
    extra = [os.path.realpath(os.path.expanduser(path)) for path in spec.writable]
    writable = [*own, *extra, *(_STRICT_EXTRA if level == "strict" else ())]
    return {"level": level, "required": spec.confine not in ("auto", "none"), "protect": root,
            "writable": writable}  # fmt: skip


def _failed(name: str, expected: str, found: str) -> LaunchFailed:
    return LaunchFailed("launch agent", name, expected=expected, found=found)
