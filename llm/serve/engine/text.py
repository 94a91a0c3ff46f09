"""Ids to text, piece by piece as they come."""

from __future__ import annotations

import codecs

from llm.data.tokenizer import Tokenizer


def piece_bytes(tokenizer: Tokenizer) -> list[bytes | None]:
    """The UTF-8 bytes that each id stands for; None for ids that are no text."""
    return [tokenizer.vocabulary.spelled(id) for id in range(tokenizer.vocab_size)]


class TextStream:
    """Text that is safe to show: whole characters, and nothing that may turn out to begin a stop string."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self.stopped = False
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def push(self, piece: bytes) -> str:
        """What can be shown now; `stopped` turns true when a stop string is complete, which itself is never shown."""
        return self._release(self._decoder.decode(piece))

    def finish(self) -> str:
        """What was held back; an unfinished character becomes U+FFFD."""
        text = self._release(self._decoder.decode(b"", final=True)) + self._held
        self._held = ""
        return text

    def _release(self, text: str) -> str:
        self._held += text
        ends = [place for place in (self._held.find(stop) for stop in self._stop) if place >= 0]
        if ends:
            self.stopped = True
            safe = min(ends)
            shown, self._held = self._held[:safe], ""
            return shown
        safe = len(self._held) - max((_overlap(self._held, stop) for stop in self._stop), default=0)
        shown, self._held = self._held[:safe], self._held[safe:]
        return shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
