"""One small vocabulary of each kind, learned from the same modules."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from llm.data.config import TokenizeConfig, TokenizerConfig
from llm.data.tokenizer import ASSISTANT, END, SPACE_MARK, USER, Tokenizer, train
from tests.data.conftest import MODULES

KINDS = ("bpe", "unigram", "char", "word", "wordpiece", "byte_bpe")
LOSSLESS = ("bpe", "unigram", "char", "byte_bpe")
TEXTS = [path.read_text(encoding="utf-8") for path in MODULES[:12]]
SPECIAL = [USER, ASSISTANT, END, "<unk>", "<s>", "</s>", "<0x0A>"]
NASTY = [
    "",
    " ",
    "plain words",
    " leading and trailing  ",
    "tab\tnew\nline\r\n\n\nend",
    "def f(x):\n        return  x[0]   # note\n",
    "naïve café – “quotes” ½ ﬁ Å Ａ 1234567 0x1F",
    "日本語の文 한국어 русский עברית العربية",
    "🙂 👩‍👩‍👧 e\u0301 \u200b \ufeff \x00 \x7f \x1b[0m \U0010ffff",
    f"{SPACE_MARK}{SPACE_MARK} a{SPACE_MARK}b",
    " ".join(SPECIAL) + "".join(SPECIAL),
    *(" " * n + "x" + "=" * n + "\n" * n for n in range(1, 20)),
]


def config(kind: str, vocab_size: int = 600) -> TokenizeConfig:
    return TokenizeConfig(vocab_size=vocab_size, tokenizer=TokenizerConfig(kind=kind))


@cache
def learned(kind: str) -> Tokenizer:
    return Tokenizer.read(train(TEXTS[:6], config(kind)))


@pytest.fixture(scope="session")
def of_kind() -> Callable[[str], Tokenizer]:
    return learned
