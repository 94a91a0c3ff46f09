"""The registry against MLflow itself: what Trainyard reads directly is what MLflow's own client says."""

from __future__ import annotations

import multiprocessing
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llm.artifact import Artifact, Store
from llm.errors import ArtifactError, DependencyError, PromotionError
from llm.registry import History, Registry, Version, champion_to_serve, champions, of_store, redacted, retained

NAME = "tiny-base"


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, made once, because it takes a second, where a killed run had begun to make them."""
    folder = tmp_path_factory.mktemp("mlflow")
    with sqlite3.connect(folder / ".mlflow.db.new") as database:
        database.execute("CREATE TABLE registered_models (name TEXT)")
    Registry(f"sqlite:///{folder}/mlflow.db").add_candidate("unused", folder, digest="0", metrics={}, lineage={})
    return folder / "mlflow.db"


@pytest.fixture
def registry(empty_database: Path, tmp_path: Path) -> Registry:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return Registry(f"sqlite:///{tmp_path}/mlflow.db", lock=tmp_path / "lock")


def export(registry: Registry, key: str) -> Artifact:
    """An export in a store beside the registry."""

    def build(out: Path) -> dict[str, Any]:
        (out / "weights").write_text(key)
        return {}

    return Store(Path(registry.uri.removeprefix("sqlite:///")).parent / "store").produce("export", key, {}, build)


def add(registry: Registry, key: str, name: str = NAME) -> Version:
    made = export(registry, key)
    return registry.add_candidate(name, made.path, digest=made.ref.digest, metrics={"bits_per_byte": 1.5}, lineage={"tokenize": "k1"})


def remote(registry: Registry) -> Registry:
    """The same registry, read through MLflow's client as an http address would be."""

    class Remote(Registry):
        def _look(self, name: str) -> tuple[Version | None, History]:
            return self._look_remotely(name)

    return Remote(registry.uri)


def test_an_empty_registry_has_no_champion_and_looking_creates_nothing(tmp_path: Path) -> None:
    registry = Registry(f"sqlite:///{tmp_path}/none/mlflow.db")
    assert registry.champion(NAME) is None
    assert registry.versions(NAME) == []
    assert registry.standing(NAME) == {"version": None, "digest": None, "met": {}, "generation": 0}
    assert list(tmp_path.iterdir()) == []


def test_a_candidate_is_registered_once(registry: Registry) -> None:
    first, again, second = add(registry, "aaa"), add(registry, "aaa"), add(registry, "bbb")
    assert first == again
    assert [version.number for version in registry.versions(NAME)] == [first.number, second.number] == [1, 2]
    assert (first.path, first.digest) == (export(registry, "aaa").path, export(registry, "aaa").ref.digest)
    assert first.metrics == {"bits_per_byte": 1.5}
    assert first.lineage == {"tokenize": "k1"}
    assert registry.champion(NAME) is None


def test_a_candidate_leaves_an_mlflow_run_with_its_figures(registry: Registry) -> None:
    from mlflow import MlflowClient

    add(registry, "aaa")
    client = MlflowClient(registry.uri)
    entry = client.get_model_version(NAME, "1")
    run = client.get_run(entry.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"bits_per_byte": 1.5}
    assert run.data.params == {"tokenize": "k1"}


def test_the_direct_read_agrees_with_mlflow(registry: Registry) -> None:
    for digest in ("aaa", "bbb"):
        registry.promote(NAME, add(registry, digest).number)
    assert registry.champion(NAME) == remote(registry).champion(NAME) == registry.versions(NAME)[1]
    assert registry.standing(NAME) == remote(registry).standing(NAME)
    assert remote(registry).champion("unknown") is None


