"""What Trainyard claims of its shipped `tiny` recipe, measured on the text of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llm.stages import GRAPH

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]
MODELS = ("base", "tuned")


def lifecycle(folder: Path) -> dict[str, Any]:
    """summary.json of one life cycle of the tiny recipe, as a person starts it."""
    home = folder / "store"
    command = [str(Path(sys.executable).parent / "trainyard"), "run", "lifecycle", "--recipe", "tiny"]
    answer = subprocess.run(
        command, env={**os.environ, "TRAINYARD_HOME": str(home)}, cwd=folder, capture_output=True, text=True, timeout=1500, check=False
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    summary: dict[str, Any] = json.loads((home / "runs" / "latest" / "summary.json").read_text())
    return summary


def states(summary: dict[str, Any]) -> dict[str, str]:
    return {f"{group}.{name}": stage["state"] for group, stages in summary["stages"].items() for name, stage in stages.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def summary(folder: Path) -> dict[str, Any]:
    """The first run's summary: everything computed from nothing."""
    facts = lifecycle(folder)
    assert states(facts) == dict.fromkeys(GRAPH, "computed")
    return facts


def test_the_base_model_beats_the_bigram(summary: dict[str, Any]) -> None:
    assert 0 < summary["metrics"]["base"]["bits_per_byte"] < summary["baseline"]["kneser_ney_bits_per_byte"]


def test_fine_tuning_learns_to_answer(summary: dict[str, Any]) -> None:
    tuned = summary["metrics"]["tuned"]
    assert 0 < tuned["answer_loss"] <= 0.8 * tuned["answer_loss_base"]


def test_the_answers_depend_on_the_questions(summary: dict[str, Any]) -> None:
    tuned = summary["metrics"]["tuned"]
    assert tuned["answer_loss"] <= 0.95 * tuned["answer_loss_shuffled"]


@pytest.mark.parametrize("group", MODELS)
def test_the_exports_answer_as_the_models_do(summary: dict[str, Any], group: str) -> None:
    assert summary["parity"][group]["max_logit_difference"] <= 1e-3
    assert summary["parity"][group]["greedy_tokens_equal"] is True
    assert Path(summary["exports"][group]["onnx"], "model.onnx").is_file()


def test_both_models_are_champions(summary: dict[str, Any]) -> None:
    assert {group: summary["registry"][group]["champion"] for group in MODELS} == dict.fromkeys(MODELS, True)
    assert [summary["registry"][group]["model"] for group in MODELS] == ["tiny-base", "tiny-chat"]


def test_the_same_command_again_computes_nothing(summary: dict[str, Any], folder: Path) -> None:
    again = lifecycle(folder)
    assert states(again) == dict.fromkeys(GRAPH, "cached")
    assert again["run_id"] != summary["run_id"]
    assert (again["metrics"], again["exports"]) == (summary["metrics"], summary["exports"])
