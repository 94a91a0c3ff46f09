"""Where documents went, in a store that a whole life cycle has filled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm.artifact import Store
from llm.data.config import CorpusMixtureConfig
from llm.data.mixture import Blend
from llm.data.packing import best_fit, write_mask, write_tokens
from llm.data.rows import BOS, Group, order
from llm.data.tokenizer import Tokenizer
from llm.trace import Station, near, trace
from llm.train.config import TrainConfig


def folder(finished: Any, node: str) -> Path:
    group, stage = node.split(".")
    return Path(finished.summary["stages"][group][stage]["path"])


def ids(path: Path, pattern: str) -> list[str]:
    return [id for shard in sorted(path.glob(pattern)) for id in pq.read_table(shard)["id"].to_pylist()]


def fates(finished: Any, id: str) -> dict[str, list[str]]:
    """What became of a document, by stage."""
    found: dict[str, list[str]] = {}
    for station in trace(Store(finished.home), id):
        found.setdefault(station.artifact.partition("/")[0], []).append(station.fate)
    return found


def test_a_training_document_leads_to_its_tokens_and_to_both_models(finished: Any) -> None:
    deduped, tokenized = folder(finished, "data.dedup"), folder(finished, "data.tokenize")
    facts = json.loads((tokenized / "rows.json").read_text())
    stream, tokenizer = np.fromfile(tokenized / "train.tokens", facts["dtype"]), Tokenizer.load(tokenized)
    borders, rows, row_tokens = np.fromfile(tokenized / "train.borders", "<i8"), facts["splits"]["train"]["rows"], facts["row_tokens"]
    readings = order(0, 40 * 8, rows=rows, seed=7)
    documents = {row["id"]: row["text"] for shard in deduped.glob("train-*.parquet") for row in pq.read_table(shard).to_pylist()}
    assert len(documents) > 10
    for begin, (id, text) in zip(borders, documents.items(), strict=True):
        found = fates(finished, id)
        assert found["collect"][0].startswith("kept, ")
        assert found["clean"] == ["kept"]
        assert found["dedup"][0].startswith("kept in train")
        opening = tokenizer.encode(text)[:20]
        assert stream[begin + 1 : begin + 1 + len(opening)].tolist() == list(opening), "that is where its text begins"
        if begin >= rows * row_tokens:
            assert found["tokenize"] == [f"in no row of train: the tail of its tokens, from {begin} on, fills none"]
            assert "pretrain" not in found
            continue
        end = min([*borders[borders > begin], rows * row_tokens])
        own = np.arange(begin // row_tokens, (end - 1) // row_tokens + 1)
        place = f"row {own[0]}" if len(own) == 1 else f"rows {own[0]} to {own[-1]}"
        assert found["tokenize"] == [f"{place} of train, from token {begin} on"]
        times, seen = np.isin(readings, own).sum(), len(np.intersect1d(readings, own))
        part = f"{seen} of its {len(own)} rows, together {times} times" if len(own) > 1 else f"row {own[0]} {times} times"
        assert found["pretrain"] == [f"read {part if seen else 'none of it'}, among {40 * 8} readings of {rows} rows"]
        assert ("mini-base version 1, made champion" in found.get("promote", [])) == (seen > 0)
    pairs = [
        json.loads(line)["id"] for line in (folder(finished, "tuned.finetune") / "chat" / "pairs-train.jsonl").read_text().splitlines()
    ]
    told = [fate for id in documents for fate in fates(finished, id).get("finetune", [])]
    assert sum(int(fate.split(" with ")[1].split()[0]) for fate in told) == len(pairs)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_no_model_saw_what_is_held_out(finished: Any, split: str) -> None:
    for id in ids(folder(finished, "data.dedup"), f"{split}-*.parquet"):
        found = fates(finished, id)
        assert list(found) == ["collect", "clean", "dedup", "tokenize"]
        assert found["tokenize"][0].endswith("held out, so no model was trained on it")


def test_the_way_of_what_was_left_out_ends_where_it_was(finished: Any) -> None:
    for line in (folder(finished, "data.clean") / "dropped.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert list(fates(finished, record["id"])) == ["collect", "clean"]
        assert fates(finished, record["id"])["clean"][0].startswith(f"dropped, {record['reason']}")
    for line in (folder(finished, "data.dedup") / "clusters.jsonl").read_text().splitlines():
        cluster = json.loads(line)
        for id, reason in cluster["dropped"].items():
            fate = f"dropped, {reason}; {cluster['survivor']} stands for it, in {cluster['split']}"
            assert fates(finished, id)["dedup"] == [fate]


def made(store: Store, stage: str, key: str, files: dict[str, Any], *parents: str, **facts: Any) -> None:
    """An artifact with lists of records, tables of ids, and bytes."""

    def build(out: Path) -> dict[str, Any]:
        for name, content in files.items():
            (out / name).parent.mkdir(exist_ok=True)
            if name.endswith(".parquet"):
                pq.write_table(pa.Table.from_pylist(content or [{"id": "", "bytes": 0, "source": ""}]), out / name)
            elif isinstance(content, bytes):
                (out / name).write_bytes(content)
            else:
                (out / name).write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in content), encoding="utf-8")
        return {}

    by_key = {found.ref.key: found.ref for found in store.all()}
    origins = {parent: {"stage": by_key[parent].stage, "key": parent, "digest": by_key[parent].digest} for parent in parents}
    store.produce(stage, key, {"parents": origins, "node": f"data.{stage}", **facts}, build)


ROW_TOKENS, EOS = 4, 2
BORDERS = {"a:first": 0, "a:long": 3, "a:short": 14, "a:tail": 40}  # of 43 tokens, which fill ten rows
ROWS_OF = {"a:first": range(1), "a:long": range(4), "a:short": range(3, 10)}


def train_settings(**settings: Any) -> dict[str, Any]:
    defaults = {"global_batch_size": 1, "micro_batch_size": 1, "schedule": {"warmup_steps": 0}}
    return TrainConfig.model_validate(defaults | settings).model_dump(mode="json")


def tokenized(store: Store, ids: list[str], borders: Any, streams: dict[str, Any], *, rows: int) -> None:
    """A corpus of these documents, down to its rows."""
    made(store, "collect", "found", {"index.parquet": [{"id": id, "bytes": 5, "source": "files"} for id in ids]})
    made(store, "clean", "cleaned", {"documents-0.parquet": [{"id": id} for id in ids]}, "found")
    made(store, "dedup", "unique", {"train-0.parquet": [{"id": id} for id in ids]}, "cleaned")
    groups = [
        {"domain": "near", "language": "", "rows": 4, "tokens": 16},
        {"domain": "far", "language": "", "rows": rows - 4, "tokens": 24},
    ]
    facts = {"dtype": "<u2", "row_tokens": ROW_TOKENS, "vocab_size": 9, "eos": EOS, "splits": {"train": {"rows": rows}}}
    lists = {"rows.json": [facts | {"groups": {"train": groups}}], "train.borders": np.array(borders, "<i8").tobytes()}
    made(store, "tokenize", "rows", lists | streams, "unique")


def trained(store: Store, name: str, train: dict[str, Any], *, steps: int, cost: dict[str, Any] | None = None, pairs: str = "") -> None:
    """A model by these settings, and one tuned from it on pairs made of a document; the first brings the corpus if there is none."""
    if not (store.root / "tokenize" / "rows").exists():
        tokenized(store, [*BORDERS], [*BORDERS.values()], {"train.tokens": np.zeros(43, "<u2").tobytes()}, rows=10)
    left = {"history.jsonl": [{"step": step} for step in range(steps)], "log/cost.json": [cost or {}]}
    made(store, "pretrain", name, left, "rows", config={"train": train, "seed": 5})
    made(store, "finetune", f"{name}-tuned", {"chat/pairs-train.jsonl": [{"id": f"{pairs}:1"}] if pairs else []}, name)
    made(store, "export", f"{name}-exported", {"config.json": [{"of": name}]}, f"{name}-tuned")
    made(store, "promote", f"{name}-chat", {"decision.json": [{"model": "chat", "version": 1, "champion": False}]}, f"{name}-exported")


def reading(store: Store, id: str) -> list[tuple[str, str]]:
    """What the stages from tokenize on did with a document."""
    return [(station.artifact.split("/")[0], station.fate) for station in trace(store, id)[3:]]


def told(stream: Any, rows: range) -> str:
    """What should be said of rows that a stream reads or not."""
    found = [row for row in stream.tolist() if row in rows]
    part = (
        f"{len(set(found))} of its {len(rows)} rows, together {len(found)} times" if len(rows) > 1 else f"row {rows[0]} {len(found)} times"
    )
    return f"read {part if found else 'none of it'}, among {len(stream)} readings of 10 rows"


MIXED = {"domains": {"near": 0.9, "far": 0.1}}
GROUPS = (Group("near", "", 4, 16), Group("far", "", 6, 24))
CASES: dict[str, tuple[dict[str, Any], int, dict[str, Any], Any]] = {
    "a few rows": ({"steps": 3}, 3, {}, order(0, 3, rows=10, seed=5)),
    "some epochs": ({"steps": 34}, 34, {}, order(0, 34, rows=10, seed=5)),
    "stopped early": ({"steps": 34, "stop_after_validations": 1}, 6, {}, order(0, 6, rows=10, seed=5)),
    "rows behind a spike": ({"steps": 3}, 3, {"rows_read": 7}, order(0, 7, rows=10, seed=5)),
    "mixture": ({"steps": 9, "mixture": MIXED}, 9, {}, Blend.plan(GROUPS, CorpusMixtureConfig.model_validate(MIXED), 9, 5).indices(0, 9)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_model_is_told_by_the_rows_that_it_read(tmp_path: Path, case: str) -> None:
    settings, steps, cost, stream = CASES[case]
    store = Store(tmp_path)
    trained(store, "model", train_settings(**settings), steps=steps, cost=cost)
    for id, rows in ROWS_OF.items():
        fates = reading(store, id)
        assert fates[0][1].startswith(f"row {rows[0]} of" if len(rows) == 1 else f"rows {rows[0]} to {rows[-1]} of")
        assert fates[1] == ("pretrain", told(stream, rows))
        assert [stage for stage, _ in fates[2:]] == (["finetune", "promote"] if set(stream.tolist()) & set(rows) else [])
    assert {told(stream, rows) for rows in ROWS_OF.values()} != {told(np.arange(10), rows) for rows in ROWS_OF.values()}


def test_what_stands_in_no_row_leads_to_no_model_but_one_that_was_tuned_on_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    trained(store, "model", train_settings(steps=30), steps=30)
    nowhere = ("tokenize", "in no row of train: the tail of its tokens, from 40 on, fills none")
    assert reading(store, "a:tail") == [nowhere]
    trained(store, "other", train_settings(steps=31), steps=31, pairs="a:tail")
    tuned = ("finetune", "tuned from this model, with 1 pairs made of the document")
    assert reading(store, "a:tail") == [nowhere, tuned, ("promote", "chat version 1")]


def test_a_document_that_packing_cut_leads_on_by_the_rows_that_nothing_names(tmp_path: Path) -> None:
    """Of `long`, two tokens share a row with `short`, and the rest fills another one."""
    lengths = {"a:short": 2, "a:whole": 3, "a:long": 6}
    pieces = best_fit(np.array([*lengths.values()]), ROW_TOKENS)
    streams = [np.array([BOS, *[7] * (length - 2), EOS], "<u2") for length in lengths.values()]

    def read(document: int, start: int, end: int) -> Any:
        return streams[document][start:end]

    write_tokens(tmp_path / "tokens", pieces, ROW_TOKENS, "<u2", EOS, read)
    write_mask(tmp_path / "mask", pieces, ROW_TOKENS)
    store = Store(tmp_path / "store")
    files = {"train.tokens": (tmp_path / "tokens").read_bytes(), "train.mask": (tmp_path / "mask").read_bytes()}
    tokenized(store, [*lengths], pieces.borders(), files, rows=pieces.rows)
    trained(store, "model", train_settings(steps=1), steps=1)
    first = int(order(0, 1, rows=3, seed=5)[0])
    stands = {id: reading(store, id) for id in lengths}
    assert {id: fates[0][1] for id, fates in stands.items()} == {
        "a:short": "row 0 of train, from token 0 on",
        "a:long": "row 0 of train, from token 2 on, its rest in rows of its own",
        "a:whole": "row 1 of train, from token 4 on",
    }
    assert stands["a:long"][1] == ("pretrain", f"read row 0 {int(first == 0)} times, among 1 readings of 3 rows")
    assert [stage for stage, _ in stands["a:long"]] == ["tokenize", "pretrain", "finetune", "promote"]
    assert (len(stands["a:whole"]) > 2) == (first == 1)


def test_a_model_of_settings_that_are_gone_is_told_without_a_count(tmp_path: Path) -> None:
    store = Store(tmp_path)
    trained(store, "model", train_settings(steps=30) | {"momentum": 0.9}, steps=30)
    assert reading(store, "a:long")[1] == ("pretrain", "trained with settings that this version doesn't know, so its rows are not counted")


def test_every_fate_is_told_with_its_reason(tmp_path: Path) -> None:
    store = Store(tmp_path)
    index = [{"id": id, "bytes": 5, "source": "files"} for id in ("a:kept", "a:short", "a:twin")]
    lists = {"dropped.jsonl": [{"id": "a:more", "reason": "over_quota"}], "quarantine.jsonl": [{"id": 'a:"ü', "reason": "empty"}]}
    made(store, "collect", "k1", {"index.parquet": index, **lists})
    kept = [{"id": "a:twin"}, {"id": "a:kept"}]
    made(
        store, "clean", "k2", {"documents-0.parquet": kept, "dropped.jsonl": [{"id": "a:short", "reason": "too_short", "score": 2.5}]}, "k1"
    )
    cluster = {"survivor": "a:kept", "split": "train", "dropped": {"a:twin": "near_duplicate"}}
    made(store, "dedup", "k3", {"train-0.parquet": [{"id": "a:kept"}], "clusters.jsonl": [cluster]}, "k2")
    assert trace(store, "a:more") == [Station(0, "collect/k1", "dropped, over_quota")]
    assert trace(store, 'a:"ü') == [Station(0, "collect/k1", "quarantined, empty")]
    assert trace(store, "a:short")[1:] == [Station(1, "clean/k2", "dropped, too_short (score 2.5)")]
    assert trace(store, "a:twin")[2:] == [Station(2, "dedup/k3", "dropped, near_duplicate; a:kept stands for it, in train")]
    assert trace(store, "a:kept") == [
        Station(0, "collect/k1", "kept, 5 bytes from files"),
        Station(1, "clean/k2", "kept"),
        Station(2, "dedup/k3", "kept in train, stands for 1 more"),
    ]
    assert trace(store, "kept") == []
    assert near(store, "e") == ["a:kept", "a:more"]
    assert near(store, '"ü') == ['a:"ü']
    assert near(store, "a:", most=2) == ['a:"ü', "a:kept"]


def test_the_command_tells_a_document_from_an_artifact(finished: Any) -> None:
    id = ids(folder(finished, "data.dedup"), "train-*.parquet")[0]
    answer = finished("lineage", id).stdout.splitlines()
    assert [line.split("/")[0].strip() for line in answer[:5]] == ["collect", "clean", "dedup", "tokenize", "pretrain"]
    name = id.rpartition("/")[2]
    missed = finished("lineage", name, check=False)
    assert missed.returncode == 1
    assert missed.stderr.strip().startswith(f"error: ArtifactError: no such document in this store: {name}; name one of these: ")
    assert id in missed.stderr
    assert "name a part of its id" in finished("lineage", "no such thing", check=False).stderr
