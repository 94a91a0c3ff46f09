"""Chromium without a window."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
QUIET += ("--disable-component-update", "--disable-sync")
INSECURE = "playground.test"  # a name that is no loopback address to the browser: a page there, over plain http, may do less


@pytest.fixture(scope="module")  # while playwright is open, this thread has an event loop and other tests couldn't run one
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, "the page is tested in Chromium: apt-get install chromium"
    arguments = [*QUIET, f"--host-resolver-rules=MAP {INSECURE} 127.0.0.1"]
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=chromium, args=arguments) as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """The playground as somebody opens it for the first time; whatever the browser complains about fails the test."""
    complaints: list[str] = []
    with browser.new_context(base_url=address, viewport={"width": 1280, "height": 800}) as context:
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        page = context.new_page()
        page.set_default_timeout(20_000)
        expect.set_options(timeout=20_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if "Content Security Policy" in message.text else None)
        page.goto("/")
        expect(page.locator(".lane select").first).not_to_have_value("")
        yield page
    assert complaints == []
