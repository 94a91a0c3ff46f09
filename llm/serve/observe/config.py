"""What the server tells about itself, and what of its traffic it keeps."""

from __future__ import annotations

from pydantic import Field, model_validator

from llm.config import Section
from llm.data.filters.config import PersonalKind


class SamplesConfig(Section):
    """What is kept of prompts and answers, for retraining and for watching drift: nothing without a folder."""

    folder: str | None = Field(default=None, description="where JSON lines go; without one nothing is kept, and there is no /v1/feedback")
    share: float = Field(default=0, ge=0, le=1, description="share of the answers that are kept; rated ones always are")
    mask: tuple[PersonalKind, ...] = Field(
        default=("email", "card", "iban", "key", "phone", "ip"), description="kinds of personal data that give way to placeholders"
    )
    segment_bytes: int = Field(default=16_000_000, ge=1_000, description="a file that is larger is followed by another")
    max_bytes: int = Field(default=256_000_000, ge=1_000, description="of all files; beyond it the oldest go")
    remembered_answers: int = Field(default=4_096, ge=1, description="latest answers that can be rated, as far as 64 MB hold them")

    @model_validator(mode="after")
    def _rotates(self) -> SamplesConfig:
        if self.segment_bytes * 2 > self.max_bytes:
            raise ValueError(f"two segments of {self.segment_bytes} bytes are more than max_bytes; set samples.segment_bytes lower")
        return self


class ObserveConfig(Section):
    """Metrics, logs and samples of the server."""

    metrics_port: int | None = Field(
        default=None, ge=1, le=65535, description="serve /metrics on this port of 127.0.0.1 alone, without a key, and not beside /v1"
    )
    samples: SamplesConfig = SamplesConfig()
