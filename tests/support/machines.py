"""What the machine at hand can do: mounted images, and saying what was not run."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from surefoot import Engine


def not_run(reason: str, *, missing_package: bool = False) -> None:
    """Says what is missing. On CI a missing package is a failure: `.ci/run` installs them."""
    if missing_package and os.environ.get("CI") == "true":
        pytest.fail(f"missing on CI: {reason}")
    pytest.skip(f"not run, because {reason}")


def mounted(folder: Path, make: list[str], size: str, package: str) -> Iterator[Path]:
    if shutil.which(make[0]) is None:
        not_run(f"{make[0]} is not installed (package {package})", missing_package=True)
    if os.geteuid() != 0:
        not_run("mounting an image needs root")
    image, mount = folder / "image", folder / "mount"
    mount.mkdir()
    subprocess.run(["truncate", "-s", size, image], check=True)
    subprocess.run([*make, image], check=True, capture_output=True)
    done = subprocess.run(["mount", "-o", "loop", image, mount], capture_output=True, text=True)
    if done.returncode != 0:
        not_run(f"this machine does not mount images: {done.stderr.strip()}")
    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", mount], check=False)


def overlaid(folder: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        not_run("mounting an overlay needs root")
    lower, upper, work, mount = (folder / name for name in ("lower", "upper", "work", "mount"))
    for part in (lower, upper, work, mount):
        part.mkdir()
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    done = subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", options, mount], capture_output=True, text=True
    )
    if done.returncode != 0:
        not_run(f"this machine does not mount overlays: {done.stderr.strip()}")
    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", mount], check=False)


async def looked(engine: Engine) -> None:
    """Until the engine's worker has looked twice from here on, and what it has taken is over or waits."""
    dispatcher = engine._dispatcher
    assert dispatcher is not None
    before = dispatcher.looks
    while dispatcher.looks < before + 2:
        dispatcher.notify()
        await anyio.sleep(0.005)
