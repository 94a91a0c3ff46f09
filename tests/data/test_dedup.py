from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from llm.artifact import sha256_file
from llm.data.config import DedupConfig
from llm.data.dedup import dedup
from llm.data.document import SCHEMA, Document, read_shards, write_documents, write_shards
from llm.data.parts import Workshop
from llm.errors import DataError
from tests.data.similarity import slow
from tests.data.similarity.test_sketch import edited, family, text

CONFIG = DedupConfig(validation_share=0.15, test_share=0.15)


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
    write_shards(root / "cleaned", corpus())
    dedup(root / "cleaned", root / "out", CONFIG, Workshop(root / "parts"))
    write_shards(root / "reversed", reversed(corpus()))
    dedup(root / "reversed", root / "again", CONFIG, Workshop(root / "parts"))
    return root


def kept(folder: Path) -> dict[str, dict[str, str]]:
    return {split: {each.id: each.text for each in read_shards(folder, split)} for split in ("train", "validation", "test")}


def test_relatives_never_straddle_splits(deduped: Path) -> None:
    splits = kept(deduped / "out")
    texts = [(split, slow.shingles(body)) for split, members in splits.items() for body in members.values()]
    for (split, one), (other, two) in combinations(texts, 2):
        similarity = slow.jaccard(one, two)
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
    dedup(tmp_path / "cleaned", tmp_path / "out", CONFIG, Workshop(tmp_path / "parts"))
    before, after = kept(deduped / "out"), kept(tmp_path / "out")
    for split in before:
        assert {id: body for id, body in after[split].items() if id != "new"} == before[split]


def test_an_empty_split_names_the_setting(tmp_path: Path) -> None:
    for name in ("cleaned", "out"):
        (tmp_path / name).mkdir()
    write_shards(tmp_path / "cleaned", [Document(id=str(number), text=text(number), source="files") for number in range(3)])
    with pytest.raises(DataError, match=r"the validation split is empty.*dedup\.validation_share"):
        dedup(tmp_path / "cleaned", tmp_path / "out", DedupConfig(validation_share=0.001, test_share=0.001), Workshop(tmp_path / "parts"))


def run(folder: Path, documents: list[Document], config: DedupConfig = CONFIG, shard_bytes: int = 100_000) -> dict[str, int]:
    """The books' drops after a dedup of the documents in several shards, under FOLDER/out."""
    for name in ("cleaned", "out"):
        (folder / name).mkdir(parents=True)
    write_shards(folder / "cleaned", documents, shard_bytes=shard_bytes)
    dropped: dict[str, int] = dedup(folder / "cleaned", folder / "out", config, Workshop(folder / "parts"))["dropped"]
    return dropped


def test_the_same_decisions_whatever_the_shards(deduped: Path, tmp_path: Path) -> None:
    run(tmp_path, corpus()[::-1], shard_bytes=40_000)
    assert len(list((tmp_path / "cleaned").glob("documents-*"))) > 10
    assert kept(tmp_path / "out") == kept(deduped / "out")
    for name in ("clusters.jsonl", "books.json"):
        assert (tmp_path / "out" / name).read_bytes() == (deduped / "out" / name).read_bytes()


def test_the_dropped_are_those_of_exact_similarity(tmp_path: Path) -> None:
    """Recall and precision of what goes, against all pairs' similarity on the words themselves."""
    documents = [document for document in corpus() if not document.id.startswith("copy")]
    run(tmp_path, documents)
    survivors = {id for members in kept(tmp_path / "out").values() for id in members}
    numbers = {document.id: number for number, document in enumerate(documents)}
    twin = list(range(len(documents)))
    for i, j in slow.similar_pairs([document.text for document in documents], 0.8):
        twin = [twin[i] if each == twin[j] else each for each in twin]
    clusters = {label: [document for document in documents if twin[numbers[document.id]] == label] for label in set(twin)}
    best = {min(members, key=lambda each: (-len(each.text), each.id)).id for members in clusters.values()}
    dropped, expected = numbers.keys() - survivors, numbers.keys() - best
    assert len(expected) > 150
    assert len(dropped & expected) >= 0.99 * len(expected)
    assert len(dropped & expected) >= 0.99 * len(dropped)


def test_relatives_share_a_split_under_a_high_threshold_too(tmp_path: Path) -> None:
    """300 pairs at a similarity of about 2/3, which a stricter `threshold` neither drops nor tears apart."""
    chance = np.random.default_rng(0)
    documents = []
    for seed in range(300):
        words = text(seed).split()
        for place in chance.choice(len(words), 12, replace=False):
            words[place] = f"other{place}"
        bodies = {"a": text(seed), "b": " ".join(words)}
        documents += [Document(id=f"{seed}.{name}", text=body, source="files") for name, body in bodies.items()]
    run(tmp_path, documents, CONFIG.model_copy(update={"threshold": 0.9}))
    splits = {id: split for split, members in kept(tmp_path / "out").items() for id in members}
    assert len(splits) == 600
    assert sum(splits[f"{seed}.a"] != splits[f"{seed}.b"] for seed in range(300)) <= 3


def test_shards_are_read_as_they_were_written(deduped: Path) -> None:
    """Every field of a document that is kept survives, and a shard looks like any other shard of documents."""
    documents = {document.id: document for document in corpus()}
    for split in ("train", "validation", "test"):
        assert all(document == documents[document.id] for document in read_shards(deduped / "out", split))
        assert all(pq.read_schema(path).equals(SCHEMA) for path in (deduped / "out").glob(f"{split}-*.parquet"))


