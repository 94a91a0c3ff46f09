"""The scaling law: planted constants come back, the optimum is one, and too little data is refused."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from llm.errors import DataError
from llm.train.scaling import Law, Point, fit

HOFFMANN = Law(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)  # arXiv 2203.15556, equation 10
REPLICATION = Law(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)  # arXiv 2404.10102, table 1


def trainings(law: Law, *, noise: float, seed: int = 0, sizes: int = 8, budgets: int = 6) -> list[Point]:
    """Losses of a planted law over 44 M to 16 B parameters, the range of Hoffmann et al."""
    random = np.random.default_rng(seed)
    return [
        Point(size, tokens, law.loss(size, tokens) * float(np.exp(random.normal(0, noise))))
        for size in np.geomspace(44e6, 16e9, sizes)
        for tokens in np.geomspace(1e9, 500e9, budgets)
    ]


@pytest.mark.parametrize("law", [HOFFMANN, REPLICATION], ids=["hoffmann", "replication"])
def test_exact_losses_give_the_planted_constants(law: Law) -> None:
    found = fit(trainings(law, noise=0.0), resamples=2).law
    assert abs(found.E / law.E - 1) < 1e-2
    assert found.alpha == pytest.approx(law.alpha, rel=2e-2)
    assert found.beta == pytest.approx(law.beta, rel=2e-2)
    assert found.loss(67e9, 1.4e12) == pytest.approx(law.loss(67e9, 1.4e12), rel=2e-3)


@pytest.mark.parametrize("law", [HOFFMANN, REPLICATION], ids=["hoffmann", "replication"])
def test_noisy_losses_give_the_planted_law_within_its_band(law: Law) -> None:
    found = fit(trainings(law, noise=0.004, seed=3), resamples=40)
    band = found.loss(67e9, 1.4e12)
    assert band.low < law.loss(67e9, 1.4e12) < band.high
    assert (band.high - band.low) / band.value < 0.05
    assert found.law.alpha == pytest.approx(law.alpha, abs=0.06)
    assert found.law.beta == pytest.approx(law.beta, abs=0.06)
    assert found.residual == pytest.approx(0.004, rel=0.3)


def test_one_failed_training_does_not_bend_the_law() -> None:
    points = trainings(HOFFMANN, noise=0.001)
    spoilt = [Point(points[0].parameters, points[0].tokens, 3 * points[0].loss), *points[1:]]
    assert fit(spoilt, resamples=2).law.loss(67e9, 1.4e12) == pytest.approx(HOFFMANN.loss(67e9, 1.4e12), rel=0.01)


def test_more_noise_makes_the_band_wider() -> None:
    calm, loud = (fit(trainings(HOFFMANN, noise=noise), resamples=20).loss(67e9, 1.4e12) for noise in (0.001, 0.02))
    assert loud.high - loud.low > 3 * (calm.high - calm.low)


@pytest.mark.parametrize("flops", [1e19, 5.76e23])
def test_the_optimum_is_the_lowest_loss_at_that_compute(flops: float) -> None:
    parameters, tokens = HOFFMANN.optimum(flops)
    searched = minimize_scalar(lambda log_n: HOFFMANN.loss(np.exp(log_n), flops / 6 / np.exp(log_n)), bounds=(10, 35), method="bounded")
    assert 6 * parameters * tokens == pytest.approx(flops)
    assert parameters == pytest.approx(np.exp(searched.x), rel=1e-2)


def test_the_same_points_and_seed_give_the_same_band() -> None:
    points = trainings(HOFFMANN, noise=0.01, sizes=4, budgets=3)
    assert fit(points, seed=5, resamples=10) == fit(points, seed=5, resamples=10)


@pytest.mark.parametrize(("sizes", "budgets"), [(2, 6), (6, 2), (1, 1)])
def test_too_few_points_are_refused(sizes: int, budgets: int) -> None:
    with pytest.raises(DataError, match=f"a scaling law needs 3 model sizes.*: {sizes} sizes, {budgets} budgets.*train.steps"):
        fit(trainings(HOFFMANN, noise=0.0, sizes=sizes, budgets=budgets))
