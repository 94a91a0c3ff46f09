"""Recipes: frozen, complete, and refused in one line that names the setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from llm.errors import RecipeError
from llm.export.config import Kind
from llm.recipe import RECIPES, load, parse_override


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_every_shipped_recipe_loads_and_survives_a_round_trip(name: str, tmp_path: Path) -> None:
    recipe = load(name)
    (tmp_path / "again.yaml").write_text(recipe.as_yaml())
    assert load(str(tmp_path / "again.yaml")) == recipe
    assert load(str(tmp_path / "again.yaml")).fingerprint == recipe.fingerprint


@pytest.mark.parametrize("name", ["tiny", "gpt2-124m", "moe-small", "bert-base", "t5-base"])
def test_every_family_has_the_same_variants(name: str) -> None:
    assert load(name).export.variants == ("int8",)
    every = get_args(Kind)
    assert load(name, {"export.variants": every}).export.variants == every


def test_gguf_is_had_of_a_decoder() -> None:
    assert load("tiny", {"export.gguf": ["q8_0"]}).export.gguf == ("q8_0",)


def test_a_recipe_is_frozen() -> None:
    with pytest.raises(ValidationError):
        load("tiny").train.steps = 3


def test_overrides_change_the_fingerprint_and_nothing_else() -> None:
    changed = load("tiny", {"train.steps": 777})
    assert changed.train.steps == 777
    assert changed.fingerprint != load("tiny").fingerprint
    assert changed.model_dump(exclude={"train"}) == load("tiny").model_dump(exclude={"train"})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"train.stpes": 5}, "unknown key in --set train.stpes: train.stpes; did you mean `steps`? remove or rename it"),
        ({"modle": {}}, "unknown key in --set modle: modle; did you mean `model`? remove or rename it"),
        ({"collect.sources.0.max_byte": 3}, "did you mean `max_bytes`?"),
        ({"train.steps": "many"}, 'wrong value in --set train.steps: train.steps = "many"; input should be a valid integer'),
        ({"train.steps": -1}, "wrong value in --set train.steps: train.steps = -1; input should be greater than or equal to 0"),
        ({"train.steps": 0}, "0 steps train nothing; set train.steps above 0, or train.initial to weights that need no training"),
        ({"finetune.train.steps": 0}, "0 steps train nothing"),
        (
            {"train.steps": 0, "train.initial": "x", "train.mixture": {"min_share": 0.1}},
            "0 steps read nothing that could be mixed; unset train.mixture",
        ),
        ({"model.width": 130}, "num_heads 4 does not divide width 130; set model.num_heads to a divisor (--set model.width)"),
        ({"model.widht": 128}, "unknown key in --set model.widht: model.widht; did you mean `width`?"),
        ({"model.architecture": "bert"}, "unknown architecture; set model.architecture to one of decoder, gpt2, moe, encoder"),
        ({"model.architecture": "moe"}, ": model.num_experts; set model.num_experts"),
        ({"model.num_experts": 8}, "unknown key in --set model.num_experts: model.num_experts; did you mean `num_layers`?"),
        ({"model.rope_scaling": {"factor": 8, "kidn": "linear"}}, ": model.rope_scaling.kidn; did you mean `kind`?"),
        (
            {
                "train.objective": {"kind": "spans"},
                "train.document_mask": False,
                "model.max_positions": 512,
                "tokenize.packing": "best_fit",
            },
            "spans would be missing from what fills rows up; set tokenize.packing to concatenate",
        ),
        (
            {"model.qk_norm": True, "model.attention_bias": True, "export.gguf": ["q8_0"]},
            "both QK-norm and biases; leave export.gguf empty",
        ),
        ({"finetune.train.mixture": {"min_share": 0.1}}, "no domains to mix; unset finetune.train.mixture"),
        ({"train.mixture": {"domains": {"code": 0.7, "text": 0.7}}}, "set train.mixture.domains to numbers that add up to at most 1"),
        ({"dedup.domain_splits.code": {"test_share": 2, "validation_share": 0}}, "dedup.domain_splits.code.test_share = 2"),
        ({"train.objective": {"kind": "masked", "sahre": 0.2}}, ": train.objective.sahre; did you mean `share`?"),
        (
            {"train.objective": {"kind": "masked", "share": 2}},
            "--set train.objective: train.objective.share = 2; input should be less than 1",
        ),
        ({"model": 5}, "unknown architecture; set model.architecture"),
        ({"tokenize.row_tokens": 4096}, "set tokenize.row_tokens lower or model.max_positions higher"),
        ({"train.global_batch_size": 17}, "set train.global_batch_size to a multiple of"),
        ({"finetune.train.schedule.warmup_steps": 10**6}, "warm-up steps leave no decay"),
        ({"collect.sources": [{"kind": "huggingface", "path": "a/b"}]}, "is not pinned"),
        ({"train.steps.x": 1}, "override names no setting: train.steps.x"),
    ],
)
def test_bad_settings_are_one_line(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load("tiny", overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bad_file_names_its_line(tmp_path: Path) -> None:
    lines = (RECIPES / "tiny.yaml").read_text().splitlines()
    number = next(index for index, line in enumerate(lines) if line.startswith("  num_layers:"))
    lines[number] = "  num_layer: 4"
    (tmp_path / "mine.yaml").write_text("\n".join(lines))
    with pytest.raises(RecipeError, match="model.num_layers") as missing:
        load(str(tmp_path / "mine.yaml"))
    assert "mine.yaml" in str(missing.value)
    lines.insert(number, "  num_layers: 4")
    (tmp_path / "mine.yaml").write_text("\n".join(lines))
    with pytest.raises(RecipeError, match=rf"unknown key in mine.yaml line {number + 2}: model.num_layer; did you mean `num_layers`"):
        load(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "empty or not a mapping"), ("- 1", "empty or not a mapping"), ("a: [", "not valid YAML"), ("a: b: c", "not valid YAML")],
)
def test_files_that_are_no_recipe(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(RecipeError, match=message) as caught:
        load(str(tmp_path / "bad.yaml"))
    assert "\n" not in str(caught.value)


def test_unknown_recipes_name_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean `tiny`"):
        load("tinny")
    with pytest.raises(RecipeError, match="no such recipe file: nowhere.yaml"):
        load("nowhere.yaml")


@given(st.one_of(st.integers(), st.booleans(), st.text("abc xyz", min_size=1).filter(lambda text: text.strip()), st.lists(st.integers())))
def test_override_values_are_yaml(value: Any) -> None:
    setting, parsed = parse_override(f"train.steps={yaml.safe_dump(value, default_flow_style=True).removesuffix('...' + chr(10)).strip()}")
    assert setting == "train.steps"
    assert parsed == value


@pytest.mark.parametrize("text", ["train.steps", "=5", ""])
def test_overrides_need_a_key_and_a_value(text: str) -> None:
    with pytest.raises(RecipeError, match="--set train.steps=500"):
        parse_override(text)
