from __future__ import annotations

import json
import random
import sysconfig
from pathlib import Path

import pytest
from pydantic import ValidationError

from llm.artifact import Ref, Store
from llm.data.clean import clean
from llm.data.config import CleanConfig, LabelledSet
from llm.data.document import Document, read_shards, write_shards
from llm.data.filters.corpus import snapshot
from llm.data.filters.examples import texts
from llm.data.parts import Workshop
from llm.data.quality.config import RepairConfig
from llm.data.sources.config import FilesSource
from llm.recipe import Recipe, load
from llm.stages import job

PARAGRAPH = (
    "The harbour lay quiet that morning, and only two boats had left before dawn. Old Maren counted the nets on the quay "
    "while her brother mended a torn sail; neither spoke. Somewhere behind the warehouses a dog barked at the first cart. "
)
SENTENCES = [each.strip() + "." for each in PARAGRAPH.replace(";", ".").split(".") if each.strip()]
rng = random.Random(5)


def good() -> str:
    return " ".join(rng.choice(SENTENCES) for _ in range(8)) + "\n"


def bad() -> str:
    return " ".join(rng.choice(["buy", "cheap", "click", "now", "free", "offer", "deal", "shoes", "win"]) for _ in range(60)) + ".\n"


def examples(folder: Path, texts: list[str]) -> FilesSource:
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / f"{number}.txt").write_text(text)
    return FilesSource(path=str(folder))


def cleaned(tmp_path: Path, documents: list[Document], config: CleanConfig, name: str = "out", **more: object) -> dict[str, object]:
    (tmp_path / name).mkdir()
    if not (tmp_path / "collected").exists():
        (tmp_path / "collected").mkdir()
        write_shards(tmp_path / "collected", documents, shard_bytes=2_000)
    return clean(tmp_path / "collected", tmp_path / name, config, Workshop(tmp_path / "parts"), **more)  # type: ignore[arg-type]


@pytest.fixture
def config(tmp_path: Path) -> CleanConfig:
    sides = {name: examples(tmp_path / name, [write() for _ in range(20)]) for name, write in (("good", good), ("bad", bad))}
    return CleanConfig.model_validate({"rules": [], "classifier": {name: [source] for name, source in sides.items()}})


def mixed() -> list[Document]:
    return [Document(f"{kind}{number}", write(), "x") for number in range(10) for kind, write in (("good", good), ("bad", bad))]


def test_a_classifier_keeps_what_is_like_the_good_examples(tmp_path: Path, config: CleanConfig) -> None:
    counts = cleaned(tmp_path, mixed(), config)
    assert sorted(document.id for document in read_shards(tmp_path / "out")) == [f"good{number}" for number in range(10)]
    assert counts["dropped"] == {"low_quality": 10}
    assert counts["classifier"] == {"good": 20, "bad": 20, "accuracy": 1.0, "auc": 1.0, "threshold": 0.5}
    verdicts = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    assert all(0 < verdict["score"] < 0.5 for verdict in verdicts)


def test_a_share_is_kept_and_another_threshold_scores_nothing_again(tmp_path: Path, config: CleanConfig) -> None:
    cleaned(tmp_path, mixed(), config)
    parts = {path.name for path in (tmp_path / "parts").glob("*/model.npz")} | {
        str(path) for path in (tmp_path / "parts").glob("*/scores.json")
    }
    assert config.classifier is not None
    fewer = config.model_copy(update={"classifier": config.classifier.model_copy(update={"keep_share": 0.25})})
    assert cleaned(tmp_path, [], fewer, "fewer")["kept"] == 5
    assert parts == {path.name for path in (tmp_path / "parts").glob("*/model.npz")} | {
        str(path) for path in (tmp_path / "parts").glob("*/scores.json")
    }


def test_fluency_drops_what_is_written_unlike_the_examples(tmp_path: Path) -> None:
    source = examples(tmp_path / "good", [good() for _ in range(20)])
    config = CleanConfig.model_validate({"rules": [], "fluency": {"good": [source], "max_bits_per_byte": 2.0}})
    counts = cleaned(tmp_path, mixed(), config)
    assert counts["dropped"] == {"not_fluent": 10}


