"""GGUF files: read back with ggml's own reader, and run by llama.cpp itself."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from llm.data.config import TokenizeConfig, TokenizerConfig
from llm.data.tokenizer import Tokenizer, train
from llm.data.vocabulary.pieces import Pieces
from llm.errors import DivergenceError, RecipeError
from llm.export.config import ExportConfig, Gate, Gates
from llm.export.gguf import export, restored, write
from llm.export.parity import causal
from llm.export.tokenizer import CHAT_TEMPLATE
from llm.model.decoder import head_width
from tests.benchmarks.measured import environment
from tests.export.conftest import LLAMA, MOE, PLAIN, SOURCES, a_model

GPT2 = PLAIN | {"architecture": "gpt2"}
LLAMA3 = {"factor": 8.0, "original_max_positions": 32}
SIZES = {
    "llama": LLAMA,
    "untied": LLAMA | {"tied_embeddings": False, "head_dim": 12},
    "llama3": LLAMA | {"rope_scaling": LLAMA3},
    "linear": LLAMA | {"rope_scaling": {"kind": "linear", "factor": 4.0}},
    "qwen2": LLAMA | {"attention_bias": True},
    "qwen3": LLAMA | {"qk_norm": True, "head_dim": 12},
    "gpt2": GPT2,
}
ARCHITECTURES = {"untied": "llama", "llama3": "llama", "linear": "llama"}
PROMPT = [1, 40, 300, 5, 17, 260, 44, 91, 350, 12]
TEXTS = [SOURCES[0][:2000], "  two  spaces\n\ttab", "naïve 日本語 🙂", "a <|user|> who types", "x" * 40, "12345 + 67"]


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.json of byte-level BPE."""
    path: Path = tmp_path_factory.mktemp("byte-level") / "tokenizer.json"
    path.write_bytes(train(SOURCES, TokenizeConfig(vocab_size=700, row_tokens=32, tokenizer=TokenizerConfig(kind="byte_bpe"))))
    return path


def file_of(tokenizer: Path, folder: Path, sizes: dict[str, Any], kind: Any = "f32") -> tuple[Any, Path]:
    model = a_model(sizes)
    write(model, tokenizer, folder / "model.gguf", kind, name="sample")
    return model, folder / "model.gguf"


