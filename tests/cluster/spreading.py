"""A program of its own: CORPUS becomes rows in FOLDER over a Ray of three machines, one of which is lost on the way.

spreading.py CORPUS FOLDER kill|keep
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from llm.cluster.spread import on_ray
from llm.data.clean import clean
from llm.data.collect import collect
from llm.data.config import CleanConfig, CollectConfig, DedupConfig, TokenizeConfig
from llm.data.dedup import dedup
from llm.data.encode import tokenize
from llm.data.parts import Spread, Workshop, one_by_one
from llm.data.sources import files
from llm.data.sources.config import FilesSource, SqlSource

CODE = ("llm.data.collect", "llm.data.clean", "llm.data.dedup", "llm.data.encode")
DATABASE, VARIABLE = "texts.db", "SPREAD_DATABASE"
STAGES = ("collect", "clean", "dedup", "tokenize")


def make(corpus: Path, folder: Path, spread: Spread = one_by_one) -> None:
    """Every stage's folder below FOLDER. Pieces are small enough that each machine gets some; the database's name is this process's."""
    files.PIECE_FILES = 4
    os.environ[VARIABLE] = f"sqlite:///{corpus / DATABASE}"
    sources = (
        FilesSource(path=str(corpus), patterns=("*.py",), domain="code"),
        SqlSource(url_variable=VARIABLE, table="texts", id_column="id", text_column="text"),
    )
    stages: list[tuple[str, Callable[..., Any], Any]] = [
        ("clean", clean, CleanConfig()),
        ("dedup", dedup, DedupConfig(validation_share=0.2, test_share=0.2)),
        ("tokenize", tokenize, TokenizeConfig(vocab_size=600, row_tokens=64)),
    ]
    shop = partial(Workshop, spread=spread)
    (folder / "collect").mkdir()
    collect(CollectConfig(sources=sources), folder / "collect", shop(folder / "parts" / "collect"))
    source = folder / "collect"
    for name, stage, config in stages:
        (folder / name).mkdir()
        stage(source, folder / name, config, shop(folder / "parts" / name))
        source = folder / name


def main(corpus: Path, folder: Path, lose: bool) -> None:
    machine = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, connect=True, head_node_args={**machine, "include_dashboard": False})
    others = [cluster.add_node(**machine) for _ in range(2)]
    cluster.wait_for_nodes()

    def spread(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        for number, key in enumerate(on_ray(function, items, code=CODE)):
            if lose and number == 1 and others:
                cluster.remove_node(others.pop(), allow_graceful=False)
            yield key

    make(corpus, folder, spread)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "kill")
