"""Every objective: what it hides is what it asks for, its draws belong to a row's place, and its loss is the one on paper."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llm.data.rows import IGNORED, Rows
from llm.errors import RecipeError
from llm.model import families, weights
from llm.model.config import parse_model
from llm.train.config import TrainConfig
from llm.train.job import TrainJob
from llm.train.loop import train
from llm.train.objective import kinds
from llm.train.objective.config import MaskedConfig, SpansConfig
from llm.train.objective.distillation import Distillation
from llm.train.objective.masked import Masked
from llm.train.objective.replaced import sampled
from llm.train.objective.spans import Spans, cuts
from tests.train.golden import CASES, GOLDEN, MODELS, golden_job

JobMaker = Callable[..., TrainJob]
VOCAB_SIZE, ROW_TOKENS = 48, 16


@pytest.fixture
def long_rows() -> Rows:
    """400 rows of 64 ids, none special."""
    tokens = np.random.default_rng(3).integers(3, VOCAB_SIZE, 400 * 64 + 1).astype(np.uint16)
    return Rows(tokens, None, 64, VOCAB_SIZE)


@pytest.mark.parametrize("kind", [case for case in CASES if case != "distillation"])
def test_a_row_is_treated_the_same_in_any_batch(rows: Path, kind: str) -> None:
    architecture, objective = CASES[kind]
    built = kinds.build(settings(objective), architecture, VOCAB_SIZE, ROW_TOKENS)
    data, indices, places = Rows.open(rows, "train"), np.arange(12), np.arange(100, 112)
    whole = kinds.batches(built, data, indices, places, 7)
    halves = [batch for part in (slice(0, 5), slice(5, 12)) for batch in kinds.batches(built, data, indices[part], places[part], 7)]
    for part in {batch.part for batch in whole}:
        one, several = ([batch for batch in found if batch.part == part] for found in (whole, halves))
        for read in (lambda batch: batch.inputs, lambda batch: batch.extra, lambda batch: {"targets": batch.targets_BT}):
            for name, tensor in read(one[0]).items():
                assert torch.equal(tensor, torch.cat([read(batch)[name] for batch in several])), name


def test_masking_hides_fifteen_percent_as_bert_does(long_rows: Rows) -> None:
    objective = Masked(MaskedConfig(kind="masked"), VOCAB_SIZE)
    places = np.arange(400)
    batch = objective.batch(long_rows, places, places, 1)
    original_BT, _ = long_rows.batch(places)
    shown, targets = batch.inputs["tokens_BT"].numpy(), batch.targets_BT.numpy()
    picked = targets != IGNORED
    assert picked.mean() == pytest.approx(0.15, abs=0.01)
    assert (targets[picked] == original_BT[picked]).all()
    assert (shown[~picked] == original_BT[~picked]).all()
    fates = [(shown[picked] == VOCAB_SIZE).mean(), (shown[picked] == original_BT[picked]).mean()]
    assert fates == pytest.approx([0.8, 0.1 + 0.1 / (VOCAB_SIZE - 3)], abs=0.03)


def test_special_tokens_are_never_hidden() -> None:
    rows = Rows(np.tile(np.array([1, 9, 2, 0], dtype=np.uint16), 65), None, 64, VOCAB_SIZE)
    batch = Masked(MaskedConfig(kind="masked", share=0.9), VOCAB_SIZE).batch(rows, np.arange(4), np.arange(4), 1)
    assert set(batch.targets_BT.unique().tolist()) == {IGNORED, 9}


def test_half_of_the_second_sentences_come_from_elsewhere(long_rows: Rows) -> None:
    objective = Masked(MaskedConfig(kind="masked", next_sentence=True, share=0.01), VOCAB_SIZE)
    places = np.arange(400)
    batch = objective.batch(long_rows, places, places, 1)
    original_BT, _ = long_rows.batch(places)
    shown = torch.where(batch.targets_BT == IGNORED, batch.inputs["tokens_BT"], batch.targets_BT).numpy()
    strange = batch.extra["strange_B"].numpy().astype(bool)
    assert strange.mean() == pytest.approx(0.5, abs=0.08)
    assert (shown[:, :32] == original_BT[:, :32]).all()
    assert (shown[~strange, 32:] == original_BT[~strange, 32:]).all()
    pool = {half.tobytes() for half in original_BT[:, 32:]}
    assert all(half.tobytes() in pool for half in np.ascontiguousarray(shown[strange, 32:]))
    assert batch.inputs["segments_BT"].float().mean() == 0.5


@pytest.mark.parametrize("mean_span_tokens", [1.0, 3.0, 8.0])
def test_spans_put_back_give_the_row(long_rows: Rows, mean_span_tokens: float) -> None:
    objective = Spans(SpansConfig(kind="spans", mean_span_tokens=mean_span_tokens), VOCAB_SIZE, row_tokens=64, encoder_decoder=True)
    batch = objective.batch(long_rows, np.arange(50), np.arange(50), 1)
    original_BT, _ = long_rows.batch(np.arange(50))
    for row, read, written in zip(original_BT, batch.inputs["tokens_BS"].tolist(), batch.targets_BT.tolist(), strict=True):
        assert read[-1] == written[-1] == 2
        spans: dict[int, list[int]] = {}
        for token in written[:-1]:
            if token >= VOCAB_SIZE:
                last = spans.setdefault(token, [])
            else:
                last.append(token)
        assert [token for token in read if token >= VOCAB_SIZE] == list(spans) == sorted(spans, reverse=True)
        assert [back for token in read[:-1] for back in spans.get(token, [token])] == row.tolist()
    assert objective.noise_tokens == 10  # 15 % of 64
    assert objective.spans == max(1, round(10 / mean_span_tokens))


def test_a_decoder_reads_and_writes_spans_as_one_sequence(long_rows: Rows) -> None:
    config = SpansConfig(kind="spans")
    both = [
        Spans(config, VOCAB_SIZE, row_tokens=64, encoder_decoder=kind).batch(long_rows, np.arange(5), np.arange(5), 1)
        for kind in (True, False)
    ]
    whole = torch.cat((both[0].inputs["tokens_BS"], both[0].targets_BT), dim=1)
    assert torch.equal(both[1].inputs["tokens_BT"], whole[:, :-1])
    counted = both[1].targets_BT != IGNORED
    assert torch.equal(both[1].targets_BT[counted], whole[:, 1:][counted])
    assert both[1].counted == both[0].counted


def test_cuts_are_every_list_of_lengths_equally_often() -> None:
    lengths = cuts(np.arange(6000), 5, 3, seed=1, purpose=0)
    assert (lengths.sum(axis=1) == 5).all()
    lists, counts = np.unique(lengths, axis=0, return_counts=True)
    assert len(lists) == 6  # 4 choose 2
    assert counts.min() > 850


def test_sampling_follows_the_generators_opinion() -> None:
    chances = torch.tensor([0.5, 0.2, 0.3])
    drawn = sampled(chances.log().expand(30_000, 3), torch.linspace(0, 1 - 1e-9, 30_000, dtype=torch.float64))
    assert torch.bincount(drawn, minlength=3).float() / 30_000 == pytest.approx(chances, abs=1e-3)


def test_distillation_is_the_divergence_on_paper(rows: Path) -> None:
    config = settings({"kind": "distillation", "teacher": "elsewhere", "temperature": 3.0}).objective
    torch.manual_seed(0)
    teacher, student = (families.build(parse_model(MODELS["decoder"]), VOCAB_SIZE) for _ in range(2))
    objective = Distillation(config, teacher)
    batch = objective.batch(Rows.open(rows, "train"), np.arange(4), np.arange(4), 0)
    sums = objective.sums(student, batch)
    p, q = (F.softmax(model(**batch.inputs)[0].double().detach() / 3.0, dim=-1) for model in (teacher, student))
    assert sums["divergence"].item() == pytest.approx((p * (p / q).log()).sum().item(), rel=1e-4)
    assert objective.sums(teacher, batch)["divergence"].item() == pytest.approx(0, abs=1e-4)
    assert objective.weights["divergence"] == pytest.approx(0.5 * 9)


def test_a_teacher_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    weights.save(families.build(parse_model(MODELS["decoder"]), 50), tmp_path)
    with pytest.raises(RecipeError, match=r"50 instead of 48.*train\.objective\.teacher"):
        kinds.build(settings({"kind": "distillation", "teacher": str(tmp_path)}), "decoder", VOCAB_SIZE, ROW_TOKENS)


def test_more_spans_than_sentinels_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"train\.objective\.sentinels"):
        Spans(SpansConfig(kind="spans", sentinels=2, mean_span_tokens=1), VOCAB_SIZE, row_tokens=64, encoder_decoder=True)


def test_a_mixture_draws_by_share(long_rows: Rows) -> None:
    architecture, objective = CASES["mixture"]
    built = kinds.build(settings(objective), architecture, VOCAB_SIZE, 64)
    batches = kinds.batches(built, long_rows, np.arange(400), np.arange(400), 5)
    assert {batch.part: len(batch.targets_BT) / 400 for batch in batches} == pytest.approx({0: 0.75, 1: 0.25}, abs=0.07)


def test_documents_are_told_apart_by_their_first_token() -> None:
    rows = Rows(np.array([1, 5, 2, 1, 6, 7, 2, 1, 8], dtype=np.uint16), None, 8, VOCAB_SIZE)
    batch = kinds.build(settings({}, document_mask=True), "decoder", VOCAB_SIZE, 8).batch(rows, np.arange(1), np.arange(1), 0)
    assert batch.inputs["documents_BT"].tolist() == [[1, 1, 1, 2, 2, 2, 2, 3]]


@pytest.mark.parametrize("case", CASES)
def test_the_loss_curve_is_the_golden_one(case: str, rows: Path, tmp_path: Path) -> None:
    job = golden_job(case, rows, tmp_path)
    train(job)
    records = [json.loads(line) for line in (job.work / "final" / "history.jsonl").read_text().splitlines()]
    found = [{term: record[term] for term in GOLDEN[case][0]} for record in records]
    assert found == [pytest.approx(expected, rel=2e-4) for expected in GOLDEN[case]]
    assert sum(record["loss"] for record in records[-3:]) < sum(record["loss"] for record in records[:3])


@pytest.mark.parametrize("case", ["masked", "spans", "replaced", "moe"])
def test_micro_batches_do_not_change_the_loss(case: str, rows: Path, tmp_path: Path) -> None:
    losses = []
    for size in (8, 2):
        job = golden_job(case, rows, tmp_path / str(size))
        train(replace(job, train=job.train.model_copy(update={"micro_batch_size": size, "steps": 3})))
        lines = (job.work / "final" / "history.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3 if case == "moe" else 1e-5)  # balance is a statistic of a micro-batch


def settings(objective: dict[str, Any], **changes: Any) -> TrainConfig:
    sizes = {"steps": 2, "global_batch_size": 8, "micro_batch_size": 4, "schedule": {"warmup_steps": 1}}
    return TrainConfig.model_validate({**sizes, "objective": objective or {"kind": "next_token"}, **changes})