def content(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata and weights as ggml's reader finds them."""
    reader = gguf.GGUFReader(path)
    tensors = {each.name: np.array(gguf.quants.dequantize(each.data, each.tensor_type)) for each in reader.tensors}
    return {name: field.contents() for name, field in reader.fields.items()}, tensors


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_where_llama_cpp_looks_for_them(tokenized: Path, tmp_path: Path, name: str) -> None:
    model, path = file_of(tokenized, tmp_path, SIZES[name])
    facts, tensors = content(path)
    family, config = ARCHITECTURES.get(name, name), model.config
    assert facts["general.architecture"] == family
    assert facts[f"{family}.context_length"] == 128
    assert facts[f"{family}.embedding_length"] == 32
    assert facts[f"{family}.block_count"] == 2
    assert facts[f"{family}.attention.head_count"] == 4
    if family != "gpt2":
        assert facts[f"{family}.attention.head_count_kv"] == 2
        assert facts[f"{family}.attention.key_length"] == facts[f"{family}.rope.dimension_count"] == head_width(config)
        assert facts[f"{family}.rope.freq_base"] == config.rope_theta
    assert sum(array.size for key, array in tensors.items() if key != "rope_freqs.weight") == sum(
        each.numel() for each in model.parameters()
    )
    np.testing.assert_array_equal(tensors["token_embd.weight"], model.embedding.weight.detach())
    assert ("output.weight" in tensors) == (not config.tied_embeddings)


def test_heads_are_turned_in_neighbouring_rows(tokenized: Path, tmp_path: Path) -> None:
    model, path = file_of(tokenized, tmp_path, LLAMA)
    _, tensors = content(path)
    attention, width = model.blocks[1].attention, 8
    for name, ours, heads in (("attn_q", attention.query, 4), ("attn_k", attention.key, 2)):
        for head in range(heads):
            for row in range(width // 2):
                pair = tensors[f"blk.1.{name}.weight"][head * width + 2 * row :][:2]
                np.testing.assert_array_equal(pair, ours.weight.detach()[[head * width + row, head * width + row + width // 2]])
    np.testing.assert_array_equal(tensors["blk.1.attn_v.weight"], attention.value.weight.detach())


def test_gpt2_has_queries_keys_and_values_in_one(tokenized: Path, tmp_path: Path) -> None:
    model, path = file_of(tokenized, tmp_path, GPT2)
    _, tensors = content(path)
    parts = [model.blocks[0].attention.query, model.blocks[0].attention.key, model.blocks[0].attention.value]
    np.testing.assert_array_equal(tensors["blk.0.attn_qkv.weight"], torch.cat([part.weight for part in parts]).detach())
    np.testing.assert_array_equal(tensors["blk.0.attn_qkv.bias"], torch.cat([part.bias for part in parts]).detach())
    np.testing.assert_array_equal(tensors["position_embd.weight"], model.position_embedding.weight.detach())


def test_stretched_positions_travel_as_divisors(tokenized: Path, tmp_path: Path) -> None:
    """transformers computes the same frequencies for its Llama."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    _, path = file_of(tokenized, tmp_path, SIZES["llama3"])
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    config = LlamaConfig(hidden_size=32, num_attention_heads=4, rope_parameters={**rope, "rope_theta": 10_000.0})
    stretched, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 10_000.0 ** -(torch.arange(4) / 4)
    np.testing.assert_allclose(content(path)[1]["rope_freqs.weight"], plain / stretched, rtol=1e-5)


@pytest.mark.parametrize(("kind", "tolerance"), [("f16", 1e-3), ("q8_0", 8e-3)])
def test_fewer_bits_are_near_the_weights_and_smaller(tokenized: Path, tmp_path: Path, kind: Any, tolerance: float) -> None:
    _, exact_path = file_of(tokenized, tmp_path, LLAMA)
    exact, size = content(exact_path)[1], exact_path.stat().st_size
    _, path = file_of(tokenized, tmp_path, LLAMA, kind)
    facts, found = content(path)
    assert facts["general.file_type"] == {"f16": 1, "q8_0": 7}[kind]
    assert path.stat().st_size < 0.8 * size
    for name, array in found.items():
        np.testing.assert_allclose(array, exact[name], atol=tolerance if array.ndim > 1 else 0.0)


@pytest.mark.parametrize("name", SIZES)
def test_a_file_gives_the_weights_back(tokenized: Path, tmp_path: Path, name: str) -> None:
    model, path = file_of(tokenized, tmp_path, SIZES[name])
    found = restored(model, path).state_dict()
    assert found.keys() == model.state_dict().keys()
    for weight, tensor in model.state_dict().items():
        assert torch.equal(found[weight], tensor), weight


def test_every_file_is_judged_by_its_gate(tokenized: Path, tmp_path: Path) -> None:
    model = a_model(LLAMA)
    facts = export(model, tokenized, tokenized, tmp_path, ExportConfig(gguf=("f32", "q8_0"), variant_tokens=400), name="sample")
    assert {kind: each["file"] for kind, each in facts.items()} == {"f32": "sample-f32.gguf", "q8_0": "sample-q8_0.gguf"}
    assert facts["f32"]["max_logit_difference"] == 0
    assert 0 < facts["q8_0"]["max_logit_difference"] < 1
    strict = Gates(q8_0=Gate(max_perplexity_increase=1e-12, min_greedy_agreement=1.0, max_logit_difference=1e-12))
    (tmp_path / "strict").mkdir()
    with pytest.raises(DivergenceError, match=r"q8_0 misses its gate.*leave q8_0 out of export.gguf"):
        export(model, tokenized, tokenized, tmp_path / "strict", ExportConfig(gguf=("q8_0",), gates=strict), name="sample")


def test_pieces_keep_ids_scores_and_kinds(tokenized: Path, tmp_path: Path) -> None:
    _, path = file_of(tokenized, tmp_path, LLAMA)
    facts, tokenizer = content(path)[0], Tokenizer.load(tokenized)
    assert isinstance(tokenizer.vocabulary, Pieces)
    processor = tokenizer.vocabulary.processor
    assert facts["tokenizer.ggml.model"] == "llama"
    assert facts["tokenizer.ggml.tokens"] == [processor.id_to_piece(id) for id in range(700)]
    np.testing.assert_allclose(facts["tokenizer.ggml.scores"], [processor.get_score(id) for id in range(700)])
    kinds = facts["tokenizer.ggml.token_type"]
    assert kinds[:7] == [2, 3, 3, 3, 3, 3, 6], "unknown, begin, end, three chat tokens, the first byte"
    assert kinds.count(6) == 256
    assert (facts["tokenizer.ggml.bos_token_id"], facts["tokenizer.ggml.eos_token_id"]) == (1, 2)
    assert facts["tokenizer.ggml.eot_token_id"] == tokenizer.end
    assert facts["tokenizer.ggml.add_space_prefix"] is False
    assert facts["tokenizer.chat_template"] == CHAT_TEMPLATE


def test_byte_level_keeps_its_merges(byte_level: Path, tmp_path: Path) -> None:
    _, path = file_of(byte_level, tmp_path, GPT2)
    facts, described = content(path)[0], json.loads(byte_level.read_text())
    assert (facts["tokenizer.ggml.model"], facts["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert [each.split(" ") for each in facts["tokenizer.ggml.merges"]] == described["model"]["merges"]
    vocabulary = Tokenizer.load(byte_level).vocabulary
    assert facts["tokenizer.ggml.tokens"] == [vocabulary.piece(id) for id in range(700)]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (MOE, "decoders and GPT-2 only: moe"),
        (LLAMA | {"qk_norm": True, "attention_bias": True}, "both QK-norm and biases"),
        (LLAMA | {"qk_norm": True, "rope_scaling": LLAMA3}, "qwen3 has no stretched positions"),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused(tokenized: Path, tmp_path: Path, sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=f"{message}.*leave export.gguf empty"):
        file_of(tokenized, tmp_path, sizes)


def test_a_tokenizer_that_splits_otherwise_is_refused(tmp_path: Path) -> None:
    for kind in ("unigram", "wordpiece"):
        config = TokenizeConfig(vocab_size=700, row_tokens=32, tokenizer=TokenizerConfig(kind=kind))
        file = tmp_path / kind
        file.write_bytes(train(SOURCES, config))
        with pytest.raises(RecipeError, match="leave export.gguf empty"):
            file_of(file, tmp_path, LLAMA)


@pytest.fixture(scope="session")
def python() -> Path:
    """An environment that compiles llama.cpp when it is first used, which takes some minutes."""
    return environment("llama-cpp", ["llama-cpp-python==0.3.36"])


def asked(python: Path, path: Path, *questions: dict[str, Any]) -> list[Any]:
    program = Path(__file__).parent / "peers" / "llama_cpp.py"
    given = "\n".join(map(json.dumps, questions))
    answer = subprocess.run([python, "-P", program, path], input=given, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return [json.loads(line) for line in answer.stdout.splitlines() if line[:1] in "[{"]


@pytest.mark.long
@pytest.mark.parametrize("name", SIZES)
def test_llama_cpp_computes_the_same(python: Path, tokenized: Path, tmp_path: Path, name: str) -> None:
    model, path = file_of(tokenized, tmp_path, SIZES[name])
    (found,) = asked(python, path, {"ids": PROMPT, "tokens": 24})
    expected = causal.reference(model, PROMPT + found["written"])
    np.testing.assert_allclose(found["logits"], expected[: len(PROMPT)], atol=5e-3)
    assert found["written"] == expected[len(PROMPT) - 1 : -1].argmax(-1).tolist()


@pytest.mark.long
@pytest.mark.parametrize(("kind", "tolerance"), [("f16", 0.05), ("q8_0", 0.6)])
def test_llama_cpp_reads_fewer_bits(python: Path, tokenized: Path, tmp_path: Path, kind: Any, tolerance: float) -> None:
    model, path = file_of(tokenized, tmp_path, LLAMA | {"width": 64, "ffn_width": 128}, kind)
    (found,) = asked(python, path, {"ids": PROMPT, "tokens": 1})
    np.testing.assert_allclose(found["logits"], causal.reference(model, PROMPT), atol=tolerance)


@pytest.mark.long
def test_llama_cpp_splits_text_as_we_do(python: Path, tokenized: Path, byte_level: Path, tmp_path: Path) -> None:
    for number, (tokenizer, sizes) in enumerate(((tokenized, LLAMA), (byte_level, GPT2))):
        folder = tmp_path / str(number)
        folder.mkdir()
        _, path = file_of(tokenizer, folder, sizes)
        ours = Tokenizer.load(tokenizer)
        assert asked(python, path, *({"text": text} for text in TEXTS)) == [ours.encode(text) for text in TEXTS]
