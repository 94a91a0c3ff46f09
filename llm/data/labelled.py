"""Labelled sets: questions or texts whose answers are known, for judging a model and for fine-tuning it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from llm.data.config import LabelledSet
from llm.data.hashing import fingerprints
from llm.errors import DataError, RecipeError, SourceError

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Example:
    """A question with its answer, or a text with its label; with `choices`, the answer is one of them."""

    id: str
    text: str
    answer: str
    choices: tuple[str, ...] = ()


def snapshot(labelled: LabelledSet) -> dict[str, Any]:
    """What identifies the content of a set."""
    return {"name": labelled.name, "files": fingerprints([(Path(labelled.path).name, existing(labelled.path, "evaluate.sets.path"))])}


def texts(labelled: LabelledSet) -> Iterator[str]:
    """What a model that was trained on it would know by heart, a text per example: the question with its choices or its answer.

    The labels of a classification are left out: they stand under many texts.

    Raises: what `examples` raises.
    """
    for example in examples(labelled):
        known = example.choices or (() if labelled.labels else (example.answer,))
        yield "\n".join((example.text, *known))


def examples(labelled: LabelledSet) -> Iterator[Example]:
    """The examples of a set, in its order.

    Raises: DataError at the first that has no text or no answer, an answer that isn't among its choices, a label that the set
    doesn't list, or an id that was there before, and for a set without any; SourceError if there is no such file.
    """
    seen: set[str] = set()
    for number, record in enumerate(records(existing(labelled.path, "evaluate.sets.path"))):
        example = _example(labelled, number, record)
        if example.id in seen:
            raise _refusal(labelled, number, "an id twice", example.id, "id_field")
        seen.add(example.id)
        yield example
    if not seen:
        raise DataError("a labelled set is empty", value=labelled.name, remedy="set evaluate.sets.path to a file with examples")


def records(path: Path) -> Iterator[Record | None]:
    """The lines of a .jsonl file, or the rows of a .csv file by column; None for one that can't be read.

    Raises: RecipeError for another kind of file; DataError for a .csv file whose columns can't be told from its first row.
    """
    if path.suffix.lower() not in READERS:
        raise RecipeError("unknown kind of file", value=path.name, remedy=f"name one of {' '.join(READERS)}")
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        yield from READERS[path.suffix.lower()](file)


def existing(path: str, setting: str) -> Path:
    """The file of this name.

    Raises: SourceError if there is none, which time won't heal.
    """
    found = Path(path).expanduser()
    if not found.is_file():
        raise SourceError("no such file", transient=False, value=path, remedy=f"set {setting} to a .jsonl or .csv file")
    return found


def _json_lines(file: TextIO) -> Iterator[Record | None]:
    for line in file:
        try:
            record = json.loads(line)
            yield record if isinstance(record, dict) and _is_unicode(line) else None
        except (ValueError, RecursionError):
            yield None


def _comma_separated(file: TextIO) -> Iterator[Record | None]:
    """Source: RFC 4180. The first row names the columns."""
    rows = csv.reader(file, strict=True)
    header = _header(rows, Path(file.name).name)
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error:
            yield None
            continue
        if row:
            yield dict(zip(header, row, strict=True)) if len(row) == len(header) and all(map(_is_unicode, row)) else None


def _header(rows: Iterator[list[str]], name: str) -> list[str]:
    """The names of the columns, each once."""
    try:
        header = next(rows, [])
    except csv.Error as error:
        raise DataError("a header can't be read", value=f"{name}, {error}", remedy="correct the quotes in the file's first row") from error
    if not all(map(_is_unicode, header)):
        raise DataError("a header can't be read", value=f"{name}, not UTF-8", remedy="save the file as UTF-8")
    if twice := sorted({column for column in header if header.count(column) > 1}):
        raise DataError(
            "columns have the same name",
            value=f"{name}, {', '.join(map(repr, twice))}"[:120],
            remedy="rename one of them in the file's first row",
        )
    return header


READERS: dict[str, Callable[[TextIO], Iterator[Record | None]]] = {".jsonl": _json_lines, ".csv": _comma_separated}


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _example(labelled: LabelledSet, number: int, record: Record | None) -> Example:
    if record is None:
        raise _refusal(labelled, number, "a record that can't be read", "", "path")
    text = _plain(labelled, number, record, "text_field")
    answer, choices = _plain(labelled, number, record, "answer_field"), _choices(labelled, number, record)
    id = _plain(labelled, number, record, "id_field") if labelled.id_field else f"{labelled.name}#{number}"
    if choices:
        answer = _chosen(answer, choices)
    allowed = choices or labelled.labels
    if allowed and answer not in allowed:
        raise _refusal(labelled, number, "an unknown label", f"{answer!r} is none of {', '.join(allowed)[:80]}", "labels")
    return Example(id, text, answer, choices)


def _plain(labelled: LabelledSet, number: int, record: Record, setting: str) -> str:
    """What stands in the column that a setting names."""
    column = getattr(labelled, setting)
    value = record.get(column)
    if value is None:
        raise _refusal(labelled, number, "no column", column, setting)
    if not isinstance(value, str | int | float) or not str(value).strip():
        raise _refusal(labelled, number, "an empty column", column, setting)
    return str(value)


def _choices(labelled: LabelledSet, number: int, record: Record) -> tuple[str, ...]:
    """One column that lists them, or a column for each."""
    if not labelled.choice_fields:
        return ()
    found = [record.get(column) for column in labelled.choice_fields]
    listed = found[0] if len(found) == 1 and isinstance(found[0], list) else found
    if len(listed) < 2 or not all(isinstance(choice, str) and choice.strip() for choice in listed):
        raise _refusal(labelled, number, "fewer than two choices", ", ".join(labelled.choice_fields), "choice_fields")
    return tuple(listed)


def _chosen(answer: str, choices: tuple[str, ...]) -> str:
    """The choice that an answer means by its text, by its number from 0 on, or by its letter."""
    if answer in choices:
        return answer
    letter = ord(answer.upper()) - ord("A") if len(answer) == 1 and answer.isascii() and answer.isalpha() else -1
    place = int(answer) if answer.isascii() and answer.isdigit() else letter
    return choices[place] if 0 <= place < len(choices) else answer


def _refusal(labelled: LabelledSet, number: int, fact: str, value: str, setting: str) -> DataError:
    where = f"{labelled.name}, record {number}" + (f", {value}" if value else "")
    return DataError(f"a labelled set has {fact}", value=where, remedy=f"correct it, or set evaluate.sets.{setting}")
