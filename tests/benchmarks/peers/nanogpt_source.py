"""Where nanoGPT's source lies, which is no package. Imported by the scripts beside it that train it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ORIGIN = "https://github.com/karpathy/nanoGPT"


def source() -> Path:
    """A checkout of nanoGPT: the one that $TRAINYARD_NANOGPT names, or a clone of what it names, kept in $TRAINYARD_BENCH_HOME."""
    origin = os.environ.get("TRAINYARD_NANOGPT", ORIGIN)
    if (Path(origin) / "model.py").is_file():
        return Path(origin)
    clone = Path(os.environ["TRAINYARD_BENCH_HOME"]) / "nanogpt-source"
    if not (clone / "model.py").is_file():
        subprocess.run(["git", "clone", "--quiet", "--depth=1", origin, str(clone)], check=True)
    return clone
