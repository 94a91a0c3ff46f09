from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.stats import chisquare

from llm.data.config import CorpusMixtureConfig
from llm.data.mixture import Blend, allotted, dealt, wanted
from llm.data.rows import Group
from llm.errors import RecipeError

GROUPS = (
    Group("code", "python", 300, 300_000),
    Group("text", "de", 20, 20_000),
    Group("text", "en", 700, 700_000),
    Group("text", "is", 3, 3_000),
    Group("tiny", "en", 0, 100),
)
DECKS = st.lists(st.integers(0, 60), min_size=1, max_size=12).filter(any).map(np.array)


def blend(places: int = 2000, seed: int = 3, **settings: Any) -> Blend:
    return Blend.plan(GROUPS, CorpusMixtureConfig.model_validate(settings), places, seed)


def group_of(rows: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.cumsum([group.rows for group in GROUPS]), rows, side="right")


def counts(places: int = 2000, **settings: Any) -> list[int]:
    return np.bincount(group_of(blend(places, **settings).indices(0, places)), minlength=len(GROUPS)).tolist()


@given(DECKS)
def test_a_deck_is_dealt_whole_one_row_at_a_time(deck: np.ndarray) -> None:
    before = dealt(np.arange(deck.sum() + 1), deck)
    steps = np.diff(before, axis=1)
    assert before[:, 0].tolist() == [0] * len(deck)
    assert before[:, -1].tolist() == deck.tolist()
    assert (steps.sum(axis=0) == 1).all()
    assert set(steps.ravel().tolist()) <= {0, 1}


@given(DECKS)
def test_every_group_keeps_pace_with_its_share(deck: np.ndarray) -> None:
    """At every place each group is within two rows of its share, where a shuffled deck strays by the square root of the places."""
    places = np.arange(deck.sum() + 1)
    strays = dealt(places, deck) - places * (deck / deck.sum())[:, None]
    assert np.abs(strays).max() < 2


def test_weights_are_the_shares_of_what_is_read() -> None:
    assert counts(domains={"code": 0.6}) == [1200, round(800 * 20 / 723), round(800 * 700 / 723), 3, 0]
    assert counts(domains={"code": 1.0}) == [2000, 0, 0, 0, 0]
    assert counts(languages={"de": 0.25, "is": 0.05}) == [420, 500, 980, 100, 0]
    code, german, english, icelandic, _ = counts(domains={"code": 0.5}, languages={"de": 0.1})
    assert (code, german, english + icelandic) == (1000, 200, 800)


def test_without_weights_groups_are_read_by_their_size() -> None:
    assert counts(places=1023 * 4) == [1200, 80, 2800, 12, 0]


def test_temperature_levels_languages() -> None:
    """XLM-R's formula with alpha = 1/T."""
    sizes = np.array([300, 20, 700, 3, 0])
    for temperature in (1.0, 2.0, 100 / 30):
        alpha = (sizes / sizes.sum()) ** (1 / temperature)
        shares = wanted(GROUPS, CorpusMixtureConfig(temperature=temperature))
        assert shares == pytest.approx(alpha / alpha.sum())
    assert wanted(GROUPS[:4], CorpusMixtureConfig(temperature=1e9)) == pytest.approx([0.25] * 4)


def test_a_group_at_its_epochs_leaves_the_rest_to_the_others() -> None:
    code, german, english, icelandic, _ = counts(languages={"de": 0.5, "is": 0.1}, max_epochs=4)
    assert (german, icelandic) == (80, 12)
    assert code / english == pytest.approx(3 / 7, abs=0.01)
    assert counts(max_epochs=4, domain_max_epochs={"code": 0.5})[0] == 150


def test_small_groups_have_their_least_share() -> None:
    code, german, english, icelandic, nothing = counts(min_share=0.1)
    assert (german, icelandic, nothing) == (200, 200, 0)
    assert code / english == pytest.approx(3 / 7, abs=0.01)
    assert counts(min_share=0.1, max_epochs=30)[3] == 90


def test_stages_have_their_own_weights_and_common_epochs() -> None:
    stages = [{"share": 0.75, "domains": {"text": 1.0}}, {"share": 0.25, "languages": {"python": 0.5, "de": 0.3}}]
    stream = blend(stages=stages, max_epochs=5)
    first, second = (np.bincount(group_of(stream.indices(*part)), minlength=5) for part in ((0, 1500), (1500, 500)))
    assert first[0] == 0
    assert first[1] + second[1] == 100  # five epochs of German, of which the first stage takes its part
    assert second[0] / second[2] == pytest.approx(0.5 / 0.2, rel=0.05)


@settings(max_examples=60)
@given(st.integers(0, 2**63), st.integers(0, 2500), st.lists(st.integers(0, 90), max_size=6))
def test_the_stream_is_the_same_wherever_it_is_resumed(seed: int, first: int, pieces: list[int]) -> None:
    """The place may lie behind the planned end, as after batches that the guard refused."""
    stream = blend(seed=seed, stages=[{"share": 0.4, "temperature": 3}, {"share": 0.6, "min_share": 0.05}])
    whole = stream.indices(0, 2500 + 600)[first : first + sum(pieces)]
    starts = first + np.cumsum([0, *pieces])
    cut = [stream.indices(int(start), count) for start, count in zip(starts, pieces, strict=False)]
    assert np.concatenate([np.empty(0, np.int64), *cut]).tolist() == whole.tolist()


