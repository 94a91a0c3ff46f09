"""The Hugging Face folder against transformers, and back into our own decoder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from safetensors import safe_open

from llm.artifact import named_errors
from llm.errors import ArtifactError, RecipeError
from llm.export import huggingface
from llm.model import pretrained
from llm.model.config import RopeScaling
from llm.model.decoder import Decoder, count_parameters, head_width


def the_logits(model: Decoder, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(ids)[0]


def test_transformers_computes_the_same_logits(exported: Any) -> None:
    theirs = transformers.LlamaForCausalLM.from_pretrained(exported.folder / "huggingface")
    ids = torch.randint(0, 700, (3, 60), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(theirs(ids).logits, the_logits(exported.model, ids), atol=1e-4, rtol=0)
    assert theirs.generation_config.eos_token_id == [2, exported.tokenizer.end]


def test_a_tied_head_is_stored_once(exported: Any) -> None:
    with safe_open(exported.folder / "huggingface" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        names = list(file.keys())
        assert "lm_head.weight" not in names
        assert sum(file.get_tensor(name).numel() for name in names) == count_parameters(exported.model)


@pytest.mark.parametrize("tied", [True, False])
def test_reading_gives_back_the_model(exported: Any, tmp_path: Path, tied: bool) -> None:
    config = exported.model.config.model_copy(update={"tied_embeddings": tied})
    model = Decoder(config, 700).eval()
    huggingface.write(model, exported.tokenized / "tokenizer.model", tmp_path, card={"name": "x"})
    back = pretrained.load(tmp_path)
    assert back.config == config.model_copy(update={"head_dim": 8})
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(model.state_dict().values(), back.state_dict().values(), strict=True))
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        torch.testing.assert_close(theirs(ids).logits, the_logits(back, ids), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("changes", "architecture"),
    [
        ({"qk_norm": True, "head_dim": 12}, "Qwen3ForCausalLM"),
        ({"attention_bias": True}, "Qwen2ForCausalLM"),
        ({"rope_scaling": RopeScaling(factor=8.0, original_max_positions=32)}, "LlamaForCausalLM"),
        ({"rope_scaling": RopeScaling(kind="linear", factor=4.0)}, "LlamaForCausalLM"),
    ],
)
def test_every_decoder_has_a_class_of_transformers(exported: Any, tmp_path: Path, changes: dict[str, Any], architecture: str) -> None:
    torch.manual_seed(0)
    model = Decoder(exported.model.config.model_copy(update=changes), 700).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.2)
    huggingface.write(model, exported.tokenized / "tokenizer.model", tmp_path, card={"name": "x"})
    theirs, back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path), pretrained.load(tmp_path)
    assert type(theirs).__name__ == architecture
    assert back.config == model.config.model_copy(update={"head_dim": head_width(model.config)})
    ids = torch.randint(0, 700, (3, 60), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(theirs(ids).logits, the_logits(model, ids), atol=1e-4, rtol=0)
        assert torch.equal(the_logits(back, ids), the_logits(model, ids))


def test_what_transformers_has_no_class_for_is_refused(exported: Any, tmp_path: Path) -> None:
    model = Decoder(exported.model.config.model_copy(update={"qk_norm": True, "attention_bias": True}), 700)
    with pytest.raises(RecipeError, match=r"no class of transformers computes this model: model\.attention_bias True"):
        huggingface.write(model, exported.tokenized / "tokenizer.model", tmp_path, card={"name": "x"})


def test_the_card_has_metadata_that_parses_and_facts(exported: Any) -> None:
    text = (exported.folder / "huggingface" / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["trainyard"],
    }
    assert "# sample" in body
    assert "| bits \\| byte | 1.5 |" in body


@pytest.mark.parametrize(("name", "told"), [("config.json", "config.json"), ("model.safetensors", "holds no safetensors")])
def test_a_folder_without_a_file_is_named(exported: Any, tmp_path: Path, name: str, told: str) -> None:
    folder = shutil.copytree(exported.folder / "huggingface", tmp_path / "copy")
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=told):
        pretrained.load(folder)


def test_weights_of_another_size_are_refused(exported: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(exported.folder / "huggingface", tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text()) | {"intermediate_size": 64}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match="weights don't fit"):
        pretrained.load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_full_disk_is_named(exported: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(ArtifactError, match="no space left"), named_errors(tmp_path):
        huggingface.write(exported.model, exported.tokenized / "tokenizer.model", tmp_path, card={"name": "x"})
