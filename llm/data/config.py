"""The `collect`, `clean`, `dedup`, `tokenize` sections of a recipe, and `finetune.chat`."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from llm.config import Section
from llm.data.filters.config import (
    ClassifierConfig,
    ContaminationConfig,
    FluencyConfig,
    LexiconConfig,
    LicenceConfig,
    PrivacyConfig,
    TriggersConfig,
)
from llm.data.quality.config import (
    C4Config,
    Family,
    FineWebConfig,
    GopherConfig,
    LanguageConfig,
    RepairConfig,
    RepeatsConfig,
    RuleName,
    WordsConfig,
)
from llm.data.sources.config import InstalledSource, Source
from llm.data.sources.crawl.config import CrawlSource


class CollectConfig(Section):
    """Where the text comes from."""

    sources: tuple[Source, ...] = Field(default=(InstalledSource(),), min_length=1)
    max_quarantined_share: float = Field(default=0.05, ge=0, le=1, description="of what the sources hold; a dead link is nothing held")
    keep_seen: bool = Field(
        default=False,
        description="keep what the last run collected and its sources no longer hold; not of kinds whose cap hides what they hold:"
        " huggingface and installed with a quota, warc with max_files",
    )

    @model_validator(mode="after")
    def _polite(self) -> CollectConfig:
        """A host has one crawl, which knows of every request to it."""
        crawls: dict[str, int] = {}
        for number, source in enumerate(self.sources):
            for host in _beginnings(source) if source.kind == "crawl" else ():
                if crawls.setdefault(host, number) != number:
                    raise ValueError(
                        f"two crawls begin at {host}, where each would be polite for itself;"
                        f" make collect.sources.{crawls[host]} and collect.sources.{number} one entry with several seeds"
                    )
        return self


def _beginnings(source: CrawlSource) -> list[str]:
    """Hosts of the seeds and sitemaps, without ports: politeness is due to a host."""
    return sorted({(urlsplit(url).hostname or "").removesuffix(".") for url in (*source.seeds, *source.sitemaps)})


class CleanConfig(Section):
    """What cleaning does; each rule in llm/data/quality names its source."""

    repair: RepairConfig = RepairConfig()
    language: LanguageConfig = LanguageConfig()
    repeats: RepeatsConfig = RepeatsConfig()
    rules: tuple[Family, ...] = Field(default=("basic",), description="families of rules that prose is judged by, in this order")
    off: tuple[RuleName, ...] = Field(default=(), description="single rules that are not asked")
    gopher: GopherConfig = GopherConfig()
    c4: C4Config = C4Config()
    fineweb: FineWebConfig = FineWebConfig()
    words: WordsConfig = WordsConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    licences: LicenceConfig = LicenceConfig()
    lexicons: tuple[LexiconConfig, ...] = Field(default=(), description="lists of words, such as toxic ones")
    classifier: ClassifierConfig | None = Field(default=None, description="tells good texts from bad ones by examples")
    fluency: FluencyConfig | None = Field(default=None, description="a model of characters, learned from good examples")
    triggers: TriggersConfig = TriggersConfig()
    contamination: ContaminationConfig = ContaminationConfig()
    min_characters: int = Field(default=200, ge=1)
    max_characters: int = Field(default=1_000_000, ge=1)
    max_replacement_share: float = Field(default=0.001, ge=0, le=1, description="U+FFFD among the characters")
    max_encoded_share: float = Field(default=0.5, ge=0, le=1, description="characters in runs that look like base64")
    max_mojibake_share: float = Field(default=0.01, ge=0, le=1, description="prose: places per character that look wrongly decoded")
    min_letter_words_share: float = Field(default=0.7, ge=0, le=1, description="prose: words that hold a letter")
    min_mean_word_characters: float = Field(default=2, gt=0, description="prose in a script with spaces")
    max_mean_word_characters: float = Field(default=12, gt=0, description="prose in a script with spaces")
    max_duplicate_lines_share: float = Field(default=0.3, ge=0, le=1, description="prose: lines that stood there before")
    max_top_pair_share: float = Field(default=0.2, ge=0, le=1, description="prose: characters in the most frequent pair of words")
    min_alphanumeric_share: float = Field(default=0.25, ge=0, le=1, description="code: letters and digits among the characters")
    max_mean_line_characters: float = Field(default=100, gt=0, description="code")
    max_line_characters: int = Field(default=1_000, ge=1, description="code")

    @model_validator(mode="after")
    def _ordered(self) -> CleanConfig:
        if self.min_characters > self.max_characters:
            raise ValueError(f"no text is long and short enough; set clean.min_characters below clean.max_characters {self.max_characters}")
        if self.min_mean_word_characters > self.max_mean_word_characters:
            raise ValueError(
                "no word is long and short enough; set clean.min_mean_word_characters"
                f" below clean.max_mean_word_characters {self.max_mean_word_characters}"
            )
        return self


MOST_MISSED = 0.05  # of the pairs at a threshold, the share that no signature may ever find


class SplitConfig(Section):
    """How the documents of a domain are divided; the rest trains."""

    validation_share: float = Field(ge=0, lt=1)
    test_share: float = Field(ge=0, lt=1)


class DedupConfig(Section):
    """What counts as the same text, and how the splits are drawn."""

    threshold: float = Field(default=0.8, gt=0, le=1, description="Jaccard similarity from which one of two documents is dropped")
    link_threshold: float = Field(default=0.5, gt=0, le=1, description="Jaccard similarity from which two documents share a split")
    permutations: int = Field(default=128, ge=16, le=1024, multiple_of=16)
    shingle_words: int = Field(default=5, ge=1, description="a character of a script without spaces counts as a word")
    exact_only: bool = Field(default=False, description="drop texts with the same words only; near duplicates stay, in one split")
    validation_share: float = Field(default=0.02, gt=0, lt=1)
    test_share: float = Field(default=0.02, gt=0, lt=1)
    domain_splits: dict[str, SplitConfig] = Field(default={}, description="shares of single domains in place of those")

    @model_validator(mode="after")
    def _possible(self) -> DedupConfig:
        for domain, shares in self.domain_splits.items():
            if shares.validation_share + shares.test_share > 1:
                raise ValueError(f"splits of {domain} are more than all of it; set dedup.domain_splits.{domain} to at most 1 together")
        if self.link_threshold > self.threshold:
            raise ValueError(f"{self.link_threshold} is above threshold; set dedup.link_threshold to at most {self.threshold}")
        if (missed := (1 - self.link_threshold) ** self.permutations) > MOST_MISSED:
            raise ValueError(f"{missed:.0%} of the pairs at link_threshold share no hash; raise dedup.permutations or dedup.link_threshold")
        if self.validation_share + self.test_share >= 1:
            raise ValueError("nothing is left to train on; set dedup.validation_share and dedup.test_share to less than 1 together")
        return self


class TokenizerConfig(Section):
    """What kind of vocabulary is learned, or where one is that others have learned."""

    kind: Literal["bpe", "unigram", "char", "word", "wordpiece", "byte_bpe", "imported"] = "bpe"
    path: str | None = Field(default=None, description="imported: a tokenizer.model or tokenizer.json, or a folder that holds one")
    may_grow: bool = Field(default=True, description="imported: chat tokens that are missing get ids behind all others")

    @model_validator(mode="after")
    def _named(self) -> TokenizerConfig:
        if (self.kind == "imported") != (self.path is not None):
            raise ValueError("a tokenizer is imported from a path; set tokenize.tokenizer.kind to imported, and its path, or neither")
        return self


class TokenizeConfig(Section):
    """Size of the vocabulary and of a row."""

    tokenizer: TokenizerConfig = TokenizerConfig()
    vocab_size: int = Field(default=32_000, ge=300, description="byte fallback and the chat tokens alone take 262")
    row_tokens: int = Field(default=1024, ge=8, description="T, the length of one training sequence")
    packing: Literal["concatenate", "best_fit"] = Field(default="concatenate", description="best_fit cuts no document that fits into a row")
    sample_bytes: int = Field(default=64_000_000, ge=1_000, description="training text that the vocabulary is learned from")
    max_piece_characters: int = Field(default=16, ge=2)
    character_coverage: float = Field(default=0.9999, gt=0.9, le=1, description="the rest is spelled in bytes")


class ChatConfig(Section):
    """Instruction pairs: built from the docstrings of the corpus's Python documents, or read from a .jsonl file."""

    source: str = Field(default="docstrings", min_length=1, description="`docstrings`, or the path of a .jsonl or .csv file")
    row_tokens: int | None = Field(default=None, ge=32, description="by default that of the tokenize stage")
    max_question_characters: int = Field(default=1_500, ge=20, description="longer code is cut at a line; other questions are dropped")
    min_answer_characters: int = Field(default=10, ge=1)
    max_answer_characters: int = Field(default=1_000, ge=20)
    implement_share: float = Field(default=0.5, ge=0, le=1, description="docstring pairs that ask for code; the others ask what code does")
    validation_share: float = Field(default=0.05, gt=0, lt=1, description=".jsonl only: docstring pairs go where their document went")
    test_share: float = Field(default=0.05, gt=0, lt=1, description=".jsonl only")

    @model_validator(mode="after")
    def _possible(self) -> ChatConfig:
        if self.min_answer_characters > self.max_answer_characters:
            raise ValueError(
                "no answer is long and short enough; set finetune.chat.min_answer_characters"
                f" below finetune.chat.max_answer_characters {self.max_answer_characters}"
            )
        if self.validation_share + self.test_share >= 1:
            raise ValueError("nothing is left to train on; set finetune.chat.validation_share and test_share to less than 1 together")
        return self


