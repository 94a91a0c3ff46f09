"""Looking back and cleaning up: what descends from what, and what may be deleted."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from llm.artifact import Artifact, Store, named_errors
from llm.data.parts import Piece, Workshop, link
from llm.errors import ArtifactError
from llm.lineage import ancestors, delete, garbage, last_made


def made(store: Store, stage: str, key: str, *parents: Artifact) -> Artifact:
    def build(out: Path) -> dict[str, Any]:
        (out / "file.txt").write_text(key * 100)
        return {}

    refs = {parent.ref.stage: {"stage": parent.ref.stage, "key": parent.ref.key, "digest": parent.ref.digest} for parent in parents}
    return store.produce(stage, key, {"parents": refs, "node": f"data.{stage}"}, build)


def ran(store: Store, name: str, state: str, *artifacts: Artifact) -> None:
    folder = store.root / "runs" / name
    folder.mkdir(parents=True)
    stages = {"data": {artifact.ref.stage: {"path": str(artifact.path), "state": "computed"} for artifact in artifacts}}
    (folder / "summary.json").write_text(json.dumps({"run_id": name, "state": state, "stages": stages if artifacts else {}}))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_ancestors_are_found_once_and_nearest_first(store: Store) -> None:
    collected = made(store, "collect", "a")
    cleaned = made(store, "clean", "b", collected)
    deduped = made(store, "dedup", "c", cleaned, collected)
    assert [(depth, found.ref.key) for depth, found in ancestors(store, deduped)] == [(0, "c"), (1, "b"), (1, "a")]


def test_gc_keeps_the_last_runs_their_ancestors_and_what_it_is_told_to(store: Store) -> None:
    old, kept, champion, parent = (made(store, "collect", key) for key in ("old", "kept", "champion", "parent"))
    child = made(store, "clean", "child", parent)
    ran(store, "1", "completed", old)
    ran(store, "2", "completed", child)
    ran(store, "3", "completed", kept)
    items = garbage(store, keep_runs=2, keep=[champion.path])
    assert [item.path for item in items] == [old.path]
    assert items[0].bytes > 300
    assert delete(items) == items[0].bytes
    assert sorted(path.name for path in (store.root / "collect").iterdir()) == ["champion", "kept", "parent"]


def test_failed_runs_do_not_push_completed_ones_out(store: Store) -> None:
    good = made(store, "collect", "good")
    ran(store, "1", "completed", good)
    for number in "2345":
        ran(store, number, "failed")
    assert garbage(store, keep_runs=3, keep=[]) == []
    assert [item.path for item in garbage(store, keep_runs=0, keep=[])] == [good.path]


def test_unfinished_work_stays_until_a_run_completes(store: Store) -> None:
    work = store.work("pretrain", "k")
    (work / "checkpoint").write_text("x")
    ran(store, "1", "crashed")
    assert garbage(store, keep_runs=3, keep=[]) == []
    ran(store, "2", "completed")
    assert [item.path for item in garbage(store, keep_runs=3, keep=[])] == [work]


def test_parts_go_when_the_last_runs_have_not_used_them(store: Store, tmp_path: Path) -> None:
    def write(text: str, out: Path) -> dict[str, Any]:
        (out / "text").write_text(text)
        return {}

    shop = Workshop(store.root / "clean" / ".parts")
    old, used = shop.made("text", write, [Piece("old", 1), Piece("used", 2)])
    os.utime(old.path, (1, 1))
    link(old.path / "text", tmp_path / "elsewhere")
    collected = made(store, "collect", "a")
    ran(store, "1", "running", collected)
    assert old.path not in [item.path for item in garbage(store, keep_runs=1, keep=[])], "the next run continues with them"
    os.utime(used.path)
    ran(store, "2", "completed", collected)
    items = garbage(store, keep_runs=1, keep=[])
    assert [item.path for item in items] == [old.path]
    assert items[0].bytes == (old.path / "manifest.json").stat().st_size, "its text is held elsewhere too"
    delete(items)
    assert (tmp_path / "elsewhere").read_text() == "old"
    assert shop.made("text", write, [Piece("used", 2)])[0].path == used.path


def test_leftovers_are_garbage(store: Store) -> None:
    for name in (".corrupt-k-1", ".tmp-k-2"):
        (store.root / "clean" / name).mkdir(parents=True)
    assert [item.path.name for item in garbage(store, keep_runs=1, keep=[])] == [".corrupt-k-1", ".tmp-k-2"]


def test_sweep_leaves_what_a_living_writer_holds(store: Store) -> None:
    for name in (".tmp-k-1", ".tmp-dead-2", ".work-open"):
        (store.root / "clean" / name).mkdir(parents=True)
    made(store, "clean", "closed")
    (store.root / "clean" / ".work-closed").mkdir()
    with Store(store.root).lock("clean", "k"):
        store.sweep()
    assert sorted(path.name for path in (store.root / "clean").iterdir()) == [".tmp-k-1", ".work-open", "closed"]


def test_a_run_without_artifacts_has_no_last_one() -> None:
    with pytest.raises(ArtifactError, match="run has made nothing yet: x"):
        last_made({"run_id": "x", "stages": {}})


def test_only_the_store_is_blamed_for_what_happens_in_it(tmp_path: Path) -> None:
    def refuse(filename: str) -> None:
        raise PermissionError(13, "Permission denied", filename)

    with pytest.raises(ArtifactError, match="store can't be written"), named_errors(tmp_path):
        refuse(str(tmp_path / "x"))
    with pytest.raises(PermissionError), named_errors(tmp_path):
        refuse("/elsewhere/source.txt")
