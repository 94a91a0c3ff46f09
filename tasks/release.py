"""From a trained model to a registered one: export, promote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import task

from llm.artifact import Store
from llm.observe import model_name
from llm.recipe import Recipe
from llm.registry import of_store
from llm.run import refs
from llm.stages import Job
from tasks.policy import policy, produce


@task(**policy("export"))
def export(job: Job) -> dict[str, str]:
    """Write the Hugging Face and the ONNX folder, and prove that they answer as the model does."""
    from llm.export.export import export

    config = Recipe.model_validate(job.recipe).export
    return produce(job, lambda out: export(**refs(job.parents), out=out, config=config, card=_card(job)))


def _card(job: Job) -> dict[str, Any]:
    """What the model card says about where the model comes from."""
    facts = {f"made from {role}": f"{parent.stage}/{parent.key}" for role, parent in job.parents.items()}
    return {"name": model_name(job.recipe["name"], job.node), "metadata": {"tags": ["trainyard"]}, "facts": facts}


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
