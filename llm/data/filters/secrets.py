"""Where a text holds a key, a token or a password that opens something."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

from llm.data.filters.personal import Span, places

PEM_CHARACTERS = 16_384
LINE_CHARACTERS = 16  # of base64 that are no word
MIN_ENTROPY_BITS = {"hexadecimal": 3.0, "other": 3.7}

# What a token starts with, and how it goes on. Source: GitHub's and GitLab's secret scanning patterns, and each issuer's manual.
TOKENS = {
    "AKIA": r"AKIA[A-Z0-9]{16}",  # Amazon
    "ASIA": r"ASIA[A-Z0-9]{16}",
    "AIza": r"AIza[\w-]{35}",  # Google
    "GOCSPX-": r"GOCSPX-[\w-]{28}",
    "ya29.": r"ya29\.[\w-]{30,512}",
    "ghp_": r"ghp_[A-Za-z0-9]{36,251}",  # GitHub
    "gho_": r"gho_[A-Za-z0-9]{36,251}",
    "ghu_": r"ghu_[A-Za-z0-9]{36,251}",
    "ghs_": r"ghs_[A-Za-z0-9]{36,251}",
    "ghr_": r"ghr_[A-Za-z0-9]{36,251}",
    "github_pat_": r"github_pat_\w{40,244}",
    "glpat-": r"glpat-[\w-]{20,64}",
    "xox": r"xox[abeoprs]-[A-Za-z0-9-]{10,250}",  # Slack
    "hooks.slack.com/": r"hooks\.slack\.com/services/T\w{8,12}/B\w{8,12}/\w{24}",
    "sk_live_": r"sk_live_[A-Za-z0-9]{16,128}",  # Stripe
    "rk_live_": r"rk_live_[A-Za-z0-9]{16,128}",
    "hf_": r"hf_[A-Za-z]{34}",  # Hugging Face
    "sk-": r"sk-(?=[\w-]{0,64}[0-9])(?=[\w-]{0,64}[A-Z])[\w-]{32,256}",  # OpenAI, Anthropic
    "eyJ": r"eyJ[\w-]{10,4096}\.eyJ[\w-]{10,8192}\.[\w-]{0,2048}",  # JSON web token, RFC 7519
}
_tokens = {start: re.compile(rf"{pattern}(?![\w-])", re.ASCII) for start, pattern in TOKENS.items()}


def keys(text: str) -> Iterator[Span]:
    """Private keys, tokens of known services, and what is assigned to a name such as `secret` and looks random."""
    yield from _private_keys(text)
    for start, pattern in _tokens.items():
        for place in places(text, start):
            if not _continues(text, place) and (found := pattern.match(text, place)):
                yield found.span()
    yield from _assigned(text)


def _continues(text: str, place: int) -> bool:
    """Whether the place is in the middle of a word."""
    before = text[place - 1 : place]
    return before.isalnum() or before in ("_", "-") if place else False


_begin = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_encoded = re.compile(r"[A-Za-z0-9+/=]{16,}(?:\s+[A-Za-z0-9+/=]{2,})*")
_headers = re.compile(r"(?:\s{0,16}[A-Za-z][A-Za-z-]{1,32}: [^\n]{0,256}\n)*")
_line = re.compile(
    r"""(?:[\s"'`*#>|,;(\[]|[+/.]{1,3}[ \t]){0,64}+(?P<body>(?:[A-Za-z0-9+/=]|\\[nr])++)(?P<rest>["'`,;+)\]\\ \t\r]*+(?:\n|\Z))?"""
)


def _private_keys(text: str) -> Iterator[Span]:
    """What stands between the two lines that frame a private key; as several spans where a program has quotes between.

    Where the second line is missing or far away, the lines of base64 after the first.

    Source: RFC 7468, section 10; RFC 9580, section 6.2 for OpenPGP.
    """
    for place in places(text, "-----BEGIN "):
        if begin := _begin.match(text, place):
            end = text.find("-----", begin.end(), begin.end() + PEM_CHARACTERS)
            framed = end >= 0 and text.startswith("-----END ", end)
            yield from (found.span() for found in _encoded.finditer(text, begin.end(), end if framed else _unframed(text, begin.end())))


def _unframed(text: str, start: int) -> int:
    """Where the lines of base64 from here on end: only the last one may be shorter than the one before it."""
    if headers := _headers.match(text, start):
        start = headers.end()
    characters = 0
    while (line := _line.match(text, start)) and (line["rest"] is not None or len(line["body"]) >= LINE_CHARACTERS):
        start = line.end()
        if line["rest"] is None or len(line["body"]) < characters:
            break
        characters = len(line["body"])
    return start


NAMES = ("secret", "passw", "token", "api_key", "apikey", "api-key", "access_key", "private_key")
_value = re.compile(
    r"""[a-z_-]{0,16}["']?[ \t]{0,8}(?:=>|:=|[:=])[ \t]{0,8}(?P<quote>["']?)(?P<value>[\w+/-]{16,256}={0,2})(?P=quote)(?![\w.(\[{/+<>-])""",
    re.ASCII | re.IGNORECASE,
)


def _assigned(text: str) -> Iterator[Span]:
    """`api_key = "…"` and `SECRET=…` whose value has letters, digits and the entropy of something drawn at random.

    Source: the high entropy strings of truffleHog and detect-secrets, there on any string; here the name narrows it down.
    """
    lower = text.replace("İ", "i").lower()  # the one capital whose small letter takes two characters
    for name in NAMES:
        for place in places(lower, name):
            found = _value.match(text, place + len(name))
            if found and _looks_random(found["value"]):
                yield found.span("value")


_hexadecimal = re.compile(r"[0-9a-fA-F]+")


def _looks_random(value: str) -> bool:
    least = MIN_ENTROPY_BITS["hexadecimal" if _hexadecimal.fullmatch(value) else "other"]
    return any(map(str.isdigit, value)) and any(map(str.isalpha, value)) and entropy_bits(value) >= least


def entropy_bits(text: str) -> float:
    """Shannon entropy of the characters, in bits per character.

    Example:
        >>> entropy_bits("aaaa"), entropy_bits("abcd")
        (0.0, 2.0)
    """
    counts = Counter(text).values()
    return math.log2(len(text)) - sum(count * math.log2(count) for count in counts) / len(text)
