"""Asks a real server everything that its OpenAPI allows, and everything that it does not: by schemathesis.

    python tests/support/fuzzing.py FOLDER [EXAMPLES SEED]

Ends with its exit code: 0 where the API is what it says.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx
from serving import served

from surefoot import Engine

HERE = Path(__file__).parent
# What a configuration may say is in its own schema, which GET gives; and an agent's options exclude each other.
OWN_SCHEMA = """
[[operations]]
include-name = "POST /v1/agents"
checks.positive_data_acceptance.expected-statuses = ["2xx", 404, 409, 422]

[[operations]]
include-name = "PUT /v1/configurations/{name}"
checks.positive_data_acceptance.expected-statuses = ["2xx", 404, 412, 422]
"""


def main(folder: Path, *, examples: int = 0, seed: int = 1, report: Path | None = None) -> int:
    """Runs it over a workspace in which there is something of everything; without examples only the corners."""
    root = folder / "workspace"
    root.mkdir(parents=True)
    with Engine(root, resume=False) as engine:
        token, _ = engine.access.create("fuzz", ["admin"]).wait()
        engine.webhooks.add("http://127.0.0.1:9/").wait()
    config = ["--config", f"limits={HERE}/webflow.py:Limits", "--rate", "1000000"]
    with served(root, *config) as server:
        known = _something_of_everything(server.url, token)
        settings = folder / "schemathesis.toml"
        given = "".join(f'"{name}" = {json.dumps(value)}\n' for name, value in known.items())
        settings.write_text(f"[parameters]\n{given}{OWN_SCHEMA}")
        command = [
            str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(settings), "run",
            f"{server.url}/v1/openapi.json", "-H", f"Authorization: Bearer {token}", "--request-timeout", "30",
            "--exclude-path", "/v1/events/stream", "--seed", str(seed), "--no-color",  # that one never ends
            "--phases", "coverage,fuzzing" if examples else "coverage",
            *(["--max-examples", str(examples)] if examples else []),
        ]  # fmt: skip
        done = subprocess.run(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        alive = httpx.get(f"{server.url}/v1/health").status_code == 200
    (report or folder / "report.txt").write_text(done.stdout)
    with Engine(root, resume=False) as engine:
        differences = list(engine.history.verify())
    return done.returncode or int(not alive) or int(bool(differences))


def _something_of_everything(url: str, token: str) -> dict[str, object]:
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {token}"}, timeout=30) as client:
        for run_id, given in (("rivers", {}), ("lakes", {"agent": True}), ("broken", {"fails": True})):
            body = {"workflow": "article", "run_id": run_id, "input": given}
            client.post("/v1/runs", json=body).raise_for_status()
        while client.get("/v1/runs/lakes").json()["state"] != "completed":
            pass
        while not client.get("/v1/approvals").json():
            pass
        txids = [line["txid"] for line in client.get("/v1/runs/lakes/history").json() if line["txid"]]
    return {
        "path.run_id": "rivers",
        "path.txid": txids[1],
        "path.agent_id": "lakes/3",
        "path.number": 4,
        "query.wait_s": 0,
    }


if __name__ == "__main__":
    arguments = [int(one) for one in sys.argv[2:]]
    code = main(Path(sys.argv[1]), examples=arguments[0] if arguments else 20, seed=(arguments[1:] or [1])[0])
    print(Path(sys.argv[1], "report.txt").read_text())
    sys.exit(code)
