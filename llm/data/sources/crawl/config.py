"""What an entry of `collect.sources` with `kind: crawl` may say."""

from __future__ import annotations

import ipaddress
import re
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from llm.config import Section

SUFFIXES = (  # of files that hold no page
    "7z|avi|bmp|bz2|css|deb|dmg|docx?|epub|exe|gif|gz|ico|iso|jar|jpe?g|js|mov|mp[34]"
    "|msi|og[gv]|pdf|png|pptx?|rar|rpm|svg|tar|tgz|tiff?|wav|web[mp]|whl|woff2?|xlsx?|xz|zip|zst"
)
NO_TEXT = rf"\.({SUFFIXES})$"


class CrawlSource(Section):
    """Pages of web sites: followed from seeds and sitemaps, level by level, as far as robots.txt and these limits allow."""

    kind: Literal["crawl"] = "crawl"
    seeds: tuple[str, ...] = Field(default=(), description="http or https URLs to begin with")
    sitemaps: tuple[str, ...] = Field(default=(), description="URLs of sitemaps whose pages are seeds too")
    robots_sitemaps: bool = Field(default=True, description="take the sitemaps that robots.txt of the seeds' hosts names")
    domain: str = "web"
    license: str = Field(default="", description="of everything on these sites")

    hosts: tuple[str, ...] = Field(
        default=(), description="where to stay, such as *.example.org or localhost:8000; empty: hosts of seeds and sitemaps"
    )
    include: tuple[str, ...] = Field(default=(), description="regular expressions; a URL must match one of them; empty: any URL")
    exclude: tuple[str, ...] = Field(default=(NO_TEXT,), description="regular expressions; a URL that matches one is left out")
    drop_parameters: tuple[str, ...] = Field(default=(), description="parameters of queries to ignore, such as utm_*")
    max_depth: int = Field(default=10, ge=0, description="links from a seed")
    max_pages: int = Field(default=10_000, ge=1, description="URLs asked for, the first by (depth, URL)")

    max_documents: int | None = Field(default=None, ge=1, description="those with the smallest hashes of their ids")
    max_bytes: int | None = Field(default=None, ge=1, description="of text, by the same choice")

    recrawl_hours: int = Field(default=24, ge=1, description="the period after which pages are asked for anew")
    as_of: str = Field(default="", description="a name for the period, such as a date; empty: the current `recrawl_hours` by the clock")

    user_agent: str = Field(default="trainyard", pattern=r"^[A-Za-z_-]+$", description="product token that robots.txt is searched for")
    contact: str = Field(default="", pattern=r"^[!-~]*$", description="URL or address for the owners of sites, sent along")
    connections: int = Field(default=32, ge=1, description="requests in flight")
    connections_per_host: int = Field(default=2, ge=1, description="requests in flight at one host")
    delay_seconds: float = Field(default=0.5, ge=0, description="between two requests to one host; robots.txt may ask for more")
    tries: int = Field(default=4, ge=1, description="of one request")
    backoff_seconds: float = Field(default=1, gt=0, description="before the second try; doubled before each further one")
    max_wait_seconds: float = Field(default=120, gt=0, description="cap of any wait; a host that asks for a longer one is left alone")
    failures_per_host: int = Field(default=20, ge=1, description="tries in a row after which a host is left alone")

    max_unreachable_share: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="of URLs, and of seeds and sitemaps, that fail for a while; above it the crawl is to be repeated",
    )

    request_seconds: float = Field(default=60, gt=0, description="from the look-up of the name to the last byte")
    min_bytes_per_second: int = Field(default=256, ge=0, description="of a response, after its first seconds")
    max_page_bytes: int = Field(default=10_000_000, ge=1, description="decompressed")
    max_compression_ratio: float = Field(default=100, ge=1, description="of responses above a mebibyte")
    min_encoding_confidence: float = Field(default=0.3, ge=0, le=1, description="below it, text that isn't Unicode is undecodable")
    allow_networks: tuple[str, ...] = Field(
        default=(), description="networks that are not public and may be connected to all the same, such as 127.0.0.0/8"
    )

    @field_validator("seeds", "sitemaps")
    @classmethod
    def _plain_urls(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
                raise ValueError(f"{url} can't be crawled; write http:// or https:// and a host, without a user name")
        return urls

    @field_validator("include", "exclude")
    @classmethod
    def _regular(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression ({error}); repair it") from None
        return patterns

    @field_validator("allow_networks")
    @classmethod
    def _networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        for network in networks:
            ipaddress.ip_network(network)
        return networks

    @model_validator(mode="after")
    def _begins_somewhere(self) -> CrawlSource:
        if not self.seeds and not self.sitemaps:
            raise ValueError("a crawl begins nowhere; set collect.sources.seeds or collect.sources.sitemaps")
        return self
