from __future__ import annotations

import ast
import base64
import json
import random
import sysconfig
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llm.data.clean import clean
from llm.data.config import CleanConfig
from llm.data.document import Document, read_shards, write_documents, write_shards
from llm.data.parts import Workshop
from llm.data.quality.config import RepairConfig, RepeatsConfig
from llm.data.quality.judge import judge
from llm.data.repair import repairs
from llm.data.steps import Edited, through
from llm.errors import DataError

PROSE = (
    "The harbour lay quiet that morning, and only two boats had left before dawn. "
    "Old Maren counted the nets on the quay while her brother mended a torn sail; neither spoke. "
    "Somewhere behind the warehouses a dog barked at the first cart of the day.\n"
)
CODE = "def area(width, height):\n    '''Area of a rectangle.'''\n    return width * height\n\n\n" * 4


def prose(text: str) -> Document:
    return Document(id="a", text=text, source="files")


def code(text: str) -> Document:
    return Document(id="a", text=text, source="files", domain="code", language="python")


def repair(document: Document) -> Document:
    outcome = through(document, repairs(RepairConfig()))
    return outcome.document if isinstance(outcome, Edited) else replace(document, text="")


@pytest.mark.parametrize(
    ("broken", "whole"),
    [
        ("cafÃ© schÃ¶n", "café schön\n"),
        ("e\u0301te\u0301", "été\n"),
        ("a\r\nb\rc", "a\nb\nc\n"),
        ("\ufeffa\x00\x07b\x1b[31m", "ab\n"),
        ("“curly” ﬁne &lt;b&gt;", "“curly” ﬁne &lt;b&gt;\n"),
        ("ends with blanks \t\nnext", "ends with blanks\nnext\n"),
    ],
)
def test_prose_is_repaired(broken: str, whole: str) -> None:
    assert repair(prose(broken)).text == whole


def test_a_page_gives_its_main_text() -> None:
    page = (
        f"<html><head><title>x</title><script>var a=1</script></head><body><nav>Home About</nav>"
        f"<article><h1>Harbour</h1><p>{PROSE}</p><p>{PROSE[::-1]}</p></article><footer>© all rights</footer></body></html>"
    )
    text = repair(Document(id="a", text=page, source="files", meta={"format": "html"})).text
    assert PROSE.strip() in text
    assert not any(word in text for word in ("Home", "var a", "<p>"))
    assert repair(Document(id="a", text="<html></html>", source="files", meta={"format": "html"})).text == ""


def test_code_means_the_same_after_cleaning() -> None:
    tricky = "x = 'cafÃ©'  # “quoted”\r\ny = \"ﬁ &amp;\"\f\r\n\r\ndef f():\r\n\treturn '''a  \r\nb'''\r\n"
    expected = ast.dump(ast.parse(tricky))
    assert ast.dump(ast.parse(repair(code(tricky)).text)) == expected
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[s-t]*.py")):
        text = path.read_text(encoding="utf-8")
        assert ast.dump(ast.parse(repair(code(text)).text)) == ast.dump(ast.parse(text)), path.name


noise = random.Random(1)
BLOB = base64.b64encode(noise.randbytes(3000)).decode()
OBJECTIONS = {
    "too_short": prose("Two words."),
    "too_long": prose(PROSE * 10_000),
    "replacement_characters": prose(PROSE + "\ufffd" * 5),
    "encoded_data": prose(PROSE + BLOB),
    "mojibake": prose(PROSE + "Ã¢â‚¬ÅžÃ©Ã¯Â¿Â½ " * 20),
    "few_letters": prose("\n".join(f"{noise.random()} | {noise.random()} | total" for _ in range(20))),
    "odd_word_length": prose(" ".join(f"https://example.org/{noise.random()}" for _ in range(20))),
    "duplicate_lines": prose("".join(f"{noise.choice(['Read on', 'Next page'])} of the story\n" for _ in range(40))),
    "top_pair": prose(" ".join(noise.choice(["buy", "now now", "cheap shoes", "cheap shoes"]) for _ in range(400))),
    "few_alphanumerics": code("\n".join("[ - ] + ( * ) / { % }" for _ in range(40))),
    "long_lines": code(f"var x = [{', '.join('word' for _ in range(1000))}]\n"),
}


