"""R7: greedy answers per second, against llama.cpp, onnxruntime-genai, optimum and transformers on the same weights.

    prefill     prompt tokens per second until one stream's first token
    1 stream    tokens per second after the first
    16, 64      all tokens per second from submission on, prompts included; prompts have one length, as peers batch them

Equality: PyTorch (transformers, fp32, one pass) reads every answer. In fp32, each token must be PyTorch's likeliest wherever its two
best are further apart than twice the logit difference of the runtime: for those that run our graph what its gate measured, else
`export.max_logit_difference`. A smaller kind must write PyTorch's likeliest as often as its gate in `export.gates` asks.

Two models, written on first use in TRAINYARD_BENCH_HOME/serving: one that is trained here for some minutes, and SmolLM2-135M's sizes
with random weights. TRAINYARD_R7_MODELS names those to measure, with commas; TRAINYARD_R7_REPEATS how often each is timed (the best
counts). Every server is a process of its own (tests/benchmarks/peers/). llama.cpp keeps keys and values in fp32 beside fp32
weights, and does without its AMX kernels.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llm.export.config import ExportConfig
from tests.benchmarks.measured import HOME, ROOT, TORCH, environment, row

Case = dict[str, Any]
Run = tuple[str, str]  # who, and the weights' kind
Verdicts = dict[tuple[tuple[int, ...], tuple[int, ...]], list[list[float]]]  # prompt and answer → PyTorch's likeliest ids, and gaps

PEERS = Path(__file__).parent / "peers"
PACKAGES = {
    "transformers": [TORCH, "numpy", "transformers==5.23.0"],
    "optimum": [TORCH, "optimum-onnx[onnxruntime]==0.1.0"],
    "llama-cpp": ["llama-cpp-python==0.3.36"],
}
MODELS: dict[str, Case] = {
    "30 M trained": {
        "sizes": {"width": 512, "num_layers": 8, "num_heads": 8, "num_kv_heads": 4, "ffn_width": 1408, "max_positions": 4096},
        "vocab_size": 8192,
        "steps": 200,
    },
    "135 M": {
        "sizes": {"width": 576, "num_layers": 30, "num_heads": 9, "num_kv_heads": 3, "ffn_width": 1536, "max_positions": 8192},
        "vocab_size": 49152,
        "steps": 0,
    },
}
ROUNDS = {  # streams, prompt tokens, tokens of an answer
    "30 M trained": [(1, 128, 256), (1, 2048, 64), (16, 128, 64), (64, 128, 32)],
    "135 M": [(1, 128, 64), (1, 2048, 32), (16, 128, 32)],
}
RIVALS: dict[str, list[Run]] = {
    "": [("llama-cpp", ""), ("genai", ""), ("genai-engine", ""), ("transformers", ""), ("optimum", "")],
    "int8": [("llama-cpp", "int8")],
    "q4": [("ours", "")],  # llm/export/gguf.py writes no 4-bit blocks
}
GOALS = {"llama-cpp": {1: 1.0, 16: 1.0}, "genai": {16: 3.0}, "genai-engine": {16: 3.0}}
OUR_GRAPH = ("ours", "genai", "genai-engine", "optimum")
THREADS = os.cpu_count() or 1
REPEATS = int(os.environ.get("TRAINYARD_R7_REPEATS", "2"))
CHOSEN = os.environ.get("TRAINYARD_R7_MODELS", ",".join(MODELS)).split(",")


def measure() -> Iterator[dict[str, Any]]:
    """Rows of R7."""
    pythons = {peer: environment(peer, packages) for peer, packages in PACKAGES.items()}
    pythons |= {"ours": Path(sys.executable), "genai": Path(sys.executable), "genai-engine": Path(sys.executable)}
    folders = {name: written(name) for name in CHOSEN}
    bandwidth = read_bandwidth()
    for name, folder in folders.items():
        yield from compare(name, folder, pythons, bandwidth)


def compare(name: str, folder: Path, pythons: dict[str, Path], bandwidth: float) -> Iterator[dict[str, Any]]:
    """One model, every kind of weights beside its rivals and the memory's speed."""
    text = np.load(folder / "text.npy")
    rounds: list[Case] = [{"prompts": prompts(text, *shape), "tokens": tokens} for *shape, tokens in ROUNDS[name]]
    case: Case = {"folder": str(folder), "threads": THREADS, "repeats": REPEATS, "rounds": rounds}
    runs = dict.fromkeys([("ours", kind) for kind in RIVALS] + [rival for rivals in RIVALS.values() for rival in rivals])
    answers = {(who, kind): ask(who, pythons[who], case | {"kind": kind}) for who, kind in runs}
    verdicts = judged(pythons["transformers"], case, answers)
    equal = {run: [right(run, folder, *pair, verdicts) for pair in zip(rounds, given, strict=True)] for run, given in answers.items()}
    for kind, rivals in RIVALS.items():
        run, title = ("ours", kind), f"{name}, {kind or 'fp32'}"
        weights = (folder / "onnx" / (f"model_{kind}.onnx" if kind else "model.onnx")).stat().st_size
        ours, ceiling = decode(rounds[0], answers[run][0]), bandwidth / weights
        met = ours >= 0.9 * ceiling
        yield row("R7", f"{title}, 1 stream", ours, "tokens/s", "≥ 0.9 ×", met, peer="bandwidth", peer_value=ceiling, equal=equal[run][0])
        for rival, at in product(rivals, range(len(rounds))):
            pairs = speeds(rounds[at], answers[run][at], answers[rival][at])
            yield from (one | {"peer_equal": equal[rival][at]} for one in rows(title, rival, rounds[at], pairs, equal[run][at]))