def test_an_empty_shard_among_others(tmp_path: Path) -> None:
    documents = [Document(id=str(number), text=text(number), source="files") for number in range(60)]
    for name in ("cleaned", "out"):
        (tmp_path / name).mkdir()
    for number, part in enumerate((documents[:30], [], documents[30:])):
        write_documents(tmp_path / "cleaned" / f"documents-{number:05d}.parquet", part)
    dedup(tmp_path / "cleaned", tmp_path / "out", CONFIG, Workshop(tmp_path / "parts"))
    assert sum(len(members) for members in kept(tmp_path / "out").values()) == 60


def test_exact_only_keeps_near_copies(tmp_path: Path) -> None:
    assert run(tmp_path, corpus(), CONFIG.model_copy(update={"exact_only": True})) == {"exact_duplicate": 20 + len(twins())}
    by_family: dict[str, list[tuple[str, set[Any]]]] = {}
    for split, members in kept(tmp_path / "out").items():
        for id, body in members.items():
            by_family.setdefault(id.split(".")[0], []).append((split, slow.shingles(body)))
    pairs = [pair for members in by_family.values() for pair in combinations(members, 2)]
    near = [(split, other) for (split, one), (other, two) in pairs if slow.jaccard(one, two) >= 0.5]
    assert len(near) > 100
    assert all(split == other for split, other in near)


def twins() -> list[Document]:
    """Members of the corpus's families that have the words of an earlier one."""
    seen: set[tuple[bytes, ...]] = set()
    found = []
    for document in corpus():
        words = tuple(slow.words(document.text))
        if words in seen and not document.id.startswith("copy"):
            found.append(document)
        seen.add(words)
    return found


def test_of_thirty_thousand_equal_texts_one_survives(tmp_path: Path) -> None:
    copies = [
        Document(id=f"{number:06d}", text="The same words, again and again: nothing else.", source="files") for number in range(30_000)
    ]
    others = [Document(id=f"other{number}", text=text(number), source="files") for number in range(60)]
    assert run(tmp_path, [*copies, *others], shard_bytes=500_000) == {"exact_duplicate": 29_999}
    assert "000000" in {id for members in kept(tmp_path / "out").values() for id in members}


def test_of_thousands_of_nearly_equal_texts_one_survives(tmp_path: Path) -> None:
    """A crowd in every band: each text differs from all others in one word of 300."""
    crowd = [Document(id=f"{number:05d}", text=edited(text(0), 0.003, number) + f" end{number}", source="files") for number in range(3_000)]
    others = [Document(id=f"other{number}", text=text(number + 1), source="files") for number in range(60)]
    dropped = run(tmp_path, [*crowd, *others], shard_bytes=1_000_000)
    assert sum(dropped.values()) == 2_999


def test_one_huge_document_and_its_copy(tmp_path: Path) -> None:
    """5 MB of text, 5 MB without any blank, and near copies of both."""
    chance = np.random.default_rng(0)
    prose = " ".join(map(str, chance.integers(100_000, size=800_000)))
    solid = "".join(map(str, chance.integers(10**9, size=500_000)))
    huge = {"prose": prose, "prose copy": prose[:-50_000] + " and another end", "solid": solid, "solid copy": solid[:-50_000] + "!"}
    others = [Document(id=str(number), text=text(number), source="files") for number in range(60)]
    assert run(tmp_path, [*(Document(id=id, text=body, source="files") for id, body in huge.items()), *others]) == {"near_duplicate": 2}
    assert {"prose", "solid"} < {id for members in kept(tmp_path / "out").values() for id in members}


def test_the_next_night_sketches_new_shards_only(tmp_path: Path) -> None:
    """A longer corpus: what is known is found again, and the result is that of a run from nothing."""
    made: list[str] = []

    def watched(function, items):  # type: ignore[no-untyped-def]
        made.extend(Path(shard).name for _, shard in items if isinstance(shard, str))
        return map(function, items)

    (tmp_path / "cleaned").mkdir()
    write_shards(tmp_path / "cleaned", corpus(), shard_bytes=200_000)
    for night in ("first", "second"):
        (tmp_path / night).mkdir()
        dedup(tmp_path / "cleaned", tmp_path / night, CONFIG, Workshop(tmp_path / "parts", spread=watched))
        new = [Document(id=f"new{number}", text=edited(text(number + 1000), 0.02, number), source="files") for number in range(30)]
        write_documents(tmp_path / "cleaned" / "documents-99999.parquet", new)
        if night == "first":
            made.clear()
    assert made == ["documents-99999.parquet"]
    (tmp_path / "fresh").mkdir()
    write_documents(tmp_path / "cleaned" / "documents-99999.parquet", new)
    dedup(tmp_path / "cleaned", tmp_path / "fresh", CONFIG, Workshop(tmp_path / "other parts"))
    names = [path.name for path in sorted((tmp_path / "fresh").iterdir())]
    assert [sha256_file(tmp_path / "second" / name) for name in names] == [sha256_file(tmp_path / "fresh" / name) for name in names]


def test_a_family_stays_in_its_split_when_longer_members_join(tmp_path: Path) -> None:
    """Of 200 families that a longer member joins, few move: that one only leads where its hash is the smallest."""
    families = [
        Document(id=f"{seed}.{n}", text=member, source="files") for seed in range(200) for n, member in enumerate(family(seed)[-3:])
    ]
    longer = [Document(id=f"{seed}.longer", text=edited(text(seed), 0.03, seed) + " and more", source="files") for seed in range(200)]
    run(tmp_path / "before", families)
    run(tmp_path / "after", families + longer)
    before, after = (
        {id.split(".")[0]: split for split, ids in kept(tmp_path / each / "out").items() for id in ids} for each in ("before", "after")
    )
    assert sum(before[seed] != after[seed] for seed in before) < 40
