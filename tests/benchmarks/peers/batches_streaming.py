"""R5's epoch by mosaicml-streaming, in its own environment."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from batches import Case, Opened, answer, windows

for operator in ("nms", "qnms"):  # streaming imports torchvision, whose operators are not built for a torch without CUDA
    torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from streaming import MDSWriter, StreamingDataLoader, StreamingDataset  # noqa: E402


def write(given: Case) -> None:
    with MDSWriter(out=given.folder, columns={"tokens": f"ndarray:uint16:{given.row_tokens + 1}"}, size_limit=2**24) as writer:
        for row in windows(given):
            writer.write({"tokens": row.copy()})


def pair(rows: list[dict[str, np.ndarray]]) -> tuple[torch.Tensor, torch.Tensor]:
    window = torch.from_numpy(np.stack([row["tokens"] for row in rows]).astype(np.int64))
    return window[:, :-1].contiguous(), window[:, 1:].contiguous()


def opened(given: Case, state: Any) -> Opened:
    dataset = StreamingDataset(local=given.folder, shuffle=True, shuffle_seed=0, batch_size=given.batch, num_canonical_nodes=1)
    loader = StreamingDataLoader(dataset, batch_size=given.batch, collate_fn=pair, num_workers=0)
    if state is not None:
        loader.load_state_dict(state)
    return iter(loader), loader.state_dict


if __name__ == "__main__":
    answer(write, opened)
