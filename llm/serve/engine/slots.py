"""A fixed number of slots, each with keys and values of one text, in memory that onnxruntime reads and writes in place."""

from __future__ import annotations

import mmap
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

from llm.serve.models.folder import ModelFolder

KINDS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
NO_ROWS = np.zeros(0, np.int64)
Kept = np.ndarray  # [buffers, kv_heads, tokens, head_dim]
OWN_PAGES_BYTES = 2**17  # what is kept of a text lies in pages of its own from this size on


@dataclass(frozen=True)
class Step:
    """One shape of a step: the arrays that go in and come out, bound once."""

    ids: np.ndarray
    positions: np.ndarray
    lengths: np.ndarray
    longest: np.ndarray
    logits: np.ndarray
    binding: ort.IOBinding


class Slots:
    """The model over `slots` texts of up to `capacity` tokens. For one thread at a time.

    Memory is taken as texts grow. With `gives_back`, what a text took is given back to the system when it leaves its slot.
    """

    def __init__(self, session: ort.InferenceSession, folder: ModelFolder, *, slots: int, capacity: int, gives_back: bool = False) -> None:
        self.gives_back, self.capacity, self.vocab_size, self._session = gives_back, capacity, folder.vocab_size, session
        self._names, self._kind = _caches(session)
        hidden = next(value for value in self._session.get_outputs() if value.name == "hidden")
        self.width, self._hidden_kind = hidden.shape[2], KINDS[hidden.type]
        shape = (slots, folder.num_kv_heads, capacity, folder.head_dim)
        self._memory = [_memory(shape, self._kind) for _ in self._names]
        self._buffers: list[np.ndarray] = [np.frombuffer(memory, self._kind).reshape(shape) for memory in self._memory]
        self._logits = np.empty((slots, self.vocab_size), np.float32)
        self._steps: dict[int, Step] = {}

    @property
    def memory_bytes(self) -> int:
        """What the keys and values of all slots may come to take."""
        return sum(len(memory) for memory in self._memory)

    def decode(self, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Append a token to each of the first slots, after `lengths` tokens; logits [batch, vocabulary], valid until the next call."""
        step = self._steps.get(len(ids)) or self._steps.setdefault(len(ids), self._decoding(len(ids)))
        step.ids[:, 0], step.positions[:, 0], step.lengths[:], step.longest[()] = ids, lengths, lengths, lengths.max() + 1
        self._session.run_with_iobinding(step.binding)
        return step.logits

    def read(self, slot: int, ids: list[int], start: int, *, rows: np.ndarray = NO_ROWS) -> np.ndarray:
        """Write tokens into a slot from place `start` on; logits [len(rows), vocabulary] after those of them that `rows` names."""
        return self._read(slot, ids, start, rows, "logits", np.empty((len(rows), self.vocab_size), np.float32))

    def hidden(self, slot: int, ids: list[int], start: int) -> np.ndarray:
        """What the head would read, [len(ids), width], of tokens that are written into a slot."""
        return self._read(slot, ids, start, NO_ROWS, "hidden", np.empty((1, len(ids), self.width), self._hidden_kind))[0].astype(np.float32)

    def _read(self, slot: int, ids: list[int], start: int, rows: np.ndarray, output: str, answer: np.ndarray) -> np.ndarray:
        count = len(ids)
        inputs: dict[str, np.ndarray] = {
            "input_ids": np.array([ids], np.int64),
            "position_ids": np.arange(start, start + count, dtype=np.int64)[None],
            "seqlens_k": np.array([start + count - 1], np.int32),
            "total_sequence_length": np.array(start + count, np.int32),
            "logit_rows": rows,
        }
        binding = self._bound(inputs, slot, 1)
        if answer.size:
            _bind_output(binding, output, answer)
        self._session.run_with_iobinding(binding)
        return answer

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Let `target` hold the first tokens of `source`."""
        for buffer in self._buffers:
            buffer[target, :, :tokens] = buffer[source, :, :tokens]

    def reorder(self, sources: list[int], start: int, end: int) -> None:
        """Let slot i go on from place `start` as slot sources[i] does."""
        for buffer in self._buffers:
            buffer[: len(sources), :, start:end] = buffer[sources, :, start:end]

    def move(self, source: int, target: int, tokens: int) -> None:
        """Let `target` hold the first tokens of `source`, which holds none from then on."""
        self.free(target)
        self.copy(source, target, tokens)
        self.free(source)

    def swap(self, one: int, one_tokens: int, other: int, other_tokens: int) -> None:
        """Exchange the first tokens of two slots."""
        kept = self.keep(one, one_tokens)
        self.move(other, one, other_tokens)
        self.restore(other, kept, one_tokens)

    def free(self, slot: int) -> None:
        """The text in this slot is over: with `gives_back`, its memory goes back to the system, save pages shared with a neighbour."""
        if not self.gives_back:
            return
        for memory, buffer in zip(self._memory, self._buffers, strict=True):
            size = buffer[slot].nbytes
            first, end = -(-slot * size // mmap.PAGESIZE) * mmap.PAGESIZE, (slot + 1) * size // mmap.PAGESIZE * mmap.PAGESIZE
            if first < end:
                memory.madvise(mmap.MADV_DONTNEED, first, end - first)

    def keep(self, slot: int, tokens: int) -> Kept:
        """A copy of a slot's first tokens, whose pages go back to the system with it: on the heap, texts that come and go leave gaps."""
        parts = [buffer[slot, :, :tokens] for buffer in self._buffers]
        shape = (len(parts), *parts[0].shape)
        if len(parts) * parts[0].nbytes < OWN_PAGES_BYTES:
            return np.stack(parts)
        return np.stack(parts, out=np.frombuffer(_memory(shape, self._kind), self._kind).reshape(shape))

    def restore(self, slot: int, kept: Kept, tokens: int) -> None:
        """Let a slot begin with tokens that were kept."""
        for buffer, part in zip(self._buffers, kept, strict=True):
            buffer[slot, :, :tokens] = part[:, :tokens]

    def _decoding(self, batch: int) -> Step:
        ids, positions = (np.zeros((batch, 1), np.int64) for _ in range(2))
        lengths, longest, logits = np.zeros(batch, np.int32), np.zeros((), np.int32), self._logits[:batch]
        inputs: dict[str, np.ndarray] = {
            "input_ids": ids,
            "position_ids": positions,
            "seqlens_k": lengths,
            "total_sequence_length": longest,
        }
        binding = self._bound(inputs | {"logit_rows": np.arange(batch)}, 0, batch)
        _bind_output(binding, "logits", logits)
        return Step(ids, positions, lengths, longest, logits, binding)

    def _bound(self, inputs: dict[str, np.ndarray], slot: int, batch: int) -> ort.IOBinding:
        """A binding of `inputs` and of the buffers of `batch` slots from `slot` on, each as past and as present."""
        binding = self._session.io_binding()
        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        for name, buffer in zip(self._names, self._buffers, strict=True):
            part = buffer[slot : slot + batch]
            binding.bind_input(name, "cpu", 0, self._kind, part.shape, part.ctypes.data)
            binding.bind_output(name.replace("past_key_values", "present"), "cpu", 0, self._kind, part.shape, part.ctypes.data)
        return binding


def token_bytes(session: ort.InferenceSession, folder: ModelFolder) -> int:
    """What the keys and values of one token take."""
    names, kind = _caches(session)
    return len(names) * folder.num_kv_heads * folder.head_dim * np.dtype(kind).itemsize


def _caches(session: ort.InferenceSession) -> tuple[list[str], type]:
    """Names of the inputs that hold keys and values, and what kind of number those are."""
    caches = [value for value in session.get_inputs() if value.name.startswith("past_key_values.")]
    return [value.name for value in caches], KINDS[caches[0].type]


def _memory(shape: tuple[int, ...], kind: type) -> mmap.mmap:
    """Zeros for an array; a page takes memory when it is first written."""
    return mmap.mmap(-1, int(np.prod(shape)) * np.dtype(kind).itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _bind_output(binding: ort.IOBinding, name: str, array: np.ndarray) -> None:
    binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
