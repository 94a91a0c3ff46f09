"""A driver of its own: trains the pickled (job, cluster) of FOLDER/run on a Ray of this machine: driver.py FOLDER."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

from llm.cluster import workers
from llm.cluster.connect import connected


def main(folder: Path) -> None:
    workers.RESIZE_SECONDS = float(os.environ.get("RESIZE_SECONDS", workers.RESIZE_SECONDS))
    job, cluster = pickle.loads((folder / "run").read_bytes())
    with connected(cluster, folder):
        workers.run(job, cluster, folder / "ray", "run")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
