"""Text that is shown while it grows is the text that all ids give in the end."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from llm.serve.engine.engine import Engine
from llm.serve.engine.text import TextStream


def fed(stream: TextStream, pieces: list[bytes]) -> list[str]:
    shown = []
    for piece in pieces:
        shown.append(stream.push(piece))
        if stream.stopped:
            return shown
    return [*shown, stream.finish()]


def test_half_a_character_waits() -> None:
    stream = TextStream(())
    smile = "🙂".encode()
    assert [stream.push(bytes([byte])) for byte in smile] == ["", "", "", "🙂"]
    stream.push(smile[:2])
    assert stream.finish() == "\ufffd"


def test_a_stop_string_is_never_shown_not_even_its_beginning() -> None:
    stream = TextStream(("STOP",))
    assert [stream.push(piece) for piece in (b"a S", b"T", b"ART ST", b"OP b")] == ["a ", "", "START ", ""]
    assert stream.stopped


def test_the_earliest_stop_string_wins() -> None:
    stream = TextStream(("late", "b"))
    assert stream.push(b"a b late") == "a "


@given(
    text=st.text(st.sampled_from("abé🙂"), max_size=12),
    stop=st.text(st.sampled_from("abé🙂"), min_size=1, max_size=3),
    cuts=st.integers(1, 3),
)
def test_any_cut_gives_the_text_before_the_stop_string(text: str, stop: str, cuts: int) -> None:
    content = text.encode()
    pieces = [content[start : start + cuts] for start in range(0, len(content), cuts)]
    assert "".join(fed(TextStream((stop,)), pieces)) == text.split(stop)[0]


def one_mark(text: str) -> str:
    """How many marks a broken character leaves is each decoder's choice."""
    return re.sub("\ufffd+", "\ufffd", text)


@given(ids=st.lists(st.integers(0, 599), max_size=30))
def test_ids_say_what_sentencepiece_says(engine: Engine, ids: list[int]) -> None:
    ids = [id for id in ids if engine.pieces[id] is not None]
    shown = "".join(fed(TextStream(()), [engine.pieces[id] or b"" for id in ids]))
    assert one_mark(shown) == one_mark(engine.tokenizer.decode(ids))


def test_control_ids_are_silent(engine: Engine) -> None:
    assert [id for id, piece in enumerate(engine.pieces) if piece is None] == [0, 1, 2, 3, 4, 5]
