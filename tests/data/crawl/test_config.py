from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from llm.data.config import CollectConfig
from llm.data.sources.crawl.config import CrawlSource


def test_a_recipe_can_name_a_crawl() -> None:
    config = CollectConfig.model_validate({"sources": [{"kind": "crawl", "seeds": ["https://docs.python.org/3/"]}]})
    assert isinstance(config.sources[0], CrawlSource)
    assert config.sources[0].allow_networks == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "begins nowhere"),
        ({"seeds": ["example.org"]}, "write http"),
        ({"seeds": ["ftp://example.org/"]}, "write http"),
        ({"sitemaps": ["https://me:word@example.org/"]}, "without a user name"),
        ({"seeds": ["http://a/"], "include": ["("]}, "no regular expression"),
        ({"seeds": ["http://a/"], "allow_networks": ["127.0.0.1/8"]}, "host bits"),
        ({"seeds": ["http://a/"], "user_agent": "my bot/1.0"}, "pattern"),
        ({"seeds": ["http://a/"], "contact": "a\r\nb: c"}, "pattern"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CrawlSource(**settings)


def test_two_crawls_of_one_host_are_refused() -> None:
    def crawls(*beginnings: dict[str, list[str]]) -> CollectConfig:
        sources = [{"kind": "crawl", **beginning} for beginning in beginnings]
        return CollectConfig.model_validate({"sources": [{"kind": "installed"}, *sources]})

    manual = {"seeds": ["https://docs.example.org/manual/", "https://docs.example.org/"]}
    message = r"begin at docs\.example\.org, .*; make collect\.sources\.1 and collect\.sources\.3 one entry with several seeds"
    for same in ({"seeds": ["http://DOCS.example.org:8080/blog/"]}, {"sitemaps": ["https://docs.example.org/s.xml"]}):
        with pytest.raises(ValidationError, match=message):
            crawls(manual, {"seeds": ["https://example.org/"]}, same)
    assert len(crawls(manual, {"seeds": ["https://example.org/"]}).sources) == 3
