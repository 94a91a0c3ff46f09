"""Sweep files: candidates are a pure function of the file, and mistakes are one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from llm.errors import RecipeError
from llm.sweep.config import Axis, SweepConfig
from llm.sweep.population import perturbed
from llm.sweep.settings import draw, load_sweep

RATE = "train.optimizer.muon_learning_rate"
MINI = Path(__file__).parent.parent / "mini.yaml"


def sweep(**changes: Any) -> dict[str, Any]:
    return {
        "name": "rates",
        "recipe": str(MINI),
        "settings": {RATE: {"low": 0.001, "high": 0.1, "scale": "log"}},
        "search": "random",
        "trials": 4,
        **changes,
    }


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def written(values: dict[str, Any]) -> str:
        path = tmp_path / "rates.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return str(path)

    return written


def test_a_grid_has_every_combination() -> None:
    settings = {"seed": Axis(values=[1, 2]), "model.width": Axis(values=[32, 64])}
    config = SweepConfig(name="grid", recipe="tiny", search="grid", settings=settings)
    assert draw(config) == [
        {"seed": 1, "model.width": 32},
        {"seed": 1, "model.width": 64},
        {"seed": 2, "model.width": 32},
        {"seed": 2, "model.width": 64},
    ]


def test_drawn_settings_depend_on_the_seed_only_and_more_trials_keep_the_first() -> None:
    four, nine = draw(SweepConfig.model_validate(sweep())), draw(SweepConfig.model_validate(sweep(trials=9, parallel=3)))
    assert nine[:4] == four
    assert draw(SweepConfig.model_validate(sweep(seed=1))) != four


def test_a_log_range_is_drawn_evenly_by_its_logarithm() -> None:
    drawn = np.array([settings[RATE] for settings in draw(SweepConfig.model_validate(sweep(trials=2000)))])
    assert 0.001 <= drawn.min() < 0.0011
    assert 0.09 < drawn.max() <= 0.1
    assert np.mean(drawn < 0.01) == pytest.approx(0.5, abs=0.04)


def test_a_range_of_whole_numbers_is_drawn_and_moved_in_whole_numbers(write: Any) -> None:
    axes = {"train.schedule.warmup_steps": {"low": 1, "high": 5}, "model.ffn_width": {"low": 32, "high": 128, "scale": "log"}}
    planned = load_sweep(write(sweep(settings=axes)))
    drawn = [candidate.settings for candidate in planned.candidates]
    assert {type(value) for settings in drawn for value in settings.values()} == {int}
    moved = perturbed(planned.config, drawn[0], np.random.default_rng(0))
    assert {type(value) for value in moved.values()} == {int}


def test_every_setting_reaches_its_candidate_and_overrides_reach_all(write: Any) -> None:
    planned = load_sweep(write(sweep()), {"train.steps": 12})
    assert [candidate.recipe.train.optimizer.muon_learning_rate for candidate in planned.candidates] == [
        candidate.settings[RATE] for candidate in planned.candidates
    ]
    assert {candidate.recipe.train.steps for candidate in planned.candidates} == {12}


def test_a_whole_section_may_vary(write: Any) -> None:
    sizes = [
        {"width": width, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "ffn_width": 2 * width, "max_positions": 128}
        for width in (32, 64)
    ]
    planned = load_sweep(write(sweep(search="grid", trials=None, settings={"model": {"values": sizes}})))
    assert [candidate.recipe.model.width for candidate in planned.candidates] == [32, 64]
    assert [recipe.model.width for recipe in planned.sizes] == [32, 64]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (sweep(serach="grid"), r"unknown key in rates.yaml line 10: serach; did you mean `search`\?"),
        (sweep(settings={RATE: {"low": 1.0, "hihg": 2.0}}), r"unknown key in rates.yaml line 6: .*hihg; did you mean `high`\?"),
        (sweep(settings={RATE: {"low": 0.1, "high": 0.01}}), r"a range needs low below high, not 0.1 and 0.01 \(rates.yaml line 4\)"),
        (sweep(settings={RATE: {"low": 0.0, "high": 0.01, "scale": "log"}}), "a log scale needs low above 0"),
        (sweep(settings={RATE: {}}), "give either values"),
        (sweep(search="gird"), "wrong value in rates.yaml line 8: search = gird"),
        (sweep(search="grid", trials=None), "a grid needs values, train.optimizer.muon_learning_rate is a range"),
        (sweep(trials=None), "a random search needs a number of trials"),
        (sweep(search="asha", settings={"train.steps": {"values": [1, 2]}}), "asha compares trials at equal steps"),
        (sweep(search="population", trials=3), "a population of 3 has no best and worst quarter"),
        (sweep(search="population", settings={"model.width": {"values": [32, 64]}}), "keeps its weights, so model.width can't vary"),
        (sweep(settings={"trian.steps": {"values": [1]}}), r"can't vary .*rates.yaml line 4.*: trian.steps; did you mean `train`\?"),
        (sweep(settings={"tokenize.vocab_size": {"values": [512]}}), "the data is prepared once: model, train, seed may vary"),
        (
            sweep(settings={"train.optimizer.muon_learning_rat": {"values": [1]}}),
            r"unknown key in rates.yaml, setting train.optimizer.muon_learning_rat: .*; did you mean `muon_learning_rate`\?",
        ),
        (sweep(settings={RATE: {"values": [0.1, -1.0]}}), f"wrong value in rates.yaml, setting {RATE}: {RATE} = -1.0"),
        (
            sweep(settings={"train.steps": {"values": [0]}, "train.initial": {"values": ["x"]}}),
            "one makes no step: steps 0; set train.steps",
        ),
        (sweep(settings={"train.validation_rows": {"values": [8, 0]}}), "one never does.*set train.validation_rows above 0"),
        (sweep(metric="loss", settings={"train.validation_rows": {"values": [0]}}), "set train.validation_rows above 0"),
        (sweep(recipe="tinny"), "no such recipe: tinny; did you mean `tiny`"),
    ],
)
def test_mistakes_are_one_line_that_names_file_and_remedy(write: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as error:
        load_sweep(write(values))
    assert "\n" not in str(error.value)


def test_an_unknown_sweep_names_those_there_are() -> None:
    with pytest.raises(RecipeError, match="no such sweep: smal; did you mean `small`"):
        load_sweep("smal")


def test_the_sweeps_that_ship_are_valid() -> None:
    assert len(load_sweep("small").candidates) == 8
