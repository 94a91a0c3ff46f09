from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import sqlite3
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from pydantic import ValidationError

from llm.artifact import canonical
from llm.data.collect import collect, snapshot
from llm.data.config import CollectConfig
from llm.data.document import Document, read_shards
from llm.data.parts import Workshop
from llm.data.sources import installed
from llm.data.sources.config import FilesSource, HuggingFaceSource, InstalledSource, Source, SqlSource, WarcSource
from llm.data.sources.warc import write_warc
from llm.errors import DataError, RecipeError, SourceError


def gathered(out: Path, *sources: Source, allowed: float = 1.0) -> tuple[list[Document], dict[str, str]]:
    """Documents, and the reasons of what was quarantined."""
    out.mkdir()
    books = collect(CollectConfig(sources=sources, max_quarantined_share=allowed), out, Workshop(out.with_name(f"{out.name}-parts")))
    documents = list(read_shards(out))
    quarantined = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert books["kept"] == len(documents)
    assert books["read"] == len(documents) + len(quarantined)
    return documents, {record["id"]: record["reason"] for record in quarantined}


def parquet(texts: list[str]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": texts, "url": [f"https://{text}" for text in texts]}), buffer)
    return buffer.getvalue()


def arrow(texts: list[str], writer: Callable[..., Any]) -> bytes:
    buffer, table = io.BytesIO(), pa.table({"text": texts})
    with writer(buffer, table.schema) as file:
        file.write_table(table)
    return buffer.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


RECORDS = "\n".join(json.dumps({"text": text, "language": "en"}) for text in ("one", "two")).encode()
CONTENT = {
    "plain.txt": (b"\xef\xbb\xbfa text", ["a text"]),
    "notes.md": (b"# notes", ["# notes"]),
    "guide.rst": (b"guide\n=====", ["guide\n====="]),
    "page.html": (b"<p>page</p>", ["<p>page</p>"]),
    "code.py": (b"print()", ["print()"]),
    "records.jsonl": (RECORDS, ["one", "two"]),
    "table.parquet": (parquet(["x", "y"]), ["x", "y"]),
    "file.arrow": (arrow(["file 1", "file 2"], pa.ipc.new_file), ["file 1", "file 2"]),
    "stream.arrow": (arrow(["stream 1", "stream 2"], pa.ipc.new_stream), ["stream 1", "stream 2"]),
    "table.csv": (b'\xef\xbb\xbftext,url\r\n"a ""row"",\nof two lines",http://x\r\n', ['a "row",\nof two lines']),
    "table.tsv": (b"n\ttext\n1\ta tab\n", ["a tab"]),
    "script.sh": (b"exit 1", ["exit 1"]),
    "pack.zip": (
        zipped({"a.txt": b"in a zip", "deep/b.md.gz": gzip.compress(b"in a gzip in a zip"), "c.png": b"\x89"}),
        ["in a zip", "in a gzip in a zip"],
    ),
    "pack.tar": (tarred({"a.txt": b"in a tar", "b.parquet": parquet(["in a table in a tar"])}), ["in a tar", "in a table in a tar"]),
}


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


@pytest.mark.parametrize("suffix", COMPRESS)
def test_every_kind_of_file_is_read_plain_and_compressed(tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "corpus"
    for name, (content, _) in CONTENT.items():
        path = folder / name.split(".")[0] / (name + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(COMPRESS[suffix](content))
    (folder / "picture.png").write_bytes(b"\x89PNG")
    documents, quarantined = gathered(tmp_path / "out", FilesSource(path=str(folder), domain="web"))
    assert not quarantined
    assert sorted(document.text for document in documents) == sorted(text for _, texts in CONTENT.values() for text in texts)
    assert {document.domain for document in documents} == {"web"}
    by_text = {document.text: document for document in documents}
    assert by_text["print()"].language == "python"
    assert by_text["print()"].meta == {"path": f"corpus/code/code.py{suffix}", "format": "code"}
    assert by_text["two"].id == f"files:corpus/records/records.jsonl{suffix}#1"
    assert by_text["x"].url == "https://x"


BAD = {
    "empty.txt": (b"", "empty"),
    "blank.md": (b" \n\t ", "empty"),
    "latin.txt": ("café".encode("latin-1"), "undecodable"),
    "binary.txt": (b"a\0b", "binary"),
    "cut.txt.gz": (gzip.compress(os.urandom(5000).hex().encode())[:3000], "corrupt"),
    "cut.txt.zst": (zstandard.compress(os.urandom(500_000).hex().encode())[:300_000], "corrupt"),
    "cut.md.zst": (zstandard.compress(b"text")[:-1], "corrupt"),
    "cut.md.gz": (gzip.compress(b"text")[:-4], "corrupt"),
    "not.txt.gz": (b"plain text", "corrupt"),
    "cut.parquet": (parquet(["x" * 500])[:-60], "corrupt"),
    "empty.parquet": (b"", "corrupt"),
}


def test_what_cannot_be_read_is_quarantined_and_the_rest_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "good.txt").write_text("good")
    for name, (content, _) in BAD.items():
        (folder / name).write_bytes(content)
    (folder / "lines.jsonl").write_bytes(b'{"text": "fine"}\n{"text": \n{"body": "x"}\n[1]\n{"text": "\\ud800"}\n{"text": "\xff"}\n')
    documents, quarantined = gathered(tmp_path / "out", FilesSource(path=str(folder)))
    assert [document.text for document in documents] == ["good", "fine"]
    lines = {1: "corrupt_line", 2: "no_text_field", 3: "no_text_field", 4: "lone_surrogate", 5: "corrupt_line"}
    expected = {f"files:corpus/{name}": reason for name, (_, reason) in BAD.items()}
    assert quarantined == expected | {f"files:corpus/lines.jsonl#{number}": reason for number, reason in lines.items()}


def test_too_much_that_cannot_be_read_stops_the_stage(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(9):
        (folder / f"{number}.txt").write_text("text")
    (folder / "bad.txt").write_bytes(b"\xff")
    assert len(gathered(tmp_path / "enough", FilesSource(path=str(folder)), allowed=0.1)[0]) == 9
    with pytest.raises(DataError, match=r"1 of 10 \(undecodable 1\), first files:corpus/bad\.txt.*collect\.max_quarantined_share"):
        gathered(tmp_path / "too_much", FilesSource(path=str(folder)), allowed=0.09)


def test_an_empty_corpus_is_a_named_error(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    with pytest.raises(DataError, match=r"corpus is empty.*collect\.sources"):
        gathered(tmp_path / "out", FilesSource(path=str(tmp_path / "corpus")))
    with pytest.raises(SourceError, match=r"no such file or folder.*collect\.sources\.path"):
        gathered(tmp_path / "gone", FilesSource(path=str(tmp_path / "missing")))
    (tmp_path / "picture.png").touch()
    with pytest.raises(RecipeError, match=r"unknown kind of file: picture\.png"):
        gathered(tmp_path / "unknown", FilesSource(path=str(tmp_path / "picture.png")))


def test_two_folders_of_one_name_are_refused_rather_than_mixed_up(tmp_path: Path) -> None:
    for parent in "ab":
        (tmp_path / parent / "corpus").mkdir(parents=True)
        (tmp_path / parent / "corpus" / "text.txt").write_text(parent)
    twins = [FilesSource(path=str(tmp_path / parent / "corpus")) for parent in "ab"]
    message = (
        r"two documents have one id: files:corpus/text\.txt, in collect\.sources\.1 \(files\) and collect\.sources\.2 \(files\);"
        " give their folders different names"
    )
    with pytest.raises(DataError, match=message):
        gathered(tmp_path / "out", FilesSource(path=str(tmp_path / "a" / "corpus" / "text.txt")), *twins)


def test_rows_that_two_entries_choose_are_refused_with_the_remedy_of_their_kind(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "rows.db") as database:
        database.execute("create table pages (id integer primary key, text text, site text)")
        database.executemany("insert into pages values (?, ?, ?)", [(1, "one", "a"), (2, "two", "b")])
    everything = SqlSource(url=f"sqlite:///{tmp_path}/rows.db", table="pages")
    of_a, of_b = (everything.model_copy(update={"only": {"site": site}}) for site in "ab")
    message = r"one id: sql:.*#2, in collect\.sources\.0 \(sql\) and collect\.sources\.1 \(sql\); let their `only` choose different rows"
    with pytest.raises(DataError, match=message):
        gathered(tmp_path / "out", everything, of_b)
    assert [document.text for document in gathered(tmp_path / "apart", of_a, of_b)[0]] == ["one", "two"]


def test_an_archive_that_a_list_names_twice_is_refused_where_it_stands(tmp_path: Path) -> None:
    write_warc(tmp_path / "a.warc", [("http://a/", "text/plain", b"a page", "2026-01-31T12:00:00Z")])
    (tmp_path / "warc.paths").write_text("a.warc\na.warc\n")
    with pytest.raises(DataError, match=r"one id: warc:a\.warc#0, in collect\.sources\.0 \(warc\); leave one of them out there"):
        gathered(tmp_path / "out", WarcSource(path=str(tmp_path / "warc.paths")))


def test_patterns_choose_files(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in ("a.md", "b.md", "a.txt"):
        (folder / name).write_text(name)
    documents, _ = gathered(tmp_path / "out", FilesSource(path=str(folder), patterns=("a.*", "b.t*")))
    assert [document.text for document in documents] == ["a.md", "a.txt"]


def test_files_that_no_source_reads_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in ("a.txt", "b.log", "c.log.gz", "d.PNG", "LICENSE", ".hidden.log"):
        (folder / name).write_text("text")
    gathered(tmp_path / "all", FilesSource(path=str(folder)))
    assert skipped_files(tmp_path / "all") == {".log": 2, ".png": 1, "no suffix": 1}
    gathered(tmp_path / "some", FilesSource(path=str(folder), patterns=("*.txt", "*.log")))
    assert skipped_files(tmp_path / "some") == {".log": 1}
    gathered(tmp_path / "one", FilesSource(path=str(folder / "a.txt")))
    assert skipped_files(tmp_path / "one") == {}


def skipped_files(out: Path) -> dict[str, int]:
    news: dict[str, dict[str, int]] = json.loads((out / "log" / "news.json").read_text())
    return news["skipped_files"]


def test_a_snapshot_changes_exactly_when_the_content_does(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    config = CollectConfig(sources=(FilesSource(path=str(folder)),))
    (folder / "a.txt").write_text("one")
    before = canonical(snapshot(config))
    os.utime(folder / "a.txt", (1, 1))
    (folder / "ignored.png").write_text("no text")
    assert canonical(snapshot(config)) == before
    folder.rename(tmp_path / "elsewhere")
    (tmp_path / "moved").mkdir()
    (tmp_path / "elsewhere").rename(tmp_path / "moved" / "corpus")
    moved = CollectConfig(sources=(FilesSource(path=str(tmp_path / "moved" / "corpus")),))
    assert canonical(snapshot(moved)) == before
    seen = {before}
    for change in (lambda path: path.write_text("two"), lambda path: path.with_name("b.txt").write_text("one"), lambda path: path.unlink()):
        change(tmp_path / "moved" / "corpus" / "a.txt")
        seen.add(canonical(snapshot(moved)))
    assert len(seen) == 4


def test_local_data_sets_are_read_streamed_and_saved(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "part.jsonl").write_text("\n".join(json.dumps({"body": f"text {number}"}) for number in range(5)))
    source = HuggingFaceSource(path=str(folder), text_field="body", domain="web", max_documents=3)
    documents, quarantined = gathered(tmp_path / "streamed", source)
    assert [(document.id, document.text) for document in documents] == [(f"huggingface:set/train#{n}", f"text {n}") for n in range(3)]
    assert not quarantined
    before = canonical(snapshot(CollectConfig(sources=(source,))))
    (folder / "part.jsonl").write_text(json.dumps({"body": "changed"}))
    assert canonical(snapshot(CollectConfig(sources=(source,)))) != before
    assert [document.text for document in gathered(tmp_path / "again", source)[0]] == ["changed"]

    datasets.Dataset.from_dict({"text": ["saved", "too long for the cap"]}).save_to_disk(str(tmp_path / "saved"))
    documents, _ = gathered(tmp_path / "loaded", HuggingFaceSource(path=str(tmp_path / "saved"), max_bytes=10))
    assert [document.text for document in documents] == ["saved"]


def test_code_that_comes_with_a_data_set_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "script"
    folder.mkdir()
    (folder / "script.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    with pytest.raises(RecipeError, match="scripts are no longer supported"):
        gathered(tmp_path / "out", HuggingFaceSource(path=str(folder)))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("revision", [None, "main", "v1.0", "abc123"])
def test_a_hub_data_set_must_be_pinned(revision: str | None) -> None:
    with pytest.raises(ValidationError, match=r"not pinned.*collect\.sources\.revision"):
        HuggingFaceSource(path="owner/name", revision=revision)
    pinned = HuggingFaceSource(path="owner/name", revision="0123456789" * 4)
    assert snapshot(CollectConfig(sources=(pinned,)))["sources"][0]["revision"] == "0123456789" * 4


def test_a_hub_out_of_reach_is_an_error_that_time_may_heal() -> None:
    attempt = (
        "from llm.data.sources.config import HuggingFaceSource\nfrom llm.data.sources.huggingface import read\n"
        "from llm.errors import SourceError\n"
        "try: next(read(HuggingFaceSource(path='owner/name', revision='0' * 40), None))\n"
        "except SourceError as error: print(error)"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    answer = subprocess.run([sys.executable, "-c", attempt], env=environment, capture_output=True, text=True, check=True)
    assert answer.stdout.startswith("the hub can't be reached: owner/name")


def test_installed_text_is_representative_and_knows_no_machine(tmp_path: Path) -> None:
    source = InstalledSource(max_bytes=300_000)
    documents, _ = gathered(tmp_path / "out", source)
    sizes = {domain: sum(len(each.text.encode()) for each in documents if each.domain == domain) for domain in ("code", "docs")}
    assert all(200_000 < size <= 300_000 for size in sizes.values())
    code = [document for document in documents if document.domain == "code"]
    assert all(document.id == f"installed:code/{document.meta['path']}" for document in code)
    assert code[0].id < "installed:code/c" < "installed:code/t" < code[-1].id
    assert not any("/test" in document.id or "licen" in document.id.lower() for document in documents)
    assert not any("trainyard" in document.id for document in documents)
    listed = snapshot(CollectConfig(sources=(source,)))["sources"][0]["documents"]
    assert {each["id"] for each in listed} >= {document.id for document in documents}
    assert sys.prefix not in canonical(listed)


def test_installed_documentation_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CollectConfig(sources=(InstalledSource(domains=("docs",)),))
    before = snapshot(config)["sources"][0]["documents"]
    monkeypatch.syspath_prepend(tmp_path)
    for name, url in (("plain", ""), ("working-copy", '{"dir_info": {"editable": true}}'), ("trainyard", "")):
        folder = tmp_path / f"{name.replace('-', '_')}-1.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Name: {name}\nVersion: 1\n\nDescription of {name}")
        (folder / "RECORD").write_text(f"{name}/guide.md,sha256=x,5\n{name}/LICENSE.md,,\n{name}/tests/a.md,,\n{name}/gone.md,,\n")
        (folder / "direct_url.json").write_text(url)
        (tmp_path / name / "tests").mkdir(parents=True)
        for place in ("guide.md", "LICENSE.md", "tests/a.md"):
            (tmp_path / name / place).write_text("words")
    after = snapshot(config)["sources"][0]["documents"]
    new = {each["id"] for each in after} - {each["id"] for each in before}
    assert new == {"installed:docs/plain/METADATA", "installed:docs/plain/plain/guide.md"}


def test_a_cap_keeps_its_choice_when_documents_come_and_go() -> None:
    documents = [installed.Candidate(str(number), "docs", b"x" * 10, {}) for number in range(100)]
    chosen = {each.id for each in installed._capped(iter(documents), 300)}
    assert len(chosen) == 30
    fewer = {each.id for each in installed._capped(iter(documents[:90]), 300)}
    assert len(fewer) == 30
    assert len(chosen & fewer) >= len(chosen & {each.id for each in documents[:90]})
    assert {each.id for each in installed._capped(iter(documents), None, 20)} < chosen
