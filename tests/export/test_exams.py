"""What variants of models that read, and of T5, are asked, what they lose, and that damage shows; plain PyTorch is the reference."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from llm.errors import DivergenceError
from llm.export import variants
from llm.export.config import ExportConfig, Gate, Gates, Kind
from llm.export.exams.encoder import exchanged, followed, hidden
from llm.export.exams.exam import Exam
from llm.export.exams.seq2seq import second_halves
from llm.export.onnx import write
from llm.export.parity.loaded import Loaded, Seq2SeqGraphs
from llm.export.quality import Quality
from llm.export.quantize import fp16
from tests.export.conftest import GENERATOR, PLAIN, a_model

KINDS: tuple[Kind, ...] = get_args(Kind)
WIDE = PLAIN | {"width": 64, "ffn_width": 96}
SIZES: dict[str, dict[str, Any]] = {
    "bert": WIDE | {"architecture": "encoder", "next_sentence": True},
    "electra": WIDE | {"architecture": "electra", "embedding_width": 32, "generator": GENERATOR},
    "t5": WIDE | {"architecture": "encoder_decoder", "num_decoder_layers": 1},
}
FILES = {"bert": ["model"], "electra": ["model"], "t5": ["encoder_model", "decoder_model_merged"]}
MASK = 700
EXPECTED: dict[Kind, tuple[float, float]] = {  # the greatest perplexity increase and the least agreement
    "fp16": (0.002, 0.97),
    "int8": (0.02, 0.8),
    "q4": (0.4, 0.2),
    "quantized": (0.02, 0.7),
    "calibrated": (0.04, 0.6),
}
LOOSE = Gates(int8=Gate(max_perplexity_increase=1.0, min_greedy_agreement=0.0))


@dataclass(frozen=True)
class Family:
    """A model with every variant of its graphs."""

    name: str
    model: Any
    folder: Path
    exam: Exam
    rows: np.ndarray
    qualities: dict[str, dict[str, Quality]]  # by head, then by kind


def made(sizes: dict[str, Any]) -> Any:
    """A model of 701 ids; T5's weights are half as wide, since its attention divides scores by nothing."""
    model = a_model(sizes, 701)
    for parameter in model.parameters() if sizes["architecture"] == "encoder_decoder" else ():
        parameter.data *= 0.5 if parameter.dim() > 1 else 1.0
    return model


@pytest.fixture(scope="module", params=SIZES)
def family(request: pytest.FixtureRequest, tokenized: Path, tmp_path_factory: pytest.TempPathFactory) -> Family:
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    model = made(SIZES[name])
    write(model, tokenized / "tokenizer.model", folder, ExportConfig())
    exam, rows = variants.EXAMS[model.config.architecture](model), variants.rows(tokenized, "test", ExportConfig(variant_tokens=700))
    for file, samples in exam.samples(exam.opened(folder, ""), rows[:4]).items():
        variants.write(folder / file, KINDS, samples=samples)
    qualities = variants.judged(exam, {kind: exam.opened(folder, kind) for kind in KINDS}, rows)
    return Family(name, model, folder, exam, rows, qualities)


def test_every_variant_is_smaller_and_stays_near_the_model(family: Family) -> None:
    for file in FILES[family.name]:
        sizes = {kind: variants.size(family.folder / f"{file}_{kind}.onnx") for kind in KINDS}
        assert sizes["q4"] < sizes["int8"] < sizes["fp16"] < variants.size(family.folder / f"{file}.onnx"), file
        assert max(sizes.values()) < 0.8 * variants.size(family.folder / f"{file}.onnx"), file
    for head, found in family.qualities.items():
        differences = {kind: quality.max_logit_difference for kind, quality in found.items()}
        assert 10 * differences["fp16"] < differences["int8"] < differences["q4"], head
        for kind, (increase, agreement) in EXPECTED.items():
            assert abs(found[kind].perplexity_increase) < increase, (head, kind)
            assert found[kind].greedy_agreement > agreement, (head, kind, "random weights: the two best are often close")


def answered(family: Family) -> dict[str, list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]:
    """By head, for each row: PyTorch's logits, those of the int8 graphs in one pass without a cache, and the right answers."""
    model, found = family.model, {head: [] for head in family.exam.heads}
    for head, rows in found.items():
        for given, answers in family.exam.heads[head].questions(family.rows):
            first, second = (torch.from_numpy(each)[None] for each in given[:2])
            with torch.inference_mode():
                if family.name == "t5":
                    opened, mask = Seq2SeqGraphs(family.folder, "int8"), np.ones_like(first)
                    logits, _ = opened.decode(second.numpy(), opened.encode(first.numpy(), mask), mask, opened.empty_cache())
                    pair = model(first, second)[0], torch.from_numpy(logits)[0]
                else:
                    inputs = {"input_ids": first.numpy(), "attention_mask": np.ones_like(first), "token_type_ids": second.numpy()}
                    outputs = Loaded(family.folder / "model_int8.onnx")(inputs)
                    if head == "next_sentence":
                        pair = model.follows(model.encode(first, second)), torch.from_numpy(outputs["seq_relationship_logits"])
                    else:
                        pair = model(first, second)[0], torch.from_numpy(outputs["logits"])[0]
                        pair = tuple(each[given[2]] for each in pair) if head == "tokens" else pair
            rows.append((*pair, torch.from_numpy(answers)))
    return found


