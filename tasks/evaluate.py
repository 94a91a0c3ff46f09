"""Score a trained model."""

from __future__ import annotations

from prefect import task

from llm.recipe import Recipe
from llm.run import refs
from llm.stages import Job
from tasks.policy import policy, produce


@task(**policy("evaluate"))
def evaluate(job: Job) -> dict[str, str]:
    """Score a model on test text, against the baseline; a tuned one on held-out answers too."""
    from llm.evaluate.evaluate import evaluate

    recipe, parents = Recipe.model_validate(job.recipe), refs(job.parents)
    chat = parents["trained"] / "chat" if job.node == "tuned.evaluate" else None
    return produce(job, lambda out: evaluate(**parents, out=out, config=recipe.evaluate, seed=recipe.seed, chat=chat))
