"""The playground in Chromium, in front of a running server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect

from llm.artifact import Store
from llm.serve.endpoint.app import create_app
from llm.serve.endpoint.config import Settings
from llm.serve.endpoint.keys import make_key
from llm.serve.engine.config import EngineConfig
from llm.serve.engine.engine import Engine
from llm.serve.models.catalogue import Catalogue
from llm.serve.models.spec import ModelSpec
from llm.serve.page import routes
from llm.serve.page.routes import FILES, HEADERS
from tests.serve.page.conftest import INSECURE

FOLDER = Path(routes.__file__).parent
HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"

CONTRASTS = """() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = channels(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const speaks = (element) => element.matches("input, textarea, select, button")
    || [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
  return [...document.body.querySelectorAll("*")].filter((e) => speaks(e) && e.checkVisibility() && !e.disabled).map((e) => {
    const [dark, bright] = [light(channels(getComputedStyle(e).color)), light(behind(e))].sort((a, b) => a - b);
    return [e.tagName + "." + e.className + "#" + e.id, (bright + 0.05) / (dark + 0.05)];
  });
}"""


def answers(page: Page, lane: int = 0) -> Locator:
    return page.locator(".lane").nth(lane).locator(".answer")


def ask(page: Page, text: str, *, max_tokens: int = 12) -> None:
    page.locator("#max_tokens").fill(str(max_tokens))
    page.locator("#prompt").fill(text)
    page.keyboard.press("Enter")


def settled(page: Page) -> None:
    """Wait until nothing is being written."""
    expect(page.locator("#send")).to_be_enabled()
    expect(page.locator(".busy")).to_have_count(0)


def sent(page: Page) -> list[dict[str, Any]]:
    """Collects what the page sends from now on."""
    bodies: list[dict[str, Any]] = []

    def collect(route: Route) -> None:
        bodies.append(route.request.post_data_json)
        route.continue_()

    page.route("**/v1/*completions", collect)
    page.route("**/v1/chat/completions", collect)
    return bodies


def stream(*events: dict[str, Any] | str) -> str:
    return "".join(f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n" for event in events)


def delta(text: str) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}


def test_files_come_with_headers_that_allow_nothing_else(http: httpx.Client) -> None:
    for path, (name, kind) in FILES.items():
        answer = http.get(path)
        assert answer.content == (FOLDER / name).read_bytes()
        assert answer.headers["content-type"] == f"{kind}; charset=utf-8"
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    assert "unsafe" not in HEADERS["Content-Security-Policy"]
    assert {path.name for path in FOLDER.iterdir() if path.suffix not in {".py", ""}} == {name for name, _ in FILES.values()}


def test_the_page_names_no_other_host_and_builds_no_markup_from_text() -> None:
    text = "".join(path.read_text() for path in FOLDER.iterdir() if path.suffix in {".html", ".css", ".js"})
    assert re.findall(r"https?://|innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|\sstyle=|\son\w+=\"", text) == []


def test_a_chat_streams_and_remembers(page: Page) -> None:
    bodies = sent(page)
    page.locator("#system").fill("Be brief.")
    ask(page, "what is it?")
    settled(page)
    first = answers(page).first.inner_text()
    assert first.strip()
    ask(page, "and then?")
    settled(page)
    roles = [(message["role"], message["content"]) for message in bodies[1]["messages"]]
    assert [role for role, _ in roles] == ["system", "user", "assistant", "user"]
    assert [content for _, content in roles][1] == "what is it?"
    assert "".join(roles[2][1].split()) == "".join(first.split())
    expect(page.locator(".figures").last).to_contain_text(re.compile(r"12 tokens · \d+/s · first after \d+ ms · cut off"))


def test_a_completion_continues_the_text_and_says_what_the_api_says(page: Page, http: httpx.Client) -> None:
    page.get_by_label("Completion").check(force=True)
    page.locator("#temperature").fill("0")
    ask(page, "def ", max_tokens=20)
    settled(page)
    body = {"model": "small", "prompt": "def ", "max_tokens": 20, "temperature": 0}
    assert answers(page).text_content() == http.post("/v1/completions", json=body).json()["choices"][0]["text"]
    assert page.locator(".said").text_content() == "def "


def test_parameters_reach_the_server_and_empty_ones_stay_its_choice(page: Page) -> None:
    bodies = sent(page)
    settings = {"temperature": "0.5", "top_p": "0.9", "top_k": "7", "max_tokens": "3", "seed": "11", "stop": "one\n two "}
    for name, value in settings.items():
        page.locator(f"#{name}").fill(value)
    page.locator("#prompt").fill("x")
    page.keyboard.press("Enter")
    settled(page)
    for name in ("top_k", "max_tokens", "seed", "stop"):
        page.locator(f"#{name}").fill("")
    page.locator("#prompt").fill("x")
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    settled(page)
    parameters = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "max_tokens": 3, "seed": 11, "stop": ["one", " two "]}
    assert {name: bodies[0].get(name) for name in settings} == parameters
    assert not {"top_k", "max_tokens", "seed", "stop"} & set(bodies[1])


def test_a_setting_out_of_range_is_refused_before_it_is_sent(page: Page) -> None:
    bodies = sent(page)
    ask(page, "x", max_tokens=0)
    assert bodies == []
    assert page.locator("#prompt").input_value() == "x"


WHEN_IT_SPEAKS = """(act) => new MutationObserver((_, observer) => {
  if (![...document.querySelectorAll(".busy .answer")].some((e) => e.textContent.length > 20)) return;
  observer.disconnect();
  if (act === "button") document.getElementById("halt").click();
  else document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key: act, bubbles: true }));
}).observe(document.getElementById("lanes"), { subtree: true, childList: true, characterData: true })"""


@pytest.mark.parametrize("act", ["button", "Escape"])
def test_stop_ends_the_request_and_keeps_what_was_said(page: Page, engine: Engine, act: str) -> None:
    endless = {"ignore_eos": True, "temperature": 0}
    page.route("**/v1/chat/*", lambda route: route.continue_(post_data=json.dumps(route.request.post_data_json | endless)))
    page.evaluate(WHEN_IT_SPEAKS, act)  # in the page, because the model would be done before a word from here arrived
    ask(page, "x", max_tokens=3900)
    settled(page)
    expect(page.locator(".figures")).to_contain_text("stopped")
    expect(page.locator("#status")).to_have_text("Stopped")
    expect(page.locator("#prompt")).to_be_focused()
    expect(page.locator("#halt")).to_be_hidden()
    assert len(answers(page).text_content() or "") > 20
    while engine.load().running:
        page.wait_for_timeout(20)


def test_side_by_side_asks_both_once(page: Page) -> None:
    bodies = sent(page)
    page.get_by_label("Side by side").check()
    ask(page, "what is it?")
    settled(page)
    assert [len(answers(page, lane).all()) for lane in (0, 1)] == [1, 1]
    assert [body["messages"] for body in bodies] == [[{"role": "user", "content": "what is it?"}]] * 2
    boxes = [page.locator(".lane").nth(lane).bounding_box() for lane in (0, 1)]
    assert len({box["y"] for box in boxes if box}) == 1
    page.get_by_label("Side by side").uncheck()
    ask(page, "again")
    settled(page)
    assert [len(answers(page, lane).all()) for lane in (0, 1)] == [2, 1]


def test_keys_send_break_lines_and_move_in_reading_order(page: Page) -> None:
    bodies = sent(page)
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.locator("#max_tokens").fill("2")
    page.locator("#prompt").press("Enter")
    settled(page)
    assert bodies[0]["messages"][0]["content"] == "one\ntwo"
    page.get_by_role("link", name="Skip to the prompt").focus()
    order = ["skip"]
    for _ in range(30):
        page.keyboard.press("Tab")
        name = page.evaluate("document.activeElement.id || document.activeElement.className || document.activeElement.tagName")
        order.append(name)
        if name == "send":
            break
    wanted = ["skip", "compare", "theme", "system", "temperature", "max_tokens", "stop", "log", "prompt", "clear", "send"]
    assert [name for name in order if name in wanted] == wanted


def test_everything_has_a_name_and_answers_are_announced(page: Page) -> None:
    ask(page, "x", max_tokens=2)
    settled(page)
    nameless = """() => [...document.querySelectorAll("input, textarea, select, button")].filter((e) =>
      !(e.ariaLabel || e.labels?.length || e.textContent.trim())).map((e) => e.outerHTML)"""
    assert page.evaluate(nameless) == []
    expect(page.get_by_role("log")).to_have_attribute("aria-live", "polite")
    expect(page.get_by_role("log")).to_have_attribute("aria-busy", "false")
    expect(page.locator("#status[role=status]")).to_have_text("Answered")
    outline = page.locator("#send").evaluate("(e) => { e.focus({focusVisible: true}); return getComputedStyle(e).outlineStyle }")
    assert outline == "solid"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(page: Page, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    page.reload()
    expect(page.locator(".lane select").first).not_to_have_value("")
    ask(page, "x", max_tokens=3)
    settled(page)
    page.evaluate("document.querySelectorAll('.problem').forEach((e) => { e.hidden = false; e.textContent = 'wrong' })")
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 20
    assert [pair for pair in contrasts if pair[1] < 4.5] == []


def test_the_switch_of_colours_is_remembered(page: Page) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.get_by_role("button", name="Dark colours").click()
    dark = page.evaluate(background)
    assert dark != light
    page.reload()
    expect(page.get_by_role("button", name="Dark colours")).to_have_attribute("aria-pressed", "true")
    assert page.evaluate(background) == dark


def test_a_phone_shows_everything_without_scrolling_sideways(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    wide = "[document.documentElement, ...document.querySelectorAll('.log')].some((e) => e.scrollWidth > e.clientWidth)"
    page.get_by_role("button", name="Settings").click()
    ask(page, "x" * 300, max_tokens=60)
    page.get_by_label("Side by side").check()
    settled(page)
    assert not page.evaluate(wide)
    page.get_by_role("button", name="Settings").click()
    expect(page.locator("#max_tokens")).to_be_hidden()
    expect(page.locator("#send")).to_be_in_viewport()
    assert not page.evaluate(wide)


def test_markup_stays_text(page: Page) -> None:
    answer = stream(delta(HOSTILE), delta(HOSTILE), "[DONE]")
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=answer, content_type="text/event-stream"))
    ask(page, HOSTILE)
    settled(page)
    assert page.locator(".said").text_content() == HOSTILE
    assert answers(page).text_content() == HOSTILE * 2
    assert page.locator(".exchange img, .exchange script").count() == 0
    assert page.title() == "Trainyard playground"


def test_events_may_be_cut_anywhere(page: Page) -> None:
    """Read as one string by the page's own reader, whatever the pieces are that the network makes of it."""
    content = stream(delta("é"), delta("🙂"), "[DONE]")
    read = """async (content) => {
      const { parts } = await import("/api.js");
      const bytes = new TextEncoder().encode(content);
      const texts = [];
      for (const size of [1, 2, 3, 7, 50, bytes.length]) {
        const pieces = Array.from({ length: Math.ceil(bytes.length / size) }, (_, place) => bytes.slice(place * size, (place + 1) * size));
        const body = new ReadableStream({ start(queue) { pieces.forEach((piece) => queue.enqueue(piece)); queue.close(); } });
        window.fetch = async () => new Response(body);
        let text = "";
        for await (const part of parts("v1/completions", {}, "")) text += part.choices[0].delta.content;
        texts.push(text);
      }
      return texts;
    }"""
    assert page.evaluate(read, content) == ["é🙂"] * 6


