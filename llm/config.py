"""What every section of a recipe has in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen part of the recipe; an unknown key is an error.

    Sections live in the `config.py` of the room that consumes them. Those files import nothing heavy,
    so that a recipe is validated, and a cached run ends, without torch.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
