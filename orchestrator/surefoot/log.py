"""Structured events. The library binds and emits; configuring structlog is the application's business."""

from __future__ import annotations

from typing import Any


def logger(**bound: Any) -> Any:
    """A structlog logger with these values bound."""
    import structlog  # a tenth of a second that `import surefoot` does not have to pay

    return structlog.get_logger("surefoot", **bound)
