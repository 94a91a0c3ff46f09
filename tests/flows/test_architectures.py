"""A recipe of another architecture goes through the same flow, as far as it writes text that can be scored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llm.model.origin import load
from tests.conftest import Yard

ENCODER = 'model={"architecture":"encoder","width":32,"num_layers":2,"num_heads":4,"ffn_width":64,"max_positions":128}'
GPT2 = 'model={"architecture":"gpt2","width":32,"num_layers":2,"num_heads":4,"ffn_width":64,"max_positions":256}'
MOE = (
    'model={"architecture":"moe","width":32,"num_layers":2,"num_heads":4,"num_kv_heads":2,"ffn_width":48,"max_positions":256,'
    '"num_experts":4,"experts_per_token":2,"router":"sigmoid","balance":"bias","num_shared_experts":1}'
)
MASKED = 'train.objective={"kind":"masked"}'


def test_an_encoder_is_trained_and_exported(copied: Yard) -> None:
    copied.run("pretrain", ENCODER, MASKED, "train.steps=10", "cluster.workers=1", "cluster.in_process=true")
    assert sorted(copied.states) == [
        "base.export",
        "base.pretrain",
        "data.audit",
        "data.clean",
        "data.collect",
        "data.dedup",
        "data.tokenize",
    ]
    trained = Path(copied.summary["stages"]["base"]["pretrain"]["path"])
    records = [json.loads(line) for line in (trained / "history.jsonl").read_text().splitlines()]
    assert len(records) == 10
    assert records[-1]["validation_loss"] < records[0]["loss"]
    assert json.loads((trained / "config.json").read_text())["model"]["architecture"] == "encoder"
    exports = {name: Path(path) for name, path in copied.summary["exports"]["base"].items()}
    assert json.loads((exports["huggingface"] / "config.json").read_text())["architectures"] == ["BertForMaskedLM"]
    assert (exports["onnx"] / "model.onnx").is_file()
    assert (exports["onnx"] / "model_int8.onnx").is_file()
    assert json.loads((exports["onnx"].parent / "parity.json").read_text())["variants"]["int8"]["greedy_agreement"] >= 0.9
    assert copied.summary["parity"]["base"]["max_logit_difference"] <= 1e-3
    assert "| objective | masked |" in (exports["onnx"] / "README.md").read_text()


def test_gpt2_becomes_a_chat_model(copied: Yard) -> None:
    copied.run("lifecycle", GPT2, "name=gpt2", "train.steps=10", "finetune.train.steps=4", "cluster.workers=1", "cluster.in_process=true")
    assert copied.summary["registry"]["model"] == "gpt2-chat"
    assert copied.summary["parity"]["tuned"]["greedy_tokens_equal"] is True
    config = json.loads(Path(copied.summary["exports"]["tuned"]["huggingface"], "config.json").read_text())
    assert config["architectures"] == ["GPT2LMHeadModel"]


def test_a_public_model_is_tuned_without_a_step_of_pretraining(copied: Yard, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
    theirs = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=1024, tie_word_embeddings=True, rms_norm_eps=1e-5))
    theirs.save_pretrained(tmp_path / "public")
    model = 'model={"width":32,"num_layers":2,"num_heads":4,"num_kv_heads":2,"ffn_width":48,"max_positions":256}'
    initial = (model, f"train.initial={tmp_path / 'public'}", "train.steps=0")
    plan = copied("plan", "lifecycle", "--recipe", str(copied.recipe), *(word for each in initial for word in ("--set", each))).stdout
    assert "0 steps of 8 rows of 128 tokens" in plan
    assert "tokens per parameter" not in plan
    copied.run("lifecycle", *initial, "name=public", "finetune.train.steps=4", "cluster.workers=1", "cluster.in_process=true")
    stages = copied.summary["stages"]
    base, tuned = Path(stages["base"]["pretrain"]["path"]), Path(stages["tuned"]["finetune"]["path"])
    tokens_BT = torch.randint(0, 1024, (2, 20))
    with torch.no_grad():
        expected_BTV = theirs.eval()(tokens_BT).logits
        torch.testing.assert_close(load(base)(tokens_BT)[0], expected_BTV, rtol=1e-4, atol=1e-5)
        assert not torch.equal(load(tuned)(tokens_BT)[0], load(base)(tokens_BT)[0])
    assert (base / "history.jsonl").read_text() == ""
    assert len((tuned / "history.jsonl").read_text().splitlines()) == 4
    assert copied.summary["registry"]["model"] == "public-chat"


def test_a_mixture_without_a_class_of_transformers_is_registered_and_scored_again(copied: Yard) -> None:
    settings = (MOE, "name=mixture", "train.steps=10", "cluster.workers=1", "cluster.in_process=true")
    copied.run("pretrain", *settings)
    assert set(copied.summary["exports"]["base"]) == {"onnx"}
    first = copied.summary["registry"]["base"]
    copied.run("pretrain", *settings, "seed=8")
    second = copied.summary["registry"]["base"]
    assert (second["version"], second["champion_before"]) == (2, 1)
    assert second["champion_bits_per_byte"] == pytest.approx(first["candidate_bits_per_byte"], abs=1e-4)


@pytest.mark.parametrize(
    ("flow", "settings", "told"),
    [
        ("lifecycle", (ENCODER, MASKED), "the flow lifecycle needs an architecture that writes text: encoder"),
        ("pretrain", (ENCODER,), "encoder can't learn by next_token; set train.objective.kind to one of masked"),
        ("pretrain", (ENCODER, MASKED, "cluster.layout.tensor=2"), "cuts the matrices of a decoder or gpt2 only: encoder"),
        ("pretrain", ("cluster.layout.tensor=4", "cluster.workers=4"), "layout.tensor 4 does not divide model.num_kv_heads: 2"),
        ("pretrain", ("cluster.layout.shard=3",), "set cluster.workers to a multiple of 3"),
        ("pretrain", (ENCODER, MASKED, 'export.gguf=["f16"]'), "GGUF is written of decoders and GPT-2 only: encoder; leave export.gguf"),
        ("pretrain", (MOE, 'export.gguf=["f16"]'), "GGUF is written of decoders and GPT-2 only: moe; leave export.gguf empty"),
        ("pretrain", ("cluster.use_gpu=true",), "more workers than GPUs: 2 workers, 0 GPUs here; set cluster.use_gpu to false"),
    ],
)
def test_what_cannot_work_is_one_line_before_anything_starts(finished: Yard, flow: str, settings: tuple[str, ...], told: str) -> None:
    answer = finished.run(flow, *settings, check=False)
    assert answer.returncode == 1
    (line,) = answer.stderr.strip().splitlines()
    assert told in line
