"""What `trainyard plan` says, and to which questions it has no answer."""

from __future__ import annotations

from typing import Any

import pytest

from flows import cli
from llm.errors import RecipeError
from llm.model.config import parse_model
from llm.plan import forecast
from llm.plan.measure import _shortened
from llm.recipe import load
from tests.plan.conftest import LLAMA, MOE, T5, settings


def test_trainings_are_those_of_the_flow() -> None:
    tiny = load("tiny")
    assert [list(forecast.trainings(tiny, flow)) for flow in ("prepare", "pretrain", "finetune", "lifecycle")] == [
        [],
        ["pretrain"],
        ["pretrain", "finetune"],
        ["pretrain", "finetune"],
    ]


def test_measured_steps_drop_what_a_short_training_has_no_room_for() -> None:
    train = settings(schedule={"kind": "wsd", "warmup_steps": 9, "decay_steps": 50}, ramp={"rows": 4, "steps": 9}, stop_after_validations=2)
    assert _shortened(train, workers=2, steps=6).schedule.decay_steps is None


@pytest.mark.parametrize("option", ["gpus", "gpus_per_node", "gpu_memory_gib"])
def test_impossible_numbers_are_refused_by_name(option: str) -> None:
    options: dict[str, Any] = {"gpus": 8, option: -8}
    with pytest.raises(RecipeError, match=f"--{option.replace('_', '-')} is too small: -8"):
        cli.plan(recipe="llama-1b", **options)


def test_measuring_here_says_nothing_about_another_cluster() -> None:
    with pytest.raises(RecipeError, match="--measure trains on this machine, and --gpus asks about another cluster: 8; leave out one"):
        cli.plan(recipe="llama-1b", gpus=8, measure=True)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (LLAMA, "onnx/ with model.onnx; huggingface/ with LlamaForCausalLM"),
        (T5, "onnx/ with encoder_model.onnx and decoder_model_merged.onnx; huggingface/ with T5ForConditionalGeneration"),
        (MOE, "model.num_shared_experts 1; change that, or serve its ONNX folder"),
    ],
)
def test_a_plan_says_what_is_exported(model: dict[str, Any], told: str) -> None:
    section = parse_model({"num_layers": 2, **model})
    recipe = load("tiny").model_copy(update={"model": section})
    assert told in " ".join(text for _, text in forecast.exported(recipe))