class LabelledSet(Section):
    """Questions or texts with known answers in a .jsonl or .csv file: what the model is judged on, and never trained on."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$", description="what reports call it")
    path: str = Field(min_length=1)
    text_field: str = Field(default="question", min_length=1, description="column of the question, or of the text to classify")
    answer_field: str = Field(default="answer", min_length=1, description="column of the answer, the label, or the right choice")
    choice_fields: tuple[str, ...] = Field(default=(), description="columns of the choices, or the one column that lists them")
    labels: tuple[str, ...] = Field(default=(), description="the labels that there are, of a classification")
    id_field: str | None = Field(default=None, min_length=1, description="column that names the example; by default its number does")


class WeightsConfig(Section):
    """How often training reads which rows: by domain and language, a group by its size where nothing else is said."""

    domains: dict[str, float] = Field(default={}, description="share of the rows by domain; other domains divide the rest by their size")
    languages: dict[str, float] = Field(
        default={}, description="share of the rows by language, as `en`; others divide the rest by their size"
    )
    temperature: float = Field(default=1.0, ge=1, description="T: a group counts as its size to the power 1/T; large ones level all groups")
    min_share: float = Field(default=0.0, ge=0, lt=1, description="share of the rows that each group has at least, within its epochs")

    @model_validator(mode="after")
    def _shares(self) -> WeightsConfig:
        for setting, shares in (("domains", self.domains), ("languages", self.languages)):
            if any(share < 0 for share in shares.values()) or sum(shares.values()) > 1 + 1e-6:
                raise ValueError(f"{shares} are no shares of one whole; set train.mixture.{setting} to numbers that add up to at most 1")
        return self


class MixtureStageConfig(WeightsConfig):
    """A part of the training with weights of its own."""

    share: float = Field(gt=0, le=1, description="of the training's rows")


class CorpusMixtureConfig(WeightsConfig):
    """Which rows of the training split are read how often; each domain in each language is a group.

    What a group may not have because of its epochs, the others divide. `stages` replace the weights, one after the other.
    """

    max_epochs: float | None = Field(default=None, gt=0, description="readings of a group's rows over the whole training")
    domain_max_epochs: dict[str, float] = Field(default={}, description="the same for single domains")
    stages: tuple[MixtureStageConfig, ...] = Field(default=(), description="a curriculum")

    @model_validator(mode="after")
    def _whole(self) -> CorpusMixtureConfig:
        if any(epochs <= 0 for epochs in self.domain_max_epochs.values()):
            raise ValueError(f"{self.domain_max_epochs} must be above 0; leave a domain out by train.mixture.domains")
        if self.stages and abs(sum(stage.share for stage in self.stages) - 1) > 1e-6:
            total = sum(stage.share for stage in self.stages)
            raise ValueError(f"stages are {total:g} of the training; set the shares of train.mixture.stages so that they add up to 1")
        if self.stages and (self.domains or self.languages or self.temperature != 1 or self.min_share):
            raise ValueError("weights beside stages say nothing; move those of train.mixture into train.mixture.stages")
        return self
