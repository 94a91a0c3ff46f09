"""lm-evaluation-harness against the endpoint, as its `local-completions` model."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import openai
import pytest

from llm.serve.engine.engine import Engine
from tests.benchmarks.measured import environment

TEXTS = ["def add(a, b):", "import", "class Parser(object):\n    def", "return é🙂"]
CHOICES = [" one", " self.x", "\n    pass"]
TASKS = {
    "choice": """
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: "{{choices}}"
doc_to_target: 0
target_delimiter: ""
metric_list: [{metric: acc}]
""",
    "text": """
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: ""
generation_kwargs: {until: ["zzz"], max_gen_toks: 8, temperature: 0, do_sample: false}
metric_list: [{metric: exact_match}]
""",
}


@pytest.fixture(scope="module")
def samples(address: str, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What the harness asked and was answered, by task."""
    python, home = environment("lm-eval-api", ["lm_eval[api]==0.4.13", "transformers==5.23.0"]), tmp_path_factory.mktemp("lm-eval")
    (home / "rows.jsonl").write_text("".join(json.dumps({"text": text, "choices": CHOICES}) + "\n" for text in TEXTS))
    for name, task in TASKS.items():
        source = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(home / "rows.jsonl")}},
            "test_split": "test",
        }
        (home / f"{name}.yaml").write_text("\n".join(f"{key}: {json.dumps(value)}" for key, value in source.items()) + task)
    model = {"model": "small", "base_url": f"{address}/v1/completions", "tokenizer_backend": "huggingface", "tokenizer": folder / "onnx"}
    command = [python, "-m", "lm_eval", "--model", "local-completions", "--tasks", ",".join(TASKS), "--include_path", home]
    command += [
        "--model_args",
        ",".join(f"{name}={value}" for name, value in model.items()),
        "--log_samples",
        "--output_path",
        home / "out",
    ]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(home / "hf"), "NO_PROXY": "*"}
    done = subprocess.run([str(part) for part in command], env={**os.environ, **offline}, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {name: next((home / "out").rglob(f"samples_{name}_*.jsonl")).read_text().splitlines() for name in TASKS}
    return {name: sorted(map(json.loads, lines), key=lambda sample: int(sample["doc_id"])) for name, lines in found.items()}


@pytest.mark.long
def test_likelihoods_are_the_engines(samples: dict[str, list[dict[str, Any]]], engine: Engine) -> None:
    asked = [tuple(pair.values()) for sample in samples["choice"] for pair in sample["arguments"].values()]
    assert asked == [(text, choice) for text in TEXTS for choice in CHOICES]
    answered = [float(logprob) for sample in samples["choice"] for [[logprob, _]] in sample["resps"]]
    befores = [engine.tokenizer.encode(text) for text, _ in asked]
    joined = [before + engine.tokenizer.encode(text + choice)[len(before) :] for before, (text, choice) in zip(befores, asked, strict=True)]
    scored = [engine.score(ids, top=0)[len(before) :] for before, ids in zip(befores, joined, strict=True)]
    expected = [sum(token.logprob or 0.0 for token in tokens) for tokens in scored]
    assert answered == pytest.approx(expected, abs=1e-3)


@pytest.mark.long
def test_texts_are_the_engines(samples: dict[str, list[dict[str, Any]]], client: openai.OpenAI, engine: Engine) -> None:
    for text, sample in zip(TEXTS, samples["text"], strict=True):
        ids = engine.tokenizer.encode(text)
        answer = client.completions.create(model="small", prompt=ids, max_tokens=8, temperature=0, stop=["zzz"])
        assert sample["resps"] == [[answer.choices[0].text]]
