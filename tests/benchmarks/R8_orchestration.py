"""R8: what orchestration costs. Cached tasks, a group of workers, the finished life cycle again, recovery of a worker and of a driver."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pickle
import shutil
import socket
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

import httpx
import psutil
import torch
import torch.distributed as dist

from llm.cluster import workers
from llm.cluster.connect import connected
from llm.train.config import ClusterConfig
from llm.train.loop import train
from tests.benchmarks import measured
from tests.benchmarks.measured import ROOT
from tests.drills.kills import make_job

row = partial(measured.row, "R8")
TRAINYARD = str(Path(sys.executable).parent / "trainyard")
TASKS = {10: 15, 100: 5, 1000: 1}  # in a flow: rounds
REPEATS = 5
GROUP = (sys.executable, "-m", "tests.benchmarks.R8_orchestration")

TASK_COST = """
    import json, sys, time
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
        with prefect_server(Path(folder)) as variables:
            for count, rounds in TASKS.items():
                yield task_cost(Path(folder) / str(count), count, rounds, variables)
        yield worker_group(Path(folder))
        yield from life_cycle(Path(folder))


def task_cost(folder: Path, count: int, rounds: int, server: dict[str, str]) -> dict[str, Any]:
    """Milliseconds per cached task of a flow of `count` over bare Prefect, both against one server."""
    command = [sys.executable, "-c", textwrap.dedent(TASK_COST), str(folder / "tasks"), str(count), str(rounds)]
    variables = {**os.environ, **server, "PREFECT_HOME": str(folder / "prefect"), "PREFECT_LOGGING_LEVEL": "ERROR", "DO_NOT_TRACK": "1"}
    answer = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise RuntimeError(f"the flows failed: {answer.stderr[-2000:]}")
    found = json.loads(answer.stdout.splitlines()[-1])
    bare, ours = (statistics.median(column) / count * 1000 for column in list(zip(*found, strict=True))[:2])
    equal = all(same for *_, same in found)
    metric = f"cached task, one of {count:,}"
    return row(metric, ours, "ms", "≤ bare + 1 ms", ours <= bare + 1, peer="bare Prefect", peer_value=bare, equal=equal)