def test_evaluation_sets_leave_the_corpus_and_are_reported(tmp_path: Path) -> None:
    question = "In which year did the keeper of the northern lighthouse first write down the height of every tide?"
    (tmp_path / "exam.jsonl").write_text(json.dumps({"q": question, "a": "1881"}) + "\n")
    exam = LabelledSet(name="exam", path=str(tmp_path / "exam.jsonl"), text_field="q", answer_field="a")
    documents = [
        Document("leak", good() + question + " 1881. " + good(), "x"),
        *(Document(f"g{number}", good(), "x") for number in range(3)),
    ]
    counts = cleaned(tmp_path, documents, CleanConfig(rules=()), sets=[exam])
    assert counts["dropped"] == {"contaminated": 1}
    facts = json.loads((tmp_path / "out" / "contamination.json").read_text())
    assert facts == {"exam": {"items": 1, "too_short": 0, "overlapping_before": 1, "overlapping_after": 0}}
    kept = cleaned(
        tmp_path, documents, CleanConfig.model_validate({"rules": [], "contamination": {"action": "report"}}), "kept", sets=[exam]
    )
    assert kept["kept"] == 4
    assert json.loads((tmp_path / "kept" / "contamination.json").read_text())["exam"]["overlapping_after"] == 1


def test_what_cleaning_brings_together_leaves_the_corpus_too(tmp_path: Path) -> None:
    """A question whose footnotes hide it until a rule removes them."""
    question = "In which year did the keeper of the northern lighthouse first write down the height of every tide?"
    (tmp_path / "exam.jsonl").write_text(json.dumps({"q": question, "a": "1881"}) + "\n")
    exam = LabelledSet(name="exam", path=str(tmp_path / "exam.jsonl"), text_field="q", answer_field="a")
    words = question.split()
    noted = " ".join(word + "[1]" if place % 5 == 4 else word for place, word in enumerate(words))
    documents = [Document("leak", f"{good()}{noted}\n{good()}", "x"), *(Document(f"g{number}", good(), "x") for number in range(3))]
    counts = cleaned(tmp_path, documents, CleanConfig.model_validate({"rules": ["c4"], "c4": {"min_sentences": 1}}), sets=[exam])
    assert counts["dropped"] == {"contaminated": 1}
    assert (counts["read"], counts["kept"]) == (4, 3)
    assert [json.loads(line)["id"] for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()] == ["leak"]
    facts = json.loads((tmp_path / "out" / "contamination.json").read_text())
    assert facts["exam"] == {"items": 1, "too_short": 0, "overlapping_before": 0, "overlapping_after": 0}


