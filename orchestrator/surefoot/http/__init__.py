"""The HTTP door: an API, a page, live updates. Thin: every answer is the engine's own.

Needs `pip install "surefoot[http]"`. `create_app(engine, …)` makes an ASGI application of an open engine;
`surefoot serve` runs one.
"""

from .app import Options, create_app

__all__ = ["Options", "create_app"]