@pytest.mark.parametrize("reason", OBJECTIONS)
def test_each_rule_drops_what_it_is_for(reason: str) -> None:
    verdict = judge(OBJECTIONS[reason], CleanConfig())
    assert (verdict.keep, verdict.reason) == (False, reason)


def test_ordinary_texts_pass() -> None:
    chinese = prose(
        "海港在那个早晨很安静，黎明前只有两艘船离开。" * 3 + "老人数着码头上的渔网，她的兄弟修补着一面破帆，两人都没有说话。" * 3
    )
    for document in (prose(PROSE), code(CODE), chinese):
        assert judge(document, CleanConfig(min_characters=100)).keep


def test_ordinary_code_is_not_thrown_away() -> None:
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    verdicts = {path.name: judge(code(path.read_text(encoding="utf-8")), CleanConfig()) for path in paths}
    dropped = {name: verdict.reason for name, verdict in verdicts.items() if not verdict.keep}
    assert set(dropped.values()) <= {"too_short"}
    assert len(dropped) < 0.05 * len(paths)


def test_books_balance_and_every_dropped_document_is_named(tmp_path: Path) -> None:
    for name in ("collected", "out"):
        (tmp_path / name).mkdir()
    documents = [Document(id=reason, text=each.text, source="files", domain=each.domain) for reason, each in OBJECTIONS.items()]
    write_shards(tmp_path / "collected", [*documents, Document(id="good", text=PROSE, source="files")])
    books = clean(tmp_path / "collected", tmp_path / "out", CleanConfig(), Workshop(tmp_path / "parts"))
    assert [document.id for document in read_shards(tmp_path / "out")] == ["good"]
    dropped = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    assert [record["id"] for record in dropped] == list(OBJECTIONS)
    assert books["read"] == books["kept"] + sum(books["dropped"].values()) == len(documents) + 1


def test_nothing_left_is_a_named_error(tmp_path: Path) -> None:
    for name in ("collected", "out"):
        (tmp_path / name).mkdir()
    write_shards(tmp_path / "collected", [prose("short")])
    with pytest.raises(DataError, match=r"too_short 1.*thresholds of clean"):
        clean(tmp_path / "collected", tmp_path / "out", CleanConfig(), Workshop(tmp_path / "parts"))


def run(collected: Path, out: Path, config: CleanConfig, parts: Path) -> dict[str, Any]:
    out.mkdir(parents=True)
    return clean(collected, out, config, Workshop(parts))


def written(folder: Path, *shards: list[Document]) -> Path:
    """A folder of shards, each in a file of its own."""
    folder.mkdir(parents=True)
    for number, shard in enumerate(shards):
        write_documents(folder / f"documents-{number:05d}.parquet", shard)
    return folder


def numbered(name: str, count: int, extra: str = "") -> list[Document]:
    words = ["harbour", "nets", "boats", "quay", "sail", "morning", "warehouse", "cart", "brother", "dawn"]
    draw = random.Random(name)
    return [
        Document(f"{name}{number}", "".join(f"The {' '.join(draw.sample(words, 6))} is here.\n" for _ in range(8)) + extra, "files")
        for number in range(count)
    ]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


MENU = "Home and news and sport and weather and about us.\n"
REPEATS = CleanConfig(repeats=RepeatsConfig(min_documents=3))


