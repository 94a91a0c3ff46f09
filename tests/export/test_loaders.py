"""The exported folders in programs of others, unchanged, each in an environment of its own that is built on first use.

optimum has a file of its own (test_optimum.py); llama.cpp stands in test_gguf.py, onnxruntime-genai in test_onnx.py.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm.export.parity import causal, seq2seq
from llm.export.parity.loaded import DECODER, ENCODER, CachedGraph, Loaded, Seq2SeqGraphs
from llm.export.quality import loss
from llm.serve.engine.session import graph_file
from tests.benchmarks.measured import HOME, TORCH, environment
from tests.export.conftest import LLAMA, PLAIN, SOURCES

pytestmark = pytest.mark.long
PEERS = Path(__file__).parent / "peers"
PROMPT = [1, 40, 300, 5, 17, 260, 44, 91, 350, 12]
DTYPES = {"fp32": "", "fp16": "fp16", "int8": "int8", "q4": "q4", "q8": "quantized"}  # transformers.js's words for our files
WIDE = {"width": 64, "ffn_width": 96}
LOOSE = {kind: {"max_perplexity_increase": 1.0, "min_greedy_agreement": 0.0} for kind in ("fp16", "int8", "q4", "quantized")}
VARIANTS = {"variants": ("fp16", "int8", "q4", "quantized"), "variant_tokens": 100, "gates": LOOSE}


@pytest.fixture(scope="session")
def with_variants(exporting: Any) -> Any:
    return exporting(LLAMA | WIDE, **VARIANTS)


@pytest.fixture(scope="session")
def transformersjs() -> Path:
    """A folder that transformers.js is installed in; its runtime's own script would fetch libraries for GPUs."""
    if shutil.which("npm") is None:
        pytest.skip("transformers.js needs Node.js")
    folder = HOME / "transformersjs"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "node_modules" / "@huggingface" / "transformers").is_dir():
        command = ["npm", "install", "--ignore-scripts", "--no-fund", "--no-audit", "--prefix", folder, "@huggingface/transformers@4.3.1"]
        subprocess.run(command, check=True, capture_output=True)
    return folder


