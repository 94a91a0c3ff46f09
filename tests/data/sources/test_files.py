from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import os
import signal
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm.artifact import canonical
from llm.data.document import Document, Quarantined
from llm.data.sources import files, isolation
from llm.data.sources.config import FilesSource, Limits
from llm.data.sources.isolation import ReaderProcess
from llm.errors import DependencyError, RecipeError, SourceError


def found(source: FilesSource) -> tuple[dict[str, Document], dict[str, str]]:
    """What a source holds, by id: documents, and reasons of what can't be read."""
    everything = [each for piece in files.pieces(source, Path()) for each in files.read(source, piece.value)]
    documents = {each.id: each for each in everything if isinstance(each, Document)}
    quarantined = {each.id: each.reason for each in everything if isinstance(each, Quarantined)}
    assert len(documents) + len(quarantined) == len(everything)
    return documents, quarantined


def write_corpus(folder: Path) -> FilesSource:
    """A few files, some of which only a process of its own reads."""
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text("first")
    (folder / "deep" / "b.md.gz").write_bytes(gzip.compress(b"second"))
    pq.write_table(pa.table({"text": ["third"], "created": [datetime(2026, 1, 31, tzinfo=UTC)], "license": ["MIT"]}), folder / "c.parquet")
    with zipfile.ZipFile(folder / "d.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo("x/fourth.py", (2024, 2, 29, 12, 30, 0)), "4")
    return FilesSource(path=str(folder))


def test_a_remote_folder_holds_the_same_documents_as_a_local_one(tmp_path: Path) -> None:
    local = write_corpus(tmp_path / "corpus")
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "corpus"), "/bucket/corpus", recursive=True)
    remote = FilesSource(path="memory://bucket/corpus")
    assert found(remote) == found(local)
    documents, quarantined = found(local)
    assert not quarantined
    assert {id: document.text for id, document in documents.items()} == {
        "files:corpus/a.txt": "first",
        "files:corpus/deep/b.md.gz": "second",
        "files:corpus/c.parquet#0": "third",
        "files:corpus/d.zip!x/fourth.py": "4",
    }
    third, fourth = documents["files:corpus/c.parquet#0"], documents["files:corpus/d.zip!x/fourth.py"]
    assert (third.created, third.license, third.meta) == ("2026-01-31T00:00:00+00:00", "MIT", {"path": "corpus/c.parquet"})
    assert (fourth.created, fourth.language) == ("2024-02-29T12:30:00", "python")
    before = canonical(files.snapshot(remote))
    assert canonical(files.snapshot(remote)) == before
    memory.pipe("/bucket/corpus/a.txt", b"FIRST")
    assert canonical(files.snapshot(remote)) != before
    single = found(FilesSource(path="memory://bucket/corpus/a.txt"))[0]
    assert {id: document.text for id, document in single.items()} == {"files:a.txt": "FIRST"}
    memory.rm("/bucket", recursive=True)


def test_a_storage_that_cannot_be_reached_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no such file or folder: memory://nothing") as gone:
        files.snapshot(FilesSource(path="memory://nothing"))
    assert not gone.value.transient
    with pytest.raises(RecipeError, match="unknown storage: nowhere://"):
        files.snapshot(FilesSource(path="nowhere://bucket"))
    with pytest.raises(DependencyError, match=r"driver of a storage is missing: gcs://.*gcsfs"):
        files.snapshot(FilesSource(path="gcs://bucket"))


def test_a_file_that_may_not_be_read_stops_the_reading_for_another_try(tmp_path: Path) -> None:
    source = write_corpus(tmp_path / "corpus")
    (piece,) = files.pieces(source, tmp_path)
    (tmp_path / "corpus" / "c.parquet").unlink()
    with pytest.raises(SourceError, match=r"no such file or folder: corpus/c\.parquet"):
        list(files.read(source, piece.value))


