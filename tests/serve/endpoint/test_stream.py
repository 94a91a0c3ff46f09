"""Server-sent events are read back as they were written, wherever the network cuts them."""

from __future__ import annotations

import itertools
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from openai._streaming import SSEDecoder

from llm.serve.endpoint.reply import DONE, event

TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(["\n\n", "\r\n", "data: x", "\u2028", ":", "[DONE]", "\x00"])


@given(st.lists(st.dictionaries(TEXTS, TEXTS | st.none() | st.integers()), max_size=5), st.lists(st.integers(0, 400), max_size=8))
def test_events_are_read_back(values: list[dict[str, Any]], cuts: list[int]) -> None:
    written = ("".join(map(event, values)) + DONE).encode()
    places = sorted({0, len(written), *(min(cut, len(written)) for cut in cuts)})
    parts = [written[start:end] for start, end in itertools.pairwise(places)]
    read = [found.data for found in SSEDecoder().iter_bytes(iter(parts))]
    assert read[-1] == "[DONE]"
    assert [json.loads(data) for data in read[:-1]] == values
