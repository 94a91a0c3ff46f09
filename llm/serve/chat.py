"""A conversation with a served model in the terminal, over the same HTTP interface as everybody's."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
from rich.console import Console

from llm.errors import DataError, DependencyError

PATIENCE = httpx.Timeout(10, read=300)  # a first token may have to wait for others' answers
HELP = "/reset forgets what was said · /model NAME changes the model · /system TEXT sets the instructions · /quit leaves"


@dataclass(frozen=True)
class Talk:
    """Whom one talks to, under which instructions, and what was said."""

    model: str
    system: str = ""
    turns: tuple[dict[str, str], ...] = ()

    def messages(self, said: str) -> list[dict[str, str]]:
        """What the server is sent to answer `said`."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self.turns, {"role": "user", "content": said}]

    def after(self, said: str, answer: str) -> Talk:
        """The conversation with one exchange more."""
        return replace(self, turns=(*self.turns, {"role": "user", "content": said}, {"role": "assistant", "content": answer}))


@dataclass
class Answer:
    """An answer while it comes."""

    text: str = ""
    tokens: int = 0
    began: float = field(default_factory=time.monotonic)
    first: float = 0.0

    def figures(self) -> str:
        """Tokens, how many there were in a second, and how long the first one took."""
        rate = self.tokens / max(time.monotonic() - self.began, 1e-6)
        return f"{self.tokens} tokens · {rate:.0f}/s · first after {(self.first - self.began) * 1000:.0f} ms" if self.tokens else ""


def chat(url: str, *, model: str = "", key_env: str = "") -> None:
    """Talk until /quit or the end of the input. Input that is no terminal is one message, answered by plain text.

    Raises: DependencyError if the server can't be reached or refuses; in a terminal only at the start.
    """
    key = os.environ.get(key_env, "") if key_env else ""
    if key_env and not key:
        raise DependencyError("no key", value=f"{key_env} is not set", remedy=f"export {key_env}=…")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with _said_in_words(url):
        client = httpx.Client(base_url=url.rstrip("/").removesuffix("/v1"), headers=headers, timeout=PATIENCE)
    with client:
        talk = Talk(model or models(client)[0])
        if sys.stdin.isatty():
            _converse(client, talk)
        else:
            _answer_pipe(client, talk)


def models(client: httpx.Client) -> list[str]:
    """Ids of the models that the server offers, at least one.

    Raises: DependencyError if there is none, or the server can't be asked.
    """
    with _said_in_words(client.base_url):
        response = client.get("/v1/models")
        _check(response)
        if ids := [str(entry["id"]) for entry in response.json()["data"]]:
            return ids
    raise DependencyError("no model is served", value=client.base_url, remedy="start one: trainyard serve champion")


def stream(client: httpx.Client, model: str, messages: list[dict[str, str]], answer: Answer) -> Generator[str]:
    """Pieces of the answer as they come, noted in `answer`; the request ends with whoever stops asking.

    Raises: DependencyError if the server refuses, or breaks off.
    """
    body = {"model": model, "messages": messages, "stream": True, "stream_options": {"include_usage": True}}
    with _said_in_words(client.base_url), client.stream("POST", "/v1/chat/completions", json=body) as response:
        _check(response)
        for event in _events(response):
            answer.tokens = (event.get("usage") or {}).get("completion_tokens", answer.tokens)
            for choice in event["choices"]:
                if piece := choice["delta"].get("content"):
                    answer.first = answer.first or time.monotonic()
                    answer.text += piece
                    yield printable(piece)


def printable(text: str) -> str:
    """Text without what a terminal would obey: a model must not move the cursor, change the title or fill the clipboard.

    Example:
        >>> printable("a\\x1b]0;title\\x07b\\n")
        'a]0;titleb\\n'
    """
    return "".join(letter for letter in text if letter in "\n\t" or not (ord(letter) < 32 or 127 <= ord(letter) < 160))


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
        if data == "[DONE]":
            return
        if data:
            event = json.loads(data)
            if "error" in event:
                raise DependencyError("the answer broke off", value=event["error"]["message"], remedy="ask again")
            yield event
    raise DependencyError("the answer broke off", value="the server closed the connection", remedy="ask again")


