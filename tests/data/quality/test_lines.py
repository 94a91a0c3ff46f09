from __future__ import annotations

import itertools
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data.document import KEEP, Document, Verdict
from llm.data.quality import lines
from llm.data.quality.config import RepeatsConfig
from llm.data.quality.lines import count, frequent, keys, without_repeats
from llm.data.steps import Edited

MENU, NOTICE = "Home, news, sport and weather", "All rights reserved, 2024"
HEAVY = RepeatsConfig(min_documents=2, min_characters=1)
Corpus = list[list[Document]]  # shards of documents


def stays(document: Document) -> bool:
    """Stands for the rules of the second pass: a document with a "g" fails them."""
    return "g\n" not in document.text


def corpus(*shards: list[str]) -> Corpus:
    return [[Document(f"{s}-{d}", text, "files") for d, text in enumerate(shard)] for s, shard in enumerate(shards)]


def cleaned(shards: Corpus, config: RepeatsConfig, folder: Path) -> list[list[str]]:
    paths = [folder / f"{number}.npy" for number in range(len(shards))]
    for path, shard in zip(paths, shards, strict=True):
        np.save(path, count(shard, config, stays))
    found = frequent(paths, config) if config.min_documents else []
    return [
        [text(document, without_repeats(document, config, found[number].keepers() if found else {})) for document in shard]
        for number, shard in enumerate(shards)
    ]


def text(document: Document, outcome: Edited | Verdict) -> str:
    return outcome.document.text if isinstance(outcome, Edited) else document.text if outcome.keep else ""


def slow(shards: Corpus, config: RepeatsConfig) -> list[list[str]]:
    """The definition, on all texts at once: who of those that stay has a line first, and how many have it."""
    owners: dict[str, list[str]] = defaultdict(list)
    keepers: dict[str, str] = {}
    for document in itertools.chain(*shards):
        for line in dict.fromkeys(document.text.split("\n")):
            owners[line].append(document.id)
            if stays(document):
                keepers.setdefault(line, document.id)
    left = []
    for shard in shards:
        left.append([])
        for document in shard:
            kept: list[str] = []
            for line in document.text.rstrip("\n").split("\n"):
                often = len(owners[line]) >= (config.min_documents or np.inf)
                may_stay = config.keep_first and keepers.get(line) == document.id and line not in kept
                if not often or may_stay:
                    kept.append(line)
            left[-1].append("\n".join(kept) + "\n" if kept else "")
    return left


def test_the_first_document_keeps_a_line(tmp_path: Path) -> None:
    shards = corpus([f"{MENU}\nOne.\n", f"{MENU}\nTwo.\n"], [f"Three.\n{NOTICE}\n", f"{NOTICE}\n{MENU}\nFour.\n{MENU}\n"])
    config = RepeatsConfig(min_documents=2)
    assert cleaned(shards, config, tmp_path) == [[f"{MENU}\nOne.\n", "Two.\n"], [f"Three.\n{NOTICE}\n", "Four.\n"]]
    nobody = RepeatsConfig(min_documents=2, keep_first=False)
    assert cleaned(shards, nobody, tmp_path) == [["One.\n", "Two.\n"], ["Three.\n", "Four.\n"]]
    three = RepeatsConfig(min_documents=3)
    assert cleaned(shards, three, tmp_path) == [[f"{MENU}\nOne.\n", "Two.\n"], [f"Three.\n{NOTICE}\n", f"{NOTICE}\nFour.\n"]]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.lists(st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=4), max_size=4), min_size=1, max_size=4),
    st.integers(2, 4),
    st.booleans(),
)
def test_as_in_the_definition(tmp_path_factory: pytest.TempPathFactory, drawn: list[list[list[str]]], k: int, keep_first: bool) -> None:
    shards = corpus(*(["\n".join(document) + "\n" for document in shard] for shard in drawn))
    config = RepeatsConfig(min_documents=k, min_characters=1, keep_first=keep_first)
    assert cleaned(shards, config, tmp_path_factory.mktemp("counts")) == slow(shards, config)


def test_ranges_of_hashes_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = corpus(*([f"{chr(97 + n % 7)}\n{chr(97 + n % 5)}\n{chr(97 + n)}\n" for n in range(start, start + 9)] for start in (0, 6, 15)))
    whole = cleaned(shards, HEAVY, tmp_path)
    monkeypatch.setattr(lines, "RANGE_ROWS", 3)
    assert cleaned(shards, HEAVY, tmp_path) == whole == slow(shards, HEAVY)


def test_only_what_a_shard_holds_is_told_to_it(tmp_path: Path) -> None:
    shards = corpus([f"{MENU}\nOne.\n"], [f"{MENU}\nTwo.\n", f"{NOTICE}\n"], [f"{NOTICE}\n"], ["Nothing of it.\n"])
    paths = [tmp_path / f"{number}.npy" for number in range(4)]
    config = RepeatsConfig(min_documents=2)
    for path, shard in zip(paths, shards, strict=True):
        np.save(path, count(shard, config, stays))
    assert [len(each.units) for each in frequent(paths, config)] == [1, 2, 1, 0]


def test_within_a_document_the_first_stays() -> None:
    page = Document("a", f"{MENU}\nOne.\n\n{MENU}\n\nTwo.\n{MENU.upper()}!\nOne.\n", "files")
    outcome = without_repeats(page, RepeatsConfig(within_documents=True), {})
    assert isinstance(outcome, Edited)
    assert outcome.document.text == f"{MENU}\nOne.\n\nTwo.\nOne.\n"  # "One." is too short to count
    assert outcome.edits == {"repeated_lines": 2}
    assert without_repeats(page, RepeatsConfig(), {}) == KEEP
    assert without_repeats(Document("a", f"{MENU}\n" * 3, "files", domain="code"), RepeatsConfig(within_documents=True), {}) == KEEP


def test_paragraphs() -> None:
    config = RepeatsConfig(unit="paragraph", within_documents=True)
    page = Document("a", f"{MENU}\nOne.\n\n{MENU}\n---\n\n{MENU}\nOne.\n\n---\n", "files")
    outcome = without_repeats(page, config, {})
    assert isinstance(outcome, Edited)
    assert outcome.document.text == f"{MENU}\nOne.\n\n{MENU}\n---\n\n---\n"
    assert outcome.edits == {"repeated_paragraphs": 1}


def test_what_counts_as_equal() -> None:
    config = RepeatsConfig(min_characters=5)
    same = keys("Copyright 2024: Café!\ncopyright  1999 cafe\nCOPYRIGHT, 2000 – CAFE\u0301\nCopyright 24 cafe\nabc", config)
    assert same[0] == same[1] == same[2] != same[3]
    assert same[4] == 0
