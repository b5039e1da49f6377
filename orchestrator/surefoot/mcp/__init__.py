"""The door for language models: tools of the Model Context Protocol, over stdio and HTTP.

Needs `pip install "surefoot[mcp]"`. A supervisor's tools look at runs, start, preview and undo them; a
worker's, with a token for one run, tell of that run. No tool answers a request for approval unless one asks
for that.
"""

from .server import as_caller, supervisor, worker

__all__ = ["as_caller", "supervisor", "worker"]
