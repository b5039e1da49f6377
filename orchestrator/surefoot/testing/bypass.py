"""Making writes that go past the transaction an error: nothing could take them back."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from types import FrameType

from surefoot_storage import SurefootError

_FRAMES_MAX = 60
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_PATHS = {  # by audit event: which arguments are paths that it changes
    "os.remove": (0,), "os.rename": (0, 1), "os.link": (1,), "os.symlink": (1,), "os.mkdir": (0,),
    "os.rmdir": (0,),
    "os.truncate": (0,), "os.chmod": (0,), "os.chown": (0,), "os.utime": (0,), "os.setxattr": (0,),
    "os.removexattr": (0,), "shutil.rmtree": (0,), "shutil.move": (0, 1), "shutil.copyfile": (1,),
}  # fmt: skip

_roots: list[str] = []
_hooked = False


class BypassRefused(SurefootError):
    """A write below a guarded directory that went past the transaction."""

    code = "bypass"


@contextlib.contextmanager
def refuse_bypass(root: str | os.PathLike[str]) -> Iterator[None]:
    """Within the block, this process's own writes below `root` fail unless the engine makes them.

    `Path.write_text` inside a step, say: the transaction does not know of it. Seen through Python's audit
    events (`sys.addaudithook`), so other processes and C extensions that open files themselves are not.
    """
    global _hooked  # noqa: PLW0603 - an audit hook is for ever: there is one
    if not _hooked:
        _hooked = True
        sys.addaudithook(_look)
    _roots.append(os.path.realpath(root))
    try:
        yield
    finally:
        _roots.remove(os.path.realpath(root))


def _look(event: str, arguments: tuple[object, ...]) -> None:
    if not _roots:
        return
    if event == "open":
        path, _, flags = arguments
        if isinstance(flags, int) and flags & _WRITING:
            _refuse(event, path)
    elif event in _PATHS:
        for place in _PATHS[event]:
            _refuse(event, arguments[place])


def _refuse(event: str, path: object) -> None:
    if not isinstance(path, str | bytes | os.PathLike):
        return  # a descriptor: it was opened before
    full = os.path.realpath(os.fsdecode(path))
    if any(full == root or full.startswith(f"{root}{os.sep}") for root in _roots) and not _is_engine():
        raise BypassRefused(
            event, full, expected="a write through the transaction: tx.write_text(…)",
            found="one past it, which no failure could take back",
            hint="write outside of the workspace, or through tx",
        )  # fmt: skip


def _is_engine() -> bool:
    """Whether the storage makes this call: its seam is the innermost of our frames."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - who calls is the question
    for _ in range(_FRAMES_MAX):
        if frame is None:
            return False
        module = str(frame.f_globals.get("__name__", ""))
        if module.startswith("surefoot_storage"):
            return True
        if not module.startswith(
            ("surefoot.testing", "os", "posixpath", "genericpath", "shutil", "contextlib")
        ):
            return False
        frame = frame.f_back
    return False