def rows(title: str, rival: Run, each: Case, pairs: dict[str, tuple[float, float]], equal: bool) -> Iterator[dict[str, Any]]:
    """One round beside one rival."""
    (who, kind), streams = rival, len(each["prompts"])
    for what, (ours, theirs) in pairs.items():
        goal = None if what.startswith("prefill") else GOALS.get(who, {}).get(streams)
        met, wanted = (None, None) if goal is None else (ours >= goal * theirs, f"≥ {goal} ×")
        peer = f"ours {kind or 'fp32'}" if who == "ours" else who
        yield row("R7", f"{title}, {what}", ours, "tokens/s", wanted, met, peer=peer, peer_value=theirs, equal=equal)


def speeds(each: Case, ours: Case, theirs: Case) -> dict[str, tuple[float, float]]:
    """What a round says about both sides, by name."""
    streams, context = len(each["prompts"]), len(each["prompts"][0])
    if streams > 1:
        total = streams * each["tokens"]
        return {f"{streams} streams": (total / ours["all"], total / theirs["all"])}
    return {
        f"1 stream at {context}": (decode(each, ours), decode(each, theirs)),
        f"prefill of {context}": (context / ours["first"], context / theirs["first"]),
    }


def decode(each: Case, answer: Case) -> float:
    """Tokens per second of one stream after its first.

    Raises: RuntimeError if the machine was so busy that all tokens took no longer than one.
    """
    if answer["all"] <= answer["first"]:
        raise RuntimeError("one token took as long as all: measure when nothing else runs")
    return float((each["tokens"] - 1) / (answer["all"] - answer["first"]))


def prompts(text: np.ndarray, streams: int, context: int) -> list[list[int]]:
    """Different pieces of the text."""
    return [text[start : start + context].tolist() for start in np.linspace(0, len(text) - context, streams).astype(int)]


def judged(python: Path, case: Case, answers: dict[Run, list[Case]]) -> Verdicts:
    """What PyTorch finds likeliest at every place of every different answer, and how far ahead of the second."""
    pairs = [(each["prompts"], answer["ids"]) for given in answers.values() for each, answer in zip(case["rounds"], given, strict=True)]
    texts = list(dict.fromkeys((tuple(prompt), tuple(ids)) for pair in pairs for prompt, ids in zip(*pair, strict=True)))
    return dict(zip(texts, ask("judge", python, case | {"texts": texts}), strict=True))


def right(run: Run, folder: Path, each: Case, answer: Case, verdicts: Verdicts) -> bool:
    """Whether a round's answers are PyTorch's, as the head of this file has it."""
    (who, kind), config = run, ExportConfig()
    pairs = zip(each["prompts"], answer["ids"], strict=True)
    ids, likeliest, gaps = np.hstack([[ids, *verdicts[tuple(prompt), tuple(ids)]] for prompt, ids in pairs])
    if kind:
        return bool((ids == likeliest).mean() >= getattr(config.gates, kind).min_greedy_agreement)
    found = json.loads((folder / "parity.json").read_text())["max_logit_difference"]
    sure = gaps > 2 * (found if who in OUR_GRAPH else config.max_logit_difference)
    return bool(sure.any() and (ids == likeliest)[sure].all())


def ask(who: str, python: Path, case: Case) -> Any:
    """What one process answers.

    Raises: RuntimeError with the end of what it said, if it fails.
    """
    command = [str(python), str(PEERS / f"serve_{who.replace('-', '')}.py")]
    variables = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1"}
    answer = subprocess.run(command, cwd=ROOT, env=variables, input=json.dumps(case), capture_output=True, text=True, check=False)
    if answer.returncode:
        raise RuntimeError(f"{who} failed: {answer.stderr[-2000:]}")
    return json.loads(answer.stdout.splitlines()[-1])


def read_bandwidth() -> float:
    """Bytes per second of a sum over a gigabyte, all threads, the best of five."""
    numbers, best = torch.ones(250_000_000), 0.0
    for _ in range(5):
        began = time.perf_counter()
        numbers.sum()
        best = max(best, 4 * len(numbers) / (time.perf_counter() - began))
    return best


def written(name: str) -> Path:
    """The model's folders; kept, and written again only for other sizes or steps."""
    folder, wanted = HOME / "serving" / name.replace(" ", "-"), json.dumps(MODELS[name])
    made_from = folder / "made_from.json"
    if not made_from.exists() or made_from.read_text() != wanted:
        made_from.unlink(missing_ok=True)
        command = [sys.executable, str(PEERS / "serve_model.py"), json.dumps({"folder": str(folder)} | MODELS[name])]
        subprocess.run(command, cwd=ROOT, check=True)
        made_from.write_text(wanted)
    return folder