@pytest.mark.parametrize("place", ["", "memory://changing/"])
def test_what_changes_between_listing_and_reading_is_not_kept_under_its_old_hash(tmp_path: Path, place: str) -> None:
    storage, folder = fsspec.core.url_to_fs(f"{place}{'' if place else tmp_path}/corpus")
    storage.makedirs(folder)
    for name in ("a.txt", "b.jsonl", "c.parquet"):
        storage.pipe(f"{folder}/{name}", b'{"text": "before"}')
    source = FilesSource(path=f"{place}{'' if place else tmp_path}/corpus")
    (piece,) = files.pieces(source, tmp_path)
    storage.pipe(f"{folder}/b.jsonl", b'{"text": "behind"}')
    with pytest.raises(SourceError, match=r"a file changed while it was read: corpus/b\.jsonl") as changed:
        list(files.read(source, piece.value))
    assert changed.value.transient
    (piece,) = files.pieces(source, tmp_path)
    if not place:
        os.utime(f"{folder}/a.txt", (1, 1))  # touched, and the same
    assert [each.text for each in files.read(source, piece.value) if isinstance(each, Document)] == ['{"text": "before"}', "behind"]


@pytest.mark.parametrize("place", ["", "memory://hiding/"])
def test_hidden_files_and_folders_are_no_text(tmp_path: Path, place: str) -> None:
    storage, folder = fsspec.core.url_to_fs(f"{place}{'' if place else tmp_path}/.home/corpus")
    for name in ("a.txt", ".trainyard/store.jsonl", "deep/.git/b.txt", "deep/.c.txt", "deep/d.txt"):
        storage.makedirs(f"{folder}/{name}".rpartition("/")[0], exist_ok=True)
        storage.pipe(f"{folder}/{name}", b"text")
    documents, quarantined = found(FilesSource(path=f"{place}{'' if place else tmp_path}/.home/corpus"))
    assert [*documents] == ["files:corpus/a.txt", "files:corpus/deep/d.txt"]
    assert not quarantined


def linked(folder: Path, names: dict[str, str]) -> None:
    """Links below a folder, by what they lead to."""
    for name, target in names.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(target)


def test_links_are_followed_and_lead_to_each_file_once(tmp_path: Path) -> None:
    for name in ("corpus/own/a.txt", "corpus/.git/b.txt", "elsewhere/c.txt", "elsewhere/.d.txt", "elsewhere/deep/e.txt", "single.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    linked(
        tmp_path / "corpus", {"aside": "../elsewhere", "again": "../elsewhere", "before": "own", "own/up": "..", ".hidden": "../elsewhere"}
    )
    linked(tmp_path / "elsewhere", {"deep/round": "../../corpus", "nowhere": "missing"})
    linked(tmp_path / "corpus", {"a-copy.txt": "own/a.txt", "x.txt": "../single.txt", "y.txt": "../single.txt", "gone.txt": "missing.txt"})
    documents, quarantined = found(FilesSource(path=str(tmp_path / "corpus")))
    assert {id.removeprefix("files:corpus/"): document.text for id, document in documents.items()} == {
        "own/a.txt": "corpus/own/a.txt",
        "again/c.txt": "elsewhere/c.txt",
        "again/deep/e.txt": "elsewhere/deep/e.txt",
        "x.txt": "single.txt",
    }
    assert not quarantined
    chosen, _ = found(FilesSource(path=str(tmp_path / "corpus"), patterns=("*copy*",)))
    assert [*chosen] == ["files:corpus/a-copy.txt"], "the link is what the pattern names"


def test_a_link_gives_a_kind_to_a_file_whose_own_name_has_none(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "0123").write_text("as a cache keeps it")
    linked(tmp_path, {"snapshot/readme.md": "../blobs/0123"})
    documents, _ = found(FilesSource(path=str(tmp_path)))
    assert [document.text for document in documents.values()] == ["as a cache keeps it"]


def test_patterns_that_choose_only_what_cannot_be_read_are_an_error(tmp_path: Path) -> None:
    for name in ("a.log", "b.log.gz", "README", "c.txt"):
        (tmp_path / name).write_text("text")
    with pytest.raises(
        RecipeError, match=r"no file .* can be read: \*\.log\* README, \.log 2, no suffix 1; set collect\.sources\.patterns"
    ):
        files.snapshot(FilesSource(path=str(tmp_path), patterns=("*.log*", "README")))
    assert len(found(FilesSource(path=str(tmp_path), patterns=("*.log", "*.txt")))[0]) == 1
    assert found(FilesSource(path=str(tmp_path), patterns=("*.none",))) == ({}, {})