def test_a_nightly_run_cleans_only_what_is_affected_and_equals_a_run_from_nothing(tmp_path: Path) -> None:
    first = [numbered("a", 4), numbered("b", 4, MENU), numbered("c", 4)]
    run(written(tmp_path / "monday", *first), tmp_path / "one", REPEATS, tmp_path / "parts")
    made = set((tmp_path / "parts").iterdir())
    run(written(tmp_path / "tuesday", *first, numbered("d", 4)), tmp_path / "two", REPEATS, tmp_path / "parts")
    assert len(set((tmp_path / "parts").iterdir()) - made) == 5  # the shard that came: repaired, its pairs and turns, its lines, filtered
    made = set((tmp_path / "parts").iterdir())
    run(written(tmp_path / "wednesday", *first, numbered("d", 4), numbered("e", 1, MENU)), tmp_path / "three", REPEATS, tmp_path / "parts")
    assert len(set((tmp_path / "parts").iterdir()) - made) == 5
    run(tmp_path / "wednesday", tmp_path / "fresh", REPEATS, tmp_path / "other")
    assert files(tmp_path / "three") == files(tmp_path / "fresh")


def test_a_line_that_becomes_frequent_leaves_earlier_shards_too(tmp_path: Path) -> None:
    first = [numbered("a", 2, MENU), numbered("b", 2)]
    books = run(written(tmp_path / "monday", *first), tmp_path / "one", REPEATS, tmp_path / "parts")
    assert "repeated_lines" not in books["edits"]
    books = run(written(tmp_path / "tuesday", *first, numbered("c", 1, MENU)), tmp_path / "two", REPEATS, tmp_path / "parts")
    assert books["edits"]["repeated_lines"] == 2
    assert [document.id for document in read_shards(tmp_path / "two") if MENU in document.text] == ["a0"]
    run(tmp_path / "tuesday", tmp_path / "fresh", REPEATS, tmp_path / "other")
    assert files(tmp_path / "two") == files(tmp_path / "fresh")


@pytest.mark.parametrize("together", [True, False])
def test_a_document_that_is_dropped_keeps_no_line(tmp_path: Path, together: bool) -> None:
    dropped = [Document("short", MENU, "files"), Document("foul", numbered("f", 1, MENU)[0].text + BLOB, "files")]
    documents = [*dropped, *numbered("a", 3, MENU)]
    shards = [documents] if together else [[document] for document in documents]
    config = REPEATS.model_copy(update={"min_characters": 100})
    books = run(written(tmp_path / "collected", *shards), tmp_path / "out", config, tmp_path / "parts")
    assert books["dropped"] == {"only_repeats": 1, "encoded_data": 1}
    assert [document.id for document in read_shards(tmp_path / "out") if MENU in document.text] == ["a0"]


def test_other_thresholds_repeat_only_the_second_pass(tmp_path: Path) -> None:
    collected = written(tmp_path / "collected", numbered("a", 3))
    run(collected, tmp_path / "one", CleanConfig(), tmp_path / "parts")
    made = len(list((tmp_path / "parts").iterdir()))
    run(collected, tmp_path / "two", CleanConfig(min_characters=100), tmp_path / "parts")
    assert len(list((tmp_path / "parts").iterdir())) == made + 1


def test_edits_stand_beside_the_balanced_books(tmp_path: Path) -> None:
    page = f"<html><body><article><p>{PROSE * 2}</p></article></body></html>"
    shard = [
        Document("page", page, "files", meta={"format": "html"}),
        Document("broken", PROSE.replace("quay", "quÃ©"), "files"),
        Document("empty page", "<html></html>", "files", meta={"format": "html"}),
        Document("short", "Two words.", "files"),
    ]
    books = run(written(tmp_path / "collected", shard), tmp_path / "out", CleanConfig(), tmp_path / "parts")
    assert books == json.loads((tmp_path / "out" / "books.json").read_text())
    assert (books["read"], books["kept"], books["dropped"]) == (4, 2, {"no_main_text": 1, "too_short": 1})
    assert books["edits"]["boilerplate_characters"] > len("<html><body><article><p></p></article></body></html>") - 10
    assert (books["edits"]["repaired_lines"], books["edits"]["identified_documents"]) == (1, 2)
    assert {document.language for document in read_shards(tmp_path / "out")} == {"en"}
