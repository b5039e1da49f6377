"""Stands in for a coding agent: reads its prompt, writes draft.json. Any command could do this."""

from __future__ import annotations

import json
from pathlib import Path

prompt = Path("prompt.md").read_text(encoding="utf-8")
documents = json.loads(Path("documents.json").read_text(encoding="utf-8"))
title = prompt.splitlines()[0].removeprefix("# Write texts for ").strip()
draft = {
    "introduction": f"{title} in {len(documents)} documents, {sum(d['lines'] for d in documents)} lines in all.",
    "summaries": {d["path"]: (d["opening"] or d["path"])[:160] for d in documents},
}
Path("notes.txt").write_text("this file never leaves the working copy\n", encoding="utf-8")
Path("draft.json").write_text(json.dumps(draft), encoding="utf-8")
print(f"drafted {len(documents)} summaries")
