from __future__ import annotations

import itertools
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from llm.data.sources.crawl.archive import Archive
from llm.data.sources.crawl.fetch import Answer
from tests.data.crawl.conftest import crawled, source_of
from tests.data.crawl.test_fetch import cut_off, endless
from tests.data.site import Reply, Site, html, in_turn, late, page, redirect, status, stream

DISALLOW = b"User-agent: *\nDisallow: /\n"


def text(body: bytes) -> Reply:
    return page(body, "text/plain")


@pytest.fixture
def linked(site: Site) -> Site:
    site.replies |= {"/": html("/open", "/closed/a", "/closed/open"), "/open": html(), "/closed/a": html(), "/closed/open": html()}
    return site


def asked(site: Site) -> set[str]:
    return {request.path for request in site.log} - {"/robots.txt"}


EVERYTHING = {"/", "/open", "/closed/a", "/closed/open"}


@pytest.mark.parametrize(
    ("robots", "reached"),
    [
        (b"", EVERYTHING),
        (b"User-agent: *\nDisallow: /closed/\n", {"/", "/open"}),
        (b"User-agent: *\nDisallow: /closed/\nAllow: /closed/open\n", {"/", "/open", "/closed/open"}),
        (b"user-AGENT: TrainYard\ndisallow: /closed/\n\nUser-agent: *\nDisallow: /\n", {"/", "/open"}),
        (b"User-agent: another\nDisallow: /\n", EVERYTHING),
        (b"User-agent: trainyard\nDisallow: /open\nUser-agent: trainyard\nDisallow: /closed/a\n", {"/", "/closed/open"}),
        (b"User-agent: *\r\nDisallow: /*a$\r\n", {"/", "/open", "/closed/open"}),
        (b"\xef\xbb\xbfUser-agent: *\nDisallow: /%63losed/ # comment\n", {"/", "/open"}),
        (b"\xff\xfe\x00 nonsense \nUser-agent: *\nDisallow: /closed\n", {"/", "/open"}),
    ],
)
def test_rules_are_followed(linked: Site, tmp_path: Path, robots: bytes, reached: set[str]) -> None:
    linked.replies["/robots.txt"] = text(robots)
    documents, reasons = crawled(source_of(linked), tmp_path)
    assert set(documents) == asked(linked) == reached
    assert not reasons
    assert linked.log[0].path == "/robots.txt"
    assert len(linked.asked("/robots.txt")) == 1


def test_a_seed_that_is_disallowed_is_accounted_for(linked: Site, tmp_path: Path) -> None:
    linked.replies["/robots.txt"] = text(b"User-agent: *\nDisallow: /closed/\n")
    documents, reasons = crawled(source_of(linked, "/open", "/closed/a"), tmp_path)
    assert (set(documents), reasons) == ({"/open"}, {"/closed/a": "robots_disallowed"})
    assert asked(linked) == {"/open"}


def test_a_redirect_into_what_is_disallowed_is_not_followed(linked: Site, tmp_path: Path) -> None:
    linked.replies |= {"/robots.txt": text(b"User-agent: *\nDisallow: /closed/\n"), "/open": redirect("/closed/a")}
    documents, reasons = crawled(source_of(linked), tmp_path)
    assert (set(documents), reasons) == ({"/"}, {"/open": "redirect_not_followed"})
    assert asked(linked) == {"/", "/open"}


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410])
def test_no_file_allows_everything(linked: Site, tmp_path: Path, code: int) -> None:
    linked.replies["/robots.txt"] = status(code)
    assert set(crawled(source_of(linked), tmp_path)[0]) == EVERYTHING


