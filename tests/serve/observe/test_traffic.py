from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows import cli
from llm.artifact import Artifact, Store
from llm.data import chat, labelled
from llm.data.config import ChatConfig, LabelledSet
from llm.data.document import Document
from llm.data.sources import files
from llm.data.sources.config import FilesSource
from llm.errors import DataError
from llm.serve.observe import traffic
from llm.serve.observe.config import SamplesConfig
from llm.serve.observe.metrics import Metrics
from llm.serve.observe.samples import Exchange, Rating, Samples


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Thirty exchanges, of which some are rated, one is corrected and two are no use."""
    samples = Samples(SamplesConfig(folder=str(tmp_path / "traffic"), share=1), Metrics())
    for number in range(30):
        system = {"role": "system", "content": "Be brief."}
        said = (
            {"role": "user", "content": f"Question {number}?"},
            {"role": "assistant", "content": "So?"},
            {"role": "user", "content": "Well?"},
        )
        messages = (system, *said) if number % 2 else said[:1]
        answer = "" if number == 28 else f"Answer number {number}."
        samples.answered(Exchange(f"cmpl-{number}", "chat", "3", "chat", messages, answer, "stop", created=f"2030-01-01T00:00:{number}Z"))
    for number, rating in enumerate(("up", "down", "up")):
        samples.rated(Rating(f"cmpl-{number}", "up")).result(10)
        samples.rated(Rating(f"cmpl-{number}", rating)).result(10)
    samples.rated(Rating("cmpl-4", "down", "wrong", "The right answer.")).result(10)
    samples.close()
    return tmp_path / "traffic"


@pytest.fixture
def artifact(folder: Path, tmp_path: Path) -> Artifact:
    return traffic.commit(folder, Store(tmp_path / "store"))


def test_the_last_rating_counts_and_corrections_are_the_answer(artifact: Artifact) -> None:
    assert artifact.manifest["counts"] == {"exchanges": 29, "liked": 3, "rated": 4}
    liked = [json.loads(line) for line in (artifact.path / "liked.jsonl").read_text().splitlines()]
    assert [(each["id"], each["rating"], each["answer"]) for each in liked] == [
        ("cmpl-0", "up", "Answer number 0."),
        ("cmpl-2", "up", "Answer number 2."),
        ("cmpl-4", "down", "The right answer."),
    ]


def test_retraining_reads_it(artifact: Artifact) -> None:
    found = [each for _, each in chat._file_pairs(ChatConfig(source=str(artifact.path / "traffic.jsonl")))]
    assert len(found) == 29
    first, second = found[:2]
    assert [turn.content for turn in first.turns] == ["Question 0?", "Answer number 0."]
    assert [turn.content for turn in second.turns] == ["Be brief.\n\nQuestion 1?", "So?", "Well?", "Answer number 1."]


def test_evaluation_reads_it(artifact: Artifact) -> None:
    labels = LabelledSet(name="traffic", path=str(artifact.path / "traffic.jsonl"), id_field="id")
    found = list(labelled.examples(labels))
    assert [(found[4].id, found[4].text, found[4].answer)] == [("cmpl-4", "Question 4?", "The right answer.")]
    assert len(found) == 29


def test_a_collection_reads_it(artifact: Artifact, tmp_path: Path) -> None:
    source = FilesSource(path=str(artifact.path / "traffic.jsonl"), text_field="question")
    (piece,) = files.pieces(source, tmp_path)
    found = list(files.read(source, piece.value))
    assert len(found) == 29
    assert all(isinstance(each, Document) for each in found)


def test_equal_traffic_is_one_artifact_and_more_is_another(folder: Path, artifact: Artifact, tmp_path: Path) -> None:
    assert traffic.commit(folder, Store(tmp_path / "store")).path == artifact.path
    traffic.forget(folder, "cmpl-7")
    less = traffic.commit(folder, Store(tmp_path / "store"))
    assert less.path != artifact.path
    assert "cmpl-7" not in (less.path / "traffic.jsonl").read_text()


def test_the_command_makes_it_and_takes_out_of_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRAINYARD_HOME", str(tmp_path / "store"))
    cli.traffic(folder, forget="cmpl-2")
    cli.traffic(folder)
    said = capsys.readouterr().out
    assert "3 lines taken out" in said
    assert "28 exchanges, 2 liked, 3 rated" in said


def test_no_traffic_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        traffic.commit(tmp_path / "missing", Store(tmp_path))
    with pytest.raises(DataError, match="no such folder"):
        traffic.forget(tmp_path / "missing", "cmpl-1")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no traffic was kept.*set observe\.samples\.share"):
        traffic.commit(tmp_path / "empty", Store(tmp_path))
