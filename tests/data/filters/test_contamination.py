from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from llm.data.config import LabelledSet
from llm.data.document import Document, write_shards
from llm.data.filters.config import ContaminationConfig
from llm.data.filters.contamination import report, rulings, scan
from llm.data.filters.rulings import Rulings, carry_out
from llm.data.parts import Piece, Workshop
from llm.data.steps import Edited

WORDS = [
    f"{start}{end}"
    for start in ("ba", "ko", "lu", "mi", "ne", "so", "tu", "ra")
    for end in ("bel", "dan", "gor", "len", "mus", "pit", "sel")
]
rng = random.Random(3)


def words(count: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(count))


ITEMS = [words(30), words(13), words(9), words(5)]


@pytest.fixture
def benchmark(tmp_path: Path) -> LabelledSet:
    path = tmp_path / "exam.jsonl"
    path.write_text("".join(json.dumps({"q": item, "a": "yes"}) + "\n" for item in ITEMS))
    return LabelledSet(name="exam", path=str(path), text_field="q", answer_field="a", labels=("yes", "no"))


def pieces(folder: Path, *shards: list[str]) -> list[Piece]:
    found = []
    for number, texts in enumerate(shards):
        (folder / f"s{number}").mkdir(parents=True)
        write_shards(folder / f"s{number}", [Document(f"{number}.{place}", text, "x") for place, text in enumerate(texts)])
        found.append(Piece(str(folder / f"s{number}"), [number, texts]))
    return found


def ruled(tmp_path: Path, benchmark: LabelledSet, *shards: list[str], **settings: object) -> list[Rulings]:
    config = ContaminationConfig.model_validate(settings)
    return rulings(scan(pieces(tmp_path / "shards", *shards), [benchmark], config, Workshop(tmp_path / "parts")), config)


@pytest.mark.parametrize(
    ("shared", "found"),
    [
        (" ".join(ITEMS[0].split()[5:18]), True),  # 13 words of 30
        (" ".join(ITEMS[0].split()[5:17]), False),  # 12 of them
        (ITEMS[1].upper().replace(" ", ",  "), True),  # neither case nor punctuation counts
        (ITEMS[2], True),  # a whole item of 9 words
        (" ".join(ITEMS[2].split()[:8]), False),
        (ITEMS[3], False),  # too short to be looked for
    ],
)
def test_runs_of_words_are_found(tmp_path: Path, benchmark: LabelledSet, shared: str, found: bool) -> None:
    (first, second) = ruled(tmp_path, benchmark, [words(50), f"{words(40)} {shared} {words(40)}"], [words(60)])
    assert list(first.drops) == (["0.1"] if found else [])
    assert not second.drops
    assert not found or (first.drops["0.1"].reason, first.drops["0.1"].score) == ("contaminated", len(shared))


def test_cutting_takes_the_run_and_its_surroundings(tmp_path: Path, benchmark: LabelledSet) -> None:
    text = f"{words(100)} {ITEMS[1]} {words(100)}"
    (its,) = ruled(tmp_path, benchmark, [text, " , ".join(f"{words(100)} {ITEMS[1]}" for _ in range(11))], action="cut", cut_characters=50)
    start = text.index(ITEMS[1])
    outcome = carry_out(Document("0.0", text, "x"), its)
    assert isinstance(outcome, Edited)
    assert outcome.document.text == text[: start - 50] + text[start + len(ITEMS[1]) + 50 :]
    assert list(its.drops) == ["0.1"]  # more than 10 cuts


def test_a_run_in_many_documents_may_be_a_common_phrase(tmp_path: Path, benchmark: LabelledSet) -> None:
    shards = [[f"{words(20)} {ITEMS[1]}" for _ in range(3)], [ITEMS[1], f"{ITEMS[0]} {words(9)}"]]
    (first, second) = ruled(tmp_path, benchmark, *shards, max_documents=3)
    assert (list(first.drops), list(second.drops)) == ([], ["1.1"])


def test_report_counts_items_before_and_after(tmp_path: Path, benchmark: LabelledSet) -> None:
    workshop, config = Workshop(tmp_path / "parts"), ContaminationConfig()
    before = scan(pieces(tmp_path / "before", [ITEMS[0] + words(5), ITEMS[2]], [words(50)]), [benchmark], config, workshop)
    after = scan(pieces(tmp_path / "after", [ITEMS[2]], [words(50)]), [benchmark], config, workshop)
    assert report(before, after) == {"exam": {"items": 4, "too_short": 1, "overlapping_before": 2, "overlapping_after": 1}}


def test_characters_count_as_words_without_spaces(tmp_path: Path) -> None:
    path = tmp_path / "exam.jsonl"
    path.write_text(json.dumps({"q": "海港在那个早晨很安静黎明前只有两艘船离开", "a": "b"}))
    chinese = LabelledSet(name="exam", path=str(path), text_field="q", answer_field="a", labels=("b",))
    (its,) = ruled(tmp_path, chinese, ["他说：那个早晨很安静，黎明前只有两艘船离开。", "那个早晨很安静。"])
    assert list(its.drops) == ["0.0"]
