"""An engine holds no more than the machine can, and its container may."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest

from llm.errors import CapacityError
from llm.serve.engine import engine as engine_module
from llm.serve.engine.config import EngineConfig
from llm.serve.engine.engine import Engine
from llm.serve.engine.memory import FREE_SHARE, Room, affordable, available_bytes

MIB = 2**20


@pytest.mark.parametrize(
    ("free_bytes", "room"),
    [
        (10_000_000, Room(16_000, 5_000)),  # of 80,000 tokens
        (1_000_000, Room(4_000, 3_000)),  # of 8,000
        (250_000, Room(1_000, 0)),  # of 2,000
    ],
)
def test_what_runs_and_what_is_kept_and_what_is_read_fit_together(free_bytes: int, room: Room) -> None:
    given = affordable(16, 1_000, prefix_tokens=5_000, token_bytes=100, free_bytes=free_bytes)
    assert given == room
    assert (given.running_tokens + given.kept_tokens + 1_000) * 100 <= FREE_SHARE * free_bytes


def test_memory_for_less_than_two_contexts_is_too_little() -> None:
    with pytest.raises(CapacityError, match=r"1,600 tokens of 100 bytes fit, two contexts are 2,000; set engine.kv_tokens"):
        affordable(16, 1_000, prefix_tokens=0, token_bytes=100, free_bytes=200_000)


def container(folder: Path, limit: str) -> Path:
    """What the kernel tells of a container that takes 70 MiB, 20 MiB of which it would drop."""
    files = {"memory.max": limit, "memory.current": str(70 * MIB), "memory.stat": f"anon {50 * MIB}\ninactive_file {20 * MIB}\n"}
    for name, content in files.items():
        (folder / name).write_text(content + "\n")
    return folder


def test_a_container_has_what_its_limit_leaves(tmp_path: Path) -> None:
    assert available_bytes(container(tmp_path, str(100 * MIB))) == 50 * MIB
    assert available_bytes(container(tmp_path, str(40 * MIB))) == 0


@pytest.mark.parametrize("limit", ["max", str(2**62)])
def test_a_container_without_a_limit_has_what_the_machine_has(tmp_path: Path, limit: str) -> None:
    assert available_bytes(container(tmp_path, limit)) == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_an_engine_plans_with_its_draft(decoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same memory holds less for the model when a draft takes some of it."""
    monkeypatch.setattr(engine_module, "available_bytes", lambda: 4 * MIB)
    totals = []
    for draft in (None, decoder.folder):
        engine = Engine(decoder.folder, model_id="m", config=EngineConfig(threads=1, draft=draft))
        totals.append(engine.load().kv_total_tokens + engine._loop._batch.prefixes.most_tokens)
        engine.close()
    context = engine.facts.context_tokens
    assert 0 < totals[1] < totals[0]
    assert totals[0] - totals[1] == pytest.approx(FREE_SHARE * context, abs=2)
