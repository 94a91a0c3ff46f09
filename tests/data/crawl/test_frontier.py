from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
from pathlib import Path

import pytest

from llm.data.sources.crawl.archive import Archive
from llm.data.sources.crawl.fetch import Fetcher
from llm.data.sources.crawl.frontier import Frontier
from llm.data.sources.crawl.web import Web
from tests.data.crawl.conftest import crawled, source_of
from tests.data.site import LAST_MODIFIED, Site, html, late, page, redirect, stream


def web_of(number: int, seed: int) -> dict[str, bytes]:
    """Pages that link to each other at random, most of them reachable from `/`."""
    draw = random.Random(seed)
    paths = ["/", *(f"/{place}.html" for place in range(1, number))]
    return {path: html(*draw.sample(paths, 4), text=f"page {path} {draw.random()}") for path in paths}


def breadth_first(pages: dict[str, bytes], depth: int, most: int) -> list[str]:
    """Which pages a crawl must take: a slow, obvious version."""
    level, taken = ["/"], []
    for _ in range(depth + 1):
        for path in sorted(set(level) - set(taken)):
            if len(taken) < most:
                taken.append(path)
        level = [link for path in taken for link in pages if f'href="{link}"'.encode() in pages[path]]
    return taken


def test_a_page_becomes_a_document(site: Site, tmp_path: Path) -> None:
    site.replies["/"] = page("<html><p>Grüße".encode("latin-1"), "text/html; charset=ISO-8859-1")
    documents, reasons = crawled(source_of(site, license="MIT", contact="https://example.org/bot"), tmp_path)
    assert not reasons
    document = documents["/"]
    assert (document.id, document.url, document.source) == (f"crawl:{site.url()}", site.url(), "crawl")
    assert (document.text, document.license, document.meta) == ("<html><p>Grüße", "MIT", {"format": "html"})
    assert document.created == "2023-11-14T22:13:20+00:00"
    (request,) = site.asked("/")
    assert request.headers["user-agent"] == "trainyard (+https://example.org/bot)"
    assert request.headers["host"] == f"127.0.0.1:{site.port}"
    assert LAST_MODIFIED.startswith("Tue, 14 Nov 2023")


@pytest.mark.parametrize(("depth", "most"), [(0, 100), (1, 100), (2, 7), (9, 100), (9, 23)])
def test_the_pages_are_the_first_by_depth_and_url(site: Site, tmp_path: Path, depth: int, most: int) -> None:
    pages = web_of(60, seed=depth)
    site.replies |= pages
    documents, _ = crawled(source_of(site, max_depth=depth, max_pages=most), tmp_path)
    assert set(documents) == set(breadth_first(pages, depth, most))
    assert all(document.text.encode() == pages[path] for path, document in documents.items())


def test_what_is_disallowed_takes_no_room(site: Site, tmp_path: Path) -> None:
    site.replies["/robots.txt"] = page(b"User-agent: *\nDisallow: /closed", "text/plain")
    site.replies |= {"/": html(*(f"/closed/{number}" for number in range(30)), "/open", "/zoo"), "/open": html(), "/zoo": html()}
    assert set(crawled(source_of(site, max_pages=3), tmp_path)[0]) == {"/", "/open", "/zoo"}


def test_no_more_links_of_a_level_are_held_than_will_be_asked_for(site: Site, tmp_path: Path) -> None:
    names = [f"/{number:03}" for number in range(200)]
    site.replies["/"] = html(*reversed(names), *(f"http://0.test/{number}" for number in range(100)))
    source = source_of(site, max_pages=5)

    async def second_level() -> set[str]:
        with Archive(tmp_path / "archive", "now") as archive:
            async with Fetcher(source) as fetcher:
                frontier = Frontier(source, Web(fetcher, archive))
                return await frontier.visit_level(await frontier.beginning(), named=True)

    assert asyncio.run(second_level()) == {site.url(name) for name in names[:5]}


def test_the_documents_do_not_depend_on_who_answers_first(site: Site, tmp_path: Path) -> None:
    pages = web_of(50, seed=1)
    results = []
    for trial in range(3):
        draw = random.Random(trial)
        site.replies = {path: late(draw.random() * 0.02, page(body)) for path, body in pages.items()}
        settings = {"connections_per_host": 1 + 5 * trial, "max_pages": 30}
        results.append(crawled(source_of(site, **settings), tmp_path / str(trial)))
    assert len(results[0][0]) == 30
    assert results[0] == results[1] == results[2]


def test_one_page_has_one_url(site: Site, tmp_path: Path) -> None:
    site.replies["/"] = html("/a?utm_source=x&q=1", "./a?q=1#top", f"http://127.0.0.1:{site.port}/b/../a?q=1", "a?q=%31")
    site.replies["/a?q=1"] = html(text="once")
    documents, reasons = crawled(source_of(site, drop_parameters=["utm_*"]), tmp_path)
    assert set(documents) == {"/", "/a?q=1"}
    assert not reasons
    assert len(site.asked("/a?q=1")) == 1


def test_only_what_the_recipe_wants_is_asked_for(site: Site, tmp_path: Path) -> None:
    links = ("/docs/a", "/docs/b.pdf", "/blog/c", "/docs/private/d", f"http://localhost:{site.port}/docs/e", "mailto:me@example.org")
    site.replies["/docs/"] = html(*links, "https://example.org/docs/f")
    site.replies |= {path: html(text=path) for path in ("/docs/a", "/blog/c", "/docs/private/d", "/docs/e")}
    source = source_of(site, "/docs/", include=["/docs/"], exclude=["private", r"\.pdf$"])
    documents, reasons = crawled(source, tmp_path)
    assert set(documents) == {"/docs/", "/docs/a"}
    assert not reasons
    assert {request.path for request in site.log} == {"/docs/", "/docs/a", "/robots.txt"}


