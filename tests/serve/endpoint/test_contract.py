"""The OpenAPI document is true: whatever is sent by it or against it, the server answers as the document says, and lives."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from llm.serve.endpoint.app import create_app
from llm.serve.engine.config import EngineConfig
from llm.serve.engine.engine import Engine
from llm.serve.models.catalogue import Catalogue

SEEDS = range(5)  # about 24,500 requests each
LONG = [pytest.param(1_500, seed, marks=[pytest.mark.long, pytest.mark.timeout(3_600)], id=f"long-{seed}") for seed in SEEDS]
CONFIG = """
[dictionaries.models]
values = ["small"]
[dictionaries.few]
values = [0, 1, 5]

[parameters]
"body.max_tokens" = { dictionary = "few", probability = 0.8 }
"body.max_completion_tokens" = { dictionary = "few", probability = 0.8 }
"body.model" = { dictionary = "models", probability = 0.9 }
"path.model" = { dictionary = "models", probability = 0.9 }
"path.model_id" = { dictionary = "models", probability = 0.9 }

[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "504"] # a client may ask for an answer within a microsecond

[checks.positive_data_acceptance]
# 400: a schema can't say that ids are below the vocabulary's size, that turns alternate, or that a prompt fits the context
expected-statuses = ["2xx", "400", "404", "429", "503", "504"]
"""


@pytest.fixture(scope="module")
def brief(brief_folder: Path, running: Any) -> Iterator[str]:
    """The address of a server whose answers are short."""
    engine = Engine(brief_folder, model_id="small", config=EngineConfig(threads=1))
    with running(create_app(Catalogue.of(engine))) as address:
        yield address
    engine.close()


def test_every_route_tells_its_errors(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    assert "HTTPValidationError" not in document["components"]["schemas"]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert "422" not in operation["responses"], path
            for status, response in operation["responses"].items():
                if status >= "4":
                    assert response["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/ErrorBody"}, (path, status)


def test_required_is_required_and_the_rest_may_be_null(http: httpx.Client) -> None:
    schemas = http.get("/openapi.json").json()["components"]["schemas"]
    for name in ("CompletionRequest", "ChatRequest", "EmbeddingRequest", "TokenizeRequest"):
        schema: dict[str, Any] = schemas[name]
        assert schema["additionalProperties"] is False
        for field, of in schema["properties"].items():
            assert (field in schema["required"]) != ({"type": "null"} in of.get("anyOf", [])), (name, field)


def test_the_document_names_the_bounds_of_lists(http: httpx.Client) -> None:
    schemas = http.get("/openapi.json").json()["components"]["schemas"]
    bounds = {("TokenizeRequest", "messages"): 2_048, ("DetokenizeRequest", "tokens"): 2**17, ("InputTensor", "data"): 1_024}
    for (name, field), most in bounds.items():
        assert re.findall(r'"maxItems": (\d+)', json.dumps(schemas[name]["properties"][field])) == [str(most)], (name, field)


@pytest.mark.parametrize(("examples", "seed"), [pytest.param(20, 1, id="short"), *LONG])
def test_schemathesis_finds_nothing(brief: str, tmp_path: Path, examples: int, seed: int) -> None:
    """Valid and invalid data, the coverage phase, and requests that build on answers; every check that schemathesis has."""
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{brief}/openapi.json"]
    command += ["--mode", "all", "--phases", "examples,coverage,fuzzing,stateful", "--max-examples", str(examples), "--seed", str(seed)]
    command += ["--checks", "all", "--no-color", "--request-timeout", "30", "--generation-database", "none", "--continue-on-failure"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONHASHSEED": "0"})
    print(found.stdout[-1_500:])  # how many requests, for whoever asks pytest for it
    assert found.returncode == 0, found.stdout[-8_000:] + found.stderr[-2_000:]
    assert httpx.get(f"{brief}/ready").status_code == 200
