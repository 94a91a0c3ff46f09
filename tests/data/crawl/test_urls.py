from __future__ import annotations

import pytest

from llm.data.sources.crawl.urls import Scope, canonical, origin
from tests.data.crawl.conftest import CrawlSource

BASE = "http://a/b/c/d;p?q"
# RFC 3986, section 5.4, those that are HTTP, without fragments
RESOLVED = {
    "g": "http://a/b/c/g",
    "./g": "http://a/b/c/g",
    "g/": "http://a/b/c/g/",
    "/g": "http://a/g",
    "//g": "http://g/",
    "?y": "http://a/b/c/d;p?y",
    "g?y": "http://a/b/c/g?y",
    "#s": "http://a/b/c/d;p?q",
    "g#s": "http://a/b/c/g",
    "g?y#s": "http://a/b/c/g?y",
    ";x": "http://a/b/c/;x",
    "g;x?y#s": "http://a/b/c/g;x?y",
    "": "http://a/b/c/d;p?q",
    ".": "http://a/b/c/",
    "./": "http://a/b/c/",
    "..": "http://a/b/",
    "../g": "http://a/b/g",
    "../..": "http://a/",
    "../../g": "http://a/g",
    "../../../g": "http://a/g",
    "../../../../g": "http://a/g",
    "/./g": "http://a/g",
    "/../g": "http://a/g",
    "g.": "http://a/b/c/g.",
    "..g": "http://a/b/c/..g",
    "./../g": "http://a/b/g",
    "./g/.": "http://a/b/c/g/",
    "g/./h": "http://a/b/c/g/h",
    "g/../h": "http://a/b/c/h",
    "g;x=1/./y": "http://a/b/c/g;x=1/y",
    "g?y/../x": "http://a/b/c/g?y/../x",
}
SAME = {
    "HTTP://EXAMPLE.org:80": "http://example.org/",
    "https://example.org:443/a": "https://example.org/a",
    "http://example.org:443/a": "http://example.org:443/a",
    "http://example.org./a": "http://example.org/a",
    "http://example.org/%7Ea/%e2%82%ac/%2f": "http://example.org/~a/%E2%82%AC/%2F",
    "http://example.org/a b/€?ü=1": "http://example.org/a%20b/%E2%82%AC?%C3%BC=1",
    "http://example.org/100%/%zz": "http://example.org/100%25/%25zz",
    "http://example.org/a/%2e%2E/b": "http://example.org/b",
    "http://example.org/a/../../../etc": "http://example.org/etc",
    "http://example.org?": "http://example.org/",
    "http://bücher.example/": "http://xn--bcher-kva.example/",
    f"http://{'a' * 63}.b/": f"http://{'a' * 63}.b/",
    f"http://{'a.' * 126}b/": f"http://{'a.' * 126}b/",
    "http://[2001:DB8:0::1]:8080/": "http://[2001:db8::1]:8080/",
    " http://example.org/\n": "http://example.org/",
}
NOTHING = ("mailto:a@b", "javascript:x", "data:,x", "file:///etc/passwd", "http://", "http:///x", "http://a@b/", "http://a:b@c/")
NOTHING += ("http://[::1", "http://a:b/", "http://a:99999/", "http://a b/", "http://%61/", "http://[fe80::1%25x]/", "http://a\\@b/")
NOTHING += (
    "http://a..b/",
    "http://a../",
    "http://.a/",
    f"http://{'a' * 64}.b/",
    f"http://{'a.' * 126}bb/",
    "http://ü..b/",
    f"http://{'ü' * 64}/",
)


@pytest.mark.parametrize("reference", RESOLVED)
def test_references_resolve_as_in_the_rfc(reference: str) -> None:
    assert canonical(reference, BASE) == RESOLVED[reference]


@pytest.mark.parametrize("url", SAME)
def test_a_url_has_one_spelling(url: str) -> None:
    assert canonical(url) == SAME[url]
    assert canonical(SAME[url]) == SAME[url]


@pytest.mark.parametrize("url", [*NOTHING, "http://a/" + "b" * 2048, "http://a/\ud800"])
def test_what_is_nothing_to_crawl(url: str) -> None:
    assert canonical(url) is None


def test_parameters_are_dropped_by_pattern() -> None:
    url = "http://a/?utm_source=x&q=1&utm_id&fbclid=2&utm=3"
    assert canonical(url, drop_parameters=["utm_*", "fbclid"]) == "http://a/?q=1&utm=3"


def test_scope_is_hosts_and_patterns() -> None:
    source = CrawlSource(seeds=["https://Example.org:443/"], include=["/docs/"], exclude=["old"])
    scope = Scope.of(source)
    assert "http://example.org/docs/a" in scope
    assert "http://example.org:8080/docs/a" not in scope
    assert "http://example.org/blog/" not in scope
    assert "http://example.org/docs/old" not in scope
    assert "http://www.example.org/docs/a" not in scope
    wider = Scope.of(source.model_copy(update={"hosts": ("*.Example.org", "localhost:*")}))
    assert "http://www.example.org/docs/a" in wider
    assert "http://localhost:8080/docs/a" in wider
    assert "http://example.org.evil.test/docs/a" not in wider
    assert origin("https://example.org:8443/a/b") == "https://example.org:8443"
