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
from llm.data.tokenizer import Tokenizer
from llm.trace import Station, near, trace


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
    documents = {row["id"]: row["text"] for shard in deduped.glob("train-*.parquet") for row in pq.read_table(shard).to_pylist()}
    assert len(documents) > 10
    for id, text in documents.items():
        found = fates(finished, id)
        assert found["collect"][0].startswith("kept, ")
        assert found["clean"] == ["kept"]
        assert found["dedup"][0].startswith("kept in train")
        place, begin = found["tokenize"][0].split(" of train, from token ")
        begin = int(begin.split()[0])
        opening = tokenizer.encode(text)[:20]
        assert stream[begin + 1 : begin + 1 + len(opening)].tolist() == list(opening), "that is where its text begins"
        assert int(place.split()[1]) == begin // facts["row_tokens"]
        assert found["pretrain"] == [f"trained on {40 * 8} rows drawn from these {facts['splits']['train']['rows']}"]
        assert sorted(found["promote"]) == ["mini-base version 1, made champion", "mini-chat version 1, made champion"]
    pairs = [
        json.loads(line)["id"] for line in (folder(finished, "tuned.finetune") / "chat" / "pairs-train.jsonl").read_text().splitlines()
    ]
    counted = {id: int(fates(finished, id)["finetune"][0].split(" with ")[1].split()[0]) for id in documents}
    assert sum(counted.values()) == len(pairs)


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


def made(store: Store, stage: str, key: str, files: dict[str, Any], *parents: str) -> None:
    """An artifact with lists of records, and tables of ids."""

    def build(out: Path) -> dict[str, Any]:
        for name, content in files.items():
            if name.endswith(".parquet"):
                pq.write_table(pa.Table.from_pylist(content or [{"id": "", "bytes": 0, "source": ""}]), out / name)
            else:
                (out / name).write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in content), encoding="utf-8")
        return {}

    by_key = {found.ref.key: found.ref for found in store.all()}
    facts = {parent: {"stage": by_key[parent].stage, "key": parent, "digest": by_key[parent].digest} for parent in parents}
    store.produce(stage, key, {"parents": facts, "node": f"data.{stage}"}, build)


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
