"""Which documents a chat may quote, and how they are cut and found."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from llm.config import Section


class RetrievalConfig(Section):
    """Passages of a folder's documents as context of a chat: none without a folder."""

    documents: str | None = Field(default=None, min_length=1, description="folder, or one file, of any kind that collect reads")
    patterns: tuple[str, ...] = Field(default=("*",), description="file names to take, as in a shell")
    text_field: str = Field(default="text", min_length=1, description="column that holds the text in a table")
    kind: Literal["bm25", "embedding"] = Field(default="bm25", description="embedding: by the meaning that the served model sees")
    model: str = Field(default="", description="id of the served model whose tokens count, and which embeds; by default the first")
    always: bool = Field(default=False, description="in every chat that doesn't say otherwise; by default in those that ask")
    top: int = Field(default=4, ge=1, le=16, description="passages, where the request names no number")
    chunk_tokens: int = Field(default=192, ge=16, le=4_096, description="of a passage, at most")
    overlap_tokens: int = Field(default=32, ge=0, description="that a passage repeats of the one before it, at most")
    answer_share: float = Field(default=0.25, gt=0, lt=1, description="of the context left for an answer that names no max_tokens")
    index: str | None = Field(default=None, min_length=1, description="file that keeps the index between starts")
    refresh_seconds: float = Field(default=30, gt=0, description="how often the folder is looked at for changes")
    max_bytes: int = Field(default=256_000_000, ge=1, description="of text; more is refused")
    max_passages: int = Field(default=500_000, ge=1, description="more are refused")

    @model_validator(mode="after")
    def _advances(self) -> RetrievalConfig:
        if self.overlap_tokens * 2 > self.chunk_tokens:
            raise ValueError(f"passages of {self.chunk_tokens} tokens overlap by more than half; set retrieval.overlap_tokens lower")
        return self
