"""Raw text to training rows: collect, clean, dedup, tokenize."""

from __future__ import annotations

from prefect import task

from llm.recipe import Recipe
from llm.run import refs
from llm.stages import Job
from tasks.policy import policy, produce


@task(**policy("collect"))
def collect(job: Job) -> dict[str, str]:
    """Read every source of the recipe into shards of documents."""
    from llm.data.collect import collect

    config = Recipe.model_validate(job.recipe).collect
    return produce(job, lambda out: collect(config, out))


@task(**policy("clean"))
def clean(job: Job) -> dict[str, str]:
    """Repair text and drop what the quality rules reject."""
    from llm.data.clean import clean

    config = Recipe.model_validate(job.recipe).clean
    return produce(job, lambda out: clean(refs(job.parents)["collected"], out, config))


@task(**policy("dedup"))
def dedup(job: Job) -> dict[str, str]:
    """Drop exact and near duplicates and split by cluster."""
    from llm.data.dedup import dedup

    config = Recipe.model_validate(job.recipe).dedup
    return produce(job, lambda out: dedup(refs(job.parents)["cleaned"], out, config))


@task(**policy("tokenize"))
def tokenize(job: Job) -> dict[str, str]:
    """Train the tokenizer and encode every split into rows."""
    from llm.data.encode import tokenize

    config = Recipe.model_validate(job.recipe).tokenize
    return produce(job, lambda out: tokenize(refs(job.parents)["deduped"], out, config))
