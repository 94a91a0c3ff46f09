"""The `train.objective` section of a recipe: what training lowers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from llm.config import Section


class NextTokenConfig(Section):
    """Every token from those before it. Source: GPT, https://openai.com/research/language-unsupervised, eq. 1."""

    kind: Literal["next_token"] = "next_token"


class MaskedConfig(Section):
    """Hidden tokens from both sides. Source: BERT, https://arxiv.org/abs/1810.04805, section 3.1 and appendix A.1."""

    kind: Literal["masked"]
    share: float = Field(default=0.15, gt=0, lt=1, description="of the tokens that are to be told")
    mask_share: float = Field(default=0.8, ge=0, le=1, description="of those, hidden behind the mask token")
    random_share: float = Field(default=0.1, ge=0, le=1, description="of those, replaced by any token; the rest stays")
    mask_id: int | None = Field(default=None, ge=0, description="id of the mask token; None adds one behind the vocabulary")
    next_sentence: bool = Field(default=False, description="also tell whether the second half of a row follows the first")

    @model_validator(mode="after")
    def _shares_are_parts(self) -> MaskedConfig:
        if self.mask_share + self.random_share > 1:
            raise ValueError(f"mask_share {self.mask_share} and random_share {self.random_share} exceed 1; set one of them lower")
        return self


class SpansConfig(Section):
    """Missing spans, written one after another. Source: T5, https://arxiv.org/abs/1910.10683, section 3.1.4."""

    kind: Literal["spans"]
    share: float = Field(default=0.15, gt=0, lt=1, description="of the tokens that go missing")
    mean_span_tokens: float = Field(default=3.0, ge=1)
    sentinels: int = Field(default=100, ge=1, description="ids behind the vocabulary, one for each span of a row")


class ReplacedConfig(Section):
    """Which tokens a small generator replaced. Source: ELECTRA, https://arxiv.org/abs/2003.10555, section 2."""

    kind: Literal["replaced"]
    share: float = Field(default=0.15, gt=0, lt=1, description="of the tokens that the generator fills in")
    mask_id: int | None = Field(default=None, ge=0, description="id of the mask token; None adds one behind the vocabulary")
    discriminator_weight: float = Field(default=50.0, gt=0)


class DistillationConfig(Section):
    """The next token and a teacher's opinion of it. Source: https://arxiv.org/abs/1503.02531, section 2."""

    kind: Literal["distillation"]
    teacher: str = Field(description="folder of the teacher: a trained model of ours or one in Hugging Face format")
    temperature: float = Field(default=2.0, gt=0)
    teacher_weight: float = Field(default=0.5, gt=0, le=1, description="the rest is on the data")


class MixturePart(Section):
    """One objective of a mixture, and its share of the rows."""

    objective: Annotated[NextTokenConfig | MaskedConfig | SpansConfig, Field(discriminator="kind")]
    share: float = Field(gt=0)


class MixtureConfig(Section):
    """Several objectives over one stream of rows, each row by one of them. Source: UL2, https://arxiv.org/abs/2205.05131, section 3.1."""

    kind: Literal["mixture"]
    parts: tuple[MixturePart, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _parts_have_one_term(self) -> MixtureConfig:
        if any(isinstance(part.objective, MaskedConfig) and part.objective.next_sentence for part in self.parts):
            raise ValueError("a mixture has one loss, without next_sentence; set next_sentence of its masked part to false")
        return self


ObjectiveConfig = Annotated[
    NextTokenConfig | MaskedConfig | SpansConfig | ReplacedConfig | DistillationConfig | MixtureConfig, Field(discriminator="kind")
]
