from __future__ import annotations

import json
import random
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from datasketch import MinHash

from llm.data.config import DedupConfig
from llm.data.dedup import dedup
from llm.data.document import Document, read_shards, write_shards
from llm.data.parts import Workshop
from llm.data.similarity import NEIGHBOURS, _proposals, jaccard, roots, shingles, signature, similar_pairs, words
from llm.errors import DataError

WORDS = [f"word{number}" for number in range(2000)]


def text(seed: int, length: int = 300) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=length))


def edited(original: str, share: float, seed: int) -> str:
    """The text with this share of its words replaced."""
    chance = random.Random(seed)
    return " ".join(chance.choice(WORDS) if chance.random() < share else word for word in original.split())


def family(seed: int) -> list[str]:
    """A text and copies at every distance."""
    return [edited(text(seed), share, seed) for share in (0, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12)]


def exact_jaccard(a: str, b: str, size: int) -> float:
    """The definition, on tuples of words."""
    first, second = ({tuple(each.split()[i : i + size]) for i in range(len(each.split()) - size + 1)} for each in (a, b))
    return len(first & second) / len(first | second)


TEXTS = [member for seed in range(12) for member in family(seed)]
SETS = [shingles(words(each), 5) for each in TEXTS]


def test_hashed_shingles_have_the_similarity_of_the_words_themselves() -> None:
    for i, j in list(combinations(range(18), 2)):
        assert jaccard(SETS[i], SETS[j]) == pytest.approx(exact_jaccard(TEXTS[i], TEXTS[j], 5), abs=1e-12)


def test_pairs_have_full_precision_and_nearly_full_recall() -> None:
    truth = {(i, j): jaccard(SETS[i], SETS[j]) for i, j in combinations(range(len(SETS)), 2)}
    found = {(i, j): similarity for i, j, similarity in similar_pairs(SETS, threshold=0.8, at_least=0.5, permutations=128)}
    assert all(truth[pair] == similarity >= 0.5 for pair, similarity in found.items())
    near, alike = ([pair for pair, similarity in truth.items() if similarity >= least] for least in (0.8, 0.5))
    assert len(near) > 50
    assert sum(pair in found for pair in near) >= 0.99 * len(near)
    assert sum(pair in found for pair in alike) >= 0.9 * len(alike)


def test_signatures_estimate_similarity_as_well_as_datasketch() -> None:
    def reference(each: Sequence[int]) -> MinHash:
        minhash = MinHash(num_perm=128)
        minhash.update_batch([int(value).to_bytes(8, "little") for value in each])
        return minhash

    chosen = range(27)
    ours = {i: signature(SETS[i], 128) for i in chosen}
    theirs = {i: reference(SETS[i].tolist()) for i in chosen}
    errors = [
        (np.mean(ours[i] == ours[j]) - jaccard(SETS[i], SETS[j]), theirs[i].jaccard(theirs[j]) - jaccard(SETS[i], SETS[j]))
        for i, j in combinations(chosen, 2)
    ]
    our_error, their_error = np.sqrt(np.mean(np.square(errors), axis=0))
    assert our_error < max(1.5 * their_error, 0.03)


def test_roots_join_chains_whatever_their_order() -> None:
    pairs = [(i, i + 1) for i in range(50)] + [(60, 70), (70, 65)]
    random.Random(0).shuffle(pairs)
    expected = [0] * 51 + list(range(51, 71))
    expected[65] = expected[70] = 60
    assert roots(71, pairs) == expected


def test_crowded_buckets_stay_linear() -> None:
    crowd = [SETS[0]] * 300
    pairs = list(similar_pairs(crowd, threshold=0.8, at_least=0.5, permutations=32))
    assert 299 <= len(pairs) <= 300 * NEIGHBOURS
    assert set(roots(300, ((i, j) for i, j, _ in pairs))) == {0}


def test_near_copies_in_a_crowd_are_proposed_whoever_stands_first() -> None:
    """200 signatures agree in the first band alone; the first is unlike the rest, which are scattered pairs of near copies."""
    random = np.random.default_rng(0)
    places = random.permutation(np.arange(1, 201)).reshape(100, 2)
    signatures = random.integers(2**32, size=(201, 16), dtype=np.uint32)
    signatures[places[:, 1]] = signatures[places[:, 0]]
    signatures[places[:, 1], 7::4] += 1  # in every band but the first, one value of a pair differs
    signatures[:, :4] = 1
    found = _proposals(signatures, rows=4)
    assert {(low, high) for low, high in np.sort(places).tolist()} <= set(found)
    assert len(found) <= 201 * NEIGHBOURS


