"""Shared fixtures: quiet logs, workspaces on different filesystems, the preloaded shim."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import shim
import structlog
from machines import mounted, not_run, overlaid

from surefoot_storage import Workspace


@pytest.fixture(autouse=True)
def quiet_logs() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    yield
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def same_on_every_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare files come into use where freeing is slow: here only where a test asks for them."""
    monkeypatch.setattr("surefoot_storage.spares.SLOW_FREE_S", math.inf)


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


@pytest.fixture(scope="session")
def btrfs_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A mounted btrfs image."""
    yield from mounted(tmp_path_factory.mktemp("btrfs"), ["mkfs.btrfs", "-q"], "400M", "btrfs-progs")


@pytest.fixture(scope="session")
def overlay_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A mounted overlay, as containers have it."""
    yield from overlaid(tmp_path_factory.mktemp("overlay"))


@pytest.fixture
def small_ext4(tmp_path: Path) -> Iterator[Path]:
    """A mounted ext4 image with little room."""
    yield from mounted(tmp_path, ["mkfs.ext4", "-q", "-m", "0"], "16M", "e2fsprogs")


@pytest.fixture
def tmpfs_folder() -> Iterator[Path]:
    if not os.path.isdir("/dev/shm"):
        not_run("there is no tmpfs at /dev/shm")
    folder = Path("/dev/shm") / f"surefoot-test-{os.getpid()}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)
