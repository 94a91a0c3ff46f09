"""R1: tokens per second of a train step, against transformers, litgpt and nanoGPT with the same weights and data.

    TRAINYARD_R1_REPEATS=1 make bench ONLY=R1       once instead of five times

Every measurement is a process of its own (tests/benchmarks/peers/). Peers live in environments that are built on first use in
TRAINYARD_BENCH_HOME (~/.cache/trainyard-bench). nanoGPT's architecture is GPT-2, so it meets our GPT-2 of the same sizes; the
other two meet our Llama decoder.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llm.model import families
from llm.model.config import parse_model
from tests.benchmarks import measured
from tests.benchmarks.measured import ROOT, TORCH, environment

PEERS = Path(__file__).parent / "peers"
REPEATS = int(os.environ.get("TRAINYARD_R1_REPEATS", "5"))
row = partial(measured.row, "R1")
PACKAGES = {
    "transformers": [TORCH, "numpy", "transformers==5.23.0"],
    "litgpt": [TORCH, "numpy", "litgpt==0.5.13"],
    "nanogpt": [TORCH, "numpy"],
}
FAMILIES = {"transformers": "llama", "litgpt": "llama", "nanogpt": "gpt2"}
SHAPES: dict[str, dict[str, Any]] = {
    "A": {"layers": 6, "width": 384, "heads": 6, "ffn_width": 1024, "vocab_size": 32768, "row_tokens": 512, "rows": 32},
    "B": {"layers": 12, "width": 768, "heads": 12, "ffn_width": 2048, "vocab_size": 32768, "row_tokens": 1024, "rows": 2},
}
PARTS = (*SHAPES, "long rows", "techniques")
WARM_UP, TIMED, COMPARED = 3, 10, 20
TRIED = 3  # timed steps of each of a peer's settings
GOAL = "≥ 1.35 × best peer or ≥ 0.80 of peak"
WITHOUT: dict[str, dict[str, Any]] = {  # a technique, and the settings of a step that does without it
    "bfloat16": {"dtype": "fp32"},
    "torch.compile": {"compile": False},
    "chunked cross-entropy": {"whole_logits": True},
    "freed memory kept": {"keep_freed_memory": False},
}
Run = dict[str, Any]


def measure(part: str = "") -> Iterator[dict[str, Any]]:
    """Rows of R1."""
    pythons = {peer: environment(peer, packages) for peer, packages in PACKAGES.items()} | {"ours": Path(sys.executable)}
    with tempfile.TemporaryDirectory(prefix="trainyard-bench-") as folder:
        for name, shape in SHAPES.items():
            if part in ("", name):
                yield from compare(name, shape, pythons, Path(folder))
        if part in ("", "long rows"):
            yield long_rows(SHAPES["A"], pythons, Path(folder))
        if part in ("", "techniques"):
            yield from techniques(SHAPES["A"] | {"rows": 8}, pythons["ours"], Path(folder))


def compare(name: str, shape: dict[str, Any], pythons: dict[str, Path], folder: Path) -> Iterator[dict[str, Any]]:
    """One shape: each peer at the faster of its two settings beside ours, and our share of the matrix peak."""
    files = {family: weights(family, shape, folder / f"{name}-{family}.pt") for family in ("llama", "gpt2")}
    peak = matrix_peak()
    rows, shares = [], []
    for peer, family in FAMILIES.items():
        given, file, python = shape | {"family": family}, files[family], pythons[peer]
        equal = same_losses(given, file, python, peer)
        settings = fastest(python, peer, given, file)
        runs: dict[str, list[Run]] = {"ours": [], peer: []}
        for turn in range(REPEATS):
            for who in (("ours", peer), (peer, "ours"))[turn % 2]:
                runs[who].append(train(pythons[who], who, given | (settings if who == peer else {}), file))
        ours, theirs = (given["rows"] * given["row_tokens"] / statistics.median(map(seconds, runs[who])) for who in runs)
        shares.append(ours * flops_per_token(given) / peak)
        metric = f"train step {name}, {family}, bf16"
        rows.append(row(metric, ours, "tokens/s", GOAL, False, peer=peer, peer_value=theirs, equal=equal))
    met = all(each["ratio"] >= 1.35 for each in rows) or min(shares) >= 0.80
    yield from (each | {"met": met} for each in rows)
    equal = all(each["equal"] for each in rows)
    metric = f"train step {name}, share of matrix peak"
    yield row(metric, shares[0] * peak / 1e9, "GFLOP/s", GOAL, met, peer="matrix peak", peer_value=peak / 1e9, equal=equal)


def long_rows(shape: dict[str, Any], pythons: dict[str, Path], folder: Path) -> dict[str, Any]:
    """FLOP/s in rows of 4,096 tokens over FLOP/s in rows of 512, as many tokens per step; losses in long rows are transformers'."""
    tokens = shape["rows"] * shape["row_tokens"]
    shapes = {length: shape | {"family": "llama", "row_tokens": length, "rows": tokens // length} for length in (512, 4096)}
    files = {length: weights("llama", given, folder / f"rows-of-{length}.pt") for length, given in shapes.items()}
    equal = same_losses(shapes[4096], files[4096], pythons["transformers"], "transformers")
    speeds: dict[int, list[float]] = {512: [], 4096: []}
    for length in ((512, 4096, 4096, 512) * REPEATS)[: 2 * REPEATS]:
        took = seconds(train(pythons["ours"], "ours", shapes[length], files[length]))
        speeds[length].append(tokens * flops_per_token(shapes[length]) / took / 1e9)
    short, long = (statistics.median(values) for values in speeds.values())
    return row("FLOP/s at 4,096 tokens", long, "GFLOP/s", "≥ 0.85", long >= 0.85 * short, peer="512 tokens", peer_value=short, equal=equal)


def techniques(shape: dict[str, Any], python: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """What each technique is worth: our step beside our step without it, and its peak of memory."""
    given = shape | {"family": "llama"}
    file = weights("llama", given, folder / "techniques.pt")
    for name, settings in WITHOUT.items():
        runs: dict[bool, list[Run]] = {True: [], False: []}
        for used in (True, False, False, True)[: 2 * REPEATS]:
            runs[used].append(train(python, "ours", given if used else given | settings, file))
        speeds, peaks = (
            [statistics.median(measured(run) for run in runs[used]) for used in (True, False)]
            for measured in (lambda run: given["rows"] * given["row_tokens"] / seconds(run), lambda run: run["peak_bytes"] / 1e9)
        )
        pairs = zip(runs[True][0]["losses"], runs[False][0]["losses"], strict=True)
        equal = all(abs(ours - theirs) <= 0.01 * theirs for ours, theirs in pairs)
        for metric, (used, unused), unit in (("speed", speeds, "tokens/s"), ("peak memory", peaks, "GB")):
            yield row(f"{name}: {metric}", used, unit, None, None, peer="without it", peer_value=unused, equal=equal)


def fastest(python: Path, peer: str, given: dict[str, Any], file: Path) -> dict[str, Any]:
    """A peer's best settings: eager with few rows at a time or with many, then compiled with as many, if that is faster."""

    def took(size: int, compiled: bool) -> float:
        tried = {"steps": WARM_UP + TRIED, "compile": compiled, "micro_rows": size}
        return seconds(train(python, peer, given | tried, file))

    eager = {size: took(size, False) for size in sorted({max(1, given["rows"] // parts) for parts in (1, 4)})}
    size = min(eager, key=lambda size: eager[size])
    return {"compile": took(size, True) < eager[size], "micro_rows": size}


def same_losses(shape: dict[str, Any], file: Path, python: Path, peer: str) -> bool:
    """The first losses agree to 1e-3 in fp32, in which fewer rows do, and to 1 % in bf16."""
    for dtype, rows, tolerance in (("fp32", 1, 1e-3), ("bf16", 2, 1e-2)):
        given = shape | {"dtype": dtype, "rows": rows, "micro_rows": rows, "steps": COMPARED, "compile": False}
        ours, theirs = (train(each, who, given, file)["losses"] for each, who in ((Path(sys.executable), "ours"), (python, peer)))
        if any(abs(a - b) > tolerance * (b if dtype == "bf16" else 1) for a, b in zip(ours, theirs, strict=True)):
            return False
    return True


def train(python: Path, who: str, given: dict[str, Any], file: Path) -> Run:
    """One process that trains; its losses and clocks.

    Raises: RuntimeError with the end of what it said, if it fails.
    """
    defaults = {"dtype": "bf16", "micro_rows": given["rows"], "steps": WARM_UP + TIMED, "compile": True, "threads": os.cpu_count()}
    defaults |= {"whole_logits": False, "keep_freed_memory": True}
    command = [str(python), str(PEERS / f"train_{who}.py"), json.dumps(defaults | given | {"model": model_section(given)}), str(file)]
    variables = {**os.environ, "OMP_NUM_THREADS": str(os.cpu_count())}
    answer = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise RuntimeError(f"{who} failed: {answer.stderr[-2000:]}")
    return json.loads(answer.stdout.splitlines()[-1])


def seconds(run: Run) -> float:
    """Of the middle step after the warm-up."""
    return statistics.median(run["wall_seconds"][WARM_UP:])


def flops_per_token(shape: dict[str, Any]) -> float:
    """Of forward and backward: six per weight of a matrix, and attention over half of the positions on average."""
    width, layers = shape["width"], shape["layers"]
    block = 12 * width**2 if shape["family"] == "gpt2" else 4 * width**2 + 3 * width * shape["ffn_width"]
    return 6.0 * (layers * block + shape["vocab_size"] * width) + 6.0 * layers * shape["row_tokens"] * width


def matrix_peak() -> float:
    """FLOP/s of the fastest of a few bfloat16 products, which stay in the cache."""
    best = 0.0
    for outer, inner in ((2048, 2048), (4096, 1024), (1024, 384)):
        left, right = torch.randn(outer, inner).bfloat16(), torch.randn(inner, outer).bfloat16()
        out = torch.empty(outer, outer, dtype=torch.bfloat16)
        for _ in range(30):
            began = time.perf_counter()
            torch.mm(left, right, out=out)
            best = max(best, 2 * outer * outer * inner / (time.perf_counter() - began))
    return best


def weights(family: str, shape: dict[str, Any], path: Path) -> Path:
    """A file of initial weights, tied, that every side starts from."""
    torch.manual_seed(0)
    model = families.build(parse_model(model_section(shape | {"family": family})), shape["vocab_size"])
    torch.save(model.state_dict(), path)
    return path


def model_section(shape: dict[str, Any]) -> dict[str, Any]:
    """Our `model` section for a shape."""
    sizes = {"width": shape["width"], "num_layers": shape["layers"], "num_heads": shape["heads"], "max_positions": shape["row_tokens"]}
    if shape["family"] == "gpt2":
        return sizes | {"architecture": "gpt2", "ffn_width": 4 * shape["width"]}
    return sizes | {"architecture": "decoder", "num_kv_heads": shape["heads"], "ffn_width": shape["ffn_width"]}
