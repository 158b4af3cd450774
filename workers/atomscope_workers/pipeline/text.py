"""The documents by their text alone: the control that says how much of an atom plain words explain."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.random_projection import SparseRandomProjection

from atomscope_workers.pipeline.keywords import split_unspaced
from atomscope_workers.pipeline.span import Span, unit_gram, unit_rows

_WORD = re.compile(r"\b\w\w+\b")
"""scikit-learn's own: two characters or more."""


def words(text: str) -> list[str]:
    """The terms of a text, in lower case: its words, and pairs of characters where no space parts them."""
    return [part for run in _WORD.findall(text.lower()) for part in split_unspaced(run)]


def text_span(
    texts: Iterable[str], *, exact_documents: int, columns: int, seed: int
) -> tuple[Span, NDArray[np.int64]] | None:
    """TF-IDF rows as a span, and the positions of the texts in it; None where no word occurs twice.

    Every inner product is kept up to `exact_documents` texts, past that a random projection to `columns`.
    """
    analyzer: Any = words
    try:
        weights = TfidfVectorizer(min_df=2, sublinear_tf=True, analyzer=analyzer).fit_transform(texts)
        rows = csr_matrix(weights, dtype=np.float32)
    except ValueError:  # scikit-learn's way to say that no term is left
        return None
    used = np.flatnonzero(np.diff(rows.indptr) > 0)
    rows = rows[used]
    if len(used) <= exact_documents:
        return unit_gram(torch.from_numpy((rows @ rows.T).toarray())), used
    if rows.shape[1] <= columns:
        return unit_rows(torch.from_numpy(rows.toarray())), used

    projection: Any = SparseRandomProjection(columns, random_state=seed, dense_output=True)  # pyright: ignore[reportArgumentType]
    return unit_rows(torch.from_numpy(projection.fit_transform(rows).astype(np.float32, copy=False))), used