def test_every_epoch_of_a_group_reads_each_row_once_before_the_next_begins() -> None:
    rows = blend(places=5000, stages=[{"share": 0.3, "temperature": 4}, {"share": 0.7}]).indices(0, 5000)
    group = group_of(rows)
    for number, size in ((0, 300), (1, 20), (3, 3)):
        mine = rows[group == number]
        for epoch in range(len(mine) // size):
            assert len(set(mine[epoch * size : (epoch + 1) * size].tolist())) == size


def test_within_a_group_the_order_is_random() -> None:
    rows = blend(places=700, domains={"text": 1.0}, languages={"en": 1.0}).indices(0, 350) - 320
    assert chisquare(np.histogram(rows, bins=10, range=(0, 700))[0]).pvalue > 0.001
    assert abs(np.corrcoef(rows[:-1], rows[1:])[0, 1]) < 0.15
    assert rows.tolist() != (blend(700, 4, languages={"en": 1.0}).indices(0, 350) - 320).tolist()


def test_what_is_realised_is_what_was_read() -> None:
    stream = blend(stages=[{"share": 0.5, "temperature": 3}, {"share": 0.5}])
    for place in (0, 7, 1000, 1500, 2000, 2300):
        read = np.bincount(group_of(stream.indices(0, place)), minlength=5)
        facts = stream.realised(place)
        assert [fact["rows"] for fact in facts] == read.tolist()
        assert [fact["token_share"] for fact in facts] == pytest.approx((read / max(1, read.sum())).tolist())
        assert facts[1]["epochs"] == read[1] / 20


@given(st.lists(st.tuples(st.floats(0.01, 1), st.integers(0, 300)), min_size=1, max_size=6), st.floats(0, 0.3), st.integers(0, 300))
def test_rows_are_allotted_within_their_bounds_or_refused(drawn: list[tuple[float, int]], min_share: float, places: int) -> None:
    """Feasible exactly where a linear program finds a point."""
    shares, limits = np.array([share for share, _ in drawn]), np.array([limit for _, limit in drawn])
    shares /= shares.sum()
    least = np.minimum(min_share * places, limits)
    feasible = linprog(shares, A_eq=np.ones((1, len(limits))), b_eq=[places], bounds=list(zip(least, limits, strict=True))).status == 0
    try:
        given_rows = allotted(shares, min_share, limits, places)
    except RecipeError:
        assert not feasible
        return
    assert feasible
    assert given_rows.sum() == places
    assert (given_rows <= limits).all()
    assert (given_rows > least - 1).all()
    free = (given_rows < limits - 1) & (given_rows > least + 1)
    if free.sum() > 1:  # among themselves they keep the proportions
        factors = given_rows[free] / shares[free]
        assert factors.max() - factors.min() <= 2 / shares[free].min()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"domains": {"coed": 0.5}}, "no row of the corpus has this domain: coed; did you mean `code`"),
        ({"domains": {"tiny": 0.5}}, "no row of the corpus has this domain: tiny"),
        ({"domain_max_epochs": {"prose": 2}}, "no row of the corpus has this domain: prose; train.mixture can name code, text"),
        ({"stages": [{"share": 1, "languages": {"fr": 0.5}}]}, "no row of the corpus has this language: fr"),
        ({"domains": {"code": 0.0, "text": 0.0}}, "no mixture of the corpus has these shares.*train.mixture.domains"),
        ({"domains": {"code": 0.2, "text": 0.2}}, "no mixture of the corpus has these shares"),
        ({"domains": {"code": 0.9}, "languages": {"en": 0.5}}, "no mixture of the corpus has these shares"),
        ({"max_epochs": 1.5}, "a training reads more rows than its mixture allows: 2000 rows of 1534; raise train.mixture.max_epochs"),
        ({"stages": [{"share": 0.9999}, {"share": 0.0001}]}, "a stage of the mixture reads no row: 2 stages of 2000 rows"),
        ({"min_share": 0.3}, "least shares are more than the whole: 0.3 for each of 4 groups"),
    ],
)
def test_an_impossible_mixture_is_refused_before_training(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        blend(**settings)


def test_rows_without_groups_have_no_mixture() -> None:
    with pytest.raises(RecipeError, match="these rows have no groups"):
        Blend.plan((), CorpusMixtureConfig(), 10, 0)


@pytest.mark.parametrize(
    "settings",
    [
        {"domains": {"code": 0.7, "text": 0.6}},
        {"languages": {"de": -0.1}},
        {"domain_max_epochs": {"code": 0}},
        {"stages": [{"share": 0.5}]},
        {"domains": {"code": 0.5}, "stages": [{"share": 1.0}]},
    ],
)
def test_a_contradictory_section_names_its_setting(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"train\.mixture"):
        CorpusMixtureConfig.model_validate(settings)