def test_the_direct_read_does_not_import_mlflow(registry: Registry) -> None:
    registry.promote(NAME, add(registry, "aaa").number)
    code = (
        "import sys; from llm.registry import Registry; uri, name = sys.argv[1:]; "
        "print(Registry(uri).champion(name).number, 'mlflow' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code, registry.uri, NAME], capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout.split() == ["1", "False"]


def test_standing_keeps_what_the_champion_met(registry: Registry) -> None:
    first, second = add(registry, "aaa"), add(registry, "bbb")
    registry.promote(NAME, 1)
    assert registry.standing(NAME) == {"version": 1, "digest": first.digest, "met": {"champion": None, "generation": 0}, "generation": 1}
    registry.promote(NAME, 2)
    assert registry.standing(NAME) == {"version": 2, "digest": second.digest, "met": {"champion": 1, "generation": 1}, "generation": 2}
    registry.promote(NAME, 2)
    assert registry.standing(NAME)["generation"] == 2, "promoting the champion changes nothing"


def test_rollback_walks_back_and_is_a_new_situation(registry: Registry) -> None:
    for digest in ("aaa", "bbb", "ccc"):
        registry.promote(NAME, add(registry, digest).number)
    assert [registry.rollback(NAME).number, registry.rollback(NAME).number] == [2, 1]
    assert registry.champion(NAME).digest == export(registry, "aaa").ref.digest
    assert registry.standing(NAME)["generation"] == 5
    with pytest.raises(PromotionError, match="no earlier champion to go back to: tiny-base; promote another version first"):
        registry.rollback(NAME)


def test_a_rollback_and_a_second_promotion_go_back_to_where_they_came_from(registry: Registry) -> None:
    for digest in ("aaa", "bbb"):
        registry.promote(NAME, add(registry, digest).number)
    registry.rollback(NAME)
    registry.promote(NAME, 2)
    assert registry.rollback(NAME).number == 1


def test_champions_and_their_predecessors_are_retained(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
    assert retained(Store(tmp_path)) == []
    for key in ("aaa", "bbb", "ccc"):
        registry.promote(NAME, add(registry, key).number)
    assert [version.number for version in retained(Store(tmp_path))] == [3, 2]
    registry.rollback(NAME)
    assert [version.number for version in retained(Store(tmp_path))] == [2, 1]
    registry.rollback(NAME)
    assert [version.number for version in retained(Store(tmp_path))] == [1]


def test_rollback_without_any_champion_is_refused(registry: Registry) -> None:
    with pytest.raises(PromotionError, match="no earlier champion"):
        registry.rollback(NAME)


def damage(export: Path, how: str) -> None:
    """Take an export's files away, change one, or put another export in its place."""
    if how == "changed":
        (export / "weights").write_text("other")
        return
    shutil.rmtree(export)
    if how == "replaced":
        shutil.copytree(export.with_name("other"), export)


@pytest.mark.parametrize("how", ["gone", "changed", "replaced"])
def test_a_version_whose_files_are_not_the_registered_ones_is_never_crowned(registry: Registry, how: str) -> None:
    export(registry, "other")
    first, second, third = (add(registry, key) for key in ("aaa", "bbb", "ccc"))
    registry.promote(NAME, first.number)
    registry.promote(NAME, second.number)
    before = registry.standing(NAME)
    damage(first.path, how)
    damage(third.path, how)
    message = "files of tiny-base version 1 are gone or have changed: .*; bring its files back, or .* trainyard promote tiny-base VERSION"
    with pytest.raises(PromotionError, match=message):
        registry.rollback(NAME)
    with pytest.raises(PromotionError, match="files of tiny-base version 3 are gone or have changed: .*; bring its files back"):
        registry.promote(NAME, third.number)
    assert registry.standing(NAME) == before
    assert not registry.champion(NAME).rolled_back


@pytest.mark.parametrize(
    ("champions", "champion", "expected"),
    [
        ((1, 2, 3), 3, (1, 2, 3)),
        ((1, 2, 3), 2, (1, 2)),  # killed between the note and the alias
        ((1, 2, 1, 2), 1, (1, 2, 1)),
        ((1, 2), 7, (7,)),  # the alias was moved by hand
        ((1,), None, ()),
    ],
)
def test_history_ends_at_the_champion(champions: tuple[int, ...], champion: int | None, expected: tuple[int, ...]) -> None:
    assert History(champions).until(champion) == expected


def killed(*_: object) -> Version:
    raise KeyboardInterrupt


def test_a_decision_killed_before_the_alias_moved_is_not_remembered(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    for digest in ("aaa", "bbb"):
        registry.promote(NAME, add(registry, digest).number)
    add(registry, "ccc")
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "_crown", killed)
        with pytest.raises(KeyboardInterrupt):
            registry.promote(NAME, 3)
    assert registry.champion(NAME).number == 2
    assert registry.rollback(NAME).number == 1


def test_a_version_from_elsewhere_is_named(registry: Registry) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(registry.uri)
    client.create_registered_model(NAME)
    client.create_model_version(NAME, "/somewhere", tags={"colour": "red"})
    client.set_registered_model_alias(NAME, "champion", "1")
    with pytest.raises(PromotionError, match="version 1 of tiny-base lacks tags: digest, export, lineage, metrics"):
        registry.champion(NAME)


def test_a_database_left_half_made_is_made_anew(empty_database: Path) -> None:
    assert not (empty_database.parent / ".mlflow.db.new").exists()
    assert [version.number for version in Registry(f"sqlite:///{empty_database}").versions("unused")] == [1]


def test_what_mlflow_refuses_is_a_dependency_error(registry: Registry) -> None:
    add(registry, "aaa")
    with pytest.raises(DependencyError, match=r"the model registry failed: sqlite:.*; check MLFLOW_TRACKING_URI"):
        registry.promote(NAME, 99)


def test_a_dead_server_is_a_dependency_error(tmp_path: Path) -> None:
    with pytest.raises(DependencyError, match=r"the model registry failed: http://127\.0\.0\.1:9 .*; check MLFLOW_TRACKING_URI"):
        Registry("http://127.0.0.1:9").champion(NAME)


def test_a_lock_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    registry = Registry(f"sqlite:///{tmp_path}/mlflow.db", lock=tmp_path / "file" / "locks" / "registry")
    with pytest.raises(ArtifactError, match="store can't be written"), registry.deciding():
        pass


def test_the_registry_of_a_store_is_inside_it_unless_an_address_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert of_store(Store(tmp_path)).uri == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert of_store(Store(tmp_path)).uri == "http://127.0.0.1:5000"


def test_the_folder_to_serve_is_the_newest_chat_champion(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
    with pytest.raises(PromotionError, match="no champion: in this registry; run `trainyard run lifecycle` first"):
        champion_to_serve(Store(tmp_path))
    for name in ("tiny-chat", "tiny-base"):
        registry.promote(name, add(registry, name, name).number)
    assert [champion.name for champion in champions(Store(tmp_path))] == ["tiny-base", "tiny-chat"]
    assert champion_to_serve(Store(tmp_path)).path == export(registry, "tiny-chat").path
    assert champion_to_serve(Store(tmp_path), "tiny-base").path == export(registry, "tiny-base").path
    shutil.rmtree(export(registry, "tiny-base").path)
    with pytest.raises(PromotionError, match="champion's files are gone"):
        champion_to_serve(Store(tmp_path), "tiny-base")


def test_a_lost_chat_champion_is_not_replaced_in_silence(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
    for name in ("tiny-chat", "tiny-base"):
        registry.promote(name, add(registry, name, name).number)
    shutil.rmtree(export(registry, "tiny-chat").path)
    with pytest.raises(PromotionError, match="champion's files are gone: .*; run the same recipe again, or choose another with --name"):
        champion_to_serve(Store(tmp_path))
    assert champion_to_serve(Store(tmp_path), "tiny-base").name == "tiny-base"


@pytest.mark.parametrize("how", ["changed", "replaced"])
def test_only_the_registered_files_are_served(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
    export(registry, "other")
    champion = registry.promote(NAME, add(registry, "aaa").number)
    damage(champion.path, how)
    with pytest.raises(PromotionError, match="files of tiny-base version 1 are gone or have changed: .*; run the same recipe again"):
        champion_to_serve(Store(tmp_path))


@pytest.mark.parametrize("content", ["", "this is not a database" * 100])
def test_a_broken_database_is_a_dependency_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "mlflow.db").write_text(content)
    with pytest.raises(DependencyError, match=r"the model registry can't be read: sqlite:.*; restore the file from a backup"):
        Registry(f"sqlite:///{tmp_path}/mlflow.db").champions()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://user:secret@host:5000/a", "http://…@host:5000/a"),
        ("postgresql+psycopg2://user:se@cret@host/database", "postgresql+psycopg2://…@host/database"),
        ("request to https://token@host/x failed, and http://a:b@c too", "request to https://…@host/x failed, and http://…@c too"),
        ("http://host/path@version", "http://host/path@version"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
    ],
)
def test_addresses_are_shown_without_credentials(text: str, expected: str) -> None:
    assert redacted(text) == expected


def test_a_failure_does_not_show_credentials() -> None:
    with pytest.raises(DependencyError, match="http://…@127.0.0.1:9") as failure:
        Registry("http://user:secret@127.0.0.1:9").champion(NAME)
    assert "secret" not in str(failure.value)


def increment(lock: Path, counter: Path, times: int) -> None:
    registry = Registry("sqlite:///unused.db", lock=lock)
    for _ in range(times):
        with registry.deciding():
            counter.write_text(str(int(counter.read_text()) + 1))


def test_decisions_exclude_each_other(tmp_path: Path) -> None:
    lock, counter = tmp_path / "lock", tmp_path / "counter"
    counter.write_text("0")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=increment, args=(lock, counter, 200)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert counter.read_text() == "400"
