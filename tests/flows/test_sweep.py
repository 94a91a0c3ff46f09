"""`trainyard sweep`: killed and run again it ends in the same best, and what it recommends is a recipe."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

TRAINYARD = str(Path(sys.executable).parent / "trainyard")
SETTINGS = ("--set", "train.steps=20", "--set", "train.validate_every_steps=10", "--set", "train.checkpoint_every_steps=5")


def place(yard: Any) -> Path:
    """A sweep over two learning rates, two seeds each, beside the yard's recipe."""
    sweep = {
        "name": "rates",
        "recipe": str(yard.recipe),
        "settings": {
            "train.optimizer.muon_learning_rate": {"values": [0.01, 0.0001]},
            "train.optimizer.adamw_learning_rate": {"values": [0.01, 0.0001]},
        },
        "search": "grid",
    }
    path = yard.recipe.with_name("rates.yaml")
    path.write_text(yaml.safe_dump(sweep))
    return path


def outcomes(yard: Any) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of the yard's only sweep, and its trials."""
    (folder,) = (yard.home / "sweeps").iterdir()
    return folder, [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]


def trained(yard: Any, since: set[str]) -> set[str]:
    """Keys of the models that a store has got."""
    return {path.parent.name for path in (yard.home / "pretrain").glob("[!.]*/manifest.json")} - since


def test_a_killed_sweep_goes_on_and_recommends_a_recipe(copied: Any) -> None:
    sweep, before = place(copied), trained(copied, set())
    variables = {**os.environ, "TRAINYARD_HOME": str(copied.home)}
    with subprocess.Popen([TRAINYARD, "sweep", str(sweep), *SETTINGS], env=variables, cwd=sweep.parent, start_new_session=True) as process:
        deadline = time.monotonic() + 200
        while not (trained(copied, before) and list((copied.home / "pretrain").glob(".work-*/checkpoints/step-*"))):
            assert process.poll() is None, "the sweep ended before the kill's moment"
            assert time.monotonic() < deadline, "no trial finished"
            time.sleep(0.02)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
    finished = {key: manifest(copied, key) for key in trained(copied, before)}
    assert 1 <= len(finished) < 4

    copied("sweep", str(sweep), *SETTINGS)
    folder, trials = outcomes(copied)
    assert [trial["state"] for trial in trials] == ["finished"] * 4
    assert [[step for step, _ in trial["curve"]] for trial in trials] == [[10, 20]] * 4
    assert {key: manifest(copied, key) for key in finished} == finished, "a finished trial was trained again"
    best = min(trials, key=lambda trial: trial["value"])
    assert best["settings"] == {"train.optimizer.muon_learning_rate": 0.01, "train.optimizer.adamw_learning_rate": 0.01}

    plan = copied("plan", "pretrain", "--recipe", str(folder / "recommended.yaml")).stdout
    assert next(line for line in plan.splitlines() if line.startswith("base.pretrain")).split()[1] == "cached"
    assert manifest(copied, best["key"])["node"] == "base.pretrain"
    assert (folder / "report.html").read_text().count("<svg") == 3
    _, alive = psutil.wait_procs(family, timeout=90)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


def manifest(yard: Any, key: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((yard.home / "pretrain" / key / "manifest.json").read_text())
    return facts


def test_a_mistake_in_a_sweep_is_one_line_before_anything_runs(finished: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(f"name: bad\nrecipe: {finished.recipe}\nsettings: {{train.stpes: {{values: [1]}}}}\nsearch: grid\n")
    yard = finished.elsewhere(tmp_path / "store")
    answer = yard("sweep", str(tmp_path / "bad.yaml"), check=False)
    assert answer.returncode == 1
    assert "error: RecipeError: unknown key in bad.yaml, setting train.stpes: train.stpes; did you mean `steps`?" in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "store" / "runs").exists()
