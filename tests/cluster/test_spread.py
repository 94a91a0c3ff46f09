"""Data stages over a cluster: what one process makes, byte for byte, also when a machine is lost on the way."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import sysconfig
from contextlib import closing
from pathlib import Path

import pytest

from llm.artifact import content_digest, describe
from llm.cluster.spread import on_ray
from llm.data.sources import files
from llm.errors import DataError
from llm.recipe import load
from llm.stages import Job
from tasks import prepare
from tests.cluster.spreading import DATABASE, STAGES, VARIABLE, make

MODULES = Path(sysconfig.get_paths()["stdlib"])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Modules of the standard library, and a table of letters."""
    folder = tmp_path_factory.mktemp("corpus")
    for path in sorted(MODULES.glob("[a-d]*.py")):
        (folder / path.name).write_bytes(path.read_bytes())
    with closing(sqlite3.connect(folder / DATABASE)) as database, database:
        database.execute("create table texts (id integer primary key, text text)")
        letters = [
            f"Letter {n}: the harbour lay quiet, and only {n + 2} of the boats had left before dawn to look for herring." for n in range(40)
        ]
        database.executemany("insert into texts values (?, ?)", list(enumerate(letters)))
    return folder


@pytest.fixture(scope="module")
def alone(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stages, each run by one process without a cluster."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "PIECE_FILES", files.PIECE_FILES)
        patch.setenv(VARIABLE, "")
        make(corpus, folder)
    return folder


def digests(root: Path) -> dict[str, str]:
    return {name: content_digest(describe(root / name)) for name in STAGES}


@pytest.mark.parametrize("machines", ["keep", "kill"])
def test_three_machines_make_what_one_process_makes(corpus: Path, alone: Path, tmp_path: Path, machines: str) -> None:
    assert len(list((alone / "collect").glob("documents-*.parquet"))) > 8
    program = Path(__file__).parent / "spreading.py"
    done = subprocess.run([sys.executable, program, corpus, tmp_path, machines], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert digests(tmp_path) == digests(alone)


def square(number: int) -> int:
    if number > 50:
        raise DataError("too large to square", value=number, remedy="leave it out")
    return number * number


@pytest.mark.usefixtures("ray_cluster")
def test_results_and_errors_arrive_as_they_are() -> None:
    assert sorted(on_ray(square, range(20), code=("llm.data.parts",))) == [number * number for number in range(20)]
    with pytest.raises(DataError, match="too large to square"):
        list(on_ray(square, range(45, 55), code=("llm.data.parts",)))


@pytest.mark.parametrize(("starting_seconds", "elsewhere"), [(60.0, 0), (0.0, 6)])
@pytest.mark.usefixtures("ray_cluster")
def test_a_cluster_gets_what_takes_longer_than_its_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, starting_seconds: float, elsewhere: int
) -> None:
    monkeypatch.setattr(prepare, "STARTING_SECONDS", starting_seconds)
    recipe = load("tiny", {"cluster.workers": 2}).model_dump(mode="json")
    shop = prepare.workshop(Job("data.clean", "clean", "key", {"code": {}, "packages": {}}, {}, recipe, str(tmp_path), ""))
    processes = list(shop.spread(process, range(6)))
    assert len(processes) == 6
    assert sum(each != os.getpid() for each in processes) == elsewhere


def process(number: int) -> int:
    return os.getpid()
