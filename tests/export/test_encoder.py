"""Encoders: BERT with and without its second head, narrow embeddings, ELECTRA's discriminator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from llm.errors import RecipeError
from llm.export import huggingface
from llm.export.parity.loaded import Loaded
from llm.model import pretrained
from tests.export.conftest import GENERATOR, PLAIN, a_model

BERT = PLAIN | {"architecture": "encoder"}
SIZES = {
    "BertForMaskedLM": BERT,
    "BertForPreTraining": BERT | {"next_sentence": True},
    "ElectraForMaskedLM": BERT | {"embedding_width": 16},
    "ElectraForPreTraining": PLAIN | {"architecture": "electra", "embedding_width": 16, "generator": GENERATOR},
}
MASK = 700  # behind the tokenizer's 700 pieces
LENGTHS = (20, 13, 4)


@pytest.fixture(scope="module", params=SIZES)
def encoder(request: pytest.FixtureRequest, exporting: Any) -> Any:
    return request.param, exporting(SIZES[request.param], 701)


@pytest.fixture(scope="module")
def batch() -> dict[str, torch.Tensor]:
    """Rows of different lengths, padded behind, of two segments."""
    ids = torch.randint(3, 701, (3, 20), generator=torch.Generator().manual_seed(1))
    mask = torch.stack([(torch.arange(20) < length).long() for length in LENGTHS])
    return {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": (torch.arange(20) > 8).long() * mask}


def answers(name: str, folder: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What transformers computes, by the names of the graph's outputs."""
    model = getattr(transformers, name).from_pretrained(folder).eval()
    with torch.inference_mode():
        found = model(**batch, output_hidden_states=True)
    logits = found.prediction_logits if name == "BertForPreTraining" else found.logits
    answers = {"logits": logits, "last_hidden_state": found.hidden_states[-1]}
    return answers | ({"seq_relationship_logits": found.seq_relationship_logits} if name == "BertForPreTraining" else {})


def test_transformers_and_the_graph_compute_the_same(encoder: Any, batch: dict[str, torch.Tensor]) -> None:
    name, exported = encoder
    theirs = answers(name, exported.folder / "huggingface", batch)
    graph = Loaded(exported.folder / "onnx" / "model.onnx")
    ours = graph({label: value.numpy() for label, value in batch.items()})
    assert list(ours) == list(theirs)
    for label, value in theirs.items():
        for row, length in enumerate(LENGTHS):
            part = slice(None) if label == "seq_relationship_logits" else slice(length)
            np.testing.assert_allclose(ours[label][row][part], value[row][part].numpy(), atol=1e-4, err_msg=label)


def test_the_gate_compared_every_shape(encoder: Any) -> None:
    _, exported = encoder
    assert set(exported.result["max_logit_difference_by_shape"]) == {"single", "segments", "padded_batch"}
    assert exported.result["max_logit_difference"] <= 1e-4
    assert "greedy_tokens_equal" not in exported.result


def test_our_reader_gives_back_the_model(encoder: Any) -> None:
    """Of ELECTRA the discriminator, since the generator isn't published with it."""
    name, exported = encoder
    back, discriminator = pretrained.load(exported.folder / "huggingface").state_dict(), name == "ElectraForPreTraining"
    for key, ours in exported.model.state_dict().items():
        if not discriminator or key.startswith(("embeddings.", "projection.", "verdict")):
            assert torch.equal(ours, back[key]), key


def test_the_tokenizer_knows_the_mask_and_pads_behind(encoder: Any) -> None:
    _, exported = encoder
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported.folder / "huggingface")
    assert tokenizer.mask_token_id == MASK
    assert tokenizer("a <mask> b").input_ids.count(MASK) == 1
    assert tokenizer.padding_side == "right"
    assert set(tokenizer("a")) == {"input_ids", "attention_mask", "token_type_ids"}


def test_a_head_that_is_not_the_embedding_is_refused(exported: Any, tmp_path: Any) -> None:
    with pytest.raises(RecipeError, match=r"model\.tied_embeddings False"):
        huggingface.write(a_model(BERT | {"tied_embeddings": False}), exported.tokenized / "tokenizer.model", tmp_path, card={"name": "x"})


def test_the_card_shows_how_to_use_it(encoder: Any) -> None:
    name, exported = encoder
    card = (exported.folder / "huggingface" / "README.md").read_text()
    assert ("fill-mask" in card) == (name != "ElectraForPreTraining")
    assert "## Limits" in card
