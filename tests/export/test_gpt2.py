"""GPT-2: the folders against transformers, the graph against PyTorch, and what other runtimes make of it."""

from __future__ import annotations

import json
from typing import Any

import onnxruntime_genai
import pytest
import torch
import transformers

from llm.export.parity import causal
from llm.export.parity.loaded import CachedGraph
from llm.model import pretrained
from llm.serve.models.folder import open_folder
from tests.export.conftest import PLAIN, genai_continues

PROMPT = [1, 40, 300, 5, 17, 260, 44, 91, 350, 12]


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def gpt2(request: pytest.FixtureRequest, exporting: Any) -> Any:
    return exporting(PLAIN | {"architecture": "gpt2", "tied_embeddings": request.param})


def test_transformers_computes_the_same_logits(gpt2: Any) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(gpt2.folder / "huggingface")
    assert type(theirs).__name__ == "GPT2LMHeadModel"
    ids = torch.randint(0, 700, (3, 60), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(theirs(ids).logits, gpt2.model(ids)[0], atol=1e-4, rtol=0)


def test_the_tokenizer_gives_the_model_what_it_takes(gpt2: Any) -> None:
    """Segments, which tokenizers give by default, are embeddings of words to GPT-2."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(gpt2.folder / "huggingface")
    assert set(tokenizer("hello")) == {"input_ids", "attention_mask"}


def test_our_reader_gives_back_the_model(gpt2: Any) -> None:
    back = pretrained.load(gpt2.folder / "huggingface").state_dict()
    assert all(torch.equal(ours, back[name]) for name, ours in gpt2.model.state_dict().items())


def test_the_graph_agrees_with_pytorch(gpt2: Any) -> None:
    assert gpt2.result["max_logit_difference"] <= 1e-4
    assert gpt2.result["greedy_tokens_compared"] >= 60
    assert set(gpt2.result["max_logit_difference_by_shape"]) == {"prefill", "padded_batch", "decode"}


def test_genai_opens_the_folder_and_writes_the_same(gpt2: Any) -> None:
    written = genai_continues(onnxruntime_genai.Model(str(gpt2.folder / "onnx")), PROMPT, max_length=50)
    assert written == causal.greedy(CachedGraph(gpt2.folder / "onnx" / "model.onnx"), PROMPT, len(written))


def test_serving_finds_the_sizes_of_the_cache(gpt2: Any) -> None:
    facts = open_folder(gpt2.folder)
    assert (facts.num_layers, facts.num_kv_heads, facts.head_dim, facts.context_tokens) == (2, 4, 8, 128)
    assert json.loads((gpt2.folder / "onnx" / "config.json").read_text())["model_type"] == "gpt2"