def test_masks_licences_and_words_are_in_the_books(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("bogus\n")
    documents = [
        Document("mail", good() + "Write to maren@example.org.\n", "x"),
        Document("gpl", good(), "x", license="GPLv3"),
        Document("rude", good() + "bogus\n", "x"),
    ]
    sections = {"rules": [], "licences": {"deny": ["GPL-*"]}, "lexicons": [{"path": str(tmp_path / "words.txt")}]}
    counts = cleaned(tmp_path, documents, CleanConfig.model_validate(sections))
    (mail,) = read_shards(tmp_path / "out")
    assert mail.text.endswith("Write to <EMAIL>.\n")
    assert counts["dropped"] == {"licence": 1, "toxic": 1}
    assert counts["edits"]["masked_email"] == 1  # type: ignore[index]
    before = snapshot(CleanConfig.model_validate(sections), [])
    (tmp_path / "words.txt").write_text("bogus\nmore\n")
    assert snapshot(CleanConfig.model_validate(sections), []) != before


def test_the_snapshot_follows_the_examples(tmp_path: Path, config: CleanConfig) -> None:
    before = snapshot(config, [])
    assert snapshot(config, []) == before
    (tmp_path / "bad" / "0.txt").write_text("another example")
    assert snapshot(config, []) != before


def test_defaults_drop_nothing_of_the_standard_library_for_these_reasons(tmp_path: Path) -> None:
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[d-h]*.py"))
    documents = [Document(path.name, path.read_text(), "x", domain="code", language="python") for path in paths]
    assert set(cleaned(tmp_path, documents, CleanConfig())["dropped"]) <= {"too_short"}  # type: ignore[call-overload]


def test_the_key_of_clean_follows_evaluation_sets(tmp_path: Path) -> None:
    exam = tmp_path / "exam.jsonl"
    exam.write_text(json.dumps({"q": "What is it?", "a": "a boat"}) + "\n")
    sets = [{"name": "exam", "path": str(exam), "text_field": "q", "answer_field": "a"}]
    recipe, plain = load("tiny", {"evaluate.sets": sets}), load("tiny")

    def key(recipe: Recipe) -> str:
        parents = {"collected": Ref("collect", "0" * 20, "0" * 64, str(tmp_path))}
        return job(recipe, Store(tmp_path / "store"), tmp_path / "run", "data.clean", parents).key

    before = key(recipe)
    assert before != key(plain)
    exam.write_text(json.dumps({"q": "What is that?", "a": "a boat"}) + "\n")
    assert key(recipe) != before


def read_as(tmp_path: Path, text_field: str) -> FilesSource:
    """Records with a text that is good in one field and bad in the other."""
    path = tmp_path / "records.jsonl"
    if not path.exists():
        path.write_text("".join(json.dumps({"good": good(), "bad": bad()}) + "\n" for _ in range(20)))
    return FilesSource(path=str(path), text_field=text_field)


def kept(tmp_path: Path, config: CleanConfig, name: str) -> set[str]:
    cleaned(tmp_path, mixed(), config, name)
    return {document.id.rstrip("0123456789") for document in read_shards(tmp_path / name)}


def test_examples_that_are_read_otherwise_are_learned_again(tmp_path: Path) -> None:
    def fluent(text_field: str) -> CleanConfig:
        return CleanConfig.model_validate({"rules": [], "fluency": {"good": [read_as(tmp_path, text_field)], "max_bits_per_byte": 2.0}})

    assert kept(tmp_path, fluent("good"), "first") == {"good"}
    assert kept(tmp_path, fluent("bad"), "second") == {"bad"}


@pytest.mark.parametrize("change", [{"order": 3}, {"max_bytes": 1_000}, {"max_characters": 100}])
def test_a_changed_setting_learns_what_an_empty_store_learns(tmp_path: Path, change: dict[str, int]) -> None:
    source = examples(tmp_path / "good", [good() for _ in range(20)])
    documents = mixed()

    def scores(folder: Path, **changes: int) -> list[bytes]:
        config = {"rules": [], "fluency": {"good": [source], "max_bits_per_byte": 2.0} | changes}
        folder.mkdir(exist_ok=True)
        cleaned(folder, documents, CleanConfig.model_validate(config), f"out{len(list(folder.iterdir()))}")
        return sorted(path.read_bytes() for path in (folder / "parts").glob("*/model.npz"))

    before, after, fresh = scores(tmp_path / "used"), scores(tmp_path / "used", **change), scores(tmp_path / "fresh", **change)
    assert len(before) == 1
    assert set(after) == {*before, *fresh}
    assert before != fresh


def test_example_pages_are_compared_as_text(tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir()
    for number in range(20):
        page = f"<html><head><script>var deal = 'buy now';</script></head><body><p>{good()}</p></body></html>"
        (tmp_path / "pages" / f"{number}.html").write_text(page)
    found = texts([FilesSource(path=str(tmp_path / "pages"))], RepairConfig(), max_examples=20, max_characters=2_000)
    assert len(found) == 20
    assert not [text for text in found if "<" in text or "deal" in text]


def test_examples_with_a_quota_are_refused(tmp_path: Path) -> None:
    source = {"kind": "files", "path": str(tmp_path), "max_documents": 5}
    with pytest.raises(ValidationError, match="examples have no quota of their own; set max_examples"):
        CleanConfig.model_validate({"classifier": {"good": [source], "bad": [source]}})
