"""`make bench`: measured figures against peers and goals, in one run, as one table.

    python -m tests.benchmarks.run                  all
    python -m tests.benchmarks.run R8               one
    python -m tests.benchmarks.run R2 characters    a part of one that has PARTS

Each benchmark is a file named after its id whose `measure()` yields rows, of all its parts or of one. They go to the terminal
as they come, to README.md beside this file as a table, and to results.json. A part's rows replace the same rows of before.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LIBRARIES = ("prefect", "ray", "torch", "trainyard")


def main(only: str = "", part: str = "") -> None:
    """Run every benchmark, one, or a part of one, and write the table."""
    rows = []
    for path in sorted(HERE.glob("R*.py")):
        if only in ("", path.stem.split("_")[0]):
            for row in measure(path, part):
                print(table([row])[-1], flush=True)
                rows.append(row | {"versions": versions()})
    if not rows:
        sys.exit(f"no benchmark {only}; have: {', '.join(sorted(path.stem for path in HERE.glob('R*.py')))}")
    before, replaced = earlier(), {name(row, whole=not part) for row in rows}
    kept = [row for row in before if name(row, whole=not part) not in replaced]
    places = {name(row, whole=False): place for place, row in enumerate(before)} if part else {}
    everything = sorted(kept + rows, key=lambda row: (row["id"], places.get(name(row, whole=False), len(places))))
    (HERE / "results.json").write_text(json.dumps(everything, indent=1, sort_keys=True) + "\n")
    (HERE / "README.md").write_text(page(everything))


def measure(path: Path, part: str) -> Iterator[dict[str, Any]]:
    benchmark = importlib.import_module(f"tests.benchmarks.{path.stem}")
    if part and part not in (parts := getattr(benchmark, "PARTS", ())):
        sys.exit(f"{path.stem} has no part {part}; has: {', '.join(parts) or 'none'}")
    return benchmark.measure(part) if part else benchmark.measure()


def name(row: dict[str, Any], *, whole: bool) -> tuple[str, ...]:
    """What a later run replaces: all rows of a benchmark, or the row of this metric and peer."""
    return (row["id"],) if whole else (row["id"], row["metric"], str(row["peer"]))


def earlier() -> list[dict[str, Any]]:
    path = HERE / "results.json"
    return json.loads(path.read_text()) if path.exists() else []


def versions() -> dict[str, str]:
    found = {library: importlib.metadata.version(library) for library in LIBRARIES}
    return {"python": platform.python_version(), "cores": str(os.cpu_count()), **found}


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as Markdown."""
    lines = ["| id | metric | ours | peer | unit | ratio | goal | met | equal |", "|---|---|---|---|---|---|---|---|---|"]
    for row in rows:
        peer = "–" if row["peer"] is None else f"{row['peer']} {row['peer_value']:.3g}"
        ratio = None if row["ratio"] is None else f"{row['ratio']:.2f}"
        goal = "no goal" if row["goal"] is None else row["goal"]
        equal = f"{row['equal']} / {row['peer_equal']}" if "peer_equal" in row else row["equal"]
        cells = (row["id"], row["metric"], f"{row['ours']:.3g}", peer, row["unit"], ratio, goal, row["met"], equal)
        lines.append("| " + " | ".join("–" if cell is None else str(cell) for cell in cells) + " |")
    return lines


PAGE = """# Benchmarks

The last run of each (`make bench`, `make bench ONLY=R1`, or `make bench ONLY=R1 PART=B`). Ratios come from one run; bare times are of
that machine only. *met*: the goal is reached; *equal*: both sides gave the same answer, or ours / the peer's is the reference's; – :
there is none.

`TRAINYARD_BENCH_HOME` (`~/.cache/trainyard-bench`) keeps the environments of peers, which are built on first use.
`TRAINYARD_NANOGPT` names nanoGPT's source for R1 and R2: a checkout, or whatever `git clone` accepts; without it, GitHub's.

{table}
"""


def page(rows: list[dict[str, Any]]) -> str:
    return PAGE.format(table="\n".join(table(rows)))


if __name__ == "__main__":
    main(*sys.argv[1:3])
