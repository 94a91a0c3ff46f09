"""What every benchmark needs: a row of the table, and environments in which peers run."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HOME = Path(os.environ.setdefault("TRAINYARD_BENCH_HOME", str(Path.home() / ".cache" / "trainyard-bench")))
TORCH = f"torch=={importlib.metadata.version('torch').split('+')[0]}"  # the build that ours uses


def row(
    id: str,
    metric: str,
    ours: float,
    unit: str = "",
    goal: str | None = None,
    met: bool | None = None,
    *,
    peer: str | None = None,
    peer_value: float = 0.0,
    equal: bool | None,
) -> dict[str, Any]:
    """One line of the table: our value beside a peer's, if there is one, and the goal beside whether it is met."""
    ratio = ours / peer_value if peer else None
    return {
        "id": id, "metric": metric, "ours": ours, "peer": peer, "peer_value": peer_value, "unit": unit,
        "ratio": ratio, "goal": goal, "met": met, "equal": equal,
    }  # fmt: skip


def environment(name: str, packages: Sequence[str], *, bare: Sequence[str] = ()) -> Path:
    """The Python of an environment of its own in HOME, built unless it was built from the same packages.

    `bare` ones come without what they ask for. If a package can't be installed, nothing is skipped: that is the end.
    """
    folder = HOME / name
    python, ready = folder / "bin" / "python", folder / "ready"
    wanted = [*packages, *bare]
    if not ready.exists() or ready.read_text().split() != wanted:
        venv.create(folder, with_pip=True, clear=True)
        for options, chosen in (([], packages), (["--no-deps"], bare)):
            if chosen:
                subprocess.run([python, "-m", "pip", "install", "--quiet", *options, *chosen], check=True)
        ready.write_text("\n".join(wanted))
    return python
