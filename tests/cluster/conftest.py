"""One local Ray for the whole room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from llm.cluster.connect import connected
from llm.train.config import ClusterConfig


@pytest.fixture(scope="session")
def two_workers() -> ClusterConfig:
    return ClusterConfig(workers=2, use_gpu=False, poll_seconds=0.2)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def ray_cluster(two_workers: ClusterConfig, home: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
            patch.delenv(name, raising=False)
        with connected(two_workers, home):
            yield
