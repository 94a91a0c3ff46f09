from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import DatasetCard
from pydantic import ValidationError
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from llm.data.audit.audit import audit
from llm.data.audit.config import AuditConfig
from llm.data.audit.page import lengths
from llm.data.audit.tally import about, tally_shard, total
from llm.data.audit.topics import topics
from llm.data.document import Document, read_shards, write_documents
from llm.data.parts import Workshop

Audited = Callable[[AuditConfig], Path]


@pytest.fixture
def audited(stages: dict[str, Path], tmp_path: Path) -> Audited:
    """The audit of the finished small corpus, in a folder of its own."""

    def run(config: AuditConfig) -> Path:
        out = tmp_path / "out"
        out.mkdir()
        parents = {"collected": "collect", "cleaned": "clean", "deduped": "dedup", "tokenized": "tokenize"}
        audit({role: stages[name] for role, name in parents.items()}, out, config, "modules", Workshop(tmp_path / "parts"))
        return out

    return run


def test_figures_are_those_of_the_documents(audited: Audited, stages: dict[str, Path]) -> None:
    found = json.loads((audited(AuditConfig(close_documents=20, topics=2)) / "audit.json").read_text())
    documents = [document for split in ("train", "validation", "test") for document in read_shards(stages["dedup"], split)]
    sizes = [len(document.text.encode()) for document in documents]
    assert found["count"] == {"documents": len(documents), "bytes": sum(sizes), "characters": sum(len(each.text) for each in documents)}
    assert sum(found["lengths"].values()) == len(documents)
    assert all(sum(found["sizes"][dimension].values()) == sum(sizes) for dimension in found["sizes"])
    assert found["sizes"]["domain"] == {"code": sum(sizes)}
    assert found["looked_at_closely"] == 20
    assert len(found["topics"]) == 2


def test_page_and_card_can_be_read_by_others(audited: Audited) -> None:
    out = audited(AuditConfig(close_documents=20, topics=2))
    page = (out / "audit.html").read_text()
    assert "http" not in page.split("Kept, at random")[0], "nothing is loaded from anywhere"
    assert "<script" not in page.split("Kept, at random")[0]
    card = DatasetCard.load(out / "README.md")
    assert card.data.to_dict()["size_categories"] == ["n<1K"]
    assert card.data.to_dict()["license"] == "other"
    assert "configs" not in card.data.to_dict(), "no data files lie beside it"
    assert "## Composition" in card.text


def test_a_hostile_text_is_shown_and_not_run(tmp_path: Path) -> None:
    from llm.data.audit.page import write_page

    book = {"read": 1, "kept": 1, "dropped": {}, "quarantined": {}}
    found: dict[str, Any] = {
        **{name: [] for name in ("topics", "associations")},
        **{name: {} for name in ("documents_naming", "mentions", "sentiment", "dropped_samples")},
        "name": "<b>x",
        "lengths": {"3": 1},
        "sizes": {"domain": {"<script>": 1}},
        "books": dict.fromkeys(("collect", "clean", "dedup"), book),
        "count": {"documents": 1, "bytes": 1, "characters": 1},
        "rows": {"splits": {}},
        "looked_at_closely": 1,
        "kept_samples": [{"id": "a", "text": "<script>alert(1)</script>"}],
    }
    write_page(found, tmp_path / "page.html")
    assert "<script" not in (tmp_path / "page.html").read_text()


TEXTS = (
    "She fixed the engine. It was wonderful and she was happy.",
    "He was terrible. The woman left him.",
    "Nothing about anybody.",
)


def test_groups_and_what_is_said_of_them_by_hand(tmp_path: Path) -> None:
    write_documents(tmp_path / "shard", [Document(id=str(number), text=text, source="files") for number, text in enumerate(TEXTS)])
    (tmp_path / "out").mkdir()
    tally_shard(AuditConfig(), str(tmp_path / "shard"), tmp_path / "out")
    found = total([json.loads((tmp_path / "out" / "tally.json").read_text())] * 2, 10)
    assert found["documents_naming"]["women"] == 4
    assert found["mentions"] == {"women": 6, "men": 4}
    judge = SentimentIntensityAnalyzer().polarity_scores
    women = [
        judge(sentence)["compound"] for sentence in ("She fixed the engine.", "It was wonderful and she was happy.", "The woman left him.")
    ]
    assert found["sentiment"]["women"] == {"sentences": 6, "sum": pytest.approx(2 * sum(women), abs=1e-5)}
    assert found["sentiment"]["men"]["sum"] < 0 < found["sentiment"]["women"]["sum"]
    assert found["sentiment"]["atheists"] == {"sentences": 0, "sum": 0.0}


def test_a_group_is_found_however_its_words_are_written(tmp_path: Path) -> None:
    write_documents(tmp_path / "shard", [Document(id="a", text="The Sami live there, and SAMI is spoken. O'Neill left.", source="files")])
    (tmp_path / "out").mkdir()
    tally_shard(AuditConfig(groups={"Sami": ("Sami", "SÁMI"), "Irish": ("O'Neill",)}), str(tmp_path / "shard"), tmp_path / "out")
    found = json.loads((tmp_path / "out" / "tally.json").read_text())
    assert found["mentions"] == {"Sami": 2, "Irish": 1}
    assert found["sentiment"]["Sami"]["sentences"] == 1


@pytest.mark.parametrize("word", ["Latin Americans", "African-American", "generation1", " she", ""])
def test_what_is_no_single_word_is_refused_where_it_is_named(word: str) -> None:
    with pytest.raises(ValidationError, match=rf"{word!r} of some is no single word.*set audit\.groups to words of letters only"):
        AuditConfig(groups={"some": ("people", word)})


def test_a_sentence_counts_once_for_each_group_in_it() -> None:
    assert list(about("She met her brother! A stone.", {"she": "women", "her": "women", "brother": "men"})) == [
        ("men", "She met her brother!"),
        ("women", "She met her brother!"),
    ]


def test_planted_topics_are_told_apart() -> None:
    chance = random.Random(0)
    planted = {
        "flour butter oven sugar bake dough salt yeast": 100,
        "galaxy planet telescope orbit star comet moon nova": 60,
        "violin cello flute choir opera tenor drum harp": 40,
    }
    texts = [" ".join(chance.choices(words.split(), k=40)) for words, count in planted.items() for _ in range(count)]
    found = topics(texts, 3)
    assert [set(topic["words"][:8]) == set(words.split()) for topic, words in zip(found, planted, strict=True)] == [True] * 3
    assert [topic["share"] for topic in found] == pytest.approx([0.5, 0.3, 0.2], abs=0.03)
    assert topics(["one text"], 2) == []
    assert topics(["the and of"] * 10, 2) == [], "stop words alone"


def test_lengths_are_shown_without_holes() -> None:
    assert [(row["name"], row["figure"]) for row in lengths({"3": 2, "5": 1})] == [("8 – 15", "2"), ("16 – 31", "0"), ("32 – 63", "1")]
    assert lengths({}) == []