def worker_group(folder: Path) -> dict[str, Any]:
    """Seconds of a training of three tiny steps on two workers, of which nearly all is their start: on a Ray that runs, and by torchrun."""
    times: dict[str, list[float]] = {"ray": [], "torchrun": []}
    weights = set()
    with subprocess.Popen([*GROUP, "ray", str(folder)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as driver:
        answer(driver)  # it is connected
        for turn in range(2 * REPEATS):
            kind = "ray" if turn % 4 in (0, 3) else "torchrun"
            job = make_job(Path(tempfile.mkdtemp(prefix=kind, dir=folder)), steps=3)
            (folder / "job").write_bytes(pickle.dumps(job))
            began = time.perf_counter()
            if kind == "ray":
                print(file=driver.stdin, flush=True)
                answer(driver)
            else:
                launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *GROUP[1:]]
                subprocess.run([sys.executable, *launch, "torchrun", str(folder)], cwd=ROOT, capture_output=True, check=True)
            times[kind].append(time.perf_counter() - began)
            weights.add((job.work / "final" / "model.safetensors").read_bytes())
    ours, peer = (statistics.median(each) for each in times.values())
    return row("2 workers: start, 3 tiny steps, end", ours, "s", peer="torchrun", peer_value=peer, equal=len(weights) == 1)


def answer(driver: subprocess.Popen[str]) -> None:
    """Wait for the driver's next line."""
    if not (driver.stdout and driver.stdout.readline()):
        raise RuntimeError("the driver of the Ray group ended early; its error stands above")


def train_in_group(kind: str, folder: Path) -> None:
    """One worker of torchrun's, or a driver of Ray's that trains the job in `folder` for each line that it reads."""
    if kind == "torchrun":
        torch.set_num_threads(1)
        dist.init_process_group("gloo")
        train(pickle.loads((folder / "job").read_bytes()))
        dist.destroy_process_group()
        return
    cluster = ClusterConfig(workers=2, use_gpu=False)
    with connected(cluster, folder):
        print("connected", flush=True)
        for number, _ in enumerate(sys.stdin):
            workers.run(pickle.loads((folder / "job").read_bytes()), cluster, folder / "ray", str(number))
            print("done", flush=True)


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
    for where, most, serving in (("embedded", 10, contextlib.nullcontext({})), ("running", 3, prefect_server(folder))):
        with serving as variables:
            run(folder, "plain", variables)  # a server meets its first run
            again = [run(folder, "plain", variables) for _ in range(REPEATS)]
            cached = {stage["state"] for group in summary(folder, "plain")["stages"].values() for stage in group.values()} == {"cached"}
        middle, metric = statistics.median(again), f"cached life cycle, {where} server"
        yield row(metric, middle, "s", f"≤ {most} s", middle <= most, peer="first run", peer_value=seconds, equal=cached)
    for who, most in (("worker", 10), ("driver", 30)):
        gap = killed(folder, who)
        yield row(f"{who} killed → next step", gap, "s", f"≤ {most} s", gap <= most, equal=trained(folder, who) == weights)


@contextlib.contextmanager
def prefect_server(folder: Path) -> Iterator[dict[str, str]]:
    """The variables by which a run finds a Prefect server that is up already."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {**os.environ, "PREFECT_HOME": str(folder / "server"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    command = [str(Path(sys.executable).parent / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui"]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=variables, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}/api"
    try:
        deadline = time.monotonic() + 120
        while not healthy(url):
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Prefect's server did not start: {(folder / 'server.log').read_text()[-2000:]}")
            time.sleep(0.2)
        yield {"PREFECT_API_URL": url}
    finally:
        for child in psutil.Process(server.pid).children(recursive=True):
            child.terminate()
        server.terminate()
        server.wait(timeout=60)


def healthy(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{url}/health", timeout=5).is_success
    return False


def run(folder: Path, home: str, variables: dict[str, str] | None = None) -> float:
    began = time.perf_counter()
    given = environment(folder, home) | (variables or {})
    subprocess.run(command(folder), cwd=folder, env=given, capture_output=True, check=True)
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


def started(folder: Path, home: str) -> subprocess.Popen[bytes]:
    given = environment(folder, home)
    return subprocess.Popen(command(folder), cwd=folder, env=given, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def killed(folder: Path, who: str) -> float:
    """Seconds from the kill of a training's worker, or of its driver, which is started again at once, to the next attempt's first step."""
    process = started(folder, who)
    while not list((folder / who).glob("pretrain/.work-*/checkpoints/step-*")):
        if process.poll() is not None:
            raise RuntimeError("the run ended before a checkpoint; see its summary.json")
        time.sleep(0.01)
    metrics = next((folder / who).glob("pretrain/.work-*/metrics.jsonl"))
    victim = psutil.Process(process.pid)
    if who == "worker":
        victim = next(child for child in victim.children(recursive=True) if "RayTrainWorker" in " ".join(child.cmdline()))
    earlier, began = attempts(metrics), time.perf_counter()
    victim.kill()
    if who == "driver":
        process.wait()
        process = started(folder, who)
    while attempts(metrics) == earlier:
        if process.poll() is not None:
            raise RuntimeError(f"the run with a killed {who} ended with {process.returncode} before its next step")
        time.sleep(0.01)
    gap = time.perf_counter() - began
    if process.wait() != 0:
        raise RuntimeError(f"the run with a killed {who} failed")
    return gap


def attempts(metrics: Path) -> int:
    """How many attempts have recorded a step: each has a clock of its own, which begins at 0."""
    lines = metrics.read_text().splitlines()
    clocks = [json.loads(line)["seconds"] for line in lines if line.endswith("}")]
    return bool(clocks) + sum(later < earlier for earlier, later in itertools.pairwise(clocks))


if __name__ == "__main__":
    train_in_group(sys.argv[1], Path(sys.argv[2]))
