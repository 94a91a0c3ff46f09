"""Models that a recipe names are read before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from llm.data import tokenizer
from llm.data.config import TokenizeConfig
from llm.data.hashing import weight_fingerprints
from llm.errors import ArtifactError, RecipeError
from llm.model import families, shape
from llm.model.config import ModelConfig, parse_model
from llm.model.weights import save
from llm.plan import check, memory, origins, teachers
from llm.plan.memory import Worker
from llm.recipe import load
from tests.plan.conftest import GPT2, LLAMA, MINI, settings

T = 32


def test_a_teacher_takes_memory_and_a_forward_pass(tmp_path: Path) -> None:
    config = parse_model(LLAMA | {"num_layers": 2})
    save(families.build(config, 64), tmp_path)
    alone, taught = settings(), settings(objective={"kind": "distillation", "teacher": str(tmp_path)})
    teacher = shape.of(config, 64)
    more = memory.predict(config, 64, T, taught, Worker()).peak_bytes - memory.predict(config, 64, T, alone, Worker()).peak_bytes
    assert more == 4 * teacher.parameters
    assert teachers.flops_per_token(taught, T) == pytest.approx(shape.flops_per_token(teacher, T) / 3)
    public = {
        "model_type": "gpt2",
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 32,
        "layer_norm_epsilon": 1e-5,
        "vocab_size": 64,
    }
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(json.dumps(public | {"layer_norm_epsilon": 1e-5, "activation_function": "gelu_new"}))
    public_teacher = teachers.shape_of(settings(objective={"kind": "distillation", "teacher": str(tmp_path / "hf")}))
    assert public_teacher is not None
    assert public_teacher.parameters == shape.of(parse_model(GPT2 | {"num_layers": 2}), 64).parameters


ORIGIN = {"width": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "ffn_width": 176}
TAUGHT: dict[str, Any] = {"kind": "distillation"}


def written(config: ModelConfig, folder: Path, vocab_size: int = 1024) -> str:
    folder.mkdir()
    save(families.build(config, vocab_size), folder)
    return str(folder)


def refusal(setting: str, folder: str, **changes: Any) -> str:
    """What the check says to the mini recipe with a model in one of its settings; nothing if it says nothing."""
    value = TAUGHT | {"teacher": folder} if setting.endswith("objective") else folder
    try:
        check._check_origins(load(str(MINI), {setting: value} | changes))
    except (ArtifactError, RecipeError) as error:
        (line,) = str(error).splitlines()
        return f"{type(error).__name__}: {line}"
    return ""


@pytest.mark.parametrize("setting", ["train.initial", "train.objective", "finetune.train.objective"])
def test_a_model_that_is_missing_or_damaged_is_refused_before_anything_runs(setting: str, tmp_path: Path) -> None:
    named_by = setting.replace("objective", "objective.teacher")
    assert f"ArtifactError: no model where {named_by} says: {tmp_path / 'none'}; set {named_by} to" in refusal(
        setting, str(tmp_path / "none")
    )
    (tmp_path / "config.json").write_text("[]")
    assert "ArtifactError: no model where" in refusal(setting, str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert f"ArtifactError: sizes of the model that {named_by} names can't be read" in refusal(setting, str(tmp_path))


def test_initial_weights_of_another_model_are_refused_by_what_differs(tmp_path: Path) -> None:
    fitting = written(parse_model(ORIGIN), tmp_path / "fitting")
    assert refusal("train.initial", fitting) == ""
    assert refusal("train.initial", fitting, **{"model.dropout": 0.1, "model.max_positions": 512}) == ""
    wider = "width 64 instead of 128, ffn_width 176 instead of 352 in"
    assert wider in refusal("train.initial", fitting, **{"model.width": 128, "model.ffn_width": 352})
    gpt2 = {"architecture": "gpt2", "width": 64, "num_layers": 2, "num_heads": 4, "ffn_width": 176, "max_positions": 256}
    assert "architecture decoder instead of gpt2 in" in refusal("train.initial", fitting, model=gpt2)
    assert "fewer token ids than the tokenizer: 1024 instead of 1025" in refusal("train.initial", fitting, **{"tokenize.vocab_size": 1025})


def test_a_public_checkpoint_is_checked_as_it_will_be_read(tmp_path: Path) -> None:
    theirs = LlamaConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=176,
        vocab_size=1024,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
    )
    LlamaForCausalLM(theirs).save_pretrained(tmp_path)
    assert refusal("train.initial", str(tmp_path)) == ""
    assert refusal("train.objective", str(tmp_path)) == ""
    assert "num_layers 2 instead of 3 in" in refusal("train.initial", str(tmp_path), **{"model.num_layers": 3})
    (tmp_path / "config.json").write_text(json.dumps(theirs.to_dict() | {"model_type": "mamba"}))
    origins._read.cache_clear()
    assert "architecture of the public checkpoint is unknown: mamba" in refusal("train.initial", str(tmp_path))


def test_a_teacher_needs_the_recipe_s_vocabulary_where_that_is_known(tmp_path: Path) -> None:
    teacher = written(parse_model(ORIGIN | {"num_layers": 1}), tmp_path / "teacher", vocab_size=1000)
    for setting in ("train.objective", "finetune.train.objective"):
        assert "RecipeError: teacher has another vocabulary than the recipe's tokenizer: 1000 instead of 1024 ids" in refusal(
            setting, teacher
        )
        assert refusal(setting, teacher, **{"tokenize.tokenizer.kind": "byte_bpe"}) == ""  # may end with fewer ids
        assert refusal(setting, teacher, **{"tokenize.vocab_size": 1000}) == ""


def test_an_imported_tokenizer_tells_its_ids(tmp_path: Path) -> None:
    texts = [path.read_text() for path in sorted(Path(check.__file__).parent.glob("*.py"))]
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.train(texts, TokenizeConfig(vocab_size=500)))
    imported = {"tokenize.tokenizer": {"kind": "imported", "path": str(tmp_path)}}
    small = written(parse_model(ORIGIN), tmp_path / "small", vocab_size=499)
    assert "499 instead of 500" in refusal("train.initial", small, **imported)
    assert refusal("train.initial", written(parse_model(ORIGIN), tmp_path / "enough", vocab_size=512), **imported) == ""


def test_no_key_is_made_of_weights_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such folder of a model"):
        weight_fingerprints(tmp_path / "none")
