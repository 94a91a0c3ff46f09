"""R6: what a checkpoint of a 124 M model with AdamW (1.5 GB) costs: stall of training, time to disk, and what comes back."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.optim import AdamW

from llm.model.config import DecoderConfig
from llm.model.decoder import Decoder
from llm.train.checkpoint import Checkpoints
from llm.train.parallel.world import World
from llm.train.retention import Retention
from tests.benchmarks import measured
from tests.benchmarks.measured import ROOT

MODEL_B = DecoderConfig(width=768, num_layers=12, num_heads=12, num_kv_heads=12, ffn_width=2048, max_positions=1024)
SMALL = DecoderConfig(width=64, num_layers=2, num_heads=4, num_kv_heads=2, ffn_width=128, max_positions=64)
VOCAB_SIZE = 50_304
REPEATS = 5
row = partial(measured.row, "R6")
PEERS = ("torch.save", "DCP save", "DCP async")
TRAINING_STEPS = 4  # at least so many while a checkpoint is being written

Save = Callable[[Path], Callable[[], bool]]  # begins a save; what it returns says whether the save is done


class Training:
    """A model whose step depends on its state alone."""

    def __init__(self, config: DecoderConfig, vocab_size: int, row_tokens: int) -> None:
        torch.manual_seed(0)
        self.model = Decoder(config, vocab_size)
        self.optimizers: list[torch.optim.Optimizer] = [AdamW(self.model.parameters(), lr=1e-4)]
        self.tokens_BT = torch.arange(row_tokens)[None] % vocab_size
        self.step()

    def step(self) -> float:
        logits_BTV, _ = self.model(self.tokens_BT)
        loss = nn.functional.cross_entropy(logits_BTV[0, :-1], self.tokens_BT[0, 1:])
        loss.backward()
        self.optimizers[0].step()
        self.optimizers[0].zero_grad()
        return loss.detach().item()

    def state(self) -> dict[str, Any]:
        weights, moments = get_state_dict(self.model, self.optimizers)
        return {"model": weights, "optimizer": moments}


def measure(
    config: DecoderConfig = MODEL_B, vocab_size: int = VOCAB_SIZE, row_tokens: int = 64, repeats: int = REPEATS
) -> Iterator[dict[str, Any]]:
    """Rows of R6."""
    torch.set_num_threads(os.cpu_count() or 1)
    training = Training(config, vocab_size, row_tokens)
    with tempfile.TemporaryDirectory(prefix="trainyard-bench-") as name:
        folder = Path(name)
        ours = Checkpoints(folder / "ours", "R6", 0, Retention(), alone(), background=True)
        stalls: dict[str, list[float]] = {kind: [] for kind in (*PEERS, "ours")}
        for turn in range(repeats):
            order = list(stalls) if turn % 2 == 0 else list(reversed(stalls))
            for kind in order:
                path = folder / f"{kind}-{turn}"
                stalls[kind].append(stall(training, saves(training, ours, turn)[kind], path))
                remove(path)
        middle = {kind: statistics.median(each) for kind, each in stalls.items()}
        equal = same_next_step(training, ours, config, vocab_size, row_tokens)
        goals = {"torch.save": ("≤ 10 % of torch.save with fsync", middle["ours"] <= 0.1 * middle["torch.save"])}
        for peer in PEERS:
            goal, met = goals.get(peer, (None, None))
            yield row("stall of training", middle["ours"], "s", goal, met, peer=peer, peer_value=middle[peer], equal=equal)
        total, disk = in_turns(
            repeats, lambda turn: whole_save(training, ours, 100 + turn), lambda turn: plain_write(training, folder, turn)
        )
        yield row("save to disk", total, "s", "≤ 1.2 × disk time", total <= 1.2 * disk, peer="write + fsync", peer_value=disk, equal=equal)
        same = resharded(folder)
        yield row("1 → 2 → 1 workers", float(same), "", "the same tensors", same, equal=same)


def alone() -> World:
    return World(0, 1, torch.device("cpu"))


def saves(training: Training, ours: Checkpoints, turn: int) -> dict[str, Save]:
    """The ways to save, by name."""

    def torch_save(path: Path) -> Callable[[], bool]:
        with path.open("wb") as file:
            torch.save(training.state(), file)
            file.flush()
            os.fsync(file.fileno())
        return lambda: True

    def dcp(path: Path) -> Callable[[], bool]:
        state_dict_saver.save(training.state(), checkpoint_id=path, no_dist=True)
        return lambda: True

    def dcp_async(path: Path) -> Callable[[], bool]:
        future = state_dict_saver.async_save(training.state(), checkpoint_id=path, no_dist=True)
        assert isinstance(future, Future)
        return future.done

    def our_own(path: Path) -> Callable[[], bool]:
        ours.save(turn + 1, training.model, training.optimizers, {"history": [{"step": turn + 1}]})
        assert ours.writing is not None
        return ours.writing.done

    return {"torch.save": torch_save, "DCP save": dcp, "DCP async": dcp_async, "ours": our_own}


def stall(training: Training, save: Save, path: Path) -> float:
    """Seconds by which a save makes training longer: the call itself, and slower steps until all is on disk."""
    before = [seconds(training.step) for _ in range(TRAINING_STEPS)]
    began, steps = time.perf_counter(), 0
    done = save(path)
    while not done() or steps < TRAINING_STEPS:
        training.step()
        steps += 1
    taken = time.perf_counter() - began
    after = [seconds(training.step) for _ in range(TRAINING_STEPS)]
    return taken - steps * statistics.median(before + after)


def remove(path: Path) -> None:
    """Free the disk for the next; ours keeps the last few by itself."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def seconds(function: Callable[..., object], *arguments: object) -> float:
    began = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - began


