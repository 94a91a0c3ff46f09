"""What can't work is refused before the cluster starts."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from llm.errors import CapacityError, RecipeError
from llm.plan import check, machine
from llm.plan.layout import Cluster
from llm.plan.machine import Machine
from llm.recipe import load
from llm.train.devices import named
from tests.plan.conftest import MINI

FLOAT8 = {"train.precision": "fp8"}


@pytest.mark.parametrize(
    ("here", "message"),
    [
        (Machine("cpu"), "multiply float8: cpu; set train.precision to bf16, or train on an H100 or later"),
        (Machine("cuda", "NVIDIA A100-SXM4-80GB", 8, 80 * 2**30), "multiply float8: NVIDIA A100-SXM4-80GB; set train.precision"),
        (Machine("cuda", "NVIDIA H200", 8, 141 * 2**30), ""),
        (Machine("cuda", "NVIDIA of tomorrow", 8, 141 * 2**30), ""),  # whoever computes there will know
    ],
)
def test_float8_is_refused_where_no_chip_multiplies_it(here: Machine, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(machine, "this", lambda cluster: here)
    recipe = load(str(MINI), FLOAT8)
    with pytest.raises(CapacityError, match=message) if message else nullcontext():
        check._check_precision(recipe)
    check._check_precision(load(str(MINI)))


def test_float8_on_a_cluster_to_be_joined_is_refused_only_on_its_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    check._check_precision(load(str(MINI), FLOAT8))
    with pytest.raises(CapacityError, match="multiply float8: cpu"):
        check._check_precision(load(str(MINI), FLOAT8 | {"cluster.use_gpu": False}))


def test_a_group_of_parts_that_may_shrink_is_refused_before_it_starts() -> None:
    recipe = load(str(MINI), {"cluster.workers": 2, "cluster.min_workers": 2, "cluster.layout.shard": 2})
    with pytest.raises(RecipeError, match=r"can't come and go: 2; set cluster\.min_workers to null"):
        check._check_layout(recipe)


@pytest.mark.parametrize("recipe", ["llama-1b", "llama-8b", "llama-70b"])
def test_the_recipes_that_ship_fit_the_gpus_that_they_name(recipe: str) -> None:
    loaded, h100 = load(recipe), Cluster(8, 8, 80, named("H100"))
    for train in (loaded.train, loaded.finetune.train):
        assert check.predicted(loaded, train, Machine("cuda", "H100", 8, 80 * 2**30)).peak_bytes < h100.usable_bytes


def test_what_is_never_finetuned_is_not_refused_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(machine, "this", lambda cluster: Machine("cuda", "H100", 8, 80 * 2**30))
    huge = {"finetune.train.micro_batch_size": 8192, "finetune.train.global_batch_size": 8192, "cluster.workers": 1}
    check._check_memory(load("bert-base", huge))
    with pytest.raises(CapacityError, match=r"finetune\.train\.micro_batch_size"):
        check._check_memory(load("llama-1b", huge | {"cluster.layout.shard": 1, "train.micro_batch_size": 1}))
