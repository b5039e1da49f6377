"""Presets for the command lines of well-known coding agents: a few options each, kept in `drivers.toml`."""

from __future__ import annotations

import functools
import tomllib
from importlib import resources
from typing import Any

from surefoot_storage import InputError

from .agentspec import Agent


@functools.cache
def drivers() -> dict[str, dict[str, Any]]:
    """All presets, by name."""
    return tomllib.loads(resources.files("surefoot").joinpath("drivers.toml").read_text(encoding="utf-8"))


def with_driver(spec: Agent) -> Agent:
    """What the preset says, where the agent does not say it itself.

    Raises:
        InputError: there is no preset of that name.
    """
    if not spec.driver:
        return spec
    if spec.driver not in drivers():
        raise InputError(
            "launch agent", spec.driver, expected=f"a driver: {', '.join(drivers())}",
            found=repr(spec.driver),
            hint="argv=[…] takes any command",
        )  # fmt: skip
    own = spec.model_dump(exclude_defaults=True)
    return Agent.model_validate({**drivers()[spec.driver], **own})