def _check(response: httpx.Response) -> None:
    """Raises: DependencyError with the server's own words."""
    if response.is_success:
        return
    try:
        message = json.loads(response.read())["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = "it gives no reason"
    remedies = {401: "name the variable that holds a key: --key-env", 404: "see /v1/models", 429: "try again", 503: "try again"}
    remedy = remedies.get(response.status_code, "change what is sent")
    raise DependencyError(f"the server refuses ({response.status_code})", value=printable(str(message)), remedy=remedy)


@contextlib.contextmanager
def _said_in_words(url: object) -> Iterator[None]:
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        value, remedy = f"{url} ({error})", "see --url, or start one: trainyard serve champion"
        raise DependencyError("no answer from the server", value=value, remedy=remedy) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DependencyError("the server doesn't speak OpenAI's interface", value=url, remedy="see --url") from error


def _answer_pipe(client: httpx.Client, talk: Talk) -> None:
    said = sys.stdin.read().strip()
    if not said:
        raise DataError("nothing was said", value="the input is empty", remedy="pipe a message, or start it in a terminal")
    for text in stream(client, talk.model, talk.messages(said), Answer()):
        print(text, end="", flush=True)
    print()


def _converse(client: httpx.Client, talk: Talk) -> None:
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")  # which gives input() arrow keys and a history
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{talk.model} at {client.base_url}", style="bold", markup=False)
    console.print("/help says what else there is", style="dim")
    while (said := _read(console)) is not None:
        if said.startswith("/"):
            following = _command(client, console, talk, said)
            if following is None:
                return
            talk = following
        elif said:
            try:
                talk = _exchange(client, console, talk, said)
            except KeyboardInterrupt:  # just as the answer ended by itself
                console.print("\nstopped", style="dim")


def _read(console: Console) -> str | None:
    """A line; None at the end of the input. Ctrl-C drops the line."""
    try:
        return input(_prompt(console)).strip()
    except KeyboardInterrupt:
        console.print("\n[dim]Ctrl-D or /quit leaves[/]")
        return ""
    except EOFError:
        console.print()
        return None


def _prompt(console: Console) -> str:
    """What stands before a line. Where readline redraws the line, it has to know the prompt, and which of its letters take no room."""
    if console.color_system is None or "readline" not in sys.modules:
        return "you › "
    return "\x01\x1b[1;36m\x02you ›\x01\x1b[0m\x02 "


def _exchange(client: httpx.Client, console: Console, talk: Talk, said: str) -> Talk:
    """Show the answer as it comes; Ctrl-C ends the answer, and what was said of it counts."""
    answer, note = Answer(), ""
    pieces = stream(client, talk.model, talk.messages(said), answer)
    try:
        console.print(f"{talk.model} › ", style="bold green", end="", markup=False)
        for piece in pieces:
            console.print(piece, end="", markup=False, emoji=False)
    except KeyboardInterrupt:
        note = "stopped"
    except DependencyError as error:
        console.print(f"\n{error}" if answer.text else str(error), style="red", markup=False)
        return talk
    finally:
        pieces.close()
    console.print(f"\n{note or answer.figures()}", style="dim")
    return talk.after(said, answer.text) if answer.text else talk


def _command(client: httpx.Client, console: Console, talk: Talk, line: str) -> Talk | None:
    """The conversation as the command leaves it; None ends it."""
    name, _, value = line.partition(" ")
    match name:
        case "/quit" | "/exit":
            return None
        case "/reset":
            console.print("forgotten", style="dim")
            return replace(talk, turns=())
        case "/system":
            console.print("instructions set" if value else "no instructions", style="dim")
            return replace(talk, system=value.strip())
        case "/model":
            return _choose(client, console, talk, value.strip())
        case _:
            console.print(HELP if name == "/help" else f"no such command; {HELP}")
            return talk


def _choose(client: httpx.Client, console: Console, talk: Talk, wanted: str) -> Talk:
    try:
        offered = models(client)
    except DependencyError as error:
        console.print(str(error), style="red", markup=False)
        return talk
    if wanted in offered:
        console.print(f"{wanted} answers from here on", style="dim", markup=False)
        return replace(talk, model=wanted)
    console.print(f"offered: {', '.join(offered)}", markup=False)
    return talk
