"""What a corpus is about: latent Dirichlet allocation over a sample of its documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sklearn.decomposition import LatentDirichletAllocation
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer

WORDS, SHOWN = 3_000, 10
STARTS = 3  # of which the likeliest model counts: one alone may have merged two topics


def topics(texts: Sequence[str], count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """The topics, the largest first: its share of the words and its most telling words. None where there are too few texts.

    A word that stands in more than half of the texts, or in one only, tells nothing.

    Source: Blei, Ng & Jordan 2003, https://www.jmlr.org/papers/v3/blei03a.html, by the variational method of
    Hoffman, Blei & Bach 2010; words are ranked by p(word | topic) · p(topic | word), so that common ones step back.
    """
    vectorizer = CountVectorizer(
        max_features=WORDS, min_df=2, max_df=0.5, stop_words=sorted(ENGLISH_STOP_WORDS), token_pattern=r"(?u)\b[^\W\d_]{3,}\b"
    )
    if len(texts) < 2 * count:
        return []
    try:
        counts = vectorizer.fit_transform(texts)
    except ValueError:  # no word is left
        return []
    starts = (
        LatentDirichletAllocation(n_components=count, random_state=seed + start, max_iter=10, learning_method="batch", n_jobs=1).fit(counts)
        for start in range(STARTS)
    )
    model = max(starts, key=lambda each: each.score(counts))
    weights = model.transform(counts).T @ counts.sum(axis=1).A1
    by_word = model.components_ / model.components_.sum(axis=0)
    by_topic = model.components_ / model.components_.sum(axis=1, keepdims=True)
    names = vectorizer.get_feature_names_out()
    found = [
        {
            "share": float(weights[topic] / weights.sum()),
            "words": [str(names[i]) for i in (-by_word[topic] * by_topic[topic]).argsort(kind="stable")[:SHOWN]],
        }
        for topic in range(count)
    ]
    return sorted(found, key=lambda topic: -topic["share"])
