"""Damaged files in bulk: every kind that is read, in many broken variants, taken through the reader as `collect` does.

`python -m tests.data.sources.mutants FOLDER COUNT KIND…` prints what came of them, and what it cost this process and its
children; with a COUNT of 0, it reads the files that are in the folder.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
import re
import resource
import shutil
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from llm.data.collect import READERS, _readable
from llm.data.document import Books, Document, Quarantined, write_shards
from llm.data.selection import INDEX
from llm.data.sources.config import FilesSource, WarcSource
from llm.data.sources.isolation import ReaderProcess
from llm.data.sources.storage import Stored, opened, stored
from llm.data.sources.warc import parse, write_warc

TEXT = "Grüße aus Kraków, 北京 и Москва: ein Satz, a sentence, une phrase. " * 30
RECORDS = [{"text": f"{number} {TEXT[number:]}", "url": f"https://site.test/{number}", "language": "de"} for number in range(20)]
PAGE = f"<html><head><meta charset=utf-8><title>t</title></head><body><p>{TEXT}</p></body></html>"


def _lines(records: Iterable[dict[str, str]]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def _csv() -> bytes:
    return ("text,url,language\n" + "".join(f'"{each["text"]}\nnext line",{each["url"]},de\n' for each in RECORDS)).encode()


def _parquet(**settings: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(RECORDS), buffer, **settings)
    return buffer.getvalue()


def _arrow(writer: Callable[..., Any]) -> bytes:
    buffer, table = io.BytesIO(), pa.Table.from_pylist(RECORDS)
    with writer(buffer, table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as file:
        file.write_table(table, max_chunksize=7)
    return buffer.getvalue()


MEMBERS = {"a.txt": TEXT.encode(), "b/c.jsonl": _lines(RECORDS[:3]), "d.html.gz": gzip.compress(PAGE.encode()), "e.parquet": _parquet()}


def _zip(method: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in MEMBERS.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in MEMBERS.items():
            entry = tarfile.TarInfo(name + "ü" * 60)
            entry.name, entry.size = name, len(content)
            entry.pax_headers = {"comment": "x" * 200}
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _warc(folder: Path, name: str) -> bytes:
    write_warc(folder / name, [(each["url"], "text/html; charset=utf-8", PAGE.encode(), "2026-01-31T12:00:00Z") for each in RECORDS])
    return (folder / name).read_bytes()


SOUND: dict[str, Callable[[Path], bytes]] = {
    "txt": lambda _: TEXT.encode(),
    "py": lambda _: f"def f():\n    return {TEXT!r}\n".encode(),
    "html": lambda _: PAGE.encode(),
    "jsonl": lambda _: _lines(RECORDS),
    "csv": lambda _: _csv(),
    "txt.gz": lambda _: gzip.compress(TEXT.encode()),
    "jsonl.zst": lambda _: zstandard.compress(_lines(RECORDS)),
    "txt.bz2": lambda _: bz2.compress(TEXT.encode()),
    "jsonl.xz": lambda _: lzma.compress(_lines(RECORDS)),
    "parquet": lambda _: _parquet(compression="snappy"),
    "plain.parquet": lambda _: _parquet(compression="none", use_dictionary=False, data_page_version="2.0"),
    "arrow": lambda _: _arrow(pa.ipc.new_file),
    "stream.arrow": lambda _: _arrow(pa.ipc.new_stream),
    "zip": lambda _: _zip(zipfile.ZIP_DEFLATED),
    "plain.zip": lambda _: _zip(zipfile.ZIP_STORED),
    "tar": lambda _: _tar(),
    "tar.gz": lambda _: gzip.compress(_tar()),
    "warc": lambda folder: _warc(folder, "sound.warc"),
    "warc.gz": lambda folder: _warc(folder, "sound.warc.gz"),
}
ODD = (b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\\ud800", b"\0", b"\xef\xbb\xbf", b"\xff\xfe", b"\r", b'"', b"{", b"[" * 5000, b"\n" * 100)
LENGTHS = (b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\x00\x00\x00\x80", b"\xff" * 8, b"\xff" * 7 + b"\x7f", b"99999999999", b"-1")


def mutant(sound: bytes, seed: str) -> bytes:
    """One to four damages of a sound file; the same for the same seed."""
    draw = random.Random(seed)
    data = bytearray(sound)
    for _ in range(draw.randint(1, 4)):
        draw.choice(DAMAGES)(data, draw)
    return bytes(data)


def _place(data: bytearray, draw: random.Random) -> int:
    return draw.randrange(len(data) + 1)


def _cut(data: bytearray, draw: random.Random) -> None:
    del data[_place(data, draw) :]


def _flip(data: bytearray, draw: random.Random) -> None:
    for _ in range(draw.choice((1, 1, 2, 8, 64)) if data else 0):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def _insert_odd(data: bytearray, draw: random.Random) -> None:
    place = _place(data, draw)
    data[place:place] = draw.choice(ODD)


def _insert_noise(data: bytearray, draw: random.Random) -> None:
    place = _place(data, draw)
    data[place:place] = draw.randbytes(draw.choice((1, 16, 500, 5000)))


def _delete(data: bytearray, draw: random.Random) -> None:
    place = _place(data, draw)
    del data[place : place + draw.choice((1, 16, 500, 5000))]


def _repeat(data: bytearray, draw: random.Random) -> None:
    place = _place(data, draw)
    data[place:place] = data[place : place + draw.choice((1, 16, 500))] * draw.choice((1, 2, 50))


def _lengthen(data: bytearray, draw: random.Random) -> None:
    place, length = _place(data, draw), draw.choice(LENGTHS)
    data[place : place + len(length)] = length


DAMAGES = (_cut, _flip, _insert_odd, _insert_noise, _delete, _repeat, _lengthen)


def consequences(folder: Path, kind: str, count: int) -> dict[str, Any]:
    """What `collect` makes of `count` mutants of this kind, all in one piece: the books, and the longest wait for a next document."""
    folder = folder / kind
    folder.mkdir(parents=True, exist_ok=True)
    sound = SOUND[kind](folder)
    files = []
    for number in range(count):
        path = folder / f"{number}.{kind}"
        path.write_bytes(mutant(sound, f"{kind} {number}"))
        files.append(Stored(path.name, str(path), path.stat().st_size))
    source = WarcSource(path=str(folder)) if "warc" in kind else FilesSource(path=str(folder))
    answer = {"kind": kind, "files": count} | accounts(source, files, folder)
    shutil.rmtree(folder)
    return answer


def accounts(source: FilesSource | WarcSource, files: list[Stored], folder: Path) -> dict[str, Any]:
    """The books of these files, counted twice, and the longest wait for a next document."""
    waits, books, quarantine = [0.0], Books(), io.StringIO()
    found = READERS["files"].read(source, files) if isinstance(source, FilesSource) else _pages(source, files)
    with pq.ParquetWriter(folder / "index.parquet", INDEX) as index:
        written = write_shards(folder, _readable(_timed(found, waits), books, quarantine, index))
    books.check()
    listed = pq.read_table(folder / "index.parquet")["id"].to_pylist()
    quarantined = [json.loads(line)["id"] for line in quarantine.getvalue().splitlines()]
    return {
        "written": written,
        "listed": len(listed),
        "quarantined": len(quarantined),
        "books": books.to_dict(),
        "twins": len(listed + quarantined) - len({*listed, *quarantined}),
        "longest_wait_seconds": round(waits[0], 2),
    }


def _pages(source: WarcSource, archives: list[Stored]) -> Iterator[Document | Quarantined]:
    """As the source reads them, in one process for all: it has one for each archive, which are larger than these."""
    with ReaderProcess(source.limits) as process:
        for archive in archives:
            with opened(archive) as stream:
                yield from process.read(parse, source, archive.name, stream, archive.size_bytes)


def _timed(found: Iterable[Document | Quarantined], waits: list[float]) -> Iterator[Document | Quarantined]:
    """The same; notes how long each took to compute, since a busy machine lets everyone wait. A child minds its own time."""
    last = time.process_time()
    for each in found:
        waits[0] = max(waits[0], time.process_time() - last)
        yield each
        last = time.process_time()


def main(folder: Path, count: int, kinds: list[str]) -> None:
    """Print a JSON line per kind, and one for memory."""
    if not count:
        source = FilesSource(path=str(folder))
        folder.with_name("read").mkdir()
        print(json.dumps(accounts(source, stored(source.path), folder.with_name("read"))))
    for kind in (kinds or SOUND) if count else []:
        print(json.dumps(consequences(folder, kind, count)), flush=True)
    peaks = {"own_peak_bytes": own_peak_bytes(), "child_peak_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024}
    print(json.dumps(peaks))


def own_peak_bytes() -> int:
    """Most memory that this process has held; unlike ru_maxrss, nothing of who started it."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
