"""Where an artifact comes from, recorded in its manifest: what its key was made from, and by which machine and code."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

from llm.stages import Job

LIBRARIES = ("trainyard", "torch", "ray", "prefect", "onnxruntime", "sentencepiece", "datasets")


def provenance(job: Job) -> dict[str, Any]:
    """A job's ingredients, parents, place and run, and the git commit, versions and machine, which are never part of its key."""
    parents = {role: {"stage": parent.stage, "key": parent.key, "digest": parent.digest} for role, parent in job.parents.items()}
    place = {"parents": parents, "node": job.node, "run": Path(job.run).name}
    return {**job.ingredients, **place, "git_commit": git_commit(), "versions": versions()}


@functools.cache
def git_commit() -> str:
    """The commit of the checkout that this code runs from, `-dirty` behind it if files differ; empty outside a checkout."""
    here = Path(__file__).parent
    answer = subprocess.run(
        ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() if answer.returncode == 0 else ""


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python, of the machine's architecture and of the libraries that matter most."""
    found = {library: importlib.metadata.version(library) for library in LIBRARIES}
    return {"python": platform.python_version(), "machine": platform.machine(), "system": platform.system(), **found}
