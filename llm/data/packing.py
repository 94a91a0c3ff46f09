"""How documents are laid into rows: one after the other, or packed so that none is cut that fits into a row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Packing = Literal["concatenate", "best_fit"]
Numbers = NDArray[np.int64]
Read = Callable[[int, int, int], NDArray[Any]]  # a document's tokens, or their mask, from a first to before a last one

LISTED = 65_536  # pieces that are Python numbers at a time


@dataclass(frozen=True)
class Pieces:
    """Runs of documents in the order in which a stream of rows holds them.

    Shapes: all P. Of document `documents[i]`, `lengths[i]` tokens from `starts[i]` on stand at `places[i]` of the stream.
    """

    documents: Numbers
    starts: Numbers
    lengths: Numbers
    places: Numbers
    rows: int

    def follow(self) -> NDArray[np.bool_]:
        """Whether a piece goes on in the stream where its document was cut."""
        ends, place_ends = self.starts + self.lengths, self.places + self.lengths
        same = (self.documents[1:] == self.documents[:-1]) & (self.starts[1:] == ends[:-1]) & (self.places[1:] == place_ends[:-1])
        return np.concatenate((np.zeros(min(1, len(ends)), bool), same))

    def borders(self) -> Numbers:
        """Where each document begins in the stream, in the order of the documents."""
        begin = self.starts == 0
        return self.places[begin][np.argsort(self.documents[begin])]

    def cut_documents(self, row_tokens: int) -> int:
        """Documents that no row holds whole."""
        crossing = self.places // row_tokens != (self.places + self.lengths - 1) // row_tokens
        return len(np.unique(self.documents[crossing | (self.starts > 0)]))

    def padding_tokens(self, row_tokens: int) -> int:
        """Tokens that only fill rows up."""
        return max(0, self.rows * row_tokens - int(self.lengths.sum()))

    def rows_by(self, groups: Numbers, count: int, row_tokens: int) -> Numbers:
        """Rows of each of `count` groups, given the group of each document: a row belongs to the one that it begins in."""
        first = np.searchsorted(self.places, np.arange(self.rows) * row_tokens, side="right") - 1
        return np.bincount(groups[self.documents[first]], minlength=count)


def concatenated(lengths: Numbers, row_tokens: int) -> Pieces:
    """Documents one after the other, running on over the ends of rows; a rest that fills no row is never read."""
    ends = np.cumsum(lengths)
    rows = max(0, int(lengths.sum()) - 1) // row_tokens  # each needs one token more, its last target
    return Pieces(np.arange(len(lengths)), np.zeros_like(lengths), lengths, ends - lengths, rows)


def alone(lengths: Numbers, row_tokens: int) -> Pieces:
    """A row for each document; all must fit."""
    number = np.arange(len(lengths))
    return Pieces(number, np.zeros_like(lengths), lengths, number * row_tokens, len(lengths))


def best_fit(lengths: Numbers, row_tokens: int) -> Pieces:
    """Rows that hold every document whole that fits into one; a longer one is cut into a head and whole rows.

    Longest first, each goes into the fullest row with room for it. Of a long document the head shares a row, since it
    has the BOS: so in a row every document but the first begins with one, and a mask by BOS tells them apart. Rows come
    in the order of their first documents.

    Source: best-fit-decreasing packing, https://arxiv.org/abs/2404.10830, section 3.
    Example:
        >>> pieces = best_fit(np.array([5, 3, 9, 2]), 8)
        >>> pieces.documents.tolist(), pieces.places.tolist(), pieces.rows
        ([0, 1, 2, 3, 2], [0, 5, 8, 9, 16], 3)
    """
    heads = np.where(lengths <= row_tokens, lengths, lengths % row_tokens)
    whole = (lengths - heads) // row_tokens
    sharing = np.flatnonzero(heads)
    bins = _fitted(heads[sharing].tolist(), row_tokens)
    first = np.full(len(sharing), len(lengths))
    np.minimum.at(first, bins, sharing)  # of each bin, the first document

    documents = np.concatenate((sharing, np.repeat(np.arange(len(lengths)), whole)))
    turns = np.concatenate((np.zeros_like(sharing), np.arange(whole.sum()) - np.repeat(np.cumsum(whole) - whole, whole) + 1))
    leaders = np.concatenate((first[bins], documents[len(sharing) :]))  # with the turn, they name the row
    order = np.lexsort((documents, turns, leaders))
    documents, turns, leaders = documents[order], turns[order], leaders[order]

    starts = np.where(turns > 0, heads[documents] + (turns - 1) * row_tokens, 0)
    sizes = np.where(turns > 0, row_tokens, heads[documents])
    opens = np.ones(len(order), bool)
    opens[1:] = (leaders[1:] != leaders[:-1]) | (turns[1:] != turns[:-1])
    rows, before = np.cumsum(opens) - 1, np.cumsum(sizes) - sizes
    places = rows * row_tokens + before - before[opens][rows]
    return Pieces(documents, starts, sizes, places, int(opens.sum()))


def _fitted(sizes: list[int], row_tokens: int) -> Numbers:
    """A row for each size. Bit r of `rooms` says that some row has room for exactly r more tokens."""
    rows_with_room: list[list[int]] = [[] for _ in range(row_tokens + 1)]
    fitted = np.empty(len(sizes), np.int64)
    rooms = count = 0
    for item in np.argsort(-np.array(sizes, np.int64), kind="stable").tolist():
        enough = rooms >> sizes[item]
        if enough:
            room = sizes[item] + (enough & -enough).bit_length() - 1
            row = rows_with_room[room].pop()
            if not rows_with_room[room]:
                rooms ^= 1 << room
        else:
            room, row, count = row_tokens, count, count + 1
        fitted[item] = row
        if left := room - sizes[item]:
            rows_with_room[left].append(row)
            rooms |= 1 << left
    return fitted


def by_group(packing: Packing, lengths: Numbers, groups: Numbers, row_tokens: int) -> Pieces:
    """The documents of each group together, group after group.

    A packed row holds one group; of concatenated ones, a row that begins in one group may end in the next.
    """
    order = np.argsort(groups, kind="stable")
    if packing == "concatenate":
        return replace(concatenated(lengths[order], row_tokens), documents=order)
    members = np.split(order, np.cumsum(np.bincount(groups))[:-1])
    parts = [best_fit(lengths[each], row_tokens) for each in members]
    firsts = np.cumsum([0, *(part.rows for part in parts)])
    documents = [each[part.documents] for each, part in zip(members, parts, strict=True)]
    places = [part.places + first * row_tokens for part, first in zip(parts, firsts, strict=False)]
    starts, sizes = [part.starts for part in parts], [part.lengths for part in parts]
    documents_P, starts_P, sizes_P, places_P = map(np.concatenate, (documents, starts, sizes, places))
    return Pieces(documents_P, starts_P, sizes_P, places_P, int(firsts[-1]))


def write_tokens(path: Path, pieces: Pieces, row_tokens: int, dtype: str, eos: int, read: Read) -> None:
    """The stream, with `eos` where no piece stands, and one behind packed rows as the last row's last target."""
    _write(
        path, pieces, row_tokens, np.array(eos, dtype).tobytes(), lambda document, start, end, _: read(document, start, end).astype(dtype)
    )


