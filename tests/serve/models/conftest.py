"""A registry beside a store of real exports, and engines small enough to load in a blink."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from llm.artifact import Store
from llm.registry import Registry, Version, of_store
from llm.serve.engine.config import EngineConfig
from llm.serve.models.config import CanaryConfig, LoadConfig, ModelsConfig

NAME = "tiny-chat"
FRAGILE_FROM = 599  # ids from here on, the last one alone, make the fragile model's graph fail: what warms it up must not meet them

Publish = Callable[..., Version]


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, made once, because it takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    Registry(f"sqlite:///{folder}/mlflow.db").add_candidate("unused", folder, digest="0", metrics={}, lineage={})
    return folder / "mlflow.db"


@pytest.fixture
def store(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "home").mkdir()
    shutil.copy(database, tmp_path / "home" / "mlflow.db")
    return Store(tmp_path / "home")


@pytest.fixture
def publish(store: Store, folder: Path) -> Publish:
    """Exports the small model under a key, registers it and makes it the champion."""

    def publish(key: str, *, fragile: bool = False, promote: bool = True) -> Version:
        def build(out: Path) -> dict[str, Any]:
            shutil.copytree(folder / "onnx", out / "onnx")
            (out / "onnx" / "README.md").write_text(key)
            if fragile:
                break_some_ids(out / "onnx" / "model.onnx")
            return {}

        made = store.produce("export", key, {}, build)
        registry = of_store(store)
        version = registry.add_candidate(NAME, made.path, digest=made.ref.digest, metrics={"bits_per_byte": 1.5}, lineage={})
        if promote:
            with registry.deciding():
                registry.promote(NAME, version.number)
        return version

    return publish


@pytest.fixture
def config() -> ModelsConfig:
    return ModelsConfig(
        poll_seconds=0.05,
        engine=EngineConfig(threads=1, slots=8),
        canary=CanaryConfig(share=0.3, requests=20, seconds=1000, latency_slack_seconds=1000),
        load=LoadConfig(seconds=60),
    )


def break_some_ids(path: Path) -> None:
    """Have the graph look every id up in a table that ends early."""
    model = onnx.load(path)
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = "looked_up" if name == "input_ids" else name
    model.graph.initializer.append(helper.make_tensor("table", TensorProto.INT64, [FRAGILE_FROM], range(FRAGILE_FROM)))
    model.graph.node.insert(0, helper.make_node("Gather", ["table", "input_ids"], ["looked_up"]))
    path.write_bytes(model.SerializeToString())
