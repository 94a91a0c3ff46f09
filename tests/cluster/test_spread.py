"""Data stages over a cluster: what one process makes, byte for byte, also when a machine is lost on the way."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from llm.artifact import content_digest, describe
from llm.cluster.spread import on_ray
from llm.data.clean import clean
from llm.data.collect import collect
from llm.data.config import CleanConfig, CollectConfig, DedupConfig, TokenizeConfig
from llm.data.dedup import dedup
from llm.data.encode import tokenize
from llm.data.parts import Workshop
from llm.data.sources import files
from llm.data.sources.config import FilesSource
from llm.errors import DataError

MODULES = Path(sysconfig.get_paths()["stdlib"])


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Modules of the standard library, in shards small enough that every machine gets some."""
    folder = tmp_path_factory.mktemp("corpus")
    for path in sorted(MODULES.glob("[a-d]*.py")):
        (folder / path.name).write_bytes(path.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "PIECE_FILES", 4)
        (folder / "collected").mkdir()
        collect(
            CollectConfig(sources=(FilesSource(path=str(folder), patterns=("*.py",), domain="code"),)),
            folder / "collected",
            Workshop(folder / "parts"),
        )
    return folder / "collected"


@pytest.fixture(scope="module")
def alone(collected: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Content digests of the stages, each run by this process."""
    root, source = tmp_path_factory.mktemp("alone"), collected
    stages: list[tuple[str, Any, Any]] = [
        ("clean", clean, CleanConfig()),
        ("dedup", dedup, DedupConfig(validation_share=0.2, test_share=0.2)),
        ("tokenize", tokenize, TokenizeConfig(vocab_size=600, row_tokens=64)),
    ]
    for name, stage, config in stages:
        (root / name).mkdir()
        stage(source, root / name, config, Workshop(root / "parts" / name))
        source = root / name
    return digests(root)


def digests(root: Path) -> dict[str, str]:
    return {name: content_digest(describe(root / name)) for name in ("clean", "dedup", "tokenize")}


@pytest.mark.parametrize("machines", ["keep", "kill"])
def test_three_machines_make_what_one_process_makes(collected: Path, alone: dict[str, str], tmp_path: Path, machines: str) -> None:
    assert len(list(collected.glob("documents-*.parquet"))) > 8
    (tmp_path / "collected").symlink_to(collected)
    program = Path(__file__).parent / "spreading.py"
    done = subprocess.run([sys.executable, program, tmp_path, machines], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert digests(tmp_path) == alone


def square(number: int) -> int:
    if number > 50:
        raise DataError("too large to square", value=number, remedy="leave it out")
    return number * number


@pytest.mark.usefixtures("ray_cluster")
def test_results_and_errors_arrive_as_they_are() -> None:
    assert sorted(on_ray(square, range(20), code=("llm.data.parts",))) == [number * number for number in range(20)]
    with pytest.raises(DataError, match="too large to square"):
        list(on_ray(square, range(45, 55), code=("llm.data.parts",)))
