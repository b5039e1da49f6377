"""The API is what its OpenAPI says: schemathesis finds no failure."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import fuzzing
import httpx
import pytest
from machines import not_run
from serving import served


@pytest.mark.long
def test_schemathesis_finds_no_failure_in_any_corner(tmp_path):
    """Each parameter at its bounds and beyond, each body with each part missing or of another kind."""
    if shutil.which(str(Path(sys.executable).with_name("schemathesis"))) is None:
        not_run("schemathesis is not installed", missing_package=True)
    code = fuzzing.main(tmp_path)
    assert code == 0, (tmp_path / "report.txt").read_text()[-6_000:]


def test_every_operation_is_described_with_its_errors_and_needs_a_token(root):
    with served(root) as server:
        schema = httpx.get(f"{server.url}/v1/openapi.json").json()
    operations = [
        (path, method, operation)
        for path, item in schema["paths"].items()
        for method, operation in item.items()
    ]
    assert len(operations) > 60
    assert len({operation["operationId"] for *_, operation in operations}) == len(operations)
    for path, method, operation in operations:
        assert path.startswith("/v1/"), path
        assert operation["description"], (path, method)
        assert {"401", "404", "422", "429", "503"} <= set(operation["responses"]), (path, method)
        if path not in ("/v1/health", "/v1/ready"):
            assert operation["security"] == [{"HTTPBearer": []}], (path, method)