def corpus() -> list[Document]:
    """40 families of near and looser relatives, singles, and exact copies that differ in case and blanks."""
    near = [(f"near{seed}.{n}", member) for seed in range(40) for n, member in enumerate(family(seed))]
    singles = [(f"single{seed}", text(seed + 1000)) for seed in range(200)]
    copies = [(f"copy{seed}", text(seed + 1000).upper().replace(" ", "\n")) for seed in range(20)]
    return [Document(id=id, text=body, source="files") for id, body in near + singles + copies]


@pytest.fixture(scope="module")
def deduped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dedup")
    for name in ("cleaned", "out", "reversed", "again"):
        (root / name).mkdir()
    config = DedupConfig(validation_share=0.15, test_share=0.15)
    write_shards(root / "cleaned", corpus())
    dedup(root / "cleaned", root / "out", config, Workshop(root / "parts"))
    write_shards(root / "reversed", reversed(corpus()))
    dedup(root / "reversed", root / "again", config, Workshop(root / "parts"))
    return root


def kept(folder: Path) -> dict[str, dict[str, str]]:
    return {split: {each.id: each.text for each in read_shards(folder, split)} for split in ("train", "validation", "test")}


def test_relatives_never_straddle_splits(deduped: Path) -> None:
    splits = kept(deduped / "out")
    texts = [(split, shingles(words(body), 5)) for split, members in splits.items() for body in members.values()]
    for (split, one), (other, two) in combinations(texts, 2):
        similarity = jaccard(one, two)
        assert similarity < 0.8
        assert similarity < 0.5 or split == other


def test_books_name_what_was_dropped_and_for_whom(deduped: Path) -> None:
    books = json.loads((deduped / "out" / "books.json").read_text())
    splits = kept(deduped / "out")
    assert books["splits"] == {split: len(members) for split, members in splits.items()}
    assert books["read"] == books["kept"] + sum(books["dropped"].values()) == len(corpus())
    assert books["kept"] == sum(books["splits"].values())
    assert books["dropped"]["exact_duplicate"] >= 20
    clusters = [json.loads(line) for line in (deduped / "out" / "clusters.jsonl").read_text().splitlines()]
    assert all(cluster["survivor"] in splits[cluster["split"]] for cluster in clusters)
    survivors = {id for members in splits.values() for id in members}
    assert {id for cluster in clusters for id in cluster["dropped"]} == {each.id for each in corpus()} - survivors
    assert all(f"single{number}" in survivors for number in range(20, 200))


def test_survivors_and_splits_do_not_depend_on_the_order_of_documents(deduped: Path) -> None:
    assert kept(deduped / "out") == kept(deduped / "again")
    assert (deduped / "out" / "clusters.jsonl").read_bytes() == (deduped / "again" / "clusters.jsonl").read_bytes()


def test_a_new_document_moves_no_stranger(deduped: Path, tmp_path: Path) -> None:
    for name in ("cleaned", "out"):
        (tmp_path / name).mkdir()
    write_shards(tmp_path / "cleaned", [*corpus(), Document(id="new", text=text(77_777), source="files")])
    dedup(tmp_path / "cleaned", tmp_path / "out", DedupConfig(validation_share=0.15, test_share=0.15), Workshop(tmp_path / "parts"))
    before, after = kept(deduped / "out"), kept(tmp_path / "out")
    for split in before:
        assert {id: body for id, body in after[split].items() if id != "new"} == before[split]


def test_an_empty_split_names_the_setting(tmp_path: Path) -> None:
    for name in ("cleaned", "out"):
        (tmp_path / name).mkdir()
    write_shards(tmp_path / "cleaned", [Document(id=str(number), text=text(number), source="files") for number in range(3)])
    with pytest.raises(DataError, match=r"the validation split is empty.*dedup\.validation_share"):
        dedup(tmp_path / "cleaned", tmp_path / "out", DedupConfig(validation_share=0.001, test_share=0.001), Workshop(tmp_path / "parts"))
