"""Which version answers: followed champions, trials, splits and shadows, with real engines and a real registry."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from scipy.stats import binom

from llm.artifact import Store
from llm.errors import ArtifactError, CapacityError, PromotionError, RecipeError
from llm.registry import of_store
from llm.serve.engine.config import EngineConfig
from llm.serve.engine.engine import Engine
from llm.serve.engine.generation import Event, Finished
from llm.serve.engine.sampling import Sampling
from llm.serve.engine.session import BAD_GRAPH
from llm.serve.models.catalogue import Catalogue, UnknownModel
from llm.serve.models.config import ModelsConfig
from llm.serve.models.release import Release
from llm.serve.models.served import Delay, Served, put_away
from llm.serve.models.spec import ModelSpec
from tests.serve.models.conftest import FRAGILE_FROM, NAME, Publish

FOLLOWED = [ModelSpec.parse(f"{NAME}@champion")]
SHORT = Sampling(max_tokens=4, temperature=0)
PATIENT = {"canary": {"share": 0.3, "requests": 10**6, "seconds": 10**6}}


def changed(config: ModelsConfig, changes: dict[str, dict[str, float]]) -> ModelsConfig:
    return ModelsConfig.model_validate(config.model_dump() | changes)


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to pass"
        time.sleep(0.01)


def versions(catalogue: Catalogue, count: int = 300) -> Counter[str]:
    """Which versions answer this many keys."""
    found: Counter[str] = Counter()
    for number in range(count):
        with catalogue.lease(NAME, key=f"client {number}") as served:
            found[served.version] += 1
    return found


def what(catalogue: Catalogue, version: str) -> list[str]:
    return [change.what for change in catalogue.changes if change.version == version]


class Clients:
    """Eight threads that ask without a break, each request under a key of its own."""

    def __init__(self, catalogue: Catalogue, prompt: list[int]) -> None:
        self.answered: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self._catalogue, self._prompt, self._over = catalogue, prompt, threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(8)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, client: int) -> None:
        number = 0
        while not self._over.is_set():
            number += 1
            with self._catalogue.lease(NAME, key=f"{client} {number}") as served:
                generation = served.engine.submit(self._prompt, SHORT)
                try:
                    assert [chunk.finish_reason for chunk in generation][-1]
                    ok = True
                except (*BAD_GRAPH, RuntimeError):
                    ok = False
                self._catalogue.report(served, ok=ok, first_token_seconds=generation.first_token_seconds)
                (self.answered if ok else self.failed)[served.version] += 1


def test_a_promotion_loses_no_request(publish: Publish, config: ModelsConfig, store: Store) -> None:
    publish("one")
    catalogue = Catalogue.open(FOLLOWED, config, store=store)
    with Clients(catalogue, [1, 40, 300]) as clients:
        until(lambda: clients.answered["1"] > 50)
        publish("two")
        until(lambda: "promoted" in what(catalogue, "2"))
        before = clients.answered["2"]
        until(lambda: clients.answered["2"] > before + 50)
    assert clients.failed.total() == 0
    assert versions(catalogue) == {"2": 300}
    assert what(catalogue, "2") == ["on trial", "promoted"]
    catalogue.close()


def test_a_version_that_fails_is_rolled_back_and_not_tried_again(publish: Publish, config: ModelsConfig, store: Store) -> None:
    publish("one")
    catalogue = Catalogue.open(FOLLOWED, config, store=store)
    with Clients(catalogue, [1, 40, FRAGILE_FROM]) as clients:
        until(lambda: clients.answered["1"] > 20)
        publish("two", fragile=True)
        until(lambda: "rolled back" in what(catalogue, "2"))
        before = clients.answered["1"]
        until(lambda: clients.answered["1"] > before + 50)
    assert clients.failed["1"] == clients.answered["2"] == 0
    assert clients.failed["2"] <= config.canary.failures + 8, "those that were running"
    assert what(catalogue, "2") == ["on trial", "rolled back"]
    until((store.root / "serve" / "held.json").exists)
    catalogue.close()
    again = Catalogue.open(FOLLOWED, config, store=store)
    assert versions(again) == {"1": 300}, "a server that starts knows too"
    publish("three")
    until(lambda: what(again, "3") == ["on trial"])
    assert what(again, "2") == []
    again.close()


def test_a_version_that_can_not_be_remembered_is_closed_all_the_same(folder: Path, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine(folder, model_id=NAME, config=EngineConfig(threads=1))
    (store.root / "serve").write_text("no folder")
    put_away(Served(engine, Release(NAME, "2", folder, "digest")), "it fails", store)
    until(lambda: not any(thread.name == f"close {NAME} 2" for thread in threading.enumerate()))
    with pytest.raises(CapacityError, match="engine is closed"):
        engine.submit([40], SHORT)
    assert f"{NAME} version 2 was rolled back, but the store doesn't take that (FileExistsError" in caplog.text


@pytest.mark.parametrize("damage", ["graph", "extra file", "gone"])
def test_a_corrupt_version_never_becomes_live(publish: Publish, config: ModelsConfig, store: Store, damage: str) -> None:
    publish("one")
    catalogue = Catalogue.open(FOLLOWED, config, store=store)
    version = publish("two", promote=False)
    with of_store(store).deciding():
        of_store(store).promote(NAME, version.number)
        if damage == "graph":
            (version.path / "onnx" / "model.onnx").write_bytes(b"not a graph")
        elif damage == "extra file":
            (version.path / "onnx" / "model_evil.onnx").write_bytes(b"")
        else:
            shutil.rmtree(version.path)
        until(lambda: catalogue.changes[-1].what in ("refused", "on trial"))
    time.sleep(5 * config.poll_seconds)
    assert what(catalogue, "2") == ["refused"]
    assert versions(catalogue) == {"1": 300}
    catalogue.close()


def test_what_keeps_a_version_from_loading_for_a_while_is_waited_for_longer_each_time(
    publish: Publish, config: ModelsConfig, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    publish("one")
    catalogue = Catalogue.open(FOLLOWED, config, store=store)
    with monkeypatch.context() as without:
        without.setattr(sys, "executable", str(store.root / "gone"))  # no process can be started to rehearse the load in
        publish("two")
        until(lambda: len(delays(caplog)) == 5)
    assert what(catalogue, "2") == []
    assert versions(catalogue) == {"1": 300}
    times = [record.created for record in delays(caplog)]
    pauses = [after - before for before, after in pairwise(times)]
    assert all(pause > 0.9 * config.poll_seconds * 2**place for place, pause in enumerate(pauses)), pauses
    until(lambda: what(catalogue, "2") == ["on trial"])
    catalogue.close()


def delays(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if "trying again in" in record.getMessage()]


def test_pauses_double_up_to_a_limit_and_begin_anew_with_another_version() -> None:
    config = ModelsConfig(poll_seconds=2, retry_seconds=10)
    delay: Delay | None = None
    pauses = list[float]()
    for digest in ("one", "one", "one", "one", "one", "two"):
        delay = Delay.after(delay, digest, config)
        pauses.append(delay.seconds)
    assert pauses == [2, 4, 8, 10, 10, 2]
    assert delay is not None
    assert delay.holds("two")
    assert not delay.holds("one")


def test_a_trial_gets_its_share_and_the_same_clients(publish: Publish, config: ModelsConfig, store: Store) -> None:
    publish("one")
    catalogue = Catalogue.open(FOLLOWED, changed(config, PATIENT), store=store)
    publish("two")
    until(lambda: what(catalogue, "2") == ["on trial"])
    low, high = binom.interval(0.9999, 3000, 0.3)
    first = versions(catalogue, 3000)
    assert low <= first["2"] <= high
    assert versions(catalogue, 3000) == first
    publish("three")
    until(lambda: what(catalogue, "3") == ["on trial"])
    assert what(catalogue, "2") == ["on trial", "withdrawn"]
    with of_store(store).deciding():
        of_store(store).promote(NAME, 1)
    until(lambda: what(catalogue, "3") == ["on trial", "withdrawn"])
    assert versions(catalogue) == {"1": 300}
    catalogue.close()


def test_the_version_that_leaves_finishes_what_it_began(publish: Publish, config: ModelsConfig, store: Store) -> None:
    publish("one")
    catalogue = Catalogue.open(FOLLOWED, changed(config, {"canary": {"seconds": 0}}), store=store)
    with catalogue.lease(NAME) as served:
        generation = served.engine.submit([1, 40], Sampling(max_tokens=300, ignore_eos=True))
        publish("two")
        until(lambda: "promoted" in what(catalogue, "2"))
        assert versions(catalogue) == {"2": 300}
        *_, last = generation
        assert last.finish_reason in ("length", "stop")
        assert served.engine.submit([1], SHORT)
    catalogue.close()


def test_weights_split_the_traffic(folder: Path, tmp_path: Path, config: ModelsConfig, store: Store) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    catalogue = Catalogue.open([ModelSpec.parse(f"{NAME}={folder}:90,{other}:10")], config, store=store)
    found = versions(catalogue, 3000)
    low, high = binom.interval(0.9999, 3000, 0.1)
    assert low <= found["other"] <= high
    assert versions(catalogue, 3000) == found
    catalogue.close()


def test_a_shadow_gets_copies_that_nobody_waits_for(folder: Path, tmp_path: Path, config: ModelsConfig, store: Store) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    catalogue = Catalogue.open([ModelSpec.parse(f"{NAME}={folder}~{other}:0.5")], config, store=store)
    finished: Counter[str] = Counter()

    def watch(served: Served, event: Event) -> None:
        finished[served.version] += isinstance(event, Finished)

    catalogue.watch(watch)
    for number in range(100):
        with catalogue.lease(NAME, key=str(number)) as served:
            catalogue.mirror(served, [1, 40], SHORT, key=str(number))
            list(served.engine.submit([1, 40], SHORT))
    until(lambda: finished[folder.name] == 100)
    low, high = binom.interval(0.9999, 100, 0.5)
    until(lambda: low <= finished["other"] <= high)
    assert {served.version for served in catalogue.loaded()} == {folder.name, "other"}
    catalogue.close()


def test_a_shadow_that_can_not_do_what_is_asked_is_no_matter(folder: Path, brief_folder: Path, config: ModelsConfig, store: Store) -> None:
    catalogue = Catalogue.open([ModelSpec.parse(f"{NAME}={folder}~{brief_folder}:1")], config, store=store)
    with catalogue.lease(NAME) as served:
        catalogue.mirror(served, [1, 40], Sampling(max_tokens=served.engine.facts.context_tokens - 2))
    catalogue.close()


def test_copies_for_a_shadow_are_few_and_end(folder: Path, tmp_path: Path, config: ModelsConfig, store: Store) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    limited = changed(config, {"shadow": {"seconds": 0.5, "waiting": 2}, "engine": {"threads": 1, "slots": 1}})
    catalogue = Catalogue.open([ModelSpec.parse(f"{NAME}={folder}~{other}:1")], limited, store=store)
    reasons = list[str | None]()

    def watch(served: Served, event: Event) -> None:
        if isinstance(event, Finished):
            reasons.append(event.generation.finish_reason)

    catalogue.watch(watch)
    with catalogue.lease(NAME) as served:
        for _ in range(50):
            catalogue.mirror(served, [1, 40], Sampling(max_tokens=3_900, ignore_eos=True))
    (shadow,) = [served for served in catalogue.loaded() if served.version == "other"]
    assert shadow.engine.load().waiting <= 2
    until(lambda: shadow.engine.load().running + shadow.engine.load().waiting == 0)
    assert "deadline" in reasons
    assert len(reasons) < 50
    catalogue.close()


def test_closing_ends_a_rehearsal(
    publish: Publish, config: ModelsConfig, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish("one")
    catalogue = Catalogue.open(FOLLOWED, config, store=store)
    started = tmp_path / "started"
    (tmp_path / "sitecustomize.py").write_text(  # which Python runs before the rehearsal
        f"import os, pathlib, time\npathlib.Path({str(started)!r}).write_text(f'{{os.getpid()}}.')\ntime.sleep(600)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    publish("two")
    until(lambda: started.is_file() and started.read_text().endswith("."))
    catalogue.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()[:-1]), 0)
    assert what(catalogue, "2") == []


def test_one_engine_is_a_catalogue_too(engine: Engine) -> None:
    catalogue = Catalogue.of(engine)
    assert [(model_id, facts) for model_id, _, facts in catalogue.entries()] == [("small", engine.facts)]
    assert catalogue.ready()
    with pytest.raises(UnknownModel, match="ask for small"), catalogue.lease("large"):
        pass


@pytest.mark.parametrize(
    ("specs", "error", "message"),
    [
        (["nobody@champion"], PromotionError, "no champion: nobody"),
        ([f"{NAME}@7"], PromotionError, "no such version"),
        ([f"{NAME}@newest"], PromotionError, "unknown alias"),
        (["./nowhere"], ArtifactError, "no such folder"),
        ([f"{NAME}@champion", f"{NAME}@1"], RecipeError, "two models have one id"),
    ],
)
def test_what_can_not_be_served_is_said_before_the_start(
    specs: list[str], error: type[Exception], message: str, publish: Publish, config: ModelsConfig, store: Store
) -> None:
    publish("one")
    with pytest.raises(error, match=message):
        Catalogue.open([ModelSpec.parse(spec) for spec in specs], config, store=store)


@pytest.mark.parametrize("text", ["", "a@1:0", "a@1,", "a@1~", "a@1~b@2:1.5"])
def test_a_specification_that_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(RecipeError):
        ModelSpec.parse(text)