def refusing(status: int, message: str = "no", headers: dict[str, str] | None = None) -> Any:
    def refuse(route: Route) -> None:
        route.fulfill(
            status=status, body=json.dumps({"error": {"message": message}}), headers=headers or {}, content_type="application/json"
        )

    return refuse


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (refusing(401), "This server wants a key: enter it under Settings."),
        (refusing(429, "too many", {"Retry-After": "3"}), "The server can't answer now: too many. Wait 3 s."),
        (lambda route: route.fulfill(status=503), "The server can't answer now."),
        (refusing(400, "top_p: too large"), "The server refused: top_p: too large"),
        (lambda route: route.fulfill(status=502, body="<html>"), "The server failed (502)."),
        (lambda route: route.abort(), "The server can't be reached. Is it still running?"),
        (lambda route: route.fulfill(body=stream(delta("a"))), "The answer broke off: the server closed the connection."),
        (lambda route: route.fulfill(body=stream(delta("a"), {"error": {"message": "out of memory"}})), "out of memory"),
    ],
)
def test_failures_are_said_in_words_and_the_page_goes_on(page: Page, answer: Any, words: str) -> None:
    page.route("**/v1/chat/completions", answer)
    ask(page, "x")
    expect(page.locator(".exchange .problem")).to_have_text(words)
    settled(page)
    page.unroute("**/v1/chat/completions")
    page.get_by_role("button", name="Regenerate").click()
    settled(page)
    expect(page.locator(".exchange .problem")).to_be_hidden()
    expect(answers(page)).not_to_be_empty()


