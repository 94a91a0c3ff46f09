"""T5: two graphs that decode on a cache, and transformers' own model of the same weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers

from llm.export.parity import seq2seq
from llm.export.parity.compare import padded
from llm.export.parity.loaded import Seq2SeqGraphs
from llm.model import pretrained
from tests.export.conftest import PLAIN

T5 = PLAIN | {"architecture": "encoder_decoder", "num_decoder_layers": 3}
ROWS = [[1, 40, 300, 5, 17, 260, 44, 91, 350, 12], [600, 601, 7], [33]]
ANSWER = [0, 5, 9, 300, 21]


@pytest.fixture(scope="module", params=[{}, {"feed_forward": "relu", "tied_embeddings": True, "head_dim": 12}], ids=["v1.1", "first"])
def t5(request: pytest.FixtureRequest, exporting: Any) -> Any:
    return exporting(T5 | request.param, 710)


@pytest.fixture(scope="module")
def theirs(t5: Any) -> Any:
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(t5.folder / "huggingface").eval()
    assert type(model).__name__ == "T5ForConditionalGeneration"
    return model


def test_transformers_computes_the_same_logits(t5: Any, theirs: Any) -> None:
    ids, answer = torch.tensor(ROWS[:1]), torch.tensor([ANSWER])
    with torch.inference_mode():
        torch.testing.assert_close(theirs(input_ids=ids, decoder_input_ids=answer).logits, t5.model(ids, answer), atol=1e-4, rtol=0)


def test_a_padded_batch_decodes_as_transformers_does(t5: Any, theirs: Any) -> None:
    ids, mask = padded(ROWS)
    graphs = Seq2SeqGraphs(t5.folder / "onnx")
    memory, cache = graphs.encode(ids, mask), graphs.empty_cache(len(ROWS))
    with torch.inference_mode():
        batch = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
        expected = theirs(**batch, decoder_input_ids=torch.tensor([ANSWER] * 3)).logits.numpy()
    for step, token in enumerate(ANSWER):
        logits, cache = graphs.decode(np.array([[token]] * 3), memory, mask, cache)
        np.testing.assert_allclose(logits[:, 0], expected[:, step], atol=1e-4)


def test_greedy_answers_are_transformers_own(t5: Any, theirs: Any) -> None:
    """Without the cache of transformers, which has room for as many layers as the encoder has."""
    graphs = Seq2SeqGraphs(t5.folder / "onnx")
    for row in ROWS:
        written = theirs.generate(torch.tensor([row]), max_new_tokens=16, do_sample=False, use_cache=False)[0].tolist()[1:]
        assert seq2seq.greedy(graphs, row, len(written)) == written


def test_the_encoder_is_read_once(t5: Any) -> None:
    """With a cache, other states of the encoder change nothing: its keys and values were made before."""
    ids, mask = padded(ROWS[:1])
    graphs = Seq2SeqGraphs(t5.folder / "onnx")
    memory = graphs.encode(ids, mask)
    _, cache = graphs.decode(np.array([[0]]), memory, mask, graphs.empty_cache())
    same, other = (graphs.decode(np.array([[5]]), states, mask, cache)[0] for states in (memory, np.full_like(memory, np.nan)))
    np.testing.assert_array_equal(same, other)


def test_names_are_those_that_optimum_expects(t5: Any) -> None:
    graph = onnx.load(t5.folder / "onnx" / "decoder_model_merged.onnx").graph
    kinds = [f"{layer}.{side}.{kind}" for layer in range(3) for side in ("decoder", "encoder") for kind in ("key", "value")]
    head = ["input_ids", "encoder_hidden_states", "encoder_attention_mask"]
    assert [value.name for value in graph.input] == [*head, *(f"past_key_values.{kind}" for kind in kinds)]
    assert [value.name for value in graph.output] == ["logits", *(f"present.{kind}" for kind in kinds)]
    axes = {value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in graph.output}
    assert axes["present.0.encoder.key"][2] == "encoder_sequence"
    assert axes["present.0.decoder.key"][2] == "past + sequence"


def test_the_gate_compared_every_shape(t5: Any) -> None:
    assert set(t5.result["max_logit_difference_by_shape"]) == {"encoder", "prefill", "decode", "padded_batch"}
    assert t5.result["max_logit_difference"] <= 1e-4
    assert t5.result["greedy_tokens_compared"] >= 40


def test_our_reader_gives_back_the_model(t5: Any) -> None:
    back = pretrained.load(t5.folder / "huggingface").state_dict()
    assert all(torch.equal(ours, back[name]) for name, ours in t5.model.state_dict().items())


def test_the_tokenizer_knows_the_sentinels(t5: Any) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(t5.folder / "huggingface")
    assert tokenizer.convert_tokens_to_ids(["<extra_id_0>", "<extra_id_9>"]) == [709, 700], "the first sentinel is the last id"
    assert tokenizer("a <extra_id_0> b").input_ids.count(709) == 1
