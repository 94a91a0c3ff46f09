"""A scaling law: how the loss falls with the number of parameters N and of training tokens D.

    L(N, D) = E + A / N^α + B / D^β

E is the loss that no model gets below, the other terms are what a finite model and a finite corpus cost.

Source: Hoffmann et al., Training Compute-Optimal Large Language Models, approach 3 and appendix D.3,
https://arxiv.org/abs/2203.15556; Besiroglu et al., Chinchilla Scaling: A replication attempt, section 3,
https://arxiv.org/abs/2404.10102.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from llm.errors import DataError

Floats = NDArray[np.float64]

UNKNOWNS = 5
LEVELS = 3  # different sizes, and token budgets, that offset, factor and exponent of a term need
HUBER_DELTA = 1e-3  # log residuals beyond it count linearly: a failed training doesn't bend the law
FLOPS_PER_PARAMETER_AND_TOKEN = 6  # forward 2, backward 4
REFINED_STARTS = 12  # of the grid's best, from which the optimizer goes on

GRID = (  # log A, log B, log E, α, β: the initial values of Hoffmann et al.
    (0.0, 5.0, 10.0, 15.0, 20.0, 25.0),
    (0.0, 5.0, 10.0, 15.0, 20.0, 25.0),
    (-1.0, -0.5, 0.0, 0.5, 1.0),
    (0.0, 0.5, 1.0, 1.5, 2.0),
    (0.0, 0.5, 1.0, 1.5, 2.0),
)


@dataclass(frozen=True)
class Point:
    """One finished training."""

    parameters: float
    tokens: float
    loss: float


@dataclass(frozen=True)
class Law:
    """One set of the five constants."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        """The loss that the law expects.

        Example:
            >>> round(Law(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28).loss(70e9, 1.4e12), 2)
            1.94
        """
        return float(self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta)

    def optimum(self, flops: float) -> tuple[float, float]:
        """Parameters and tokens of the lowest loss that this much compute, 6·N·D, can buy.

        Source: Hoffmann et al., equation 4.
        """
        product = flops / FLOPS_PER_PARAMETER_AND_TOKEN
        both = self.alpha + self.beta
        balance = (self.alpha * self.A / (self.beta * self.B)) ** (1 / both)
        return balance * product ** (self.beta / both), product ** (self.alpha / both) / balance


@dataclass(frozen=True)
class Band:
    """A value with the interval that holds it with 95 % confidence."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Fit:
    """The law of some points, and the laws of as many resampled worlds that tell how sure it is."""

    points: tuple[Point, ...]
    law: Law
    resampled: tuple[Law, ...]
    residual: float  # root mean square of log(observed / expected)

    def loss(self, parameters: float, tokens: float) -> Band:
        """The expected loss; one training scatters around it by `residual` more."""
        return _band(self.law.loss(parameters, tokens), [law.loss(parameters, tokens) for law in self.resampled])

    def optimum(self, flops: float) -> tuple[Band, Band]:
        """Parameters and tokens to spend this much compute on."""
        best, worlds = self.law.optimum(flops), [law.optimum(flops) for law in self.resampled]
        return _band(best[0], [world[0] for world in worlds]), _band(best[1], [world[1] for world in worlds])

    @property
    def most_flops(self) -> float:
        """Compute of the most expensive point."""
        return max(FLOPS_PER_PARAMETER_AND_TOKEN * point.parameters * point.tokens for point in self.points)


