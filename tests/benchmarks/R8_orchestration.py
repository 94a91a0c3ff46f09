"""R8: what orchestration costs. A task that answers from the cache, the finished life cycle run again, recovery of a worker."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks import measured
from tests.benchmarks.measured import ROOT

row = partial(measured.row, "R8")
TRAINYARD = str(Path(sys.executable).parent / "trainyard")
TASKS = 100
REPEATS = 5

TASK_COST = """
    import json, sys, time
    from functools import partial
from pathlib import Path
    from prefect import flow, task
    from llm.artifact import Store
    from llm.stages import Job
    from tasks.policy import policy, produce

    root = Path(sys.argv[1])

    @task
    def bare(number):
        return {"number": number}

    @task(**policy("clean"))
    def ours(job):
        def build(out):
            (out / "a").write_text(job.key)
            return {}
        return produce(job, build)

    def job(number):
        ingredients = {"code": {}, "config": {}, "parents": {}, "packages": {}, "observed": {}}
        return Job("data.clean", "clean", f"key{number}", ingredients, {}, {}, str(root), str(root))

    @flow
    def bare_flow(count):
        return [bare(number) for number in range(count)]

    @flow
    def our_flow(count):
        task = ours.with_options(result_storage=root / "results")
        return [task(job(number)) for number in range(count)]

    def seconds(function, count):
        began = time.perf_counter()
        answer = function(count)
        return time.perf_counter() - began, answer

    count = int(sys.argv[2])
    bare_flow(count), our_flow(count)
    rounds = []
    for _ in range(int(sys.argv[3])):
        a, _1 = seconds(bare_flow, count)
        b, first = seconds(our_flow, count)
        c, second = seconds(our_flow, count)
        d, _2 = seconds(bare_flow, count)
        rounds.append([(a + d) / 2, (b + c) / 2, first == second])
    print(json.dumps(rounds))
"""


def measure() -> Iterator[dict[str, Any]]:
    """Rows of R8."""
    with tempfile.TemporaryDirectory(prefix="trainyard-bench-") as folder:
        yield task_cost(Path(folder))
        yield from life_cycle(Path(folder))


def task_cost(folder: Path) -> dict[str, Any]:
    """Milliseconds per cached task over bare Prefect, both against one embedded server."""
    command = [sys.executable, "-c", textwrap.dedent(TASK_COST), str(folder / "tasks"), str(TASKS), str(REPEATS)]
    variables = {**os.environ, "PREFECT_HOME": str(folder / "prefect"), "PREFECT_LOGGING_LEVEL": "ERROR", "DO_NOT_TRACK": "1"}
    answer = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    rounds = json.loads(answer.stdout.splitlines()[-1])
    bare, ours = (statistics.median(column) / TASKS * 1000 for column in list(zip(*rounds, strict=True))[:2])
    equal = all(same for *_, same in rounds)
    return row("cached task", ours, "ms", "≤ bare + 1 ms", ours <= bare + 1, peer="bare Prefect", peer_value=bare, equal=equal)


def life_cycle(folder: Path) -> Iterator[dict[str, Any]]:
    """The finished life cycle run again, and a worker killed in training."""
    corpus = folder / "corpus"
    corpus.mkdir()
    modules = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-z]*.py"), key=lambda path: (-path.stat().st_size, path.name))
    for path in modules[20:80]:
        shutil.copy(path, corpus)
    shutil.copy(ROOT / "tests" / "mini.yaml", folder / "mini.yaml")
    seconds = run(folder, "plain")
    weights = trained(folder, "plain")
    again = [run(folder, "plain") for _ in range(REPEATS)]
    cached = {stage["state"] for group in summary(folder, "plain")["stages"].values() for stage in group.values()} == {"cached"}
    middle = statistics.median(again)
    yield row("cached life cycle, embedded server", middle, "s", "≤ 10 s", middle <= 10, peer="first run", peer_value=seconds, equal=cached)
    gap = worker_killed(folder)
    equal = trained(folder, "killed") == weights
    yield row("worker killed → next step", gap, "s", "≤ 10 s", gap <= 10, equal=equal)


def run(folder: Path, home: str) -> float:
    began = time.perf_counter()
    subprocess.run(command(folder), cwd=folder, env=environment(folder, home), capture_output=True, check=True)
    return time.perf_counter() - began


def command(folder: Path) -> list[str]:
    return [TRAINYARD, "run", "lifecycle", "--recipe", str(folder / "mini.yaml")]


def environment(folder: Path, home: str) -> dict[str, str]:
    return {**os.environ, "TRAINYARD_HOME": str(folder / home)}


def summary(folder: Path, home: str) -> dict[str, Any]:
    return json.loads((folder / home / "runs" / "latest" / "summary.json").read_text())


def trained(folder: Path, home: str) -> str:
    manifest = Path(summary(folder, home)["stages"]["base"]["pretrain"]["path"]) / "manifest.json"
    return str(json.loads(manifest.read_text())["files"]["model.safetensors"]["sha256"])


def worker_killed(folder: Path) -> float:
    """Seconds from the kill of a training worker to the first step after it."""
    process = subprocess.Popen(
        command(folder), cwd=folder, env=environment(folder, "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    pattern = "pretrain/.work-*/checkpoints/step-*"
    while not list((folder / "killed").glob(pattern)):
        if process.poll() is not None:
            raise RuntimeError("the run ended before a checkpoint; see its summary.json")
        time.sleep(0.01)
    workers = [member for member in psutil.Process(process.pid).children(recursive=True) if "RayTrainWorker" in " ".join(member.cmdline())]
    metrics = next((folder / "killed").glob("pretrain/.work-*/metrics.jsonl"))
    workers[0].kill()
    workers[0].wait(timeout=10) if workers[0].is_running() else None
    size, began = metrics.stat().st_size, time.perf_counter()
    while metrics.exists() and metrics.stat().st_size <= size:
        time.sleep(0.01)
    gap = time.perf_counter() - began
    if process.wait() != 0:
        raise RuntimeError("the run with a killed worker failed")
    return gap
