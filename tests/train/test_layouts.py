"""Every layout trains like one worker: the same losses, gradient norms and weights; and a checkpoint of one serves another."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llm.errors import RecipeError
from llm.model.config import parse_model
from llm.train.config import TrainConfig
from llm.train.parallel.check import check
from llm.train.parallel.config import LayoutConfig

WORKER = Path(__file__).parent / "layout_worker.py"

LLAMA = {"width": 16, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "ffn_width": 32, "max_positions": 16}
GPT2 = {"width": 16, "num_layers": 2, "num_heads": 4, "ffn_width": 32, "max_positions": 16, "architecture": "gpt2"}
UNTIED = LLAMA | {"tied_embeddings": False}
MODELS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "untied": UNTIED,
    "qwen": UNTIED | {"num_layers": 4, "qk_norm": True, "attention_bias": True},
    "gpt2": GPT2 | {"tied_embeddings": False},
    "moe": LLAMA | {"architecture": "moe", "num_experts": 4, "experts_per_token": 2, "num_shared_experts": 1, "balance": "none"},
}
TRAIN = {
    "steps": 4,
    "global_batch_size": 5,  # shares of unequal size, and on two workers of micro-batches, too
    "micro_batch_size": 2,
    "clip_norm": 0.5,  # always in force
    "z_loss_weight": 1e-3,
    "schedule": {"warmup_steps": 1},
    "optimizer": {"kind": "adamw", "adamw_learning_rate": 3e-3},
}
TRAINS: dict[str, dict[str, Any]] = {
    "plain": TRAIN,
    "muon": TRAIN | {"optimizer": {"kind": "muon"}},
    "documents": TRAIN | {"document_mask": True},
    "recomputed": TRAIN | {"activation_checkpointing": "selective"},
    "narrow": TRAIN | {"micro_batch_size": 1, "global_batch_size": 9},
}
Case = dict[str, Any]


def case(
    name: str, workers: int, layout: dict[str, int], model: str = "llama", train: str = "plain", *, kept: bool = False, resumes: str = ""
) -> Case:
    """One training: `kept` leaves a checkpoint half-way, `resumes` begins with that of another case."""
    facts = {"name": name, "workers": workers, "layout": layout, "kept": kept, "resumes": resumes}
    return facts | {"model": MODELS[model], "train": TRAINS[train], "alone": f"one worker, {model}, {train}"}


CASES = [
    case("ddp", 2, {}, kept=True),
    case("ddp resumed", 2, {}, resumes="ddp"),
    case("fsdp", 2, {"shard": 2}, kept=True),
    case("fsdp resumed", 2, {"shard": 2}, resumes="fsdp"),
    case("fsdp from ddp", 2, {"shard": 2}, resumes="ddp"),
    case("tensor", 2, {"tensor": 2}),
    case("tensor from fsdp", 2, {"tensor": 2}, resumes="fsdp"),
    case("tensor, documents", 2, {"tensor": 2}, train="documents"),
    case("tensor, gpt2", 2, {"tensor": 2}, "gpt2"),
    case("context", 2, {"context": 2}),
    case("context, gpt2", 2, {"context": 2}, "gpt2"),
    case("pipeline", 2, {"pipeline": 2}, "untied", kept=True),
    case("pipeline resumed", 2, {"pipeline": 2}, "untied", resumes="pipeline"),
    case("fsdp from pipeline", 2, {"shard": 2}, "untied", resumes="pipeline"),
    case("pipeline, gpt2, documents", 2, {"pipeline": 2}, "gpt2", "documents"),
    case("fsdp, experts", 2, {"shard": 2}, "moe"),
    case("expert", 2, {"shard": 2, "expert": 2}, "moe"),
    case("fsdp, recomputed", 2, {"shard": 2}, train="recomputed"),
    case("tensor, recomputed", 2, {"tensor": 2}, train="recomputed"),
    case("pipeline, recomputed", 2, {"pipeline": 2}, "untied", "recomputed"),
    case("ddp on 3", 3, {}, kept=True),
    case("ddp on 3 resumed", 3, {}, resumes="ddp on 3"),
    case("fsdp on 3", 3, {"shard": 3}, kept=True),
    case("fsdp on 3 resumed", 3, {"shard": 3}, resumes="fsdp on 3"),
    case("hybrid sharding", 4, {"replicate": 2, "shard": 2}),
    case("fsdp and tensor", 4, {"shard": 2, "tensor": 2}),
    case("ddp and pipeline", 4, {"replicate": 2, "pipeline": 2}, "untied", "narrow"),
]
LONG = [  # in a group of their own: the file of each takes minutes of two cores
    case("tensor, qwen", 4, {"tensor": 2, "shard": 2}, "qwen"),
    case("ddp and tensor", 4, {"tensor": 2}),
    case("ddp and context", 4, {"context": 2}),
    case("fsdp and context", 4, {"shard": 2, "context": 2}),
    case("context and tensor", 4, {"context": 2, "tensor": 2}),
    case("four stages", 4, {"pipeline": 4}, "qwen", "narrow"),
    case("fsdp and pipeline", 4, {"shard": 2, "pipeline": 2}, "qwen", "narrow"),
    case("tensor and pipeline", 4, {"tensor": 2, "pipeline": 2}, "qwen", "narrow"),
    case("context and pipeline", 4, {"context": 2, "pipeline": 2}, "qwen", "narrow"),
    case("four shards of experts", 4, {"shard": 4, "expert": 4}, "moe"),
]
EXACT = {"ddp resumed": "ddp", "fsdp resumed": "fsdp", "ddp on 3 resumed": "ddp on 3", "fsdp on 3 resumed": "fsdp on 3"}
MUON = [case(f"muon, {name}", 2, layout, train="muon") for name, layout in (("fsdp", {"shard": 2}), ("tensor", {"tensor": 2}))]
CONTINUED = case("one worker from fsdp", 1, {}, resumes="fsdp")
ALONE = {
    each["alone"]: each | {"name": each["alone"], "workers": 1, "layout": {}, "kept": False, "resumes": ""} for each in CASES + MUON + LONG
}
EVERY = {each["name"]: each for each in (*ALONE.values(), CONTINUED, *CASES, *MUON, *LONG)}

Results = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def trained(masked_rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What a case left, by its name; a group of processes trains all cases of its size, one after the other."""
    folder = tmp_path_factory.mktemp("layouts")
    (folder / "rows").symlink_to(masked_rows)
    started: list[Case] = []

    def result(name: str) -> dict[str, Any]:
        wanted = EVERY[name]
        if wanted not in started:
            if wanted["workers"] == 1:
                result(CONTINUED["resumes"])
            group = [each for each in EVERY.values() if each["workers"] == wanted["workers"] and (each in LONG) == (wanted in LONG)]
            started.extend(group)
            train_group(group, folder)
        return torch.load(folder / f"{name}.pt")

    return result


