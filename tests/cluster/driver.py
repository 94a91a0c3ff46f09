"""A driver of its own: trains the pickled (job, cluster) of FOLDER/run on a Ray of this machine: driver.py FOLDER."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

from llm.cluster.connect import connected
from llm.cluster.workers import run


def main(folder: Path) -> None:
    job, cluster = pickle.loads((folder / "run").read_bytes())
    with connected(cluster, folder):
        run(job, cluster, folder / "ray", "run")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