def write_mask(path: Path, pieces: Pieces, row_tokens: int, read: Read | None = None) -> None:
    """For each token of the stream 1 if it is a target that counts: as `read` says, or whatever its document foretells.

    So neither padding counts nor the first token of a piece, unless it stands behind the token that it follows.
    """

    def foretold(document: int, start: int, end: int, follows: int) -> NDArray[Any]:
        counts = read(document, start, end).astype(np.uint8) if read else np.ones(end - start, np.uint8)
        counts[0] &= follows
        return counts

    _write(path, pieces, row_tokens, b"\0", foretold)


def _write(path: Path, pieces: Pieces, row_tokens: int, padding: bytes, run: Callable[[int, int, int, int], NDArray[Any]]) -> None:
    position = 0
    with path.open("wb") as file:
        for document, start, length, place, follows in _listed(pieces):
            file.write(padding * (place - position))
            file.write(run(document, start, start + length, follows).tobytes())
            position = place + length
        file.write(padding * (pieces.rows * row_tokens + 1 - position))


def _listed(pieces: Pieces) -> Iterator[list[int]]:
    """Each piece as Python's numbers."""
    table = np.stack((pieces.documents, pieces.starts, pieces.lengths, pieces.places, pieces.follow()), axis=1)
    for first in range(0, len(table), LISTED):
        yield from table[first : first + LISTED].tolist()
