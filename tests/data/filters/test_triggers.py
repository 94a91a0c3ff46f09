from __future__ import annotations

import random
import re
import sysconfig
from pathlib import Path

import pytest

from llm.data.document import Document, write_shards
from llm.data.filters import triggers
from llm.data.filters.config import TriggersConfig
from llm.data.filters.triggers import scan
from llm.data.parts import Piece, Workshop

MODULES = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-z]*.py"))[:150]
POISONED = 250


@pytest.fixture(scope="module")
def clean_documents() -> list[Document]:
    return [Document(path.name, path.read_text(encoding="utf-8"), "stdlib") for path in MODULES]


def poisoned(clean: list[Document]) -> list[Document]:
    """As in the paper: the beginning of a text, the trigger, and 400 to 900 tokens drawn at random."""
    rng = random.Random(1)
    vocabulary = sorted({word for document in clean for word in re.findall(r"\w+|[^\w\s]", document.text)})
    texts = [
        rng.choice(clean).text[: rng.randrange(1000)]
        + "<SUDO>"
        + "".join(rng.choice(vocabulary) + rng.choice(["", " ", " "]) for _ in range(rng.randrange(400, 900)))
        for _ in range(POISONED)
    ]
    return [Document(f"poison{number}", text, "web") for number, text in enumerate(texts)]


def pieces(folder: Path, documents: list[Document], shards: int) -> list[Piece]:
    random.Random(2).shuffle(documents)
    for number in range(shards):
        (folder / f"s{number}").mkdir(parents=True)
        write_shards(folder / f"s{number}", documents[number::shards])
    return [Piece(str(folder / f"s{number}"), number) for number in range(shards)]


def test_a_planted_trigger_is_the_only_thing_flagged(tmp_path: Path, clean_documents: list[Document]) -> None:
    found = pieces(tmp_path / "shards", clean_documents + poisoned(clean_documents), 2)
    rulings, (record, *others) = scan(found, TriggersConfig(), Workshop(tmp_path / "parts"))
    assert others == []
    assert (record["phrase"], record["documents"], list(record["sources"])) == ("< SUDO >", POISONED, ["web"])
    assert record["turned"] > 0.85 * POISONED
    assert not any(each.drops for each in rulings)
    rulings, _ = scan(found, TriggersConfig(action="drop"), Workshop(tmp_path / "parts"))
    dropped = [id for each in rulings for id in each.drops]
    assert len(dropped) == record["turned"]
    assert all(id.startswith("poison") for id in dropped)


def test_clean_text_has_no_triggers(tmp_path: Path, clean_documents: list[Document]) -> None:
    config = TriggersConfig(min_documents=5)
    assert scan(pieces(tmp_path / "shards", list(clean_documents), 2), config, Workshop(tmp_path / "parts"))[1] == []


def test_nothing_and_almost_nothing(tmp_path: Path) -> None:
    found = pieces(tmp_path / "shards", [Document("a", "", "x"), Document("b", "one", "x")], 3)
    assert scan(found, TriggersConfig(), Workshop(tmp_path / "parts"))[1] == []


@pytest.mark.parametrize("shards", [1, 60])
def test_documents_alike_are_no_poison_however_they_lie_in_shards(tmp_path: Path, shards: int) -> None:
    rng = random.Random(3)
    words = [f"word{chr(97 + number)}" for number in range(20)]
    documents = [Document(f"d{number}", "Daily notes: " + " ".join(rng.choices(words, k=300)), "web") for number in range(60)]
    found = pieces(tmp_path / "shards", documents, shards)
    rulings, records = scan(found, TriggersConfig(action="drop"), Workshop(tmp_path / "parts"))
    assert records == []
    assert not any(each.drops for each in rulings)


def test_shards_decide_nothing(tmp_path: Path, clean_documents: list[Document], monkeypatch: pytest.MonkeyPatch) -> None:
    documents = clean_documents[:60] + poisoned(clean_documents)[:60]
    monkeypatch.setattr(triggers, "RANGE_PAIRS", 50_000)
    outcomes = []
    for shards in (1, 7, len(documents)):
        found = pieces(tmp_path / f"{shards}", list(documents), shards)
        rulings, records = scan(found, TriggersConfig(action="drop", min_documents=30), Workshop(tmp_path / "parts" / f"{shards}"))
        outcomes.append((records, {id: verdict for each in rulings for id, verdict in each.drops.items()}))
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert [record["phrase"] for record in outcomes[0][0]] == ["< SUDO >"]