def fit(points: Sequence[Point], *, seed: int = 0, resamples: int = 200) -> Fit:
    """The law that fits the points best, in the Huber loss of log residuals.

    The errors are summed, not averaged: the optimizer stops at an absolute tolerance, which a mean over many points
    meets too early (Besiroglu et al., section 3.3). The confidence comes from a bootstrap of residuals, because the
    sizes and budgets were chosen, not drawn: residuals are dealt out anew over the same N and D.

    Raises: DataError if the points can't tell the five constants apart.
    """
    check(points)
    sizes, budgets, losses = (
        np.log([getattr(point, name) for point in points]).astype(np.float64) for name in ("parameters", "tokens", "loss")
    )
    best = _best([_refined(start, sizes, budgets, losses) for start in _starts(sizes, budgets, losses)])
    expected, _ = _log_loss(best, sizes, budgets)
    residuals = losses - expected
    spread = (residuals - residuals.mean()) * np.sqrt(len(points) / max(1, len(points) - UNKNOWNS))
    random = np.random.default_rng(seed)
    worlds = [expected + random.choice(spread, len(spread)) for _ in range(resamples)]
    laws = tuple(_law(_refined(best, sizes, budgets, world)[1]) for world in worlds)
    return Fit(tuple(points), _law(best), laws, float(np.sqrt(np.mean(residuals**2))))


def check(points: Sequence[Point]) -> None:
    """Raises: DataError if there are too few points, sizes or token budgets."""
    sizes, budgets = len({point.parameters for point in points}), len({point.tokens for point in points})
    if sizes < LEVELS or budgets < LEVELS or len(points) <= UNKNOWNS:
        raise DataError(
            f"a scaling law needs {LEVELS} model sizes, {LEVELS} token budgets and {UNKNOWNS + 1} trainings",
            value=f"{sizes} sizes, {budgets} budgets, {len(points)} trainings",
            remedy="add values of model.width or model.num_layers, and of train.steps, to the sweep",
        )


def _log_loss(theta: Floats, sizes: Floats, budgets: Floats) -> tuple[Floats, Floats]:
    """log L of every point, and which shares of L its three terms have; exponents are taken below the largest term."""
    a, b, e, alpha, beta = theta
    terms = np.stack([a - alpha * sizes, b - beta * budgets, np.full_like(sizes, e)])
    largest = terms.max(axis=0)
    parts = np.exp(terms - largest)
    total = parts.sum(axis=0)
    return largest + np.log(total), parts / total


def _objective(theta: Floats, sizes: Floats, budgets: Floats, losses: Floats) -> tuple[float, Floats]:
    """Summed Huber loss of the log residuals, and its gradient; both over delta, the scale of the optimizer's tolerances."""
    expected, shares = _log_loss(theta, sizes, budgets)
    residuals = expected - losses
    inside = np.minimum(np.abs(residuals), HUBER_DELTA)
    value = np.sum(inside * (np.abs(residuals) - inside / 2))
    by_term = shares * np.clip(residuals, -HUBER_DELTA, HUBER_DELTA)
    a, b, e = by_term.sum(axis=1)
    return float(value / HUBER_DELTA), np.array([a, b, e, -by_term[0] @ sizes, -by_term[1] @ budgets]) / HUBER_DELTA


def _starts(sizes: Floats, budgets: Floats, losses: Floats) -> list[Floats]:
    """The grid's points of the lowest objective."""
    grid = [np.array(theta) for theta in itertools.product(*GRID)]
    return sorted(grid, key=lambda theta: _objective(theta, sizes, budgets, losses)[0])[:REFINED_STARTS]


def _refined(start: Floats, sizes: Floats, budgets: Floats, losses: Floats) -> tuple[float, Floats]:
    """Objective and place where L-BFGS ends."""
    found = minimize(
        _objective,
        start,
        args=(sizes, budgets, losses),
        jac=True,
        method="L-BFGS-B",
        bounds=[(None, None)] * 3 + [(1e-3, 4.0)] * 2,
        options={"maxiter": 2000, "maxfun": 4000, "ftol": 1e-10, "gtol": 1e-6},
    )
    return float(found.fun), np.asarray(found.x, dtype=np.float64)


def _best(found: list[tuple[float, Floats]]) -> Floats:
    return min(found, key=lambda pair: pair[0])[1]


def _law(theta: Floats) -> Law:
    a, b, e, alpha, beta = (float(value) for value in theta)
    return Law(E=float(np.exp(e)), A=float(np.exp(a)), B=float(np.exp(b)), alpha=alpha, beta=beta)


def _band(value: float, worlds: list[float]) -> Band:
    low, high = np.percentile(worlds, (2.5, 97.5))
    return Band(value, float(low), float(high))