def test_hosts_may_be_named(site: Site, tmp_path: Path) -> None:
    site.replies |= {"/": html(f"http://localhost:{site.port}/b"), "/b": html(text="b")}
    source = source_of(site, hosts=["127.0.0.1:*", "local*"], allow_networks=["127.0.0.0/8", "::1/128"])
    assert set(crawled(source, tmp_path)[0]) == {"/", "/b"}


def test_redirects_are_followed_to_one_document(site: Site, tmp_path: Path) -> None:
    site.replies["/"] = html("/old", "/older", "/new")
    site.replies |= {"/old": redirect("/new", 301), "/older": redirect("/old", 308), "/new": html("/end", text="new"), "/end": html()}
    documents, reasons = crawled(source_of(site), tmp_path)
    assert set(documents) == {"/", "/new", "/end"}
    assert not reasons
    assert len(site.asked("/new")) == 1


def test_redirects_that_lead_nowhere_are_named(site: Site, tmp_path: Path) -> None:
    site.replies["/"] = html("/a", "/self", "/0", "/away", "/odd", "/none", "/six0")
    site.replies |= {"/a": redirect("/b"), "/b": redirect("/a"), "/self": redirect("/self"), "/away": redirect("http://example.org/")}
    site.replies |= {"/odd": redirect("file:///etc/passwd"), "/none": redirect("http://user:word@127.0.0.1/")}
    site.replies |= {f"/{number}": redirect(f"/{number + 1}") for number in range(50)}
    site.replies |= {f"/six{number}": redirect(f"/six{number + 1}") for number in range(5)}
    site.replies["/six5"] = html(text="after five")
    documents, reasons = crawled(source_of(site), tmp_path)
    assert set(documents) == {"/", "/six5"}
    endless = {f"/{number}": "redirect_not_followed" for number in range(6)}
    loops = dict.fromkeys(("/a", "/b", "/self"), "redirect_loop")
    assert reasons == endless | loops | {"/away": "redirect_not_followed", "/odd": "redirect_refused", "/none": "redirect_refused"}
    assert {request.path for request in site.log if request.path[1:].isdigit()} == set(endless)


def test_what_is_no_page_is_named_with_its_reason(site: Site, tmp_path: Path) -> None:
    site.replies["/"] = html("/gone", "/data", "/notes", "/secret", "/large", "/nothing")
    site.replies |= {"/data": page(b"{}", "application/json"), "/notes": page(b"plain", "text/plain"), "/large": b"x" * 2001}
    site.replies["/nothing"] = page(b"\xff\xfe\x00", "application/octet-stream")
    documents, reasons = crawled(source_of(site, max_page_bytes=2000), tmp_path)
    assert documents["/notes"].meta == {}
    assert reasons == {
        "/gone": "http_404",
        "/secret": "http_404",
        "/data": "content_type",
        "/nothing": "content_type",
        "/large": "too_large",
    }


def test_deep_markup_and_odd_links_do_no_harm(site: Site, tmp_path: Path) -> None:
    odd = ['href=""', 'href="http://[::1"', 'href="//"', 'href="http://x:99999999/"', 'href="&#xd800;"', f'href="/{"y" * 5000}"', "href"]
    site.replies["/"] = b"<div>" * 50_000 + b"<a href=/deep>" + "".join(f"<a {each}>" for each in odd).encode()
    site.replies["/flat"] = b"<base href='/sub/'><area href=here>" + b"\0\x01" * 1000
    site.replies["/sub/here"] = b"here"
    documents, reasons = crawled(source_of(site, "/", "/flat"), tmp_path)
    assert {"/", "/flat", "/sub/here"} <= set(documents)
    assert set(reasons.values()) <= {"http_404"}


def test_pages_in_flight_stay_within_the_limit_of_a_host(site: Site, tmp_path: Path) -> None:
    site.replies |= {path: late(0.01, page(body)) for path, body in web_of(40, seed=2).items()}
    crawled(source_of(site, connections_per_host=3), tmp_path)
    assert site.most_in_flight == 3


def test_requests_to_a_host_keep_their_distance(site: Site, tmp_path: Path) -> None:
    site.replies |= web_of(8, seed=3)
    crawled(source_of(site, delay_seconds=0.5, connections_per_host=4), tmp_path)
    starts = sorted(request.began for request in site.log)
    assert len(starts) > 5
    assert min(later - earlier for earlier, later in itertools.pairwise(starts)) > 0.4


def test_a_slow_host_does_not_hold_up_another(site: Site, tmp_path: Path) -> None:
    """The one host answers only when the other has been asked, and it is the first in order."""
    with Site() as other:
        was_asked = threading.Event()
        site.replies["/slow"] = lambda handler: page(html(text=str(was_asked.wait(10))))(handler)
        other.replies["/quick"] = lambda handler: (was_asked.set(), page(html())(handler))[1]
        seeds = [site.url("/slow"), f"http://localhost:{other.port}/quick"]
        documents, _ = crawled(source_of(site, seeds=seeds, allow_networks=["127.0.0.0/8", "::1/128"]), tmp_path)
        assert "True" in documents["/slow"].text


def test_a_stream_without_a_length_is_a_page(site: Site, tmp_path: Path) -> None:
    site.replies["/"] = stream(lambda: (time.sleep(0.01) or b"part " for _ in range(5)))
    assert crawled(source_of(site), tmp_path)[0]["/"].text == "part " * 5
