"""R5's epoch by datasets and torch's DataLoader, in their own environment.

The DataLoader saves no place: the seeded permutation is cut where the run stopped, as its users do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from batches import Case, Opened, answer, windows
from datasets import Dataset, Features, List, Value, load_from_disk
from torch.utils.data import DataLoader

CHUNK_ROWS = 8192


def write(given: Case) -> None:
    def rows() -> Any:
        for first in range(0, given.rows, CHUNK_ROWS):
            for row in windows(given)[first : first + CHUNK_ROWS]:
                yield {"tokens": row}

    features = Features({"tokens": List(Value("uint16"), length=given.row_tokens + 1)})
    Dataset.from_generator(rows, features=features, cache_dir=f"{given.folder}/cache").save_to_disk(f"{given.folder}/rows")


def pair(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    window = torch.from_numpy(np.asarray(batch["tokens"]).astype(np.int64))
    return window[:, :-1].contiguous(), window[:, 1:].contiguous()


class Batched:
    """Asks the data set for the rows of a batch at once."""

    def __init__(self, data: Dataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, indices: list[int]) -> Any:
        return self.data[indices]


def opened(given: Case, state: Any) -> Opened:
    data = load_from_disk(f"{given.folder}/rows").with_format("numpy")
    permutation = torch.randperm(given.rows, generator=torch.Generator().manual_seed(0))
    taken = [state or 0]
    batches = iter(DataLoader(Batched(data), sampler=permutation.split(given.batch)[taken[0] :], batch_size=None, collate_fn=pair))

    def counted() -> Any:
        for batch in batches:
            taken[0] += 1
            yield batch

    return counted(), lambda: taken[0]


if __name__ == "__main__":
    answer(write, opened)