def train_group(cases: list[Case], folder: Path) -> None:
    """Train them in as many processes as they take; a process that fails fails the test."""
    size = cases[0]["workers"]
    (folder / "cases.json").write_text(json.dumps(cases))
    (folder / "rendezvous").unlink(missing_ok=True)
    processes = [
        subprocess.Popen([sys.executable, WORKER, folder, str(rank), str(size)], stderr=subprocess.PIPE, text=True) for rank in range(size)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors


@pytest.mark.parametrize("name", [each["name"] for each in CASES] + [pytest.param(each["name"], marks=pytest.mark.long) for each in LONG])
def test_a_layout_trains_like_one_worker(name: str, trained: Results) -> None:
    alone, layout = trained(EVERY[name]["alone"]), trained(name)
    skipped = len(alone["curve"]) - len(layout["curve"])
    for mine, expected in zip(layout["curve"], alone["curve"][skipped:], strict=True):
        assert mine == pytest.approx(expected, rel=1e-6)
    assert layout["validation"] == pytest.approx(alone["validation"], rel=1e-6)
    assert layout["weights"].keys() == alone["weights"].keys()
    for parameter, weights in alone["weights"].items():
        torch.testing.assert_close(layout["weights"][parameter], weights, rtol=0, atol=1e-5, msg=parameter)


@pytest.mark.parametrize("name", [each["name"] for each in MUON])
def test_muon_orthogonalises_whole_matrices(name: str, trained: Results) -> None:
    """It rounds to bfloat16 within a step; orthogonalised shards would be off by as much as the update."""
    alone, layout = trained(EVERY[name]["alone"]), trained(name)
    assert layout["curve"][-1][0] == pytest.approx(alone["curve"][-1][0], rel=1e-3)
    for parameter, weights in alone["weights"].items():
        assert (layout["weights"][parameter] - weights).norm() < 0.1 * weights.norm(), parameter


@pytest.mark.parametrize(("resumed", "whole"), EXACT.items(), ids=list(EXACT))
def test_a_resumed_layout_is_bit_identical(resumed: str, whole: str, trained: Results) -> None:
    after, before = trained(resumed), trained(whole)
    assert after["curve"] == before["curve"][2:]
    assert all(torch.equal(after["weights"][name], weights) for name, weights in before["weights"].items())


def test_one_worker_continues_what_two_shared(trained: Results) -> None:
    before, after = trained(CONTINUED["resumes"])["curve"][2:], trained(CONTINUED["name"])["curve"]
    assert after[0] == pytest.approx(before[0], rel=1e-6)
    assert after[1] == pytest.approx(before[1], rel=1e-6)


@pytest.mark.parametrize(
    ("layout", "model", "train", "workers", "message"),
    [
        ({"tensor": 2}, "llama", TRAIN, 3, "takes 2 workers, which do not divide: 3; set cluster.workers to a multiple of 2"),
        ({"replicate": 3}, "llama", TRAIN, 2, "another number of copies of the model: 2; set cluster.layout.replicate to 2"),
        ({}, "llama", TRAIN, 6, "fewer rows than workers that read rows: 5; set train.global_batch_size to 6 or more"),
        ({}, "llama", TRAIN | {"ramp": {"rows": 1, "steps": 2}}, 2, "set train.ramp.rows to 2 or more"),
        ({"tensor": 2}, "moe", TRAIN, 2, "layout.tensor cuts the matrices of a decoder or gpt2 only: moe"),
        ({"context": 2}, "llama", TRAIN | {"objective": {"kind": "masked"}}, 2, "knows the next_token objective only: masked"),
        ({"pipeline": 2}, "llama", TRAIN, 2, "set model.tied_embeddings to false, or cluster.layout.pipeline to 1"),
        ({"pipeline": 4}, "untied", TRAINS["narrow"], 4, "4 pipeline stages for fewer layers: 2"),
        (
            {"pipeline": 2},
            "untied",
            TRAIN,
            4,
            "fewer micro-batches per worker than 2 pipeline stages: 2 rows; set train.micro_batch_size to 1",
        ),
        ({"context": 2}, "llama", TRAINS["documents"], 2, "does not work with train.document_mask: True; set train.document_mask to false"),
        ({"context": 3}, "llama", TRAIN, 3, "row_tokens is no multiple of 6: 16; set tokenize.row_tokens to one"),
        ({"tensor": 4}, "llama", TRAIN, 4, "layout.tensor 4 does not divide model.num_kv_heads: 2"),
        ({"tensor": 2}, "llama", TRAIN | {"precision": "fp8"}, 2, "cuts no float8 matrices: fp8; set train.precision to bf16"),
        (
            {"tensor": 2},
            "llama",
            TRAIN | {"optimizer": {"kind": "adamw", "state_bits": 8}},
            2,
            "8-bit moments need whole ones: adamw; set train.optimizer.state_bits to 32, or cluster.layout.tensor to 1",
        ),
        ({"shard": 2, "expert": 2}, "llama", TRAIN, 2, "layout.expert needs experts: decoder; set cluster.layout.expert to 1"),
        ({"shard": 3, "expert": 3}, "moe", TRAIN, 3, "layout.expert 3 does not divide model.num_experts: 4"),
        ({"shard": 2, "expert": 2}, "moe", TRAIN, 4, "set cluster.layout.shard to cluster.layout.expert and replicate to 1"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    layout: dict[str, int], model: str, train: dict[str, Any], workers: int, message: str
) -> None:
    with pytest.raises(RecipeError, match=message) as refusal:
        check(LayoutConfig.model_validate(layout), parse_model(MODELS[model]), TrainConfig.model_validate(train), 16, workers)
    assert "\n" not in str(refusal.value)


def test_the_check_needs_no_torch() -> None:
    code = "import llm.train.parallel.check, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
