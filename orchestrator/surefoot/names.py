"""Names of workflows, steps, runs and queues: known across restarts, and good for file names."""

from __future__ import annotations

import re
from collections.abc import Collection

from .checks import shown
from .errors import DeclarationError, InputRefused

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def checked_name(what: str, name: object, taken: Collection[str] = ()) -> str:
    """A name in a declaration.

    Raises:
        DeclarationError: it is none, or taken.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise DeclarationError(
            f"declare {what}", shown(name), expected="letters, digits, '.', '_', '-'", found=shown(name)
        )
    if name in taken:
        raise DeclarationError(
            f"declare {what}",
            name,
            expected="a name of its own",
            found=f"two {what}s named {name!r}",
            hint=f"a {what} is known by its name across restarts: rename one of them",
        )
    return name


def checked_run_id(run_id: object) -> str:
    """The id, where it can be a directory's name.

    Raises:
        InputRefused: it cannot.
    """
    if not isinstance(run_id, str) or not _NAME.fullmatch(run_id):
        raise InputRefused(
            "start",
            shown(run_id),
            expected="a run id of 1 to 128 letters, digits, '.', '_', '-', not led by punctuation",
            found=shown(run_id),
        )
    return run_id
