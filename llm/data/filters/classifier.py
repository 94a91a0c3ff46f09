"""A linear model of words and pairs of words that was shown good and bad examples.

Source: the classifier behind GPT-3's Common Crawl, https://arxiv.org/abs/2005.14165, appendix A: hashed words, logistic regression;
here documents are kept from a threshold on, or the best share of them, rather than drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEATURES = 2**18


@dataclass(frozen=True)
class Classifier:
    """A weight for every hashed feature."""

    weights: NDArray[np.float64]
    bias: float

    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Of each text, of being good."""
        return 1 / (1 + np.exp(-(_features(texts) @ self.weights + self.bias)))

    def save(self, path: Path) -> None:
        """Writes a .npz file."""
        np.savez(path, weights=self.weights, bias=self.bias)

    @classmethod
    def load(cls, path: Path) -> Classifier:
        """Reads what `save` wrote."""
        with np.load(path) as file:
            return cls(file["weights"], float(file["bias"]))


def train(good: Sequence[str], bad: Sequence[str], folds: int) -> tuple[Classifier, dict[str, Any]]:
    """The classifier, and how well others did that were trained without a fold of the examples and then shown it.

    Accuracy counts both kinds alike, however many there are of each.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    features, labels = _features([*good, *bad]), np.repeat([1, 0], [len(good), len(bad)])
    estimator = LogisticRegression(solver="liblinear", class_weight="balanced", random_state=0)
    counts: dict[str, Any] = {"good": len(good), "bad": len(bad)}
    folds = min(folds, len(good), len(bad))
    if folds > 1:
        split = StratifiedKFold(folds, shuffle=True, random_state=0)
        guesses = cross_val_predict(estimator, features, labels, cv=split, method="predict_proba")[:, 1]
        counts["accuracy"] = round(float(balanced_accuracy_score(labels, guesses >= 0.5)), 4)
        counts["auc"] = round(float(roc_auc_score(labels, guesses)), 4)
    estimator.fit(features, labels)
    return Classifier(estimator.coef_[0], float(estimator.intercept_[0])), counts


def _features(texts: Sequence[str]) -> Any:
    from sklearn.feature_extraction.text import HashingVectorizer

    vectorizer = HashingVectorizer(n_features=FEATURES, ngram_range=(1, 2), alternate_sign=False, norm="l2")
    return vectorizer.transform(texts)