def test_the_figures_are_those_of_a_plain_computation(family: Family) -> None:
    for head, rows in answered(family).items():
        expected, found, answers = (torch.cat(column).double() for column in zip(*rows, strict=True))
        if family.name == "electra":
            nats = [F.binary_cross_entropy_with_logits(logits, answers).item() for logits in (expected, found)]
            agreement = ((expected > 0) == (found > 0)).double().mean().item()
        else:
            nats = [F.cross_entropy(logits, answers.long()).item() for logits in (expected, found)]
            agreement = (expected.argmax(-1) == found.argmax(-1)).double().mean().item()
        quality = family.qualities[head]["int8"]
        assert quality.perplexity == pytest.approx(np.exp(nats[1]), rel=2e-3)
        assert quality.perplexity_increase == pytest.approx(np.exp(nats[1] - nats[0]) - 1, abs=2e-3)
        assert quality.greedy_agreement == pytest.approx(agreement, abs=0.01)
        assert quality.max_logit_difference == pytest.approx((found - expected).abs().max().item(), rel=0.25)
    assert list(family.qualities) == {"bert": ["tokens", "next_sentence"], "electra": ["exchanged"], "t5": ["tokens"]}[family.name]


def test_interfaces_are_the_float32_graphs(family: Family) -> None:
    def interface(path: Path) -> list[tuple[str, list[str | int]]]:
        graph = onnx.load(path).graph
        values = (*graph.input, *graph.output)
        return [(value.name, [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]) for value in values]

    for file in FILES[family.name]:
        for kind in KINDS:
            assert interface(family.folder / f"{file}_{kind}.onnx") == interface(family.folder / f"{file}.onnx"), (file, kind)
        outputs = onnx.load(family.folder / f"{file}_fp16.onnx").graph.output
        whole = {value.name for value in outputs if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
        assert whole == {value.name for value in outputs if value.name.endswith("logits")}


# What a broken variant computes instead: the head's name, the graph's file and the part of its weights that is changed.
DAMAGE = {
    "bert": [("tokens", "model", "head.bias"), ("next_sentence", "model", "next_sentence.weight")],
    "electra": [("exchanged", "model", "verdict.bias")],
    "t5": [("tokens", "encoder_model", "encoder_norm.weight"), ("tokens", "decoder_model_merged", "model.norm.weight")],
}


def test_a_damaged_variant_misses_its_gate(family: Family, tmp_path: Path) -> None:
    sound = {head: found["int8"] for head, found in family.qualities.items()}
    gate = Gate(max_perplexity_increase=0.02, min_greedy_agreement=0.8)
    for head, file, weights in DAMAGE[family.name]:
        for each in FILES[family.name]:
            graph = onnx.load(family.folder / f"{each}_int8.onnx")
            for tensor in graph.graph.initializer if each == file else ():
                if tensor.name.endswith(weights):
                    array = numpy_helper.to_array(tensor)
                    tensor.CopyFrom(numpy_helper.from_array(np.roll(array, 1, axis=0) * 3 - 4, tensor.name))
            onnx.save(graph, tmp_path / f"{each}_int8.onnx")
        variants.check("int8", sound[head], gate, head=head)
        found = variants.judged(family.exam, {"int8": family.exam.opened(tmp_path, "int8")}, family.rows)[head]["int8"]
        with pytest.raises(DivergenceError, match=rf"variant int8 misses its gate: {head} .*export\.gates\.int8\."):
            variants.check("int8", found, gate, head=head)


def test_hidden_tokens_are_fifteen_of_a_hundred_and_always_the_same(tokenized: Path) -> None:
    model, rows = made(SIZES["bert"]), variants.rows(tokenized, "test", ExportConfig(variant_tokens=400))[:, :-1]
    for row, again, ((shown, segments, places), answers) in zip(rows, hidden(model, rows), hidden(model, rows), strict=True):
        assert np.array_equal(again.given[0], shown)
        assert len(set(places.tolist())) == len(answers) == round(0.15 * len(row))
        assert np.flatnonzero(shown == MASK).tolist() == sorted(places.tolist())
        assert np.array_equal(row[places], answers)
        assert np.array_equal(np.where(shown == MASK, row, shown), row)
        assert segments.tolist() == [0] * 16 + [1] * 16
    crowded = np.array([[1, 2, 1, 2, 1, 9, 2]])
    assert hidden(model, crowded)[0].answers_P.tolist() == [9], "what begins and ends a text is hidden last"
    plain = made(WIDE | {"architecture": "encoder"})
    assert {int(question.given[1].max()) for question in hidden(plain, rows)} == {0}


def test_half_of_the_second_halves_are_another_rows(tokenized: Path) -> None:
    model, rows = made(SIZES["bert"]), variants.rows(tokenized, "test", ExportConfig(variant_tokens=400))[:, :-1]
    questions = followed(model, rows)
    assert [question.answers_P.tolist() for question in questions] == [[row % 2] for row in range(len(rows))]
    for row, ((shown, segments), (strange,)) in enumerate(questions):
        assert np.array_equal(shown[:16], rows[row][:16])
        assert np.array_equal(shown[16:], rows[row - strange][16:])
        assert segments.tolist() == [0] * 16 + [1] * 16


def test_exchanged_tokens_are_marked(tokenized: Path) -> None:
    rows = variants.rows(tokenized, "test", ExportConfig(variant_tokens=400))[:, :-1]
    for row, ((shown, _), answers) in zip(rows, exchanged(made(SIZES["electra"]), rows), strict=True):
        assert answers.tolist() == [int(one != other) for one, other in zip(shown, row, strict=True)]
        assert 0 < answers.sum() <= round(0.15 * len(row))
        assert shown.max() < MASK


def test_a_row_is_read_and_written_by_halves() -> None:
    ((read, written), answers) = second_halves(np.array([[5, 6, 7, 8, 9]]))[0]
    assert (read.tolist(), written.tolist(), answers.tolist()) == ([5, 6], [0, 7, 8], [7, 8, 9])


def test_a_tied_table_is_stored_once(family: Family) -> None:
    """In 8 bits: the head behind it keeps as many as the embedding."""
    graph = onnx.load(family.folder / f"{FILES[family.name][-1]}_q4.onnx").graph
    tables = [tensor for tensor in graph.initializer if 701 in tensor.dims and len(tensor.dims) == 3]
    assert [tensor.name.rpartition("_")[2] for tensor in tables] == ["8bit"] * (2 if family.name == "t5" else 1)


@pytest.mark.parametrize("family", ["t5"], indirect=True)
def test_distances_keep_their_buckets_in_half_precision(family: Family, tmp_path: Path) -> None:
    """onnxruntime's converter rounds a logarithm at the border of two buckets into the wrong one."""
    graph, ids = onnx.load(family.folder / "encoder_model.onnx"), np.arange(3, 103)[None]
    onnx.save(fp16(graph), tmp_path / "ours.onnx")
    onnx.save(convert_float_to_float16(graph), tmp_path / "theirs.onnx")
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    paths = family.folder / "encoder_model.onnx", tmp_path / "ours.onnx", tmp_path / "theirs.onnx"
    expected, ours, theirs = (Loaded(path)(inputs)["last_hidden_state"].astype(np.float32) for path in paths)
    assert np.abs(ours - expected).max() < 0.05 < 0.1 < np.abs(theirs - expected).max()


@pytest.mark.parametrize("family", ["t5"], indirect=True)
def test_a_variant_of_two_graphs_has_the_facts_of_both(family: Family, tokenized: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(family.folder, tmp_path / "onnx")
    config = ExportConfig(variants=("int8",), variant_tokens=200, gates=LOOSE)
    facts, speeds = variants.export(family.model, tokenized, folder, config)
    files = ["encoder_model_int8.onnx", "decoder_model_merged_int8.onnx"]
    assert facts["int8"]["file"].split(", ") == files
    assert facts["int8"]["bytes"] == sum((folder / file).stat().st_size for file in files)
    assert set(speeds) == {"fp32", "int8"}
    assert min(speeds.values()) > 0


def test_the_stage_writes_variants_of_an_encoder_and_the_facts_of_its_second_head(exporting: Any) -> None:
    exported = exporting(PLAIN | {"architecture": "encoder", "next_sentence": True}, 701, variants=("int8",), gates=LOOSE)
    facts = exported.result["variants"]["int8"]
    assert set(facts["next_sentence"]) == {"perplexity", "perplexity_increase", "greedy_agreement", "max_logit_difference"}
    assert facts["perplexity"] > 100 > facts["next_sentence"]["perplexity"]
    assert (exported.folder / "onnx" / facts["file"]).stat().st_size == facts["bytes"]
    assert f"| {facts['file']} |" in (exported.folder / "onnx" / "README.md").read_text()
    speeds = json.loads((exported.folder / "log" / "speed.json").read_text())["tokens_per_second"]
    assert min(speeds["fp32"], speeds["int8"]) > 0
