"""Files around the page cache: the same bytes as written through it, and their hash."""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import xxhash
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver

from llm.train.direct import BLOCK_BYTES, DirectFile, writer

SHARED_MEMORY = Path("/dev/shm")


def pieces(total_bytes: int, seed: int) -> list[bytes]:
    """Random bytes in random pieces, empty ones and ones larger than a block among them."""
    rng, found = random.Random(seed), []
    while (missing := total_bytes - sum(map(len, found))) > 0:
        found.append(rng.randbytes(min(missing, rng.choice([0, 1, 511, 4096, 70_001, BLOCK_BYTES, BLOCK_BYTES + 3]))))
    return found


@pytest.mark.parametrize("total_bytes", [0, 1, 4096, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES + 4097])
def test_bytes_places_and_hash(tmp_path: Path, total_bytes: int) -> None:
    given, written = pieces(total_bytes, total_bytes), 0
    file = DirectFile(tmp_path / "file")
    for piece in given:
        assert file.tell() == written
        assert file.write(piece) == len(piece)
        written += len(piece)
    file.close()
    assert (tmp_path / "file").read_bytes() == b"".join(given)
    assert file.hash == xxhash.xxh3_128_hexdigest(b"".join(given))


@pytest.mark.skipif(not SHARED_MEMORY.is_dir(), reason="this system has no file system in memory at a known place")
def test_a_file_system_that_has_nothing_but_the_cache() -> None:
    path = SHARED_MEMORY / f"trainyard-direct-{os.getpid()}"
    try:
        with DirectFile(path) as file:
            file.write(b"whole")
        assert path.read_bytes() == b"whole"
    finally:
        path.unlink(missing_ok=True)


def test_a_shorter_file_replaces_a_longer_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 10_000)
    with DirectFile(tmp_path / "file") as file:
        file.write(b"short")
    assert (tmp_path / "file").read_bytes() == b"short"


def test_a_full_disk_is_said_and_leaves_no_descriptor(tmp_path: Path) -> None:
    code = f"""
        import os, pathlib, resource, signal
        from llm.train.direct import BLOCK_BYTES, DirectFile
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (BLOCK_BYTES, resource.RLIM_INFINITY))
        before = set(os.listdir("/proc/self/fd"))
        try:
            with DirectFile(pathlib.Path({str(tmp_path / "file")!r})) as file:
                file.write(bytes(3 * BLOCK_BYTES))
        except OSError as error:
            print(error.strerror, set(os.listdir("/proc/self/fd")) == before)
    """
    answer = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["File", "too", "large", "True"], answer.stderr
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_torch_reads_what_it_has_written_through_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = {f"tensor-{number}": torch.randn(number * 1000 + 1, 7) for number in range(6)} | {"step": torch.tensor(3.0)}
    writing, files = writer(tmp_path / "step")
    state_dict_saver.save(state, storage_writer=writing, no_dist=True)
    again = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    state_dict_loader.load(again, checkpoint_id=tmp_path / "step", no_dist=True)
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())
    shard = next((tmp_path / "step").glob("*.distcp"))
    assert files.hashes[shard] == xxhash.xxh3_128_hexdigest(shard.read_bytes())
