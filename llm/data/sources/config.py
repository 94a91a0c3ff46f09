"""What an entry of `collect.sources` may be: one section for each kind of source."""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import parse_qsl

from pydantic import ConfigDict, Field, model_validator

from llm.config import Section
from llm.data.sources.crawl.config import CrawlSource

COMMIT = re.compile(r"[0-9a-f]{40}")


class Limits(Section):
    """What a file may cost that was made to do harm, or was damaged; whatever costs more is quarantined."""

    max_document_bytes: int = Field(default=8_000_000, ge=1, description="one text, line or record")
    max_decoded_bytes: int = Field(default=100_000_000_000, ge=1, description="what one file may unfold to")
    max_ratio: float = Field(default=100, ge=1, description="how many times its size a file may unfold to, from 64 MB on")
    max_members: int = Field(default=100_000, ge=1, description="members of one archive")
    max_bad_records: int = Field(default=10_000, ge=1, description="in one file; then the rest of it counts as one")
    max_memory_bytes: int = Field(default=512 * 2**20, ge=384 * 2**20, description="of the process that reads tables and archives")
    max_stuck_seconds: float = Field(default=5, ge=1, description="of computing by that process without any progress")


class Quota(Section):
    """How much of a source is taken at most: the documents with the smallest hashes of their ids."""

    max_documents: int | None = Field(default=None, ge=1)
    max_bytes: int | None = Field(default=None, ge=1, description="of text")


class Facts(Section):
    """What holds for documents of a source that don't say it themselves."""

    license: str = Field(default="", description="of documents that name none, such as MIT or CC-BY-4.0")
    language: str = Field(default="", description="of documents that name none, such as en; by default, cleaning looks at the text")


class FilesSource(Quota, Facts):
    """Text files in a folder, or one file, on disk or wherever fsspec reaches.

    .txt .md .rst .html .csv .tsv .jsonl .ndjson .parquet .arrow .feather .py and other programs, each also as .gz .bz2 .xz
    .zst; and all of these in a .zip or .tar, itself compressed or not.
    """

    kind: Literal["files"] = "files"
    path: str = Field(
        min_length=1,
        description="local, or a URL such as s3://bucket/folder; hidden files and folders below it are skipped, links are followed",
    )
    domain: str = "text"
    patterns: tuple[str, ...] = Field(default=("*",), description="file names to take, as in a shell; of an archive, every member is taken")
    text_field: str = Field(default="text", description="column that holds the text in a table")
    text_format: Literal["plain", "html"] = Field(default="plain", description="html: tables hold pages, of which the main text counts")
    min_encoding_confidence: float = Field(default=0.3, ge=0, le=1, description="below it, text that isn't Unicode is undecodable")
    limits: Limits = Limits()


class WarcSource(Quota, Facts):
    """Pages of web archives: a .warc or .wet file, a folder of them, or a list of them such as Common Crawl's warc.paths.gz."""

    kind: Literal["warc"] = "warc"
    path: str = Field(
        min_length=1, description="local or a URL: .warc .wet, a folder without what is hidden, or a list .paths .txt; each also as .gz"
    )
    base_url: str = Field(
        default="",
        description="the folder below which each line of a list lies, such as https://data.commoncrawl.org/; by default the list's own."
        " Whom it names is asked without the crawl's check for public addresses",
    )
    max_files: int | None = Field(default=None, ge=1, description="take only so many of them, from the first on")
    domain: str = "web"
    min_encoding_confidence: float = Field(default=0.3, ge=0, le=1, description="below it, text that isn't Unicode is undecodable")
    limits: Limits = Limits()


class SqlSource(Quota, Facts):
    """Rows of a table or view of SQLite or PostgreSQL, one document each."""

    model_config = ConfigDict(hide_input_in_errors=True)

    kind: Literal["sql"] = "sql"
    url: str | None = Field(default=None, description="sqlite:///file.db or postgresql://user@host/database, without a password")
    url_variable: str | None = Field(default=None, description="environment variable that holds the URL, password included")
    table: str = Field(min_length=1, description="a table or a view, such as pages or public.pages")
    id_column: str = Field(default="id", min_length=1, description="unique, and indexed: the rows are read in its order")
    text_column: str = Field(default="text", min_length=1)
    text_format: Literal["plain", "html"] = Field(default="plain", description="html: rows hold pages, of which the main text counts")
    url_column: str | None = None
    domain_column: str | None = None
    language_column: str | None = None
    license_column: str | None = None
    created_column: str | None = None
    updated_column: str | None = Field(default=None, description="changes whenever the row does; spares a nightly run reading the texts")
    only: dict[str, str | int | bool] = Field(default={}, description="rows with these values in these columns; by default all")
    domain: str = Field(default="text", description="of rows that name none")
    page_rows: int = Field(default=500, ge=1, description="rows held at a time")
    page_bytes: int = Field(default=32_000_000, ge=1, description="of text held at a time, or one text that has more")
    max_document_bytes: int = Field(default=8_000_000, ge=1, description="of one text with its facts; a larger one is quarantined")
    piece_rows: int = Field(default=20_000, ge=1, description="rows of a range that is read, and read again, for itself; on average")
    tries: int = Field(default=4, ge=1, description="connections in a row that may be lost without a row read")

    @model_validator(mode="after")
    def _reachable(self) -> SqlSource:
        if (self.url is None) == (self.url_variable is None):
            raise ValueError("where is the database? set either collect.sources.url or collect.sources.url_variable")
        if self.url is not None and not self.url.startswith(("sqlite:///", "postgresql://")):
            raise ValueError("a URL of another kind; set collect.sources.url to one that starts with sqlite:/// or postgresql://")
        if self.url is not None and _has_password(self.url):
            raise ValueError(
                "a password would be written into recipes and logs; set collect.sources.url_variable to the name of an environment"
                " variable that holds the URL, or leave the password to ~/.pgpass"
            )
        return self


def _has_password(url: str) -> bool:
    authority, _, query = url.partition("//")[2].partition("?")
    account = authority.rpartition("@")[0]
    return ":" in account or any("password" in name.lower() for name, _ in parse_qsl(query, keep_blank_values=True))


class HuggingFaceSource(Facts):
    """A data set read through `datasets`: a local folder (path starts with / . or ~) or a hub id at a pinned commit."""

    kind: Literal["huggingface"] = "huggingface"
    path: str = Field(min_length=1)
    name: str | None = None
    split: str = "train"
    revision: str | None = Field(default=None, description="40 hexadecimal digits of the hub data set's commit; a local one has none")
    text_field: str = "text"
    text_format: Literal["plain", "html"] = Field(default="plain", description="html: records hold pages, of which the main text counts")
    domain: str = "text"
    max_document_bytes: int = Field(default=8_000_000, ge=1, description="of one text with its facts; a larger one is quarantined")
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


class InstalledSource(Facts):
    """The standard library's source (code) and the documentation of installed packages (docs)."""

    kind: Literal["installed"] = "installed"
    domains: tuple[Literal["code", "docs"], ...] = Field(default=("code", "docs"), min_length=1)
    max_documents: int | None = Field(default=None, ge=1, description="per domain; they are chosen by the hash of their ids")
    max_bytes: int | None = Field(default=None, ge=1, description="per domain; the documents are chosen by the hash of their ids")


Source = Annotated[CrawlSource | FilesSource | HuggingFaceSource | InstalledSource | SqlSource | WarcSource, Field(discriminator="kind")]