@contextlib.contextmanager
def powerless() -> Iterator[None]:
    """As a user whom the permissions of files bind."""
    was = os.geteuid()
    os.seteuid(was or 65534)
    try:
        yield
    finally:
        os.seteuid(was)


@pytest.mark.parametrize("closed", ["deep", "a.txt"])
def test_what_may_not_be_read_is_named_and_not_left_out(closed: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        write_corpus(Path(place) / "corpus")
        os.chmod(place, 0o755)
        (Path(place) / "corpus" / closed).chmod(0)
        with powerless(), pytest.raises(SourceError, match=rf"a file can't be read: .*{closed}, Permission denied"):
            files.snapshot(FilesSource(path=f"{place}/corpus"))
        (Path(place) / "corpus" / closed).chmod(0o755)


def test_a_large_text_is_too_large_in_every_table(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    rows = [{"text": "é" * 500, "url": ""}, {"text": "é" * 501, "url": ""}, {"text": "short", "url": "x" * 1001}]
    (folder / "a.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), folder / "b.parquet")
    with pa.ipc.new_file(folder / "c.arrow", pa.Table.from_pylist(rows).schema) as file:
        file.write_table(pa.Table.from_pylist(rows))
    (folder / "a.jsonl").write_text((folder / "a.jsonl").read_text().replace(', "url": ""', ""))
    documents, quarantined = found(FilesSource(path=str(folder), limits=Limits(max_document_bytes=1000)))
    assert [*documents] == ["files:corpus/b.parquet#0", "files:corpus/c.arrow#0"]  # a line is larger than its text
    assert quarantined.pop("files:corpus/a.jsonl#0") == "too_large"
    assert quarantined == {f"files:corpus/{name}#{row}": "too_large" for name in ("a.jsonl", "b.parquet", "c.arrow") for row in (1, 2)}


@pytest.mark.parametrize("padding_bytes", [1, 300_000, 1_000_000])
def test_padding_of_any_length_hides_nothing(tmp_path: Path, padding_bytes: int) -> None:
    path, padding = tmp_path / "a.txt.gz", bytes(padding_bytes)
    path.write_bytes(gzip.compress(b"before, ") + padding + gzip.compress(b"behind") + padding)
    documents, quarantined = found(FilesSource(path=str(path)))
    assert [each.text for each in documents.values()] == [gzip.decompress(path.read_bytes()).decode()] == ["before, behind"]
    assert not quarantined


def test_what_is_no_document_of_an_archive_is_not_counted_as_one(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("a.txt", "latest", "pipe", "latest.txt"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = {"a.txt": tarfile.REGTYPE, "pipe": tarfile.FIFOTYPE}.get(name, tarfile.SYMTYPE), "a.txt"
            archive.addfile(entry)
        archive.addfile(tarfile.TarInfo("../picture.png"))
    documents, quarantined = found(FilesSource(path=str(tmp_path / "a.tar")))
    assert [*documents] == ["files:a.tar!a.txt"]
    assert quarantined == {"files:a.tar!latest.txt#member4": "unsafe_member", "files:a.tar!../picture.png#member5": "unsafe_member"}


RUSSIAN = "Это обычный русский текст, который нужно прочитать правильно, чтобы не испортить данные. "
JAPANESE = "これは日本語の文章です。文字コードを正しく判定する必要があります。東京は日本の首都です。"
FRENCH = "Les élèves français étaient déjà à l'école où la maîtresse préparait la fête de Noël. "


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        *[(FRENCH + JAPANESE, encoding) for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32")],
        (FRENCH, "cp1252"),
        (RUSSIAN, "cp1251"),
        (RUSSIAN, "koi8-r"),
        (JAPANESE, "shift_jis"),
        (JAPANESE, "euc_jp"),
        ("这是一个中文文本，需要正确检测编码。北京是中国的首都，人口众多。", "gb18030"),
        ("이것은 한국어 텍스트입니다. 인코딩을 올바르게 감지해야 합니다. ", "euc_kr"),
    ],
)
def test_encodings_are_found_out(tmp_path: Path, text: str, encoding: str) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.txt").write_bytes((text * 4).encode(encoding))
    (folder / "b.csv").write_bytes(f'number,text\n1,"{text * 4}"\n'.encode(encoding))
    documents, quarantined = found(FilesSource(path=str(folder)))
    assert not quarantined
    assert [document.text for document in documents.values()] == [text * 4, text * 4]


def test_an_encoding_that_nothing_speaks_for_is_undecodable(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "short.txt").write_bytes("café".encode("latin-1"))
    (folder / "damaged.txt").write_bytes((FRENCH * 4).encode()[:-30] + b"\xc3" + b" " * 20)
    (folder / "noise.txt").write_bytes(bytes(range(1, 256)) * 40)
    (folder / "cut.txt").write_bytes("text".encode("utf-16")[:-1])
    assert found(FilesSource(path=str(folder))) == (
        {},
        dict.fromkeys((f"files:corpus/{path.name}" for path in folder.iterdir()), "undecodable"),
    )
    (folder / "french.txt").write_bytes(FRENCH.encode("cp1252"))
    assert "files:corpus/french.txt" in found(FilesSource(path=str(folder), min_encoding_confidence=0.2))[0]
    assert "files:corpus/french.txt" in found(FilesSource(path=str(folder), min_encoding_confidence=0.9))[1]


def test_a_page_says_its_encoding(tmp_path: Path) -> None:
    page = '<html><head><meta charset="iso-8859-1"></head><body>“café” – naïve</body></html>'  # which browsers read as cp1252
    (tmp_path / "page.html").write_bytes(page.encode("cp1252"))
    assert [document.text for document in found(FilesSource(path=str(tmp_path / "page.html")))[0].values()] == [page]


def test_rows_of_csv_are_what_the_standard_library_reads(tmp_path: Path) -> None:
    rows = [
        {"text": 'say "hello",\nthen go', "url": "https://a.test/"},
        {"text": "plain", "url": ""},
        {"text": " blank edges ", "url": "x"},
    ]
    with (tmp_path / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["url", "text"])
        writer.writeheader()
        writer.writerows(rows)
    with (tmp_path / "table.csv").open("ab") as file:
        file.write(b'too,many,fields\n"half \n\n\xff,bytes\n')
    documents, quarantined = found(FilesSource(path=str(tmp_path / "table.csv")))
    with (tmp_path / "table.csv").open(newline="", errors="replace") as file:
        expected = [row for _, row in zip(rows, csv.DictReader(file), strict=False)]
    assert [{"text": each.text, "url": each.url} for each in documents.values()] == rows == expected
    assert list(quarantined.values()) == ["corrupt_record", "corrupt_record"]


def test_a_record_brings_its_own_facts_and_cannot_break_the_writing_of_them(tmp_path: Path) -> None:
    records = [{"text": "a", "domain": "law", "language": "de", "created": "2020", "url": 7}, {"text": "b", "url": "\ud800"}, {"text": "c"}]
    (tmp_path / "table.jsonl").write_text("\n\n".join(map(json.dumps, records)))
    documents, quarantined = found(FilesSource(path=str(tmp_path / "table.jsonl"), domain="web"))
    first, third = documents.values()
    assert (first.domain, first.language, first.created, first.url) == ("law", "de", "2020", "")
    assert (third.domain, third.id) == ("web", "files:table.jsonl#4")
    assert quarantined == {"files:table.jsonl#2": "lone_surrogate"}


def test_archives_in_archives_and_second_members_of_a_name_are_refused(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("a.txt", "hidden")
    members = [("a.jsonl", b'{"text": "one"}\n' * 3), ("a.jsonl", b'{"text": "two"}'), ("in.zip", inner.getvalue()), ("in.tgz", b"")]
    with tarfile.open(tmp_path / "outer.tar.xz", "w:xz") as outer:
        for name, content in [*members, ("b.png", b""), ("b.png", b"")]:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            outer.addfile(entry, io.BytesIO(content))
    documents, quarantined = found(FilesSource(path=str(tmp_path / "outer.tar.xz")))
    assert [document.text for document in documents.values()] == ["one"] * 3
    assert quarantined == {
        "files:outer.tar.xz!a.jsonl#member2": "duplicate_member",
        "files:outer.tar.xz!in.zip#member3": "nested_archive",
        "files:outer.tar.xz!in.tgz#member4": "nested_archive",
    }


def test_a_tar_that_is_damaged_in_its_middle_does_not_end_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for number in range(3):
            entry = tarfile.TarInfo(f"{number}.txt")
            entry.size = 4
            archive.addfile(entry, io.BytesIO(b"text"))
    sound = path.read_bytes()
    for damaged in (sound[:1024] + b"x" + sound[1025:], sound[: 3 * 1024], sound[:1024] + bytes(512) + sound[1536:]):
        path.write_bytes(damaged)
        documents, quarantined = found(FilesSource(path=str(path)))
        assert "files:a.tar!0.txt" in documents
        assert quarantined == {"files:a.tar": "corrupt"}


def test_limits_are_settings(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "long.txt").write_text("x" * 1001)
    (folder / "lines.jsonl").write_text("no\n" * 50 + '{"text": "late"}\n')
    with zipfile.ZipFile(folder / "many.zip", "w") as archive:
        for number in range(4):
            archive.writestr(f"{number}.txt", "text")
    tight = Limits(max_document_bytes=1000, max_bad_records=10, max_members=3)
    documents, quarantined = found(FilesSource(path=str(folder), limits=tight))
    assert len(documents) == 3
    assert quarantined.pop("files:corpus/long.txt") == "too_large"
    assert quarantined.pop("files:corpus/many.zip") == "too_many_members"
    assert quarantined.pop("files:corpus/lines.jsonl") == "too_many_bad_records"
    assert list(quarantined.values()) == ["corrupt_line"] * 10


def hostile(source: FilesSource, name: str, stream: BinaryIO, size_bytes: int) -> Iterator[Document]:
    """A parser that some bytes break, and that asks for the others."""
    yield Document(name, stream.read().decode(), source.kind)
    if name == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "greedy":
        bytearray(10**9)
    while name == "loop":
        stream.seek(0)
        stream.read()


def test_a_parser_that_breaks_takes_nothing_with_it_but_its_file() -> None:
    """Also one that turns in circles, or asks for more memory than there is."""
    source = FilesSource(path="x", limits=Limits(max_stuck_seconds=1))
    answers = []
    with ReaderProcess(source.limits) as process:
        for name in ("segfault", "loop", "greedy", "sound"):
            for each in process.read(hostile, source, name, io.BytesIO(name.encode()), len(name)):
                answers.append((each.id, each.reason if isinstance(each, Quarantined) else each.text))
    reasons = {"segfault": "crashed", "loop": "stuck", "greedy": "crashed"}
    assert [answer for answer in answers if answer[1] != answer[0]] == [(f"files:{name}", reason) for name, reason in reasons.items()]
    assert answers[-1] == ("sound", "sound")


class _Deadly(io.BytesIO):
    """Bytes on whose way the child dies, as if the machine had run out of memory."""

    process: ReaderProcess

    def read(self, size: int | None = -1, /) -> bytes:
        end_child(self.process)
        return super().read(size)


def end_child(process: ReaderProcess) -> None:
    assert process._child is not None
    process._child[0].terminate()
    process._child[0].wait()


def test_a_child_that_dies_before_its_answer_or_its_question_takes_one_file_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    source, deadly = FilesSource(path="x"), _Deadly(b"text")
    with ReaderProcess(source.limits) as process:
        deadly.process = process
        assert list(process.read(hostile, source, "deadly", deadly, 4)) == [Quarantined("files:deadly", "crashed")]
        for name in ("first", "second"):
            (document,) = process.read(hostile, source, name, io.BytesIO(b"text"), 4)
            assert document.id == name
            end_child(process)
        monkeypatch.setattr(isolation, "MESSAGE_BYTES", 1000)
        assert list(process.read(hostile, source, "endless", io.BytesIO(b"x" * 2000), 2000)) == [Quarantined("files:endless", "crashed")]
        assert len(list(process.read(hostile, source, "sound", io.BytesIO(b"text"), 4))) == 1


class _Unplugged(io.BytesIO):
    def read(self, size: int | None = -1, /) -> bytes:
        raise ConnectionResetError("storage")


def test_a_stream_that_fails_is_an_error_and_not_the_death_of_the_child() -> None:
    source = FilesSource(path="x")
    with ReaderProcess(source.limits) as process, pytest.raises(ConnectionResetError, match="storage"):
        list(process.read(hostile, source, "file", _Unplugged(), 4))