def in_node(transformersjs: Path, *arguments: Any, program: str = "transformersjs.mjs") -> Any:
    answer = subprocess.run(["node", PEERS / program, *arguments], cwd=transformersjs, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout.splitlines()[-1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_transformersjs_opens_the_artifact(transformersjs: Path, with_variants: Any, dtype: str) -> None:
    """It finds configuration, tokenizer and every variant by its own rules, and writes what onnxruntime writes here."""
    found = in_node(transformersjs, with_variants.folder, dtype)
    graph = CachedGraph(with_variants.folder / "onnx" / graph_file(DTYPES[dtype]))
    assert found["written"] == causal.greedy(graph, PROMPT, 24)
    tokenizer = with_variants.tokenizer
    assert found["text"] == tokenizer.encode("def f(x):\n    return x")
    asked = [tokenizer.bos, tokenizer.user, *tokenizer.encode("hello world"), tokenizer.end, tokenizer.assistant]
    assert found["chat"] == asked


def test_transformersjs_opens_gpt2(transformersjs: Path, exporting: Any) -> None:
    exported = exporting(PLAIN | {"architecture": "gpt2"})
    written = in_node(transformersjs, exported.folder, "fp32")["written"]
    assert written == causal.greedy(CachedGraph(exported.folder / "onnx" / "model.onnx"), PROMPT, 24)


@pytest.fixture(scope="session")
def readers(exporting: Any) -> dict[str, Any]:
    """An encoder and an encoder–decoder with variants."""
    return {name: exporting(PLAIN | WIDE | {"architecture": name}, 710, **VARIANTS) for name in ("encoder", "encoder_decoder")}


@pytest.mark.parametrize("dtype", DTYPES)
def test_transformersjs_opens_what_reads(transformersjs: Path, readers: dict[str, Any], dtype: str) -> None:
    def answered(architecture: str, kind: str) -> Any:
        return in_node(transformersjs, readers[architecture].folder, dtype, kind, program="transformersjs_readers.mjs")

    logits = answered("encoder", "AutoModelForMaskedLM")
    np.testing.assert_allclose(logits, encoded(readers["encoder"].folder / "onnx", DTYPES[dtype]), atol=1e-4)
    graphs = Seq2SeqGraphs(readers["encoder_decoder"].folder / "onnx", DTYPES[dtype])
    assert answered("encoder_decoder", "AutoModelForSeq2SeqLM") == seq2seq.greedy(graphs, PROMPT, 24)


def encoded(folder: Path, kind: str) -> np.ndarray:
    """The logits of an encoder's graph."""
    ids = np.array([PROMPT])
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    return Loaded(folder / graph_file(kind))(inputs)["logits"][0]


@pytest.mark.parametrize("variant", ["fp16", "int8", "q4", "quantized"])
def test_optimum_opens_both_graphs_of_a_variant(readers: dict[str, Any], variant: str) -> None:
    """It takes a merged decoder of another name for the one that goes on, too."""
    python = environment("optimum", [TORCH, "optimum-onnx[onnxruntime]==0.1.0"])
    code = (
        "import sys, json, torch; from optimum.onnxruntime import ORTModelForSeq2SeqLM as Model;"
        "folder, encoder, decoder, prompt = sys.argv[1:]; ids = torch.tensor([json.loads(prompt)]);"
        "names = dict(encoder_file_name=encoder, decoder_file_name=decoder, decoder_with_past_file_name=decoder);"
        "model = Model.from_pretrained(folder, **names);"
        "print(model.generate(ids, max_new_tokens=24, do_sample=False, eos_token_id=None)[0, 1:].tolist())"
    )
    folder = readers["encoder_decoder"].folder / "onnx"
    names = [graph_file(variant, file) for file in (ENCODER, DECODER)]
    answer = subprocess.run([python, "-c", code, folder, *names, json.dumps(PROMPT)], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout.splitlines()[-1]) == seq2seq.greedy(Seq2SeqGraphs(folder, variant), PROMPT, 24)


@pytest.mark.parametrize("variant", ["int8", "q4", "quantized"])
def test_optimum_opens_variants(with_variants: Any, variant: str) -> None:
    python = environment("optimum", [TORCH, "optimum-onnx[onnxruntime]==0.1.0"])
    code = (
        "import sys, json, torch; from optimum.onnxruntime import ORTModelForCausalLM as Model;"
        "model = Model.from_pretrained(sys.argv[1], file_name=sys.argv[2]); ids = torch.tensor([json.loads(sys.argv[3])]);"
        "print(model.generate(ids, max_new_tokens=24, do_sample=False, eos_token_id=None)[0, ids.shape[1]:].tolist())"
    )
    folder, file = with_variants.folder / "onnx", graph_file(variant)
    answer = subprocess.run([python, "-c", code, folder, file, json.dumps(PROMPT)], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout.splitlines()[-1]) == causal.greedy(CachedGraph(folder / file), PROMPT, 24)


def test_lm_evaluation_harness_scores_the_folder(with_variants: Any, tmp_path: Path) -> None:
    """Bits per byte of a few short documents, as the harness computes them with transformers, are ours.

    It puts the first token before a text whose tokenizer has done so already, and asks for that one too.
    """
    documents = [paragraph[:200] for paragraph in SOURCES[1].split("\n\n")[:12] if paragraph.strip()]
    (tmp_path / "documents.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    task = {
        "task": "documents",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "documents.jsonl")}},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    }
    (tmp_path / "documents.yaml").write_text(json.dumps(task))
    python = environment("lm-eval", [TORCH, "transformers==5.23.0", "lm_eval[hf]==0.4.13"])
    command = [python, "-P", PEERS / "harness.py", with_variants.folder / "huggingface", tmp_path]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    tokenizer = with_variants.tokenizer
    rows = [[tokenizer.bos, tokenizer.bos, *tokenizer.encode(text)] for text in documents]
    nats = sum(loss(causal.reference(with_variants.model, row)[:-1], np.array(row[1:])) * (len(row) - 1) for row in rows)
    expected = nats / math.log(2) / sum(len(text.encode()) for text in documents)
    assert json.loads(answer.stdout.splitlines()[-1]) == pytest.approx(expected, rel=1e-4)
