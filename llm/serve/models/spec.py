"""What to serve, as the command line writes it.

champion                                    the registry's champion, followed
tiny-chat@champion, tiny-chat@3             a registered model's champion, followed, or a fixed version
./folder                                    an export artifact or `onnx` folder
chat=tiny-chat@champion                     under an id of its own
chat=tiny-chat@champion:90,tiny-chat@3:10   traffic split by weight
chat=tiny-chat@champion~tiny-chat@4:0.1     a share of the requests is also sent to a shadow, whose answers nobody sees
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from llm.errors import RecipeError
from llm.registry import CHAMPION

REMEDY = "write champion, NAME@champion, NAME@VERSION or a folder, as in chat=tiny-chat@champion:90,tiny-chat@3:10"
ID = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
WEIGHTED = re.compile(r"(?P<source>.+?)(?::(?P<weight>\d+(?:\.\d+)?))?")
REGISTERED = re.compile(rf"(?P<name>{ID})@(?P<alias>{ID})")


@dataclass(frozen=True)
class Source:
    """Where a model comes from: a name and an alias in the registry, or a folder."""

    text: str

    @property
    def registered(self) -> tuple[str, str] | None:
        """Name and alias or version in the registry; an empty name means the newest; None for a folder."""
        if self.text == CHAMPION:
            return "", CHAMPION
        if (found := REGISTERED.fullmatch(self.text)) and not Path(self.text).exists():
            return found["name"], found["alias"]
        return None


@dataclass(frozen=True)
class Weighted:
    """A source and its weight among others; of a shadow, the share of requests that it gets."""

    source: Source
    weight: float = 1.0


@dataclass(frozen=True)
class ModelSpec:
    """One id that clients ask for, the sources that share its requests, and perhaps a shadow."""

    sources: tuple[Weighted, ...]
    model_id: str = ""
    shadow: Weighted | None = None

    @classmethod
    def parse(cls, text: str) -> ModelSpec:
        """The specification that a text writes.

        Raises: RecipeError if it writes none.

        Example:
            >>> spec = ModelSpec.parse("chat=tiny-chat@champion:90,tiny-chat@3:10~./other:0.5")
            >>> spec.model_id, [(weighted.source.text, weighted.weight) for weighted in (*spec.sources, spec.shadow)]
            ('chat', [('tiny-chat@champion', 90.0), ('tiny-chat@3', 10.0), ('./other', 0.5)])
        """
        named = re.fullmatch(rf"(?P<id>{ID})=(?P<rest>.+)", text)
        served, shadowed, shadow = (named["rest"] if named else text).partition("~")
        sources = tuple(_weighted(part, text) for part in served.split(","))
        if not math.fsum(weighted.weight for weighted in sources):
            raise RecipeError("weights of a model sum to 0", value=text, remedy="give a version some weight")
        mirrored = _weighted(shadow, text) if shadowed else None
        if mirrored and mirrored.weight > 1:
            raise RecipeError("a shadow's share is above 1", value=text, remedy="write a share from 0 to 1, as in ~tiny-chat@4:0.1")
        return cls(sources, named["id"] if named else "", mirrored)


def _weighted(text: str, whole: str) -> Weighted:
    found = WEIGHTED.fullmatch(text)
    if not found:
        raise RecipeError("no such model specification", value=repr(whole), remedy=REMEDY)
    return Weighted(Source(found["source"]), float(found["weight"] or 1))
