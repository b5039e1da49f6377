"""Shared fixtures: quiet logs, workspaces on different filesystems, the preloaded shim."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import shim
import structlog

from surefoot_storage import Workspace


def not_run(reason: str, *, missing_package: bool = False) -> None:
    """Says what is missing. On CI a missing package is a failure: `.ci/run` installs them."""
    if missing_package and os.environ.get("CI") == "true":
        pytest.fail(f"missing on CI: {reason}")
    pytest.skip(f"not run, because {reason}")


@pytest.fixture(autouse=True)
def quiet_logs() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    yield
    structlog.reset_defaults()


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "workspace"
    folder.mkdir()
    return folder


@pytest.fixture
def workspace(root: Path) -> Iterator[Workspace]:
    with Workspace(root, idle_s=3600) as opened:
        yield opened


@pytest.fixture(scope="session")
def shim_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return shim.build(tmp_path_factory.mktemp("shim"))
    except FileNotFoundError as error:
        not_run(str(error), missing_package=True)
        raise AssertionError from error


@pytest.fixture(scope="session")
def xfs_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A mounted xfs image."""
    yield from mounted(tmp_path_factory.mktemp("xfs"), ["mkfs.xfs", "-q"], "320M", "xfsprogs")


@pytest.fixture
def small_ext4(tmp_path: Path) -> Iterator[Path]:
    """A mounted ext4 image with little room."""
    yield from mounted(tmp_path, ["mkfs.ext4", "-q", "-m", "0"], "16M", "e2fsprogs")


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


@pytest.fixture
def tmpfs_folder() -> Iterator[Path]:
    if not os.path.isdir("/dev/shm"):
        not_run("there is no tmpfs at /dev/shm")
    folder = Path("/dev/shm") / f"surefoot-test-{os.getpid()}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)
