"""A Ray that believes in two GPUs: where it puts two workers, and which groups are refused: gpus.py FOLDER."""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import ray
from ray.train import RunConfig
from ray.train.torch import TorchConfig
from ray.train.v2.torch.torch_trainer import TorchTrainer

from llm.cluster.workers import check_group, ray_settings, scaling
from llm.errors import TrainyardError
from llm.train.config import ClusterConfig


def note_gpus(config: dict[str, str]) -> None:
    """What a worker does instead of training: note which GPUs are its own."""
    rank = ray.train.get_context().get_world_rank()
    (Path(config["folder"]) / f"gpus-{rank}").write_text(json.dumps([str(gpu) for gpu in ray.get_gpu_ids()]))


def refusal(job: Any, **cluster: Any) -> str:
    try:
        check_group(job, ClusterConfig.model_validate(cluster))
    except TrainyardError as error:
        return str(error)
    return ""


def main(folder: Path) -> None:
    ray.init(address="local", num_cpus=2, num_gpus=2, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
    cluster = ClusterConfig(workers=2, use_gpu=True, poll_seconds=0.2)
    os.environ.update(ray_settings(cluster))
    TorchTrainer(
        note_gpus,
        train_loop_config={"folder": str(folder)},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=scaling(cluster, "cuda"),
        run_config=RunConfig(name="gpus", storage_path=str(folder / "ray")),
    ).fit()
    job = pickle.loads((folder / "job").read_bytes())
    assert not refusal(job, workers=2, use_gpu=True)
    refused = [
        refusal(job, workers=3, use_gpu=True),
        refusal(job, workers=5, use_gpu=False),
        refusal(job, workers=4, min_workers=2, layout={"tensor": 2}),
    ]
    print(json.dumps({"gpus": [json.loads((folder / f"gpus-{rank}").read_text()) for rank in range(2)], "refused": refused}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
