"""A small tokenizer, and folders of documents."""

from __future__ import annotations

import argparse
import inspect
import textwrap

import pytest

from llm.data.config import TokenizeConfig
from llm.data.tokenizer import Tokenizer, train


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    sources = [inspect.getsource(module) for module in (argparse, textwrap)]
    return Tokenizer.read(train(sources, TokenizeConfig(vocab_size=600, row_tokens=32)))
