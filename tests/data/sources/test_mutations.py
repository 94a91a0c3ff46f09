"""Nothing that a file can hold ends the run, stops it, fills the memory, or gets lost."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.data.sources.mutants import SOUND

ROOT = Path(__file__).parents[3]
MEMORY_BYTES = 512 * 2**20
HANG_SECONDS = 5
WHOLE = ("txt", "py", "html", "txt.gz", "txt.bz2")  # of each such file comes one document, or one line of the quarantine


def read_apart(folder: Path, count: int = 0, *kinds: str) -> list[dict[str, Any]]:
    """What came of the files, a report per kind, read by a process of its own within its memory."""
    command = [sys.executable, "-m", "tests.data.sources.mutants", str(folder), str(count), *kinds]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=3600)
    *reports, peaks = map(json.loads, answer.stdout.splitlines())
    assert all(0 <= peak <= MEMORY_BYTES for peak in peaks.values()), peaks
    return reports


def balanced(report: dict[str, Any]) -> None:
    books = report["books"]
    assert books["kept"] == report["written"] == report["listed"]
    assert sum(books["quarantined"].values()) == report["quarantined"]
    assert books["read"] == books["kept"] + report["quarantined"]
    assert report["twins"] == 0
    assert report["longest_wait_seconds"] < HANG_SECONDS


def survived(folder: Path, count: int, *kinds: str) -> None:
    reports = read_apart(folder, count, *kinds)
    assert [report["kind"] for report in reports] == list(kinds)
    for report in reports:
        balanced(report)
        assert report["books"]["quarantined"]
        assert not {"crashed", "stuck"} & set(report["books"]["quarantined"]), report
        if report["kind"] in WHOLE:
            assert report["books"]["read"] == count


def test_damaged_files_of_every_kind_are_read_or_quarantined(tmp_path: Path) -> None:
    survived(tmp_path, 200, *SOUND)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", SOUND)
def test_ten_thousand_damaged_files_are_read_or_quarantined(tmp_path: Path, kind: str) -> None:
    survived(tmp_path, 10_000, kind)


def read_folder(folder: Path) -> dict[str, Any]:
    (report,) = read_apart(folder)
    balanced(report)
    return dict(report["books"])


def test_a_line_of_a_gigabyte_is_skipped_and_never_held(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    contents = {"a.jsonl": (b'{"text": "a"}', b'{"text": "b"}'), "a.csv": (b"text\nfirst", b"last"), "a.txt": (b"a", b"b")}
    for name, (before, after) in contents.items():
        with (folder / name).open("wb") as file:
            file.write(before + b"\n")
            file.seek(10**9, os.SEEK_CUR)  # a hole of zeros
            file.write(b"\n" + after + b"\n")
        with (folder / name).open("rb") as file:  # into the page cache: how fast the system fills holes is not asked
            while file.read(2**20):
                pass
    assert read_folder(folder) == {"read": 7, "kept": 4, "dropped": {}, "quarantined": {"too_large": 3}}


def test_a_bomb_ends_in_quarantine_after_a_small_part_of_it(tmp_path: Path) -> None:
    """Ten gigabytes from ten megabytes."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    member = gzip.compress(bytes(10_000_000))
    for name in ("a.txt.gz", "a.jsonl.gz", "a.parquet.gz", "a.tar.gz"):
        with (folder / name).open("wb") as file:
            if name == "a.tar.gz":
                entry = tarfile.TarInfo("huge.png")
                entry.size = 10**10
                file.write(gzip.compress(entry.tobuf(tarfile.GNU_FORMAT)))
            for _ in range(1000):
                file.write(member)
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jsonl", bytes(200_000_000))
    assert read_folder(folder) == {"read": 5, "kept": 0, "dropped": {}, "quarantined": {"too_large": 5}}


UNSAFE = ("/etc/absolute.txt", "../above.txt", "deep/../../above.txt", "..\\windows.txt", "C:\\windows.txt")


def test_names_that_lead_out_of_an_archive_are_quarantined(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    with zipfile.ZipFile(folder / "slip.zip", "w") as archive:
        for name in (*UNSAFE, "safe.txt"):
            archive.writestr(name, "text")
        link = zipfile.ZipInfo("link.txt")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    with tarfile.open(folder / "slip.tar.gz", "w:gz") as archive:
        for name in (*UNSAFE, "safe.txt"):
            entry = tarfile.TarInfo(name)
            entry.size = 4
            archive.addfile(entry, io.BytesIO(b"text"))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            entry = tarfile.TarInfo("special.txt")
            entry.type, entry.linkname = kind, "/etc/passwd"
            archive.addfile(entry)
    before = sorted(tmp_path.rglob("*"))
    unsafe = len(UNSAFE) + 1 + len(UNSAFE) + 4
    assert read_folder(folder) == {"read": unsafe + 2, "kept": 2, "dropped": {}, "quarantined": {"unsafe_member": unsafe}}
    assert [path for path in sorted(tmp_path.rglob("*")) if path.parent.name != "read" and path.name != "read"] == before
