from __future__ import annotations

import numpy as np

from llm.data.document import Document
from llm.data.vocabulary.report import Sizes, describe, figures, joined
from llm.data.vocabulary.words import Encoded, Encoder
from tests.data.vocabulary.conftest import learned


def test_figures_by_domain_and_language() -> None:
    documents = [Document(str(n), "", "x", domain=domain, language=language) for n, (domain, language) in enumerate(GROUPS)]
    columns = [np.array(each) for each in ([10, 20, 30], [5, 4, 10], [2, 4, 5], [1, 0, 0])]
    encoded = Encoded(np.zeros(19, np.uint32), columns[1], columns[0], columns[2], columns[3], np.array([True, True, False]))
    sizes = Sizes()
    sizes.add(documents, encoded)
    twice = figures(joined([sizes.groups, sizes.groups]))
    assert twice["by_domain"]["prose"]["tokens"] == 2 * (5 + 4)
    assert twice["by_domain"]["prose"]["bytes_per_token"] == round(60 / 18, 4)
    assert twice["by_domain"]["prose"]["fertility"] == round(18 / 12, 4)
    assert twice["by_domain"]["prose"]["unknown_share"] == round(2 / 18, 6)
    assert twice["by_language"]["en"]["documents"] == 4
    assert twice["by_language"]["en"]["round_trip_failures"] == 2
    assert set(twice["by_language"]) == {"en", "unknown"}


GROUPS = [("prose", "en"), ("prose", ""), ("code/x", "en")]


def test_bytes_that_spell_unknown_characters_count_as_unknown() -> None:
    encoded = Encoder(learned("bpe"))(["plain words", "日"])
    assert encoded.unknown.tolist() == [0, 3]


def test_the_longest_tokens_are_named() -> None:
    about = describe(learned("bpe"))
    assert about["longest_tokens"][0] == max((piece for piece in about["longest_tokens"]), key=len)
    assert (about["kind"], about["size"], about["gives_back_every_text"]) == ("bpe", 600, True)