def in_turns(repeats: int, ours: Callable[[int], object], peer: Callable[[int], object]) -> tuple[float, float]:
    """Median seconds of both, measured one after the other and then the other way round."""
    pairs = []
    for turn in range(repeats):
        first, second = (ours, peer) if turn % 2 == 0 else (peer, ours)
        times = (seconds(first, turn), seconds(second, turn))
        pairs.append(times if turn % 2 == 0 else times[::-1])
    return statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs)


def whole_save(training: Training, ours: Checkpoints, step: int) -> None:
    ours.save(step, training.model, training.optimizers, {"history": [{"step": step}]})
    ours.wait()


def plain_write(training: Training, folder: Path, turn: int) -> None:
    """The same bytes to one new file, without names, hashes or a manifest; as many older ones stay as of ours."""
    with (folder / f"plain-{turn}").open("wb") as file:
        for tensor in tensors(training.state()):
            file.write(tensor.numpy().data.cast("B"))
        file.flush()
        os.fsync(file.fileno())
    remove(folder / f"plain-{turn - Retention().last}")


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor) and value.dim():
        yield value.detach().contiguous()
    elif isinstance(value, dict):
        for each in value.values():
            yield from tensors(each)


def same_next_step(training: Training, ours: Checkpoints, config: DecoderConfig, vocab_size: int, row_tokens: int) -> bool:
    """Whether a model that loads the checkpoint takes the same next step, to the bit."""
    whole_save(training, ours, 99)
    again = Training(config, vocab_size, row_tokens)
    ours.restore(again.model, again.optimizers)
    losses = [(training.step(), again.step()) for _ in range(2)]
    pairs = zip(training.model.parameters(), again.model.parameters(), strict=True)
    return all(mine == theirs for mine, theirs in losses) and all(torch.equal(mine, theirs) for mine, theirs in pairs)


def resharded(folder: Path) -> bool:
    """Whether one worker's checkpoint, loaded and saved by two, comes back to one as it was."""
    home = Path(tempfile.mkdtemp(dir=folder))
    small = Training(SMALL, 256, 16)
    whole_save(small, Checkpoints(home / "checkpoints", "R6", 0, Retention(), alone()), 1)
    pair = [subprocess.Popen([sys.executable, "-m", "tests.benchmarks.R6_checkpoint", str(home), str(rank)], cwd=ROOT) for rank in range(2)]
    if [process.wait(timeout=300) for process in pair] != [0, 0]:
        raise RuntimeError("two workers could not load and save the checkpoint")
    back = Training(SMALL, 256, 16)
    back.step()
    progress = Checkpoints(home / "checkpoints", "R6", 0, Retention(), alone()).restore(back.model, back.optimizers)
    same = [torch.equal(mine, theirs) for mine, theirs in zip(tensors(small.state()), tensors(back.state()), strict=True)]
    return progress is not None and progress["history"][-1]["step"] == 2 and all(same)


def one_of_two(home: Path, rank: int) -> None:
    """Load what one worker saved, and save it as one of two."""
    dist.init_process_group("gloo", init_method=f"file://{home}/rendezvous", rank=rank, world_size=2)
    training = Training(SMALL, 256, 16)
    checkpoints = Checkpoints(home / "checkpoints", "R6", 0, Retention(), World(rank, 2, torch.device("cpu")), background=True)
    checkpoints.restore(training.model, training.optimizers)
    whole_save(training, checkpoints, 2)
    dist.destroy_process_group()


if __name__ == "__main__":
    one_of_two(Path(sys.argv[1]), int(sys.argv[2]))