def test_a_servers_own_refusal_is_shown(page: Page) -> None:
    ask(page, "x", max_tokens=100_000)
    expect(page.locator(".exchange .problem")).to_contain_text("The server refused: the context is 4000 tokens")


def test_an_answer_without_text_says_so(page: Page) -> None:
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    answer = stream(end, {"choices": [], "usage": {"completion_tokens": 1}}, "[DONE]")
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=answer, content_type="text/event-stream"))
    ask(page, "x")
    settled(page)
    expect(page.locator(".figures")).to_have_text(re.compile(r"^1 token · \d+/s · no text$"))


def test_copy_regenerate_and_clear(page: Page) -> None:
    page.locator("#seed").fill("5")
    ask(page, "x")
    settled(page)
    text = answers(page).text_content()
    page.get_by_role("button", name="Copy").click()
    expect(page.locator("#status")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == text
    page.get_by_role("button", name="Regenerate").click()
    settled(page)
    assert answers(page).count() == 1
    assert answers(page).text_content() == text
    page.get_by_role("button", name="Clear").click()
    assert answers(page).count() == 0
    expect(page.locator("#prompt")).to_be_focused()


def test_where_there_is_no_clipboard_copy_selects_the_answer(browser: Browser, folder: Path, running: Any) -> None:
    engine = Engine(folder, model_id="small", config=EngineConfig(threads=1))
    app = create_app(Catalogue.of(engine), Settings(host_names=(INSECURE,)))
    with running(app) as address, browser.new_context() as context:
        page = context.new_page()
        page.goto(address.replace("127.0.0.1", INSECURE))
        assert not page.evaluate("isSecureContext")
        expect(page.locator(".lane select").first).not_to_have_value("")
        ask(page, "x")
        settled(page)
        page.get_by_role("button", name="Copy").click()
        expect(page.locator("#notice")).to_contain_text("The answer is selected")
        text = (answers(page).text_content() or "").split()
        assert page.evaluate("getSelection().toString()").split() == text != []
    engine.close()


def test_a_copy_that_the_browser_refuses_is_said(page: Page) -> None:
    page.evaluate("() => { navigator.clipboard.writeText = async () => { throw new DOMException('no', 'NotAllowedError') } }")
    ask(page, "x")
    settled(page)
    page.get_by_role("button", name="Copy").click()
    expect(page.locator("#notice")).to_contain_text("The answer is selected")
    expect(page.locator("#status")).to_have_text("Answered")


def test_the_key_is_kept_in_the_tab_alone(page: Page, browser: Browser) -> None:
    page.locator("#key").fill("sesame")
    page.locator("#key").blur()
    with page.expect_request("**/v1/chat/completions") as request:
        ask(page, "x", max_tokens=2)
    assert request.value.headers["authorization"] == "Bearer sesame"
    assert page.evaluate("[JSON.stringify(localStorage), document.cookie]") == ["{}", ""]
    page.reload()
    expect(page.locator("#key")).to_have_value("sesame")


@pytest.fixture(scope="module")
def guarded(folder: Path, running: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A server of two models that wants a key and takes feedback: its address, and the key."""
    home = tmp_path_factory.mktemp("guarded")
    secret, line = make_key("tester")
    (home / "keys").write_text(f"{line}\n")
    (home / "keys").chmod(0o600)
    catalogue = Catalogue.open([ModelSpec.parse(f"{name}={folder}") for name in ("first", "second")], store=Store(home))
    settings = Settings.model_validate({"keys": home / "keys", "observe": {"samples": {"folder": str(home / "samples")}}})
    with running(create_app(catalogue, settings)) as address:
        yield address, secret
    catalogue.close()


def test_two_models_behind_a_key_are_compared_and_rated(browser: Browser, guarded: tuple[str, str]) -> None:
    address, secret = guarded
    with browser.new_context(base_url=address) as context:
        page = context.new_page()
        page.goto("/")
        expect(page.locator("#notice")).to_have_text("This server wants a key: enter it under Settings.")
        page.locator("#key").fill(secret)
        page.locator("#key").blur()
        page.get_by_label("Side by side").check()
        for lane, name in enumerate(("first", "second")):
            expect(page.locator(".lane select").nth(lane)).to_have_value(name)
        ask(page, "what is it?")
        settled(page)
        good = page.get_by_role("button", name="Good answer")
        expect(good).to_have_count(2)
        good.last.click()
        expect(good.last).to_have_attribute("aria-pressed", "true")
        expect(good.first).to_have_attribute("aria-pressed", "false")
        expect(page.locator("#notice")).to_be_hidden()


def test_a_server_without_feedback_shows_no_buttons_for_it(page: Page) -> None:
    ask(page, "x")
    settled(page)
    expect(page.get_by_role("button", name="Copy")).to_be_visible()
    expect(page.get_by_role("button", name="Good answer")).to_have_count(0)
