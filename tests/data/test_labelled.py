from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from llm.artifact import canonical
from llm.data.config import LabelledSet
from llm.data.labelled import Example, examples, snapshot, texts
from llm.errors import DataError, RecipeError, SourceError
from llm.evaluate.config import EvaluateConfig


def written(path: Path, *records: dict[str, Any]) -> str:
    """The records in a file, in the format of its suffix."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            rows = csv.DictWriter(file, list(records[0]) if records else [])
            rows.writeheader()
            rows.writerows(records)
    return str(path)


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_questions_and_classifications(tmp_path: Path, suffix: str) -> None:
    asked = written(
        tmp_path / f"asked.{suffix}", {"question": 'Two "lines"\nof text?', "answer": "Yes, it is"}, {"question": "b", "answer": "c"}
    )
    questions = LabelledSet(name="asked", path=asked)
    assert list(examples(questions)) == [Example("asked#0", 'Two "lines"\nof text?', "Yes, it is"), Example("asked#1", "b", "c")]
    assert list(texts(questions)) == ['Two "lines"\nof text?\nYes, it is', "b\nc"]
    path = written(tmp_path / f"mood.{suffix}", {"text": "fine", "label": "good", "n": "x1"}, {"text": "not so", "label": "bad", "n": "x2"})
    moods = LabelledSet(name="mood", path=path, text_field="text", answer_field="label", id_field="n", labels=("good", "bad"))
    assert list(examples(moods)) == [Example("x1", "fine", "good"), Example("x2", "not so", "bad")]
    assert list(texts(moods)) == ["fine", "not so"]


@pytest.mark.parametrize("answer", ["Rome", "1", 1, "B", "b"])
def test_a_choice_is_named_by_text_number_or_letter(tmp_path: Path, answer: str | int) -> None:
    listed = written(tmp_path / "listed.jsonl", {"question": "Capital of Italy?", "answer": answer, "choices": ["Paris", "Rome"]})
    columns = written(tmp_path / "columns.csv", {"question": "Capital of Italy?", "answer": answer, "A": "Paris", "B": "Rome"})
    for path, fields in ((listed, ("choices",)), (columns, ("A", "B"))):
        chosen = LabelledSet(name="capitals", path=path, choice_fields=fields)
        assert list(examples(chosen)) == [Example("capitals#0", "Capital of Italy?", "Rome", ("Paris", "Rome"))]
        assert list(texts(chosen)) == ["Capital of Italy?\nParis\nRome"]


GOOD = {"id": "1", "question": "a", "answer": "x", "choices": ["x", "y"]}
FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"question": None}, r"has no column: quiz, record 1, question.*evaluate\.sets\.text_field"),
    ({"answer": " "}, r"has an empty column: quiz, record 1, answer.*evaluate\.sets\.answer_field"),
    ({"id": "1"}, r"has an id twice: quiz, record 1, 1.*evaluate\.sets\.id_field"),
    ({"answer": "z"}, r"has an unknown label: quiz, record 1, 'z' is none of x, y.*evaluate\.sets\.labels"),
    ({"answer": 2}, r"has an unknown label: quiz, record 1"),
    ({"choices": ["x"]}, r"has fewer than two choices: quiz, record 1.*evaluate\.sets\.choice_fields"),
]


@pytest.mark.parametrize(("fault", "message"), FAULTS)
def test_a_faulty_example_is_named(tmp_path: Path, fault: dict[str, Any], message: str) -> None:
    path = written(tmp_path / "quiz.jsonl", GOOD, GOOD | {"id": "2"} | fault)
    with pytest.raises(DataError, match=message):
        list(examples(LabelledSet(name="quiz", path=path, choice_fields=("choices",), id_field="id")))


@pytest.mark.parametrize("content", [b'{"question": ', b"[1]\n", b'{"question": "\xff", "answer": "x"}\n', b"\n", b"[" * 100_000])
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "quiz.jsonl").write_bytes(content)
    with pytest.raises(DataError, match="has a record that can't be read: quiz, record 0"):
        list(examples(LabelledSet(name="quiz", path=str(tmp_path / "quiz.jsonl"))))


@pytest.mark.parametrize("row", [b"only one column", b'a,"b"c', b"\xff,x", b"a,b,c"])
def test_a_row_that_cannot_be_read_is_named(tmp_path: Path, row: bytes) -> None:
    (tmp_path / "quiz.csv").write_bytes(b"\xef\xbb\xbfquestion,answer\n\nfine,x\n" + row + b"\n")
    with pytest.raises(DataError, match="has a record that can't be read: quiz, record 1"):
        list(examples(LabelledSet(name="quiz", path=str(tmp_path / "quiz.csv"))))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b'question,"answer"s', r"a header can't be read: quiz\.csv, .*expected.*correct the quotes"),
        (b"question,answer,\xff", r"a header can't be read: quiz\.csv, not UTF-8; save the file as UTF-8"),
        (b"question,answer,answer", r"columns have the same name: quiz\.csv, 'answer'; rename one of them"),
    ],
)
def test_a_faulty_header_is_named(tmp_path: Path, header: bytes, message: str) -> None:
    (tmp_path / "quiz.csv").write_bytes(header + b"\na,b,c\n")
    with pytest.raises(DataError, match=message):
        list(examples(LabelledSet(name="quiz", path=str(tmp_path / "quiz.csv"))))


@pytest.mark.parametrize("name", ["empty.jsonl", "empty.csv", "header.csv"])
def test_a_set_without_examples_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("question,answer\n" if name == "header.csv" else "")
    with pytest.raises(DataError, match=r"a labelled set is empty: quiz.*evaluate\.sets\.path"):
        list(examples(LabelledSet(name="quiz", path=str(tmp_path / name))))


def test_a_missing_file_and_an_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no such file.*evaluate\.sets\.path") as gone:
        list(texts(LabelledSet(name="quiz", path=str(tmp_path / "gone.csv"))))
    assert not gone.value.transient
    (tmp_path / "quiz.xls").touch()
    with pytest.raises(RecipeError, match=r"unknown kind of file: quiz\.xls"):
        list(texts(LabelledSet(name="quiz", path=str(tmp_path / "quiz.xls"))))


def test_a_snapshot_changes_exactly_when_the_content_does(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", GOOD)
    before = canonical(snapshot(LabelledSet(name="quiz", path=path)))
    (tmp_path / "moved").mkdir()
    moved = (tmp_path / "a.jsonl").rename(tmp_path / "moved" / "a.jsonl")
    assert canonical(snapshot(LabelledSet(name="quiz", path=str(moved)))) == before
    written(moved, GOOD, GOOD)
    assert canonical(snapshot(LabelledSet(name="quiz", path=str(moved)))) != before


def test_sets_have_different_names() -> None:
    with pytest.raises(ValidationError, match=r"two sets are called quiz; set evaluate\.sets\.name apart"):
        EvaluateConfig(sets=(LabelledSet(name="quiz", path="a.csv"), LabelledSet(name="quiz", path="b.csv")))
