"""The Python side of shim.c, for processes that were started with it preloaded."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

from surefoot_storage import FsOps

SOURCE = Path(__file__).with_name("shim.c")


def build(folder: Path) -> Path:
    """Compiles the shim; raises FileNotFoundError where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise FileNotFoundError("no C compiler")
    library = folder / "shim.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
    return library


def _without_waiting(_fs: FsOps, _seconds: float) -> None:
    """Renames that meet contention are tried again at once."""


class Shim:
    """The counters of this process. Raises AttributeError where the shim is not preloaded."""

    def __init__(self) -> None:
        self._lib = ctypes.CDLL(None)
        self._lib.shim_name.restype = ctypes.c_char_p
        assert "shim.so" in os.environ["LD_PRELOAD"]
        FsOps.pause = _without_waiting  # type: ignore[method-assign]

    def arm(self, *, kill_at: int = 0, fail_at: int = 0, error: int = 0, from_then_on: bool = False) -> None:
        self._lib.shim_arm(kill_at, fail_at, error, int(from_then_on))

    def disarm(self) -> None:
        self._lib.shim_disarm()

    @property
    def count(self) -> int:
        return int(self._lib.shim_count())

    @property
    def flushes(self) -> int:
        return int(self._lib.shim_flushes())

    def names(self) -> list[str]:
        return [self._lib.shim_name(n).decode() for n in range(1, self.count + 1)]