def dropped(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


UNREACHABLE = {
    "500": status(500),
    "503": status(503),
    "501": status(501),
    "429": status(429),
    "timeout": late(5, status(200)),
    "dropped": dropped,
    "cut off": cut_off,
    "loop": redirect("/robots.txt"),
    "inwards": redirect("http://169.254.169.254/robots.txt"),
}


@pytest.mark.parametrize("case", UNREACHABLE)
def test_a_file_that_cannot_be_reached_disallows_everything(linked: Site, tmp_path: Path, case: str) -> None:
    linked.replies["/robots.txt"] = UNREACHABLE[case]
    documents, reasons = crawled(source_of(linked, tries=2, request_seconds=0.5), tmp_path)
    assert (documents, reasons) == ({}, {"/": "robots_unreachable"})
    assert asked(linked) == set()
    assert len(linked.log) <= 6


def test_a_file_that_comes_at_the_second_try_counts(linked: Site, tmp_path: Path) -> None:
    linked.replies["/robots.txt"] = in_turn(status(503), text(DISALLOW.replace(b"/\n", b"/closed/\n")))
    assert set(crawled(source_of(linked), tmp_path)[0]) == {"/", "/open"}


def test_five_redirects_are_followed_and_the_rules_are_those_of_the_first_host(linked: Site, tmp_path: Path) -> None:
    with Site() as other:
        linked.replies |= {"/robots.txt": redirect("/r1")} | {f"/r{number}": redirect(f"/r{number + 1}") for number in range(1, 4)}
        linked.replies["/r4"] = redirect(other.url("/rules"))
        other.replies["/rules"] = text(b"User-agent: *\nDisallow: /closed/\n")
        assert set(crawled(source_of(linked), tmp_path / "five")[0]) == {"/", "/open"}
        linked.replies["/r4"] = redirect("/r5")
        linked.replies["/r5"] = redirect(other.url("/rules"))
        assert crawled(source_of(linked), tmp_path / "six")[1] == {"/": "robots_unreachable"}


def test_500_kibibytes_are_read_and_the_rest_is_left(linked: Site, tmp_path: Path) -> None:
    filler = b"# " + b"x" * 97 + b"\n"
    early, late_rule = b"User-agent: *\nDisallow: /closed/a\n", b"Disallow: /open\n"
    large = early + filler * 5110 + late_rule + filler * 50_000 + b"Disallow: /\n"
    assert large.index(late_rule) + len(late_rule) < 500 * 1024 < large.index(b"Disallow: /\n")
    linked.replies["/robots.txt"] = text(large)
    assert set(crawled(source_of(linked), tmp_path)[0]) == {"/", "/closed/open"}


def test_a_file_without_an_end_is_cut(linked: Site, tmp_path: Path) -> None:
    body = itertools.chain([b"User-agent: *\nDisallow: /closed/\n"], endless())
    linked.replies["/robots.txt"] = stream(lambda: body)
    assert set(crawled(source_of(linked), tmp_path)[0]) == {"/", "/open"}


def test_crawl_delay_is_honoured(linked: Site, tmp_path: Path) -> None:
    linked.replies["/robots.txt"] = text(b"User-agent: *\nCrawl-delay: 0.2\n")
    crawled(source_of(linked), tmp_path)
    starts = sorted(request.began for request in linked.log)[1:]  # the first one could not know
    assert len(starts) == 4
    assert min(later - earlier for earlier, later in itertools.pairwise(starts)) > 0.18


def test_a_crawl_delay_beyond_patience_closes_the_host(linked: Site, tmp_path: Path) -> None:
    linked.replies["/robots.txt"] = text(b"User-agent: *\nCrawl-delay: 86400\n")
    assert crawled(source_of(linked), tmp_path)[1] == {"/": "robots_delay_too_long"}


def test_a_file_is_kept_for_a_day_and_no_longer(linked: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    linked.replies["/robots.txt"] = text(b"")
    for period in ("one", "two"):
        crawled(source_of(linked, as_of=period), tmp_path)
    assert len(linked.asked("/robots.txt")) == 1
    tomorrow = time.time() + 24 * 3600
    monkeypatch.setattr(time, "time", lambda: tomorrow)
    linked.replies["/robots.txt"] = text(DISALLOW)
    assert crawled(source_of(linked, as_of="three"), tmp_path)[1] == {"/": "robots_disallowed"}
    assert len(linked.asked("/robots.txt")) == 2


def test_a_file_that_could_not_be_reached_is_asked_for_again(linked: Site, tmp_path: Path) -> None:
    linked.replies["/robots.txt"] = status(500)
    assert crawled(source_of(linked), tmp_path)[0] == {}
    linked.replies["/robots.txt"] = status(404)
    assert set(crawled(source_of(linked), tmp_path)[0]) == EVERYTHING


def test_each_origin_has_its_own_file(linked: Site, tmp_path: Path) -> None:
    with Site() as other:
        other.replies |= {"/robots.txt": text(DISALLOW), "/x": html()}
        linked.replies |= {"/": html(other.url("/x"), "/open")}
        assert set(crawled(source_of(linked, hosts=["127.0.0.1:*"]), tmp_path)[0]) == {"/", "/open"}
        assert {request.path for request in other.log} == {"/robots.txt"}


def test_the_archive_keeps_a_robots_file_apart_from_a_page_of_that_name(tmp_path: Path) -> None:
    with Archive(tmp_path / "archive", "now") as archive:
        archive.put("robots", "http://a/robots.txt", Answer(body=b"rules"))
        assert archive.find("page", "http://a/robots.txt") is None
