"""The `audit` section of a recipe."""

from __future__ import annotations

from pydantic import Field, field_validator

from llm.config import Section
from llm.data.audit.words import GROUPS, WORD


class AuditConfig(Section):
    """How much of the corpus is looked at closely, and whose names are looked for. Counts and sizes are of all documents."""

    close_documents: int = Field(
        default=1_000, ge=10, description="documents with the smallest hash: topics and word vectors come from them"
    )
    close_characters: int = Field(default=4_000, ge=100, description="of each of those, from its start")
    topics: int = Field(default=8, ge=2, description="of the topic model")
    samples: int = Field(default=3, ge=0, description="texts shown: of kept documents, and of dropped ones for each reason")
    sample_characters: int = Field(default=600, ge=50)
    groups: dict[str, tuple[str, ...]] = Field(default=GROUPS, description="single words for groups of people, by name of the group")
    sentences_per_group: int = Field(default=200, ge=0, description="of each shard, whose sentiment is measured")
    name: str = Field(default="", description="of the corpus on its card; else the recipe's")
    license: str = Field(default="other", description="of the corpus as a whole, in the words of data set hubs")

    @field_validator("groups")
    @classmethod
    def _single_words(cls, groups: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        """Texts are compared word by word, in lower case."""
        for name, words in groups.items():
            if strays := [word for word in words if not WORD.fullmatch(word.lower())]:
                raise ValueError(
                    f"{strays[0]!r} of {name} is no single word, so no text would name it; set audit.groups to words of letters only"
                )
        return {name: tuple(word.lower() for word in words) for name, words in groups.items()}
