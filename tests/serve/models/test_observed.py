"""What an observer tells of a catalogue whose versions come and go."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client.parser import text_string_to_metric_families

from llm.artifact import Store
from llm.serve.engine.sampling import Sampling
from llm.serve.models.catalogue import Catalogue
from llm.serve.models.config import ModelsConfig
from llm.serve.models.spec import ModelSpec
from llm.serve.observe.observer import Observer
from tests.serve.models.conftest import NAME, Publish
from tests.serve.models.test_catalogue import until, what


def figures(observer: Observer) -> Callable[..., float | None]:
    families = text_string_to_metric_families(observer.metrics.text().decode())
    found = {(sample.name, *sorted(sample.labels.items())): sample.value for family in families for sample in family.samples}
    return lambda name, **labels: found.get((f"trainyard_{name}", *sorted({"model": NAME, **labels}.items())))


def ask(catalogue: Catalogue, number: int) -> None:
    with catalogue.lease(NAME, key=str(number)) as served:
        generation = served.engine.submit([1, 40], Sampling(max_tokens=3, temperature=0))
        list(generation)
        catalogue.report(served, ok=True, first_token_seconds=generation.first_token_seconds)


def test_a_promotion_is_told_and_answers_are_counted_by_version(publish: Publish, config: ModelsConfig, store: Store) -> None:
    publish("one")
    catalogue, observer, asked = Catalogue.open([ModelSpec.parse(f"{NAME}@champion")], config, store=store), Observer(), 0
    observer.follow(catalogue)
    for asked in range(1, 11):
        ask(catalogue, asked)
    until(lambda: figures(observer)("request_prompt_tokens_count", version="1") == 10)
    publish("two")
    until(lambda: what(catalogue, "2"))
    assert figures(observer)("model_events_total", event="on_trial") == 1
    assert figures(observer)("num_slots", version="1") == figures(observer)("num_slots", version="2") == config.engine.slots
    while "promoted" not in what(catalogue, "2"):
        asked += 1
        ask(catalogue, asked)
    value = figures(observer)
    assert value("model_events_total", event="promoted") == 1
    assert value("num_slots", version="1") is None
    assert value("num_slots", version="2") == config.engine.slots
    until(lambda: sum(figures(observer)("request_prompt_tokens_count", version=version) or 0 for version in "12") == asked)
    catalogue.close()
    observer.close()
