"""A generation: the worst quarter goes on from the best one's weights, the others from their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from llm.artifact import Ref, Store
from llm.recipe import load
from llm.sweep.population import FACTORS, next_generation, recommended
from llm.sweep.settings import Sweep, load_sweep
from llm.sweep.trial import Outcome, Trial

RATE, KIND = "train.optimizer.muon_learning_rate", "train.optimizer.weight_decay"
MINI = Path(__file__).parent.parent / "mini.yaml"
MODEL = {"num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "ffn_width": 176, "max_positions": 256}


@pytest.fixture
def planned(tmp_path: Path) -> Sweep:
    settings = {RATE: {"low": 0.001, "high": 0.1, "scale": "log"}, KIND: {"values": [0.0, 0.1, 0.2]}}
    sweep = {"name": "rates", "recipe": str(MINI), "settings": settings, "search": "population", "trials": 8, "generations": 2}
    (tmp_path / "rates.yaml").write_text(yaml.safe_dump(sweep))
    return load_sweep(str(tmp_path / "rates.yaml"))


@pytest.fixture
def trials(planned: Sweep, tmp_path: Path) -> tuple[Trial, ...]:
    """The first generation, with an artifact for each."""

    def build(out: Path) -> dict[str, Any]:
        (out / "weights").write_text("w")
        return {}

    store = Store(tmp_path / "store")
    trials = planned.trials(store, tmp_path, Ref("tokenize", "key", "digest", str(tmp_path)))
    for trial in trials:
        store.produce("pretrain", trial.job.key, {"node": "base.pretrain"}, build)
    return trials


def ranked(trials: tuple[Trial, ...], failed: tuple[int, ...] = ()) -> list[Outcome]:
    """Outcomes of which the first trial is the best."""
    states = ["failed" if trial.number in failed else "finished" for trial in trials]
    return [
        Outcome(trial.number, trial.settings, trial.job.key, state, ((20, 2.0 + trial.number),))
        for trial, state in zip(trials, states, strict=True)
    ]


def initial(trial: Trial) -> str:
    return Path(str(trial.recipe.train.initial)).name


def test_a_generation_trains_its_share_of_the_steps(planned: Sweep) -> None:
    assert {candidate.recipe.train.steps for candidate in planned.candidates} == {20}


def test_the_worst_quarter_goes_on_from_the_best_with_perturbed_settings(planned: Sweep, trials: tuple[Trial, ...]) -> None:
    children = next_generation(planned.config, trials, ranked(trials))
    assert [child.number for child in children] == list(range(8, 16))
    assert {child.after_steps for child in children} == {20}
    assert {child.recipe.seed for child in children} == {trials[0].recipe.seed + 1}
    for trial, child in zip(trials[:6], children[:6], strict=True):
        assert (initial(child), child.settings) == (trial.job.key, trial.settings)
    for child in children[6:]:
        parent = next(trial for trial in trials[:2] if trial.job.key == initial(child))
        assert any(child.settings[RATE] == pytest.approx(max(0.001, parent.settings[RATE] * factor), rel=1e-3) for factor in FACTORS)
        assert abs(child.settings[KIND] - parent.settings[KIND]) < 0.11
        assert child.recipe.train.optimizer.muon_learning_rate == child.settings[RATE]


def test_the_next_generation_is_a_pure_function_of_file_and_outcomes(planned: Sweep, trials: tuple[Trial, ...]) -> None:
    assert next_generation(planned.config, trials, ranked(trials)) == next_generation(planned.config, trials, ranked(trials))


def test_who_failed_is_replaced_and_nobody_follows_if_all_did(planned: Sweep, trials: tuple[Trial, ...]) -> None:
    children = next_generation(planned.config, trials, ranked(trials, failed=(3, 4, 5)))
    assert {initial(children[index]) for index in (3, 4, 5)} <= {trials[0].job.key, trials[1].job.key}
    assert next_generation(planned.config, trials, ranked(trials, failed=tuple(range(8)))) == ()


def test_what_is_recommended_is_the_sweep_s_recipe_with_the_best_settings(
    planned: Sweep, trials: tuple[Trial, ...], tmp_path: Path
) -> None:
    children = next_generation(planned.config, trials, ranked(trials))
    best = children[-1]
    assert best.recipe.train.initial
    found = recommended(planned.recipe, best)
    assert found == load(str(MINI), best.settings)
    assert (found.train.steps, found.train.initial, found.seed) == (40, None, 7)
    (tmp_path / "recommended.yaml").write_text(found.as_yaml())
    assert load(str(tmp_path / "recommended.yaml")) == found


def test_a_training_of_its_own_is_recommended_as_it_was(tmp_path: Path) -> None:
    settings = {"seed": {"values": [3, 4]}, "train.steps": {"values": [30, 50]}, "model": {"values": [{**MODEL, "width": 32}]}}
    sweep = {"name": "rates", "recipe": str(MINI), "settings": settings, "search": "grid"}
    (tmp_path / "rates.yaml").write_text(yaml.safe_dump(sweep))
    planned = load_sweep(str(tmp_path / "rates.yaml"))
    for trial in planned.trials(Store(tmp_path / "store"), tmp_path, Ref("tokenize", "key", "digest", str(tmp_path))):
        assert recommended(planned.recipe, trial) == trial.recipe
