"""Texts that have to have a form: at every token, which ids may follow."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from llm.data.tokenizer import Tokenizer
from llm.errors import RecipeError
from llm.serve.engine.sampling import Guide

REMEDY = "see https://github.com/guidance-ai/llguidance/blob/main/docs/json_schema.md for what is supported"
UNENDED = "form can't be followed to its end"
NOT_TEXT = b"\xff"  # how llguidance marks ids that no text contains


class Matcher:
    """One text of a given form, while it is written."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size

    def allowed(self) -> np.ndarray:
        """Which ids may follow; the end of the document is among them where the text may end.

        Raises: RecipeError if the text can't be brought to its end: the form has grown too large, or the tokens lack a letter.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        allowed_V = np.unpackbits(bits, count=self._vocab_size, bitorder="little").astype(bool)
        if not allowed_V.any():
            raise RecipeError(UNENDED, remedy=REMEDY)
        return allowed_V

    def take(self, id: int) -> None:
        """Go on with a token.

        Raises: RecipeError as `allowed` does.
        """
        self._matcher.consume_token(id)
        self._check()

    @property
    def over(self) -> bool:
        """Whether nothing may follow."""
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():  # llguidance itself would end the text here
            raise RecipeError(UNENDED, value=self._matcher.stop_reason(), remedy=REMEDY)


class Guides:
    """Matchers for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, pieces: list[bytes | None]) -> None:
        self._tokenizer, self._pieces = tokenizer, pieces

    def matcher(self, guide: Guide) -> Matcher:
        """A text of this form, at its beginning.

        Raises: RecipeError if the form isn't understood or is too large.
        """
        try:
            schema = guide.json_schema
            grammar = (
                LLMatcher.grammar_from_regex(guide.regex or "") if schema is None else LLMatcher.grammar_from_json_schema(dict(schema))
            )
            matcher = LLMatcher(self._vocabulary, grammar, log_level=0)
            error = matcher.get_error()
        except (ValueError, TypeError, RecursionError) as problem:
            error = str(problem)
        if error:
            raise RecipeError("form can't be followed", value=error.splitlines()[0][:200], remedy=REMEDY)
        return Matcher(matcher, len(self._pieces))

    @cached_property
    def _vocabulary(self) -> LLTokenizer:
        """The tokenizer as llguidance reads it; made for the first text that needs it, since it takes a moment."""
        return LLTokenizer(TokenizerWrapper(_Ids(self._tokenizer, self._pieces)), eos_token=[self._tokenizer.eos])


class _Ids:
    """The attributes that llguidance looks for."""

    def __init__(self, tokenizer: Tokenizer, pieces: list[bytes | None]) -> None:
        self.eos_token_id, self.bos_token_id = tokenizer.eos, tokenizer.bos
        self.special_token_ids = [id for id, piece in enumerate(pieces) if piece is None]
        self.tokens = [NOT_TEXT + b"%d" % id if piece is None else piece for id, piece in enumerate(pieces)]
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text))
