"""Durability levels: how soon after its acknowledgement a commit survives a power cut.

| level     | an acknowledged commit                        | after a power cut                            |
|-----------|-----------------------------------------------|----------------------------------------------|
| `full`    | is flushed: one barrier for each batch        | everything acknowledged is there             |
| `batched` | survives a kill; is flushed within the window | at most the window is missing from the rows; |
|           |                                               | its files may be ahead: reported, not undone |
| `none`    | survives a kill; is never flushed by itself   | no promise; files that differ are reported   |
"""

from __future__ import annotations

from typing import Literal, TypeAlias

Durability: TypeAlias = Literal["full", "batched", "none"]
WINDOW_S = 0.05
