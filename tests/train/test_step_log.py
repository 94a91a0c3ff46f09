"""Records of steps while their storage is away: they wait, in order, and none is lost without a word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm.train.patience import Patience
from llm.train.step_log import Records


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_they_wait_for_storage_and_are_written_in_order(tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    records = Records(mount / "metrics.jsonl", Patience(0))
    for step in (1, 2):
        records.add({"step": step})
    mount.mkdir()
    records.add({"step": 3})
    assert steps(mount / "metrics.jsonl") == [1, 2, 3]


def test_the_end_waits_no_longer_than_patience(tmp_path: Path) -> None:
    records = Records(tmp_path / "mount" / "metrics.jsonl", Patience(0.1))
    records.add({"step": 1})
    with pytest.raises(FileNotFoundError):
        records.flush()


def test_what_could_not_be_written_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = Records(tmp_path / "mount" / "metrics.jsonl", Patience(0))
    records.add({"step": 1})
    records.close()
    assert "1 records of steps could not be written" in caplog.text


def test_a_full_disk_is_no_storage_that_is_away() -> None:
    with pytest.raises(OSError, match="No space left"):
        Records(Path("/dev/full"), Patience(60)).add({"step": 1})
