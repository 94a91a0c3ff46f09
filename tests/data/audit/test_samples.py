from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm.data.audit.config import AuditConfig
from llm.data.audit.samples import dropped_samples, kept_samples
from llm.data.document import Document, write_documents

CONFIG = AuditConfig(sample_characters=100)
SECRETS = "jo@example.org AKIAIOSFODNN7EXAMPLE 8.8.8.8 +442079460958 GB82WEST12345698765432 4111111111111111"
PLACEHOLDERS = "<EMAIL> <KEY> <IP> <PHONE> <IBAN> <CARD>"
SHOWN = {"prose": PLACEHOLDERS, "program": f"def f():\n    {PLACEHOLDERS}", "c": PLACEHOLDERS, "cut": "word " * 18 + "a <KEY>"}
CUT = "word " * 18 + "a ghp_" + "aB3dE6gH9j" * 4  # the limit falls into the token


@pytest.fixture
def documents() -> list[Document]:
    return [
        Document("prose", SECRETS, "files"),
        Document("program", f"def f():\n    {SECRETS}", "files", domain="code", language="python"),
        Document("c", SECRETS, "files", domain="code", language="c"),
        Document("cut", CUT, "files"),
    ]


def test_dropped_texts_are_masked_before_they_are_cut(tmp_path: Path, documents: list[Document]) -> None:
    collected, cleaned, deduped = (tmp_path / name for name in ("collected", "cleaned", "deduped"))
    for folder in (collected, cleaned, deduped):
        folder.mkdir()
    write_documents(collected / "documents-00000.parquet", documents)
    dropped = [{"id": document.id, "reason": document.id} for document in documents[:-1]]
    (cleaned / "dropped.jsonl").write_text("".join(json.dumps(line) + "\n" for line in dropped))
    (deduped / "clusters.jsonl").write_text(json.dumps({"dropped": {"cut": "duplicate"}}) + "\n")
    shown = dropped_samples(collected, cleaned, deduped, CONFIG)
    assert set(shown) == {"prose", "program", "c", "duplicate"}
    assert {each["id"]: each["text"] for samples in shown.values() for each in samples} == SHOWN


def test_kept_texts_are_masked_too(tmp_path: Path, documents: list[Document]) -> None:
    for split in ("train", "validation", "test"):
        write_documents(tmp_path / f"{split}-00000.parquet", documents if split == "train" else [])
    shown = kept_samples(tmp_path, AuditConfig(sample_characters=100, samples=4))
    assert {each["id"]: each["text"] for each in shown} == SHOWN
