"""Sections of `clean`: what its steps do, and the thresholds of its families of rules."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from llm.config import Section

Family = Literal["basic", "gopher", "c4", "fineweb"]
RuleName = Literal[
    "too_short",
    "too_long",
    "replacement_characters",
    "encoded_data",
    "few_alphanumerics",
    "long_lines",
    "c4_lorem_ipsum",
    "c4_curly_bracket",
    "mojibake",
    "few_letters",
    "odd_word_length",
    "duplicate_lines",
    "top_pair",
    "gopher_words",
    "gopher_word_length",
    "gopher_hashes",
    "gopher_ellipses",
    "gopher_bullet_lines",
    "gopher_ellipsis_lines",
    "gopher_few_letters",
    "gopher_few_stop_words",
    "gopher_duplicate_lines",
    "gopher_duplicate_line_characters",
    "gopher_duplicate_paragraphs",
    "gopher_duplicate_paragraph_characters",
    "gopher_top_grams",
    "gopher_duplicate_grams",
    "c4_few_sentences",
    "fineweb_few_ended_lines",
    "fineweb_duplicate_line_characters",
    "fineweb_short_lines",
]
Share = Annotated[float, Field(ge=0, le=1)]


class RepairConfig(Section):
    """What a text was meant to be."""

    unicode: Literal["NFC", "NFKC"] = Field(default="NFC", description="NFKC also unifies what only looks different: ligatures, widths")
    max_page_characters: int = Field(default=5_000_000, ge=1, description="html: a longer page is dropped unread")
    max_page_tags: int = Field(default=20_000, ge=1, description="html: a page with more, besides spans, is dropped unread")


class LanguageConfig(Section):
    """Which languages prose is in."""

    allowed: tuple[str, ...] = Field(
        default=(), description="ISO 639 codes, regions don't count; text in others, or in none that is sure, is dropped"
    )
    min_confidence: Share = Field(default=0.5, description="less sure text has no language")
    sample_characters: int = Field(default=500, ge=50, description="what is looked at, out of the middle of the text")


class RepeatsConfig(Section):
    """Lines or paragraphs of prose that are left out because they stand elsewhere too."""

    unit: Literal["line", "paragraph"] = "line"
    within_documents: bool = Field(default=False, description="of those that a document repeats, the first stays")
    min_documents: int | None = Field(default=None, ge=2, description="one that so many documents of the corpus hold is left out")
    keep_first: bool = Field(
        default=True,
        description="the first document that holds it and passes all rules keeps it; "
        "it is lost if the rest of that document, without what others keep, no longer passes",
    )
    min_characters: int = Field(default=20, ge=1, description="shorter ones are always kept")


class GopherConfig(Section):
    """Thresholds of Gopher's rules, as in its paper."""

    min_words: int = Field(default=50, ge=0)
    max_words: int = Field(default=100_000, ge=1)
    min_mean_word_characters: float = Field(default=3, ge=0)
    max_mean_word_characters: float = Field(default=10, gt=0)
    max_symbols_per_word: float = Field(default=0.1, ge=0, description="hash symbols, and ellipses")
    max_bullet_lines_share: Share = 0.9
    max_ellipsis_lines_share: Share = 0.3
    min_letter_words_share: Share = 0.8
    min_stop_words: int = Field(default=2, ge=0, le=8, description="different ones; English only")
    max_duplicate_lines_share: Share = 0.3
    max_duplicate_line_characters_share: Share = 0.2
    max_duplicate_paragraphs_share: Share = 0.3
    max_duplicate_paragraph_characters_share: Share = 0.2
    max_top_grams_shares: tuple[Share, Share, Share] = Field(default=(0.2, 0.18, 0.16), description="of 2, 3 and 4 words")
    max_duplicate_grams_shares: tuple[Share, Share, Share, Share, Share, Share] = Field(
        default=(0.15, 0.14, 0.13, 0.12, 0.11, 0.10), description="of 5 to 10 words"
    )

    @model_validator(mode="after")
    def _ordered(self) -> GopherConfig:
        for unit in ("words", "mean_word_characters"):
            if getattr(self, f"min_{unit}") > (most := getattr(self, f"max_{unit}")):
                raise ValueError(f"no text is long and short enough; set clean.gopher.min_{unit} below clean.gopher.max_{unit} {most}")
        return self


class C4Config(Section):
    """What of a page C4 leaves out, as in its paper."""

    terminal_punctuation: bool = Field(default=True, description="only lines that a sentence's mark ends")
    min_line_words: int = Field(default=5, ge=0)
    max_word_characters: int = Field(default=1_000, ge=1, description="a line with a longer word is left out")
    javascript: bool = Field(default=True, description="no lines that speak of JavaScript")
    policies: bool = Field(default=True, description="no lines that speak of cookies, terms or privacy policies")
    citations: bool = Field(default=True, description="no marks such as [1] and [citation needed]")
    min_sentences: int = Field(default=3, ge=0, description="of what is left")


class FineWebConfig(Section):
    """Thresholds of FineWeb's own rules, as in its paper: the threshold itself is objected to."""

    min_ended_lines_share: float = Field(default=0.12, ge=-1, le=1, description="lines that punctuation ends")
    max_duplicate_line_characters_share: float = Field(default=0.1, gt=0)
    max_short_lines_share: float = Field(default=0.67, gt=0)
    short_line_characters: int = Field(default=30, ge=1)


class WordsConfig(Section):
    """Changes that no decoding takes back: a model that learns from such text writes such text."""

    lower_case: bool = False
    remove_stop_words: bool = Field(default=False, description="of the text's language, if it is known and there is a list")
    stop_words: tuple[str, ...] = Field(default=(), description="your own list for all languages, instead of those that come with it")
