from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llm.data.parts import Piece, Workshop, link, shards
from llm.errors import ArtifactError, DataError


def upper(value: str, out: Path) -> dict[str, Any]:
    """A part: the text in capitals; a line in the ledger beside it tells that it was made."""
    if value == "bad":
        raise DataError("a bad piece", value=value, remedy="leave it out")
    (out / "text").write_text(value.upper())
    with Path(os.environ["LEDGER"]).open("a") as ledger:
        ledger.write(value + "\n")
    return {"letters": len(value)}


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LEDGER", str(tmp_path / "ledger"))
    (tmp_path / "ledger").touch()
    return tmp_path / "ledger"


def pieces(*texts: str) -> list[Piece]:
    return [Piece(text, text) for text in texts]


def test_parts_come_in_the_order_of_their_pieces_and_are_made_once(tmp_path: Path, ledger: Path) -> None:
    shop = Workshop(tmp_path / "stage" / ".parts", {"code": 1})
    first = shop.made("upper", upper, pieces("b", "a", "b"))
    assert [(part.path / "text").read_text() for part in first] == ["B", "A", "B"]
    assert [part.counts for part in first] == [{"letters": 1}] * 3
    second = shop.made("upper", upper, pieces("a", "c", "b"))
    assert [(part.path / "text").read_text() for part in second] == ["A", "C", "B"]
    assert ledger.read_text().split() == ["b", "a", "c"]


@pytest.mark.parametrize("change", ["code", "settings", "name"])
def test_a_part_is_made_again_when_what_shapes_it_changes(tmp_path: Path, ledger: Path, change: str) -> None:
    Workshop(tmp_path / "parts", {"code": 1}).made("upper", upper, pieces("a"), settings=1)
    shop = Workshop(tmp_path / "parts", {"code": 2 if change == "code" else 1})
    shop.made("other" if change == "name" else "upper", upper, pieces("a"), settings=2 if change == "settings" else 1)
    assert ledger.read_text().split() == ["a", "a"]


def test_a_damaged_part_is_set_aside_and_made_again(tmp_path: Path, ledger: Path) -> None:
    shop = Workshop(tmp_path / "parts")
    (part,) = shop.made("upper", upper, pieces("a"))
    (part.path / "text").write_text("X")
    (again,) = shop.made("upper", upper, pieces("a"))
    assert (again.path / "text").read_text() == "A"
    assert len(list((tmp_path / "parts").glob(".corrupt-*"))) == 1


def test_an_error_leaves_what_was_made_before_it_and_nothing_half_written(tmp_path: Path, ledger: Path) -> None:
    shop = Workshop(tmp_path / "parts")
    with pytest.raises(DataError, match="a bad piece"):
        shop.made("upper", upper, pieces("a", "bad", "c"))
    assert [path.name for path in (tmp_path / "parts").iterdir() if path.name.startswith(".")] == []
    shop.made("upper", upper, pieces("a", "c"))
    assert ledger.read_text().split() == ["a", "c"]


@pytest.mark.parametrize("place", ["fsync:kill:1", "fsync:kill:4", "replace:kill:2", "commit:kill:2"])
def test_a_killed_process_loses_at_most_the_piece_at_hand(tmp_path: Path, ledger: Path, place: str) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from pathlib import Path; import test_parts as t;"
        f"t.Workshop(Path({str(tmp_path / 'parts')!r})).made('upper', t.upper, t.pieces('a', 'b', 'c'))"
    )
    killed = subprocess.run([sys.executable, "-c", code], env=os.environ | {"TRAINYARD_FAILPOINT": place}, check=False)
    assert killed.returncode == -9
    subprocess.run([sys.executable, "-c", code], check=True)
    parts = [json.loads((path / "manifest.json").read_text()) for path in (tmp_path / "parts").glob("[!.]*")]
    assert len(parts) == 3
    assert len(ledger.read_text().split()) <= 4, "at most one piece was made twice"


def test_a_part_that_no_machine_left_here_is_an_error(tmp_path: Path) -> None:
    shop = Workshop(tmp_path / "parts", spread=lambda function, items: iter(key for key, _ in items))
    with pytest.raises(ArtifactError, match="not where a worker made it"):
        shop.made("upper", upper, pieces("a"))


def test_shards_are_known_by_their_content(tmp_path: Path) -> None:
    (tmp_path / "x-1").write_text("one")
    (tmp_path / "x-0").write_text("zero")
    found = shards(tmp_path, "x-*")
    assert [Path(piece.value).name for piece in found] == ["x-0", "x-1"]
    link(tmp_path / "x-0", tmp_path / "x-2")
    assert shards(tmp_path, "x-*")[2].identity == found[0].identity != found[1].identity
