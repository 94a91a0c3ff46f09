"""The `evaluate` and `promote` sections of a recipe."""

from __future__ import annotations

from pydantic import Field, field_validator

from llm.config import Section
from llm.data.config import LabelledSet


class EvaluateConfig(Section):
    """How a trained model is scored on the test split, and what it is asked to write.

    `max_documents` bounds the cost on a large test split: the documents with the smallest hash of their id
    are scored, so that the choice is representative and stays the same from run to run.
    """

    batch_rows: int = Field(default=16, ge=1, description="rows per forward pass; changes memory and time, never a score beyond rounding")
    max_documents: int | None = Field(default=None, ge=1, description="test documents to score at most; None scores all")
    sets: tuple[LabelledSet, ...] = Field(default=(), description="labelled sets that the model will be judged on")
    prompts: tuple[str, ...] = ("The ", "Once there was", "import os\n", "def main(")
    chat_prompts: tuple[str, ...] = ("What can you do?", "Write a Python function that adds two numbers.")
    sample_tokens: int = Field(default=64, ge=1, description="tokens per sample at most")
    temperature: float = Field(default=0.0, ge=0, description="0 is greedy")
    top_k: int = Field(default=0, ge=0, description="0 samples from the whole vocabulary")

    @field_validator("sets")
    @classmethod
    def _named_apart(cls, sets: tuple[LabelledSet, ...]) -> tuple[LabelledSet, ...]:
        names = [each.name for each in sets]
        if twins := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two sets are called {', '.join(sorted(twins))}; set evaluate.sets.name apart")
        return sets


class PromoteConfig(Section):
    """When a candidate becomes the champion: its bits per byte may exceed the champion's by the tolerance."""

    tolerance_bits_per_byte: float = Field(default=0.0, ge=0)
