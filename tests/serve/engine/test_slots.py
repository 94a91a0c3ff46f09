"""What a text took in memory is given back when it leaves its slot, whatever slots it stood in."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from llm.serve.engine.config import EngineConfig
from llm.serve.engine.engine import Engine
from llm.serve.engine.sampling import Sampling
from llm.serve.engine.session import open_session
from llm.serve.engine.slots import Slots
from llm.serve.models.folder import open_folder

CAPACITY, TOKENS = 4_096, 4_000


@pytest.fixture
def slots(decoder: Any) -> Slots:
    folder = open_folder(decoder.folder)
    return Slots(open_session(folder, threads=1), folder, slots=4, capacity=CAPACITY, gives_back=True)


def resident(slots: Slots) -> float:
    """Share of the memory of all slots that is there, as the system counts its pages."""
    pages = [page for buffer in slots._buffers for page in _pages(buffer)]
    return sum(page & 1 for page in pages) / len(pages)


def _pages(buffer: np.ndarray) -> bytes:
    flags = (ctypes.c_ubyte * -(-buffer.nbytes // mmap.PAGESIZE))()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mincore(ctypes.c_void_p(buffer.ctypes.data), ctypes.c_size_t(buffer.nbytes), flags) == 0
    return bytes(flags)


def fill(slots: Slots, slot: int, value: float, tokens: int) -> None:
    slots.restore(slot, np.full_like(slots.keep(slot, tokens), value), tokens)


def test_a_slot_that_is_left_takes_none(slots: Slots) -> None:
    assert resident(slots) == 0
    fill(slots, 1, 1.0, TOKENS)
    assert resident(slots) == pytest.approx(TOKENS / CAPACITY / 4, abs=0.02)
    slots.free(1)
    assert resident(slots) <= 0.01


def test_texts_that_move_take_what_they_need(slots: Slots) -> None:
    fill(slots, 0, 1.0, TOKENS)
    fill(slots, 3, 2.0, 10)
    slots.move(3, 0, 10)
    assert resident(slots) <= 0.02
    assert (slots.keep(0, 10) == 2.0).all()
    fill(slots, 2, 3.0, TOKENS)
    slots.swap(0, 10, 2, TOKENS)
    assert resident(slots) == pytest.approx(TOKENS / CAPACITY / 4, abs=0.02)
    assert (slots.keep(0, TOKENS) == 3.0).all()
    assert (slots.keep(2, 10) == 2.0).all()


def test_neighbours_keep_theirs(decoder: Any) -> None:
    """Slots that begin and end within a page."""
    folder = open_folder(decoder.folder)
    slots = Slots(open_session(folder, threads=1), folder, slots=3, capacity=99, gives_back=True)
    for slot in range(3):
        fill(slots, slot, slot + 1.0, 99)
    slots.free(1)
    for slot in (0, 2):
        assert (slots.keep(slot, 99) == slot + 1.0).all()


def test_kept_texts_leave_no_gaps(decoder: Any) -> None:
    """Every second of them goes, and its memory with it."""
    folder = open_folder(decoder.folder)
    slots = Slots(open_session(folder, threads=1), folder, slots=1, capacity=CAPACITY)
    np.ones(2**23).sum()  # from now on the C library would take what is smaller from its heap
    before, kept = own_bytes(), [slots.keep(0, TOKENS) for _ in range(40)]
    taken = own_bytes() - before
    assert taken == pytest.approx(sum(text.nbytes for text in kept), rel=0.1)
    del kept[::2]
    assert own_bytes() - before == pytest.approx(taken / 2, rel=0.1)


def own_bytes() -> int:
    """Memory of this process besides its files."""
    memory = psutil.Process().memory_info()
    return int(memory.rss - memory.shared)


def test_an_engine_stays_within_what_it_may_hold(decoder: Any, tmp_path: Path) -> None:
    context = open_folder(decoder.folder).context_tokens
    engine = Engine(decoder.folder, model_id="m", config=EngineConfig(threads=1, slots=8, kv_tokens=context, prefix_tokens=0))
    for wave in range(4):
        texts = [engine.submit([7 + wave], Sampling(20, ignore_eos=True)) for _ in range(2 * wave)]
        texts.append(engine.submit([8], Sampling(context - 2, ignore_eos=True)))
        for text in texts:
            list(text)
    assert resident(engine._slots) <= 1.5 / 9, "one full text of nine slots may be there"
    engine.close()
