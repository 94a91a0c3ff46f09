"""A trial: what it tells while it is trained, what is known of it afterwards, and that its process can end."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.numpy import load_file

from llm.artifact import Ref, Store
from llm.errors import DivergenceError
from llm.sweep.settings import load_sweep
from llm.sweep.trial import Trial, measured, outcome, read_records
from tests.train.conftest import write_rows

ROOT = Path(__file__).parent.parent.parent
RATE = "train.optimizer.adamw_learning_rate"
SHORT = {"train.optimizer.kind": "adamw", "train.steps": 8, "train.validate_every_steps": 2, "train.validation_rows": 4, "model.width": 32}
LEAVES = """
import sys
from pathlib import Path
from llm.sweep.trial import measured
from tests.sweep.test_trial import trial_of

print(next(measured(trial_of(Path(sys.argv[1]), 0.01, {"train.steps": 1_000_000}), "cpu"))[0])
"""


def trial_of(folder: Path, rate: float, changes: dict[str, Any] | None = None) -> Trial:
    """The one trial of a sweep, on tiny rows, with a store below `folder`."""
    sweep = {"name": "rates", "recipe": str(ROOT / "tests" / "mini.yaml"), "settings": {RATE: {"values": [rate]}}, "search": "grid"}
    (folder / "rates.yaml").write_text(yaml.safe_dump(sweep))
    (folder / "rows").mkdir()
    rows = Ref("tokenize", "key", "digest", str(write_rows(folder / "rows", masked=False)))
    (trial,) = load_sweep(str(folder / "rates.yaml"), SHORT | (changes or {})).trials(Store(folder / "store"), folder, rows)
    return trial


def test_a_trial_tells_every_validation_once_and_is_found_the_next_time(tmp_path: Path) -> None:
    trial = trial_of(tmp_path, 0.01)
    told = list(measured(trial, "cpu"))
    artifact = trial.find()
    assert artifact is not None
    history = read_records(artifact.path / "history.jsonl")
    assert told == [(record["step"], record["validation_loss"]) for record in history if record["step"] % 2 == 0]
    assert list(measured(trial, "cpu")) == told
    assert trial.find() == artifact, "it was trained again"

    found = outcome(trial)
    assert (found.state, found.curve, found.tokens) == ("finished", tuple(told), history[-1]["tokens"])
    assert found.parameters == sum(math.prod(tensor.shape) for tensor in load_file(artifact.path / "model.safetensors").values())


def test_what_training_raises_is_raised_to_who_listens(tmp_path: Path) -> None:
    trial = trial_of(tmp_path, 1e30)
    with pytest.raises(DivergenceError, match="training diverged at step"):
        list(measured(trial, "cpu"))
    assert outcome(trial, "diverged").state == "failed"


def test_a_process_ends_although_its_trial_has_a_million_steps_to_go(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LEAVES, tmp_path]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert answer.stdout.strip() == "2", answer.stderr  # whatever its exit code: torch aborts if it is caught amid a step
