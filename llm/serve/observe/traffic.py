"""Kept traffic as an artifact that the data engine reads.

    traffic.jsonl     every kept exchange: id, created, model, version, kind, messages, question, answer, rating, comment
    liked.jsonl       those that a user liked or corrected, with the correction as the answer: what a model may learn from

Both are read by `finetune.chat.source`, by `evaluate.sets` (id_field: id) and by a source of collect (text_field: answer or
question).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm.artifact import Artifact, Store, sha256_file, sha256_of
from llm.data.document import write_json_lines
from llm.errors import DataError
from llm.provenance import git_commit, versions
from llm.serve.observe import segments
from llm.serve.observe.segments import locked, read

STAGE = "traffic"


def commit(folder: Path, store: Store) -> Artifact:
    """What the folder holds now as an artifact; equal content is the same one.

    What is taken out of the folder later stays in artifacts made before, until `trainyard gc` takes them.

    Raises: DataError if nothing was kept.
    """
    with locked(existing(folder)):
        exchanges = list(joined(read(folder)))
        observed = {path.name: sha256_file(path) for path in segments.segments(folder)}
    if not exchanges:
        raise DataError("no traffic was kept", value=folder, remedy="set observe.samples.share, or rate some answers")
    facts = {"config": {}, "observed": observed, "parents": {}, "git_commit": git_commit(), "versions": versions()}

    def build(out: Path) -> dict[str, Any]:
        liked = [each for each in exchanges if each["rating"] == "up" or each["corrected"]]
        write_json_lines(out / "traffic.jsonl", exchanges)
        write_json_lines(out / "liked.jsonl", liked)
        return {"exchanges": len(exchanges), "liked": len(liked), "rated": sum(bool(each["rating"]) for each in exchanges)}

    return store.produce(STAGE, sha256_of({"stage": STAGE, "exchanges": exchanges})[:20], facts, build)


def forget(folder: Path, id: str) -> int:
    """Take an answer and its ratings out of the folder of a server, running or not; returns how many lines that were."""
    return segments.forget(existing(folder), id)


def existing(folder: Path) -> Path:
    """The folder itself.

    Raises: DataError if there is none.
    """
    if not folder.is_dir():
        raise DataError("no such folder of traffic", value=folder, remedy="name the one of observe.samples.folder")
    return folder


def joined(lines: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Each answer with its last rating, in the order of the answers; those without a question or an answer are left out."""
    answers, ratings = dict[str, dict[str, Any]](), dict[str, dict[str, Any]]()
    for line in lines:
        (answers if line.get("record") == "answer" else ratings)[str(line.get("id"))] = line
    for id, answer in answers.items():
        exchange = _exchange(answer, ratings.get(id, {}))
        if exchange["question"].strip() and exchange["answer"].strip():
            yield exchange


def _exchange(answer: dict[str, Any], rating: dict[str, Any]) -> dict[str, Any]:
    correction = rating.get("correction", "")
    said = correction or answer["answer"]
    facts = {name: answer[name] for name in ("id", "created", "model", "version", "kind")}
    messages = [*answer["messages"], {"role": "assistant", "content": said}]
    judged = {"rating": rating.get("rating", ""), "comment": rating.get("comment", ""), "corrected": bool(correction)}
    return facts | judged | {"messages": messages, "question": answer["messages"][-1]["content"], "answer": said}
