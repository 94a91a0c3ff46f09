"""kill -9 at any moment, then the same command: it continues, cleans up, tells the truth, and ends in the same bits."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from llm.stages import GRAPH


@dataclass(frozen=True)
class Kill:
    """Where a kill is meant to land, and what it ends."""

    node: str
    after_checkpoint: bool = False
    whole_tree: bool = False  # else only the process of the flow, which leaves orphans


@dataclass
class Landing:
    """Where a kill did land."""

    node: str
    checkpoints: int
    whole_tree: bool
    seconds: float


@dataclass
class Drill:
    """A store in which the same life cycle is started and killed."""

    finished: Any
    yard: Any
    landed: list[Landing] = field(default_factory=list)
    family: list[psutil.Process] = field(default_factory=list)  # every process that a killed command had started

    def start(self) -> subprocess.Popen[bytes]:
        from_here = self.yard.corpus.parent
        variables = {**os.environ, "TRAINYARD_HOME": str(self.yard.home)}
        command = [str(Path(os.sys.executable).parent / "trainyard"), "run", "lifecycle", "--recipe", str(self.yard.recipe)]
        with (from_here / "drill.log").open("ab") as log:
            return subprocess.Popen(command, cwd=from_here, env=variables, stdout=log, stderr=log, start_new_session=True)

    def kill(self, kill: Kill, chance: random.Random) -> Landing:
        """Start the command, wait until the kill's moment has come, and end it without warning."""
        began, process = time.monotonic(), self.start()
        self.wait(process, lambda: self.working(kill.node) and self.checkpoints(kill.node) >= kill.after_checkpoint)
        time.sleep(chance.uniform(0, self.longest(kill.node)))
        driver = psutil.Process(process.pid)
        children = driver.children(recursive=True)
        for member in (driver, *children) if kill.whole_tree else (driver,):
            with contextlib.suppress(psutil.NoSuchProcess):  # some end by themselves with the driver
                member.send_signal(signal.SIGKILL)
        self.family += children
        process.wait()
        node = next((node for node in reversed(GRAPH) if self.working(node)), "between stages")
        self.landed.append(Landing(node, self.checkpoints(node), kill.whole_tree, round(time.monotonic() - began, 1)))
        return self.landed[-1]

    def longest(self, node: str) -> float:
        """Most seconds to wait in a stage: a good part of what it took undisturbed, training's start left out."""
        group, stage = node.split(".")
        taken = self.finished.summary["stages"][group][stage]["seconds"]
        return 2.0 if stage in ("pretrain", "finetune") else 0.4 * float(taken)

    def wait(self, process: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 300
        while not ready():
            assert process.poll() is None, "the run ended before the kill's moment"
            assert time.monotonic() < deadline, "the kill's moment never came"
            time.sleep(0.02)

    def working(self, node: str) -> bool:
        """Whether an attempt at this node is being written; base and tuned are told apart by what is committed."""
        stage, home = GRAPH[node].stage, self.yard.home
        if not list((home / stage).glob(".tmp-*")):
            return False
        second = node.startswith("tuned.") and stage != "finetune"
        return bool(list((home / "finetune").glob("[!.]*"))) == second

    def checkpoints(self, node: str) -> int:
        if node not in ("base.pretrain", "tuned.finetune"):
            return 0
        return len(list((self.yard.home / GRAPH[node].stage).glob(".work-*/checkpoints/step-*")))


def assert_clean_and_equal(drill: Drill, finished: Any) -> None:
    """After the last run: the same weights to the bit, nothing half-written, nobody running, Prefect truthful."""
    home = drill.yard.home
    for group, stage in (("base", "pretrain"), ("tuned", "finetune")):
        wanted, found = (Path(yard.summary["stages"][group][stage]["path"]) / "manifest.json" for yard in (finished, drill.yard))
        weights = [json.loads(path.read_text())["files"]["model.safetensors"]["sha256"] for path in (wanted, found)]
        assert weights[0] == weights[1], f"{stage}: other weights than the undisturbed run's"
    assert [path for pattern in ("*/.tmp-*", "*/.work-*", "*/.corrupt-*") for path in home.glob(pattern)] == []
    assert list((home / "processes").glob("*.json")) == []
    with closing(sqlite3.connect((home / "prefect" / "prefect.db").as_uri() + "?mode=ro", uri=True)) as database:
        flows = dict(database.execute("select state_type, count(*) from flow_run group by 1").fetchall())
        tasks = dict(database.execute("select state_type, count(*) from task_run group by 1").fetchall())
    assert flows == {"CRASHED": len(drill.landed), "COMPLETED": 1}
    assert set(tasks) <= {"COMPLETED", "CRASHED"}
    states = [json.loads(path.read_text())["state"] for path in sorted((home / "runs").glob("2*/summary.json"))]
    assert sorted(states) == ["completed"] + ["crashed"] * len(drill.landed)
    _, alive = psutil.wait_procs(drill.family, timeout=90)  # Ray's agents look for their dead parent now and then
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


def run_drill(finished: Any, folder: Path, kills: list[Kill], seed: int) -> Drill:
    """Kill one store's run at each of the moments, then let the same command finish."""
    drill, chance = Drill(finished, finished.elsewhere(folder / "store")), random.Random(seed)
    for kill in kills:
        landing = drill.kill(kill, chance)
        print(f"kill in {landing.node}, {landing.checkpoints} checkpoints, {'tree' if landing.whole_tree else 'process'}", flush=True)
    drill.yard.run("lifecycle")
    assert_clean_and_equal(drill, finished)
    return drill


def test_a_killed_run_continues_and_ends_in_the_same_bits(finished: Any, tmp_path: Path) -> None:
    kills = [
        Kill("data.dedup"),
        Kill("base.pretrain", after_checkpoint=True),
        Kill("tuned.finetune", after_checkpoint=True, whole_tree=True),
    ]
    drill = run_drill(finished, tmp_path, kills, seed=1)
    assert [landing.checkpoints > 0 for landing in drill.landed] == [False, True, True]


LONG = [
    [Kill("data.collect"), Kill("data.tokenize", whole_tree=True), Kill("base.pretrain", after_checkpoint=True), Kill("base.export")],
    [
        Kill("data.clean", whole_tree=True),
        Kill("base.pretrain", after_checkpoint=True, whole_tree=True),
        Kill("base.evaluate"),
        Kill("tuned.evaluate"),
    ],
    [Kill("data.dedup"), Kill("base.pretrain"), Kill("base.promote", whole_tree=True), Kill("tuned.finetune", after_checkpoint=True)],
    [Kill("base.pretrain", after_checkpoint=True), Kill("tuned.finetune", whole_tree=True), Kill("tuned.export"), Kill("tuned.promote")],
    [
        Kill("data.tokenize"),
        Kill("base.pretrain", after_checkpoint=True),
        Kill("tuned.finetune", after_checkpoint=True, whole_tree=True),
        Kill("tuned.export", whole_tree=True),
    ],
]


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_twenty_kills_over_five_stores(finished: Any, tmp_path: Path) -> None:
    """Every stage at least once, and at least five after a checkpoint."""
    landed: list[Landing] = []
    for number, kills in enumerate(LONG):
        (tmp_path / str(number)).mkdir()
        landed += run_drill(finished, tmp_path / str(number), kills, seed=number).landed
    assert len(landed) >= 20
    assert {landing.node for landing in landed} >= set(GRAPH)
    assert sum(landing.checkpoints > 0 for landing in landed) >= 5
