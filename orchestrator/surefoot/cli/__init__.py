"""The command line: the engine's operations for people and scripts. No logic of its own."""

from .main import main

__all__ = ["main"]
