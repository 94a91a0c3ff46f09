"""What an entry of `collect.sources` may be: one section for each kind of source."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from llm.config import Section

COMMIT = re.compile(r"[0-9a-f]{40}")


class FilesSource(Section):
    """Text files in a folder, or one file: .txt .md .rst .html .py .jsonl .parquet, each also as .gz or .zst."""

    kind: Literal["files"] = "files"
    path: str = Field(min_length=1)
    domain: str = "text"
    patterns: tuple[str, ...] = Field(default=("*",), description="file names to take, as in a shell")
    text_field: str = Field(default="text", description="column that holds the text in .jsonl and .parquet")


class HuggingFaceSource(Section):
    """A data set read through `datasets`: a local folder (path starts with / . or ~) or a hub id at a pinned commit."""

    kind: Literal["huggingface"] = "huggingface"
    path: str = Field(min_length=1)
    name: str | None = None
    split: str = "train"
    revision: str | None = Field(default=None, description="40 hexadecimal digits of the hub data set's commit; a local one has none")
    text_field: str = "text"
    domain: str = "text"
    streaming: bool = True
    max_documents: int | None = Field(default=None, ge=1)
    max_bytes: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _pinned(self) -> HuggingFaceSource:
        local = self.path.startswith(("/", ".", "~"))
        if local and self.revision is not None:
            raise ValueError(f"local data set {self.path} has no commit; leave collect.sources.revision ({self.revision}) out")
        if not local and not COMMIT.fullmatch(self.revision or ""):
            raise ValueError(
                f"hub data set {self.path} is not pinned (revision {self.revision}); set collect.sources.revision to the 40 digits"
                " of its commit, since a branch or a tag can move, or start a local path with ./"
            )
        return self


class InstalledSource(Section):
    """The standard library's source (code) and the documentation of installed packages (docs)."""

    kind: Literal["installed"] = "installed"
    domains: tuple[Literal["code", "docs"], ...] = Field(default=("code", "docs"), min_length=1)
    max_bytes: int | None = Field(default=None, ge=1, description="per domain; the documents are chosen by the hash of their ids")


Source = Annotated[FilesSource | HuggingFaceSource | InstalledSource, Field(discriminator="kind")]
