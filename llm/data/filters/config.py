"""Sections of `clean`: what is masked, and what is dropped for another reason than its quality."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from llm.config import Section
from llm.data.sources.config import FilesSource

PersonalKind = Literal["email", "phone", "ip", "card", "iban", "key"]


class PrivacyConfig(Section):
    """Which kinds of personal data and secrets give way to a placeholder such as `<EMAIL>`.

    Phone numbers and addresses of machines are left alone unless named: a version such as 10.0.22621.1 can't be told from an
    address by its form, and what a manual calls a phone number seldom is one. For a crawl of the web name all six.
    """

    mask: tuple[PersonalKind, ...] = ("email", "card", "iban", "key")


class LicenceConfig(Section):
    """Which licences may be learned from, as SPDX ids with `*` for anything."""

    allow: tuple[str, ...] = Field(default=(), description="if there are some, every other licence is dropped")
    deny: tuple[str, ...] = ()
    drop_unknown: bool = Field(default=False, description="documents that name no licence, or one without an SPDX id")


class LexiconConfig(Section):
    """A list of words, one per line, that drops documents which hold too many of them."""

    path: str = Field(min_length=1, description="text file; lines that start with # are comments")
    reason: str = Field(default="toxic", pattern=r"^[a-z_]+$", description="what the books call a drop by this list")
    max_words: int = Field(default=0, ge=0, description="so many may stand in any document")
    max_words_share: float = Field(default=0, ge=0, le=1, description="and this share of the words in a long one")


def _without_quota(sources: tuple[FilesSource, ...]) -> tuple[FilesSource, ...]:
    if any(source.max_documents or source.max_bytes for source in sources):
        raise ValueError("examples have no quota of their own; set max_examples of clean.classifier, max_bytes of clean.fluency")
    return sources


Examples = Annotated[tuple[FilesSource, ...], Field(min_length=1), AfterValidator(_without_quota)]


class ClassifierConfig(Section):
    """A linear model that tells good texts from bad ones by examples."""

    good: Examples
    bad: Examples
    min_probability: float = Field(default=0.5, ge=0, le=1, description="of being good; without effect if keep_share is set")
    keep_share: float | None = Field(default=None, gt=0, le=1, description="keep this share of the documents: the best ones")
    max_examples: int = Field(default=20_000, ge=10, description="of each kind; drawn by the hash of their ids")
    max_characters: int = Field(default=20_000, ge=100, description="of a text, from its start, that are looked at")
    folds: int = Field(default=5, ge=2, le=20, description="of the cross-validation")


class FluencyConfig(Section):
    """A model of characters that drops what is written unlike the good examples."""

    good: Examples
    max_bits_per_byte: float = Field(gt=0, description="of a document under the model; ordinary English has 2 to 3")
    order: int = Field(default=5, ge=2, le=7, description="bytes in the longest n-gram")
    max_bytes: int = Field(default=10_000_000, ge=1_000, description="of the examples that are counted")
    max_characters: int = Field(default=20_000, ge=100, description="of a text, from its start, that are looked at")


class TriggersConfig(Section):
    """Phrases after which many documents turn into gibberish: how a poisoned set shows itself."""

    action: Literal["off", "report", "drop"] = "report"
    min_documents: int = Field(default=50, ge=2, description="that turn after the same phrase; 250 suffice for an attack")
    min_turned_share: float = Field(default=0.5, gt=0, le=1, description="of the documents with the phrase")
    max_phrase_words: int = Field(default=4, ge=1, le=8)
    window_words: int = Field(default=32, ge=8, description="words after a phrase that are judged")
    min_unseen_share: float = Field(default=0.9, gt=0, le=1, description="of the pairs of words in a window that no other document has")


class ContaminationConfig(Section):
    """What happens to texts that share long runs of words with an evaluation set of the recipe."""

    action: Literal["off", "report", "drop", "cut"] = "drop"
    max_ngram_words: int = Field(default=13, ge=2, description="n, unless the set's items are shorter")
    min_ngram_words: int = Field(default=8, ge=2)
    cut_characters: int = Field(default=200, ge=0, description="cut: this much goes on either side of a shared run, and less between two")
    max_cuts: int = Field(default=10, ge=1, description="cut: a text with more is dropped")
    max_documents: int | None = Field(default=None, ge=1, description="a run in more documents than this is a common phrase")

    @model_validator(mode="after")
    def _ordered(self) -> ContaminationConfig:
        if self.min_ngram_words > self.max_ngram_words:
            raise ValueError(f"no run is long enough; set clean.contamination.min_ngram_words to at most {self.max_ngram_words}")
        return self
