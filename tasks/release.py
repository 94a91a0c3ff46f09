"""From a trained model to a registered one: export, promote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import task

from llm.artifact import Store, canonical
from llm.data.sources.config import Source
from llm.observe import model_name
from llm.recipe import Recipe
from llm.registry import of_store
from llm.run import refs
from llm.stages import Job, fingerprint
from tasks.policy import policy, produce


@task(**policy("export"))
def export(job: Job) -> dict[str, str]:
    """Write the Hugging Face and the ONNX folder, and prove that they answer as the model does."""
    from llm.export.export import export

    config = Recipe.model_validate(job.recipe).export
    return produce(job, lambda out: export(**refs(job.parents), out=out, config=config, card=_card(job)))


def _card(job: Job) -> dict[str, Any]:
    """What the model card, and the graph itself, say about where the model comes from."""
    recipe, licence = Recipe.model_validate(job.recipe), job.recipe["audit"]["license"]
    name, read = model_name(recipe.name, job.node), fingerprint(job.recipe, job.node)
    lineage = {role: {"stage": parent.stage, "key": parent.key, "digest": parent.digest} for role, parent in job.parents.items()}
    train = recipe.finetune.train if job.node.startswith("tuned.") else recipe.train
    facts = {
        "trained": f"{train.steps:,} steps of {train.global_batch_size:,} rows of {recipe.tokenize.row_tokens:,} tokens",
        "objective": train.objective.kind.replace("_", " "),
        "data": ", ".join(sorted({_published(source) for source in recipe.collect.sources})),
        "licence of the data": licence,
        "recipe": read,
        **{f"made from {role}": f"{parent.stage}/{parent.key}" for role, parent in job.parents.items()},
    }
    told = {"name": name, "recipe": read, "licence": licence, "lineage": canonical(lineage)}
    properties = {f"trainyard.{label}": value for label, value in told.items()}
    return {"name": name, "metadata": {"tags": ["trainyard"], "license": licence}, "facts": facts, "properties": properties}


def _published(source: Source) -> str:
    """A source as strangers may know it: a public data set by its id, anything else by its kind, for paths tell of a machine."""
    return source.path if source.kind == "huggingface" and not source.path.startswith(("/", ".", "~")) else source.kind


@task(**policy("promote"))
def promote(job: Job) -> dict[str, str]:
    """Register the export; make it champion if it is not worse than the present one on the same documents."""
    from llm.promote import promote

    config, exported = Recipe.model_validate(job.recipe).promote, job.parents["exported"]
    lineage = {"run": Path(job.run).name, "export": exported.key}

    def build(out: Path) -> dict[str, Any]:
        name, registry = model_name(job.recipe["name"], job.node), of_store(Store(Path(job.store)))
        return promote(**refs(job.parents), out=out, config=config, registry=registry, name=name, digest=exported.digest, lineage=lineage)

    return produce(job, build)
