"""The words of many texts at once, as numbers: arrays over bytes, no Python per text or word."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

LONGEST_WORD_BYTES = 64
PIECE_BYTES = 1 << 19

_BLANK, _WORD, _MARK, _LEAD, _TAIL = range(5)
_lead_bytes = {*range(0xE2, 0xEA), *range(0xEF, 0xF5)}  # U+2000-9FFF, U+F000-10FFFF
_leads_by_second = {0xE0: range(0xB8, 0xC0), 0xE1: (0x80, 0x81, 0x9E, 0x9F)}  # U+0E00-0FFF; U+1000-107F, U+1780-17FF


def _kind(byte: int) -> int:
    if byte >= 0x80:
        return _LEAD if byte in _lead_bytes else _WORD
    if byte <= 0x20 or byte == 0x7F:
        return _BLANK
    return _WORD if chr(byte).isalnum() or chr(byte) == "_" else _MARK


_KINDS = bytes(map(_kind, range(256)))
_MASKS = np.array([2 ** (8 * count) - 1 for count in range(9)], np.uint64)  # of a number's first bytes


@dataclass(frozen=True)
class Words:
    """Hashes of the words of several texts in a row; text t has `hashes[borders[t] : borders[t + 1]]`."""

    hashes: NDArray[np.uint64]
    borders: NDArray[np.int64]


def words(texts: pa.Array) -> Words:
    """Words and single marks of lower-cased texts: what two copies of a text, or of a program, have in common.

    A word is a run of letters, digits and `_`, cut after 64 bytes. Every character of a script that is written without
    spaces (Han, kana, Thai, Lao, Khmer, Burmese …) and every symbol from U+2000 on, emoji included, stands alone.
    Unlike the `\\w` of a regular expression, all other characters from U+0080 to U+1FFF count as letters, so that « and the
    no-break space belong to the word beside them; and all ASCII control characters are blanks.
    """
    data, offsets = bytes_of(pc.utf8_lower(texts))
    kinds = _kinds(data)
    borders = kinds == _MARK  # where a word, a mark or a run of blanks begins
    borders[1:] |= (kinds[1:] != kinds[:-1]) & (kinds[1:] != _TAIL)
    borders[offsets[:-1][np.diff(offsets) > 0]] = True
    starts, found = [], []
    for first, last in pairwise(_pieces(borders)):
        places = np.flatnonzero(borders[first:last])
        filled = kinds[first:last][places] != _BLANK
        begins, lengths = _cut(places[filled], np.append(places[1:], last - first)[: len(places)][filled])
        starts.append(begins + first)
        found.append(hashes(data[first:last], begins, lengths))
    return Words(np.concatenate(found), np.searchsorted(np.concatenate(starts), offsets))


def hashes(data: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Hash of each stretch of bytes, eight bytes after eight."""
    eights = np.ndarray(len(data) + 1, "<u8", np.append(data, np.zeros(8, np.uint8)).data, 0, (1,))  # at every byte the next eight
    found = _scramble(eights[starts] & _MASKS[np.minimum(lengths, 8)])
    at = np.flatnonzero(lengths > 8)
    offset = 8
    while at.size:
        following = eights[starts[at] + offset] & _MASKS[np.minimum(lengths[at] - offset, 8)]
        found[at] = _scramble(found[at] ^ following)
        offset += 8
        at = at[lengths[at] > offset]
    return found


def bytes_of(texts: pa.Array) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """UTF-8 of all texts in a row, and where each begins and the last ends."""
    _, offsets, data = texts.buffers()
    if not len(texts) or data is None:
        return np.empty(0, np.uint8), np.zeros(len(texts) + 1, np.int64)
    borders = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    return np.frombuffer(data, np.uint8)[borders[0] : borders[-1]], borders - borders[0]


def _kinds(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What each byte is: a blank, part of a word, a mark (a character that stands alone), or the rest of such a character."""
    kinds = np.frombuffer(bytearray(data).translate(_KINDS), np.uint8)
    if not data.size or data.max() < 0x80:
        return kinds
    for lead, seconds in _leads_by_second.items():
        at = np.flatnonzero(data == lead)
        kinds[at[np.isin(data[at + 1], list(seconds))]] = _LEAD
    leads = np.flatnonzero(kinds == _LEAD)
    kinds[leads] = _MARK
    for place in (1, 2):
        kinds[leads + place] = _TAIL
    kinds[leads[data[leads] >= 0xF0] + 3] = _TAIL
    return kinds


def _pieces(borders: NDArray[np.bool_]) -> list[int]:
    """Cuts at every so many bytes, each where a word begins: a huge text is worked on as far as the cache reaches."""
    windows = ((start, borders[start : start + PIECE_BYTES]) for start in range(PIECE_BYTES, len(borders), PIECE_BYTES))
    return [0, *(start + int(window.argmax()) for start, window in windows if window.any()), len(borders)]


def _cut(starts: NDArray[np.int64], ends: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Starts and lengths of words, long ones in pieces."""
    lengths = ends - starts
    if not lengths.size or lengths.max() <= LONGEST_WORD_BYTES:
        return starts, lengths
    pieces = -(-lengths // LONGEST_WORD_BYTES)
    number = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    starts = np.repeat(starts, pieces) + LONGEST_WORD_BYTES * number
    return starts, np.minimum(np.repeat(ends, pieces) - starts, LONGEST_WORD_BYTES)


def _scramble(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Bits of each number spread, in place: multiply, shift, multiply, shift, as in the finaliser of SplitMix64."""
    x *= np.uint64(0x9E3779B97F4A7C15)
    x ^= x >> np.uint64(29)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(32)
    return x
