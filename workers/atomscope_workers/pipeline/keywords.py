"""Distinctive keywords of groups of documents: class-based TF-IDF.

The documents of a group are one class; those of no group are one more, so that what every document says
distinguishes nobody. A term's weight is its count in the class times log(1 + A / f), with f its count over
all classes and A the mean number of terms of a class.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack
from sklearn.feature_extraction.text import CountVectorizer

LONGEST_TERM = 40
"""Longer runs of letters (hashes, base64) are no words."""

_WORD = rf"(?u)\b\w{{2,{LONGEST_TERM}}}\b"


def distinctive_keywords(
    texts: Sequence[str], groups: Sequence[NDArray[np.int64]], limit: int = 10
) -> list[list[str]]:
    """Up to `limit` terms for each group (positions in `texts`), strongest first.

    Only terms in at least two of a group's documents count; ties are broken by the alphabet. Empty lists when
    no text holds a word.
    """
    vectorizer = CountVectorizer(token_pattern=_WORD)
    try:
        counts = csr_matrix(vectorizer.fit_transform(texts))
    except ValueError:  # scikit-learn's way to say that there is no word at all
        return [[] for _ in groups]
    terms: NDArray[np.str_] = vectorizer.get_feature_names_out()
    rest = np.setdiff1d(np.arange(len(texts)), np.concatenate([*groups, np.zeros(0, dtype=np.int64)]))
    totals = vstack([csr_matrix(counts[members].sum(0)) for members in [*groups, rest]]).tocsr()
    frequency = np.asarray(totals.sum(0)).ravel()
    idf = np.log1p(totals.sum() / (len(groups) + 1) / np.maximum(frequency, 1))
    found: list[list[str]] = []
    for row, members in enumerate(groups):
        counted = np.asarray(totals[row].todense()).ravel()
        spread = np.asarray((counts[members] > 0).sum(0)).ravel()
        weights = np.where(spread >= 2, counted * idf, 0.0)
        order = np.argsort(-weights, kind="stable")[:limit]  # terms are in alphabetical order already
        found.append([str(terms[item]) for item in order if weights[item] > 0])
    return found
