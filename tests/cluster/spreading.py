"""A program of its own: cleans, dedups and tokenizes FOLDER/collected over a Ray of three machines, one of which is lost on the way.

spreading.py FOLDER kill|keep
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from llm.cluster.spread import on_ray
from llm.data.clean import clean
from llm.data.config import CleanConfig, DedupConfig, TokenizeConfig
from llm.data.dedup import dedup
from llm.data.encode import tokenize
from llm.data.parts import Workshop

CODE = ("llm.data.clean", "llm.data.dedup", "llm.data.encode")


def main(folder: Path, lose: bool) -> None:
    machine = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, connect=True, head_node_args={**machine, "include_dashboard": False})
    others = [cluster.add_node(**machine) for _ in range(2)]
    cluster.wait_for_nodes()

    def spread(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        for number, key in enumerate(on_ray(function, items, code=CODE)):
            if lose and number == 1 and others:
                cluster.remove_node(others.pop(), allow_graceful=False)
            yield key

    shop = partial(Workshop, spread=spread)
    stages: list[tuple[str, Callable[..., Any], Any]] = [
        ("clean", clean, CleanConfig()),
        ("dedup", dedup, DedupConfig(validation_share=0.2, test_share=0.2)),
        ("tokenize", tokenize, TokenizeConfig(vocab_size=600, row_tokens=64)),
    ]
    source = folder / "collected"
    for name, stage, config in stages:
        (folder / name).mkdir()
        stage(source, folder / name, config, shop(folder / "parts" / name))
        source = folder / name
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "kill")
