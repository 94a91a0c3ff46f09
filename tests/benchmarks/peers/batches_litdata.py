"""R5's epoch by litdata, in its own environment."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from batches import Case, Opened, answer, windows
from litdata import StreamingDataLoader, StreamingDataset, TokensLoader, optimize

CHUNK_ROWS = 8192  # 16 MB


def part(given: Case, first: int) -> Iterator[torch.Tensor]:
    for row in windows(given)[first : first + CHUNK_ROWS]:
        yield torch.from_numpy(row.copy())


def write(given: Case) -> None:
    optimize(
        fn=partial(part, given),
        inputs=list(range(0, given.rows, CHUNK_ROWS)),
        output_dir=given.folder,
        chunk_size=CHUNK_ROWS * (given.row_tokens + 1),
        item_loader=TokensLoader(),
        num_workers=1,
        start_method="fork",
    )


def pair(rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    window = torch.stack(rows).to(torch.int64)
    return window[:, :-1].contiguous(), window[:, 1:].contiguous()


def opened(given: Case, state: Any) -> Opened:
    dataset = StreamingDataset(given.folder, item_loader=TokensLoader(given.row_tokens + 1), shuffle=True, seed=0, max_cache_size="8GB")
    loader = StreamingDataLoader(dataset, batch_size=given.batch, collate_fn=pair, num_workers=0)
    if state is not None:
        loader.load_state_dict(state)
    return iter(loader), loader.state_dict


if __name__ == "__main__":
    answer(write, opened)
