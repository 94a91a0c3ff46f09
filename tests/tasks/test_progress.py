"""What a person sees of work while it is done."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tasks import progress
from tasks.progress import counted
from tests.tasks.counting import JOB


def test_pieces_and_steps_are_told_to_prefect_and_to_people(tmp_path: Path) -> None:
    program = Path(__file__).parent / "counting.py"
    done = subprocess.run([sys.executable, program, tmp_path], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "4 of 4 pieces" in done.stdout
    assert "base.pretrain  step 2: loss rises\n" in done.stdout
    with sqlite3.connect(next(tmp_path.rglob("*.db"))) as connection:
        told = connection.execute("select data, description from artifact where key = 'progress-clean'").fetchall()
    assert [(float(data), description) for data, description in told] == [(100.0, "4 of 4 pieces of data.clean")]


def test_quick_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    def pieces() -> Iterator[int]:
        yield from range(3)

    assert list(counted(JOB, pieces(), 3)) == [0, 1, 2]
    assert capsys.readouterr().out == ""


def test_outside_of_a_run_nothing_is_told_to_prefect(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "ARTIFACT_EVERY_SECONDS", 0.0)
    before = psutil.Process().children(recursive=True)
    assert list(progress.counted(JOB, iter(range(3)), 3)) == [0, 1, 2]
    assert capsys.readouterr().out.count("of 3 pieces") == 3
    assert "progress could not be told to Prefect" in caplog.text
    assert set(psutil.Process().children(recursive=True)) <= set(before)
