"""Promotion with real exports in a real registry."""

from __future__ import annotations

import json
import math
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from llm.artifact import Artifact, Store
from llm.errors import PromotionError
from llm.evaluate.config import EvaluateConfig, PromoteConfig
from llm.evaluate.evaluate import evaluate
from llm.evaluate.gate import decide
from llm.export.huggingface import write
from llm.model.weights import load
from llm.promote import promote, rescore
from llm.registry import Registry

NAME = "tiny-base"
CONFIG = EvaluateConfig(prompts=("def ",), sample_tokens=1)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mlflow")
    Registry(f"sqlite:///{folder}/mlflow.db").add_candidate("unused", folder, digest="0", metrics={}, lineage={})
    return folder / "mlflow.db"


class Yard:
    """Trained models on their way into a registry."""

    def __init__(self, artifacts: Any, folder: Path, database: Path) -> None:
        self.artifacts, self.folder, self.store = artifacts, folder, Store(folder / "store")
        shutil.copy(database, folder / "mlflow.db")
        self.registry = Registry(f"sqlite:///{folder}/mlflow.db", lock=folder / "lock")

    def made(self, seed: int) -> tuple[Artifact, Path]:
        """The export and the evaluation of one model."""
        trained, evaluated = self.artifacts.trained(seed), self.folder / f"evaluated-{seed}"
        evaluated.mkdir()
        evaluate(trained, self.artifacts.tokenized, self.artifacts.deduped, evaluated, CONFIG, seed=0)

        def build(out: Path) -> dict[str, Any]:
            (out / "huggingface").mkdir()
            card: dict[str, Any] = {"name": NAME, "facts": {}, "metadata": {}}
            write(load(trained), self.artifacts.tokenized / "tokenizer.model", out / "huggingface", card=card)
            return {}

        return self.store.produce("export", f"k{seed}", {}, build), evaluated

    def promote(self, export: Artifact, evaluated: Path, tolerance: float = 0.0) -> dict[str, Any]:
        out = self.folder / f"out-{threading.get_ident()}-{len(list(self.folder.glob('out-*')))}"
        out.mkdir()
        inputs = {"exported": export.path, "evaluated": evaluated, "tokenized": self.artifacts.tokenized, "deduped": self.artifacts.deduped}
        record = promote(
            **inputs,
            out=out,
            config=PromoteConfig(tolerance_bits_per_byte=tolerance),
            registry=self.registry,
            name=NAME,
            digest=export.ref.digest,
            lineage={"export": export.ref.key},
        )
        assert json.loads((out / "decision.json").read_text()) == record
        return record


@pytest.fixture
def yard(artifacts: Any, tmp_path: Path, empty_database: Path) -> Yard:
    return Yard(artifacts, tmp_path, empty_database)


def by_quality(yard: Yard, count: int) -> list[tuple[Artifact, Path]]:
    """Models from worst to best."""
    made = [yard.made(seed) for seed in range(count)]
    return sorted(made, key=lambda pair: -json.loads((pair[1] / "scores.json").read_text())["bits_per_byte"])


def test_only_a_candidate_that_is_not_worse_replaces_the_champion(yard: Yard) -> None:
    worst, middle, best = by_quality(yard, 3)
    first = yard.promote(*middle)
    assert (first["version"], first["champion"], first["champion_before"]) == (1, True, None)
    refused = yard.promote(*worst)
    assert (refused["version"], refused["champion"], refused["champion_before"]) == (2, False, 1)
    assert refused["candidate_bits_per_byte"] > refused["champion_bits_per_byte"]
    assert refused["champion_bits_per_byte"] == pytest.approx(first["candidate_bits_per_byte"], rel=1e-6)
    better = yard.promote(*best)
    assert (better["version"], better["champion"], better["champion_before"]) == (3, True, 1)
    assert yard.registry.champion(NAME).number == 3
    assert [version.number for version in yard.registry.versions(NAME)] == [1, 2, 3]


def test_a_tolerance_lets_a_slightly_worse_one_in(yard: Yard) -> None:
    worse, better = by_quality(yard, 2)
    yard.promote(*better)
    assert yard.promote(*worse, tolerance=5.0)["champion"]


def test_the_champion_itself_is_a_no_op(yard: Yard) -> None:
    made = yard.made(0)
    yard.promote(*made)
    before = yard.registry.standing(NAME)
    again = yard.promote(*made)
    assert (again["version"], again["champion"], again["reason"]) == (1, True, "already the champion")
    assert yard.registry.standing(NAME) == before


def test_a_candidate_that_was_rolled_back_comes_back_only_by_hand(yard: Yard) -> None:
    worse, better = by_quality(yard, 2)
    yard.promote(*worse)
    yard.promote(*better)
    met = yard.registry.standing(NAME)["met"]
    assert yard.registry.rollback(NAME).number == 1
    assert yard.registry.standing(NAME)["generation"] != met["generation"]
    again = yard.promote(*better)
    assert (again["champion"], again["version"]) == (False, 2)
    assert "was rolled back; by hand: trainyard promote" in again["reason"]
    with yard.registry.deciding():
        yard.registry.promote(NAME, 2)
    assert yard.promote(*better)["reason"] == "already the champion"


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_a_champion_that_cannot_be_scored_stops_the_decision(yard: Yard, damage: str) -> None:
    champion, candidate = yard.made(0), yard.made(1)
    yard.promote(*champion)
    if damage == "gone":
        shutil.rmtree(champion[0].path)
    else:
        (champion[0].path / "huggingface" / "config.json").write_text("{}")
    with pytest.raises(
        PromotionError, match=r"files of tiny-base version 1 are gone or have changed: .*; bring its files back, or .*--rollback"
    ):
        yard.promote(*candidate)
    assert yard.registry.champion(NAME).number == 1


def test_two_candidates_at_once_leave_the_better_one(yard: Yard) -> None:
    made = by_quality(yard, 2)
    records: list[dict[str, Any]] = []
    threads = [threading.Thread(target=lambda pair=pair: records.append(yard.promote(*pair))) for pair in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    best = made[-1][0].ref.digest
    assert yard.registry.champion(NAME).digest == best
    assert sorted(record["version"] for record in records) == [1, 2]


def test_the_champion_is_scored_with_its_own_rows(yard: Yard) -> None:
    export, evaluated = yard.made(0)
    yard.promote(export, evaluated)
    champion = yard.registry.champion(NAME)
    assert champion.metrics["row_tokens"] == 16
    expected = json.loads((evaluated / "scores.json").read_text())["bits_per_byte"]
    assert rescore(champion, yard.artifacts.deduped, documents=6) == pytest.approx(expected, rel=1e-6)


def test_a_figure_that_is_not_finite_never_wins() -> None:
    assert not decide(math.nan, None, tolerance_bits_per_byte=0.0).champion
    assert not decide(math.inf, math.inf, tolerance_bits_per_byte=0.0).champion
    assert decide(1.5, 1.5, tolerance_bits_per_byte=0.0).champion
