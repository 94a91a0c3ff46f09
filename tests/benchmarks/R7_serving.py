"""R7: tokens per second of greedy answers, against llama.cpp, onnxruntime-genai, optimum and transformers on the same weights.

One stream: tokens after the first, per second. Several: all tokens, per second from submission on, prompts included; where a peer
batches, its prompts have one length. Two models: one that is trained here for a moment, and SmolLM2-135M's sizes with random weights.
They are written on first use in TRAINYARD_BENCH_HOME/serving. Every measurement is a process of its own (tests/benchmarks/peers/).
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

from tests.benchmarks.measured import HOME, ROOT, TORCH, environment, row

PEERS = Path(__file__).parent / "peers"
PACKAGES = {
    "transformers": [TORCH, "numpy", "transformers==5.23.0"],
    "optimum": [TORCH, "optimum-onnx[onnxruntime]==0.1.0"],
    "llama-cpp": ["llama-cpp-python==0.3.36"],
}
SCRIPTS = {"llama-cpp": "llamacpp"}
MODELS: dict[str, dict[str, Any]] = {
    "30 M trained": {
        "sizes": {"width": 512, "num_layers": 8, "num_heads": 8, "num_kv_heads": 4, "ffn_width": 1408, "max_positions": 4096},
        "vocab_size": 8192,
        "steps": 20,
    },
    "135 M": {
        "sizes": {"width": 576, "num_layers": 30, "num_heads": 9, "num_kv_heads": 3, "ffn_width": 1536, "max_positions": 8192},
        "vocab_size": 49152,
        "steps": 0,
    },
}
THREADS = os.cpu_count() or 1
GOALS = {"llama-cpp": {1: 1.0, 16: 1.0}, "genai": {16: 3.0}}
Case = dict[str, Any]


def measure() -> Iterator[dict[str, Any]]:
    """Rows of R7."""
    pythons = {peer: environment(peer, packages) for peer, packages in PACKAGES.items()}
    pythons |= {"ours": Path(sys.executable), "genai": Path(sys.executable)}
    folders = {name: written(name, sizes) for name, sizes in MODELS.items()}
    for name, folder in folders.items():
        yield from compare(name, folder, pythons, "", ["llama-cpp", "genai", "transformers", "optimum"])
        yield from compare(name, folder, pythons, "int8", ["llama-cpp"])


def compare(name: str, folder: Path, pythons: dict[str, Path], kind: str, peers: list[str]) -> Iterator[dict[str, Any]]:
    """One model at one precision: single stream, 16 and 64 streams, beside every peer and the memory's speed."""
    text = np.load(folder / "text.npy")
    rounds: list[Case] = [{"prompts": prompts(text, streams), "tokens": tokens} for streams, tokens in ((1, 128), (16, 64), (64, 32))]
    case: Case = {"folder": str(folder), "kind": kind, "threads": THREADS, "rounds": rounds}
    answers = {who: serve(who, pythons[who], case) for who in ("ours", *peers)}
    bits = kind or "fp32"
    reference = answers.get("transformers", answers["ours"])
    equal = [agreement(answers["ours"][at]["ids"], reference[at]["ids"]) for at in range(len(rounds))]
    speeds = {who: [speed(answer, each) for answer, each in zip(given, rounds, strict=True)] for who, given in answers.items()}
    weights = (folder / "onnx" / (f"model_{kind}.onnx" if kind else "model.onnx")).stat().st_size
    ceiling = read_bandwidth() / weights
    ours = speeds["ours"][0]
    yield row(
        "R7",
        f"{name}, {bits}, 1 stream",
        ours,
        "tokens/s",
        "≥ 0.9",
        ours >= 0.9 * ceiling,
        peer="bandwidth",
        peer_value=ceiling,
        equal=equal[0] > 0,
    )
    for peer, (at, each) in product(peers, enumerate(rounds)):
        streams, theirs = len(each["prompts"]), speeds[peer][at]
        goal = GOALS.get(peer, {}).get(streams)
        met, wanted = (None, None) if goal is None else (speeds["ours"][at] >= goal * theirs, f"≥ {goal} ×")
        metric = f"{name}, {bits}, {streams} stream{'s' if streams > 1 else ''}"
        same = agreement(answers["ours"][at]["ids"], answers[peer][at]["ids"]) >= 0.9
        yield row("R7", metric, speeds["ours"][at], "tokens/s", wanted, met, peer=peer, peer_value=theirs, equal=same)


def prompts(text: np.ndarray, streams: int) -> list[list[int]]:
    """Different openings of 128 tokens."""
    return [text[start : start + 128].tolist() for start in np.linspace(0, len(text) - 128, streams).astype(int)]


def speed(answer: Case, each: Case) -> float:
    """Tokens per second: after the first token for one stream, of everything for several."""
    streams, tokens = len(each["prompts"]), each["tokens"]
    return (tokens - 1) / (answer["all"] - answer["first"]) if streams == 1 else streams * tokens / answer["all"]


def agreement(ours: list[list[int]], theirs: list[list[int]]) -> float:
    """The share of tokens before the first that differs: two likeliest tokens can lie closer than rounding."""
    pairs = [list(zip(one, other, strict=True)) for one, other in zip(ours, theirs, strict=True)]
    same = [next((at for at, (a, b) in enumerate(pair) if a != b), len(pair)) for pair in pairs]
    return sum(same) / sum(map(len, pairs))


def serve(who: str, python: Path, case: Case) -> list[Case]:
    """One process that answers every round.

    Raises: RuntimeError with the end of what it said, if it fails.
    """
    command = [str(python), str(PEERS / f"serve_{SCRIPTS.get(who, who)}.py"), json.dumps(case)]
    variables = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1"}
    answer = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise RuntimeError(f"{who} failed: {answer.stderr[-2000:]}")
    rounds: list[Case] = json.loads(answer.stdout.splitlines()[-1])
    return rounds


def read_bandwidth() -> float:
    """Bytes per second of a sum over a gigabyte, all threads, the best of five."""
    numbers, best = torch.ones(250_000_000), 0.0
    for _ in range(5):
        began = time.perf_counter()
        numbers.sum()
        best = max(best, 4 * len(numbers) / (time.perf_counter() - began))
    return best


def written(name: str, sizes: dict[str, Any]) -> Path:
    """The model's folders, written on first use."""
    folder = HOME / "serving" / name.replace(" ", "-")
    if not (folder / "text.npy").exists():
        subprocess.run([sys.executable, str(PEERS / "serve_model.py"), json.dumps({"folder": str(folder)} | sizes)], cwd=ROOT, check=True)
    return folder
