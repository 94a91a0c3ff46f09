"""A model's own folder: what `save` wrote, `load` gives back, and nothing else passes for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from llm.artifact import named_errors
from llm.errors import ArtifactError
from llm.model.config import DecoderConfig
from llm.model.decoder import Decoder, count_parameters
from llm.model.weights import load, save


def a_model(*, tied: bool) -> Decoder:
    return Decoder(DecoderConfig(width=16, num_layers=2, num_heads=2, num_kv_heads=1, ffn_width=32, tied_embeddings=tied), 50)


@pytest.mark.parametrize("tied", [True, False])
def test_load_gives_back_what_save_wrote(tmp_path: Path, tied: bool) -> None:
    model = a_model(tied=tied)
    save(model, tmp_path)
    back = load(tmp_path)
    assert (back.config, back.vocab_size) == (model.config, 50)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(model.state_dict().values(), back.state_dict().values(), strict=True))
    assert (back.head.weight is back.embedding.weight) == tied
    assert count_parameters(back) == count_parameters(model)
    assert not back.training


def test_equal_models_give_equal_bytes(tmp_path: Path) -> None:
    model, contents = a_model(tied=True), []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        save(model, tmp_path / name)
        contents.append([(tmp_path / name / file).read_bytes() for file in ("model.safetensors", "config.json")])
    assert contents[0] == contents[1]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    save(a_model(tied=True), tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:20])
    with pytest.raises(ArtifactError, match=name):
        load(tmp_path)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    save(a_model(tied=True), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 51}))
    with pytest.raises(ArtifactError, match="weights don't fit the model's sizes"):
        load(tmp_path)


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to("/dev/full")
    with pytest.raises(ArtifactError, match="no space left"), named_errors(tmp_path):
        save(a_model(tied=True), tmp_path)
