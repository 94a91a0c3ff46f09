"""Raw text to training rows: collect, clean, dedup, tokenize, audit; in this process, or spread over a cluster."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from prefect import task

from llm.artifact import Store
from llm.data.parts import Workshop
from llm.observe import previous_collection
from llm.recipe import Recipe
from llm.run import refs
from llm.stages import STAGES, Job
from tasks.policy import policy, produce
from tasks.progress import counted

STARTING_SECONDS = 10.0  # what a cluster of this machine and its first workers take to start


@task(**policy("collect"))
def collect(job: Job) -> dict[str, str]:
    """Read every source of the recipe into shards of documents."""
    from llm.data.collect import collect

    recipe = Recipe.model_validate(job.recipe)
    previous = previous_collection(Store(Path(job.store)), recipe.name, job.ingredients["observed"])
    return produce(job, lambda out: collect(recipe.collect, out, workshop(job), previous))


@task(**policy("clean"))
def clean(job: Job) -> dict[str, str]:
    """Repair text and drop what the quality rules reject."""
    from llm.data.clean import clean

    recipe = Recipe.model_validate(job.recipe)
    return produce(job, lambda out: clean(refs(job.parents)["collected"], out, recipe.clean, workshop(job), recipe.evaluate.sets))


@task(**policy("dedup"))
def dedup(job: Job) -> dict[str, str]:
    """Drop exact and near duplicates and split by cluster."""
    from llm.data.dedup import dedup

    config = Recipe.model_validate(job.recipe).dedup
    return produce(job, lambda out: dedup(refs(job.parents)["cleaned"], out, config, workshop(job)))


@task(**policy("tokenize"))
def tokenize(job: Job) -> dict[str, str]:
    """Train the tokenizer and encode every split into rows."""
    from llm.data.encode import tokenize

    config = Recipe.model_validate(job.recipe).tokenize
    return produce(job, lambda out: tokenize(refs(job.parents)["deduped"], out, config, workshop(job)))


@task(**policy("audit"))
def audit(job: Job) -> dict[str, str]:
    """Measure what the corpus is made of, and write its page and its data card."""
    from llm.data.audit.audit import audit

    recipe = Recipe.model_validate(job.recipe)
    return produce(job, lambda out: audit(refs(job.parents), out, recipe.audit, recipe.name, workshop(job)))


def workshop(job: Job) -> Workshop:
    """Where the job's parts are kept, and who makes them."""
    code = {name: job.ingredients[name] for name in ("code", "packages")}
    return Workshop(Store(Path(job.store)).root / job.stage / ".parts", code, partial(_spread, job))


def _spread(job: Job, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """Over the cluster at RAY_ADDRESS; else here, and over this machine's workers once that took as long as starting them."""
    return counted(job, _computed(job, function, items), len(items))


def _computed(job: Job, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    cluster, running = Recipe.model_validate(job.recipe).cluster, "RAY_ADDRESS" in os.environ
    patience = 0 if running else STARTING_SECONDS if cluster.workers > 1 else math.inf
    began, left = time.monotonic(), deque(items)
    while left and (len(left) == 1 or time.monotonic() - began < patience):
        yield function(left.popleft())
    if not left:
        return
    from llm.cluster.connect import connected
    from llm.cluster.spread import on_ray

    with connected(cluster, Path(job.store)):
        yield from on_ray(function, list(left), code=STAGES[job.stage].code)
