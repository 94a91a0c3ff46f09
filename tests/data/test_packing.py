from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data.packing import Packing, Pieces, alone, best_fit, by_group, concatenated, write_mask, write_tokens
from llm.data.rows import BOS, IGNORED, Rows

EOS = 2
LENGTHS = st.lists(st.integers(1, 70), min_size=1, max_size=60).map(np.array)
ROW_TOKENS = st.integers(2, 40)


def documents_of(lengths: np.ndarray) -> list[np.ndarray]:
    """BOS, numbers that tell document and place, EOS."""
    texts = [1000 * (number + 1) + np.arange(length) for number, length in enumerate(lengths.tolist())]
    for text in texts:
        text[-1], text[0] = EOS, BOS
    return texts


def written(pieces: Pieces, documents: list[np.ndarray], row_tokens: int, folder: Path, *, masked: bool = True) -> Rows:
    write_tokens(folder / "tokens", pieces, row_tokens, "<u4", EOS, lambda document, start, end: documents[document][start:end])
    mask = None
    if masked:
        write_mask(folder / "mask", pieces, row_tokens)
        mask = np.fromfile(folder / "mask", dtype=np.uint8)
    return Rows(np.fromfile(folder / "tokens", dtype="<u4"), mask, row_tokens, 100_000)


def obvious_best_fit(lengths: list[int], row_tokens: int) -> int:
    """Rows that best-fit-decreasing takes, by looking at every row."""
    pieces = [row_tokens] * sum(length // row_tokens for length in lengths) + [length % row_tokens for length in lengths]
    rooms: list[int] = []
    for piece in sorted(filter(None, pieces), reverse=True):
        fitting = [row for row, room in enumerate(rooms) if room >= piece]
        if fitting:
            rooms[min(fitting, key=lambda row: rooms[row])] -= piece
        else:
            rooms.append(row_tokens - piece)
    return len(rooms)


def check_cover(pieces: Pieces, lengths: np.ndarray) -> None:
    """Every token of every document stands in exactly one place, in the order of the stream."""
    seen = [np.zeros(length, int) for length in lengths]
    taken = np.zeros(int((pieces.places + pieces.lengths).max()), int)
    for document, start, length, place in zip(pieces.documents, pieces.starts, pieces.lengths, pieces.places, strict=True):
        seen[document][start : start + length] += 1
        taken[place : place + length] += 1
    assert all((each == 1).all() for each in seen)
    assert taken.max() == 1
    assert (np.diff(pieces.places) > 0).all()


@given(LENGTHS, ROW_TOKENS)
def test_packed_rows_hold_every_token_once_and_cut_only_what_is_too_long(lengths: np.ndarray, row_tokens: int) -> None:
    pieces = best_fit(lengths, row_tokens)
    check_cover(pieces, lengths)
    assert (pieces.places // row_tokens == (pieces.places + pieces.lengths - 1) // row_tokens).all()  # in one row each
    assert pieces.cut_documents(row_tokens) == (lengths > row_tokens).sum()
    inside = pieces.places % row_tokens > 0
    assert (pieces.starts[inside] == 0).all()  # behind another document only a BOS begins
    assert set(pieces.places // row_tokens) == set(range(pieces.rows))
    assert pieces.padding_tokens(row_tokens) == pieces.rows * row_tokens - lengths.sum()
    leaders = [pieces.documents[pieces.places // row_tokens == row].min() for row in range(pieces.rows)]
    assert leaders == sorted(leaders)


@given(LENGTHS, ROW_TOKENS)
def test_it_takes_as_many_rows_as_looking_at_each(lengths: np.ndarray, row_tokens: int) -> None:
    assert best_fit(lengths, row_tokens).rows == obvious_best_fit(lengths.tolist(), row_tokens)


@given(LENGTHS, ROW_TOKENS, st.sampled_from(("concatenate", "best_fit")), st.data())
def test_groups_stand_together(lengths: np.ndarray, row_tokens: int, packing: Packing, data: st.DataObject) -> None:
    drawn = data.draw(st.lists(st.integers(0, 3), min_size=len(lengths), max_size=len(lengths)))
    groups = np.unique(drawn, return_inverse=True)[1]
    pieces = by_group(packing, lengths, groups, row_tokens)
    check_cover(pieces, lengths)
    assert (np.diff(groups[pieces.documents]) >= 0).all()
    by_row = [groups[pieces.documents[pieces.places <= row * row_tokens][-1]] for row in range(pieces.rows)]
    count = int(groups.max()) + 1
    assert pieces.rows_by(groups, count, row_tokens).tolist() == np.bincount(np.array(by_row, int), minlength=count).tolist()
    if packing == "best_fit":
        assert pieces.rows == sum(best_fit(lengths[groups == group], row_tokens).rows for group in range(count))


@settings(max_examples=40)
@given(lengths=st.lists(st.integers(2, 40), min_size=1, max_size=30).map(np.array), row_tokens=st.integers(4, 16))
def test_what_counts_in_packed_rows_is_every_token_that_stands_behind_the_one_before_it(
    tmp_path_factory: pytest.TempPathFactory, lengths: np.ndarray, row_tokens: int
) -> None:
    documents = documents_of(lengths)
    rows = written(best_fit(lengths, row_tokens), documents, row_tokens, tmp_path_factory.mktemp("packed"))
    inputs, targets = rows.batch(np.arange(len(rows)))
    follower = {(int(a), int(b)) for document in documents for a, b in itertools.pairwise(document)}
    counted = targets != IGNORED
    assert set(zip(inputs[counted].tolist(), targets[counted].tolist(), strict=True)) <= follower
    assert BOS not in targets[counted]
    cuts = sum(math.ceil(length / row_tokens) - 1 for length in lengths.tolist())
    assert sum(lengths) - len(lengths) - cuts <= counted.sum() <= sum(lengths) - len(lengths)


def test_the_concatenated_stream_is_the_documents(tmp_path: Path) -> None:
    lengths = np.array([5, 3, 9, 2])
    documents = documents_of(lengths)
    pieces = concatenated(lengths, 4)
    rows = written(pieces, documents, 4, tmp_path, masked=False)
    assert rows.tokens.tolist() == np.concatenate(documents).tolist()
    assert (len(rows), pieces.rows, pieces.cut_documents(4), pieces.padding_tokens(4)) == (4, 4, 2, 0)


def test_rows_of_one_document_end_in_padding(tmp_path: Path) -> None:
    lengths = np.array([3, 4])
    rows = written(alone(lengths, 4), documents_of(lengths), 4, tmp_path)
    inputs, targets = rows.batch(np.arange(2))
    assert inputs.tolist() == [[BOS, 1001, EOS, EOS], [BOS, 2001, 2002, EOS]]
    assert targets.tolist() == [[1001, EOS, IGNORED, IGNORED], [2001, 2002, EOS, IGNORED]]


def test_packing_wastes_little_and_cuts_less_than_concatenation() -> None:
    """On lengths as of web pages (log-normal), rows of 2,048; the paper reports less than 0.01 % at millions of documents."""
    lengths = np.clip(np.random.default_rng(0).lognormal(6, 1.2, 20_000).astype(np.int64), 10, 100_000)
    packed, plain = best_fit(lengths, 2048), concatenated(lengths, 2048)
    assert packed.padding_tokens(2048) / (packed.rows * 2048) < 0.001
    assert packed.cut_documents(2048) == (lengths > 2048).sum()
    assert plain.cut_documents(2048) > 3 * packed.cut_documents(2048)
