"""Keywords of groups of documents, by contrast with all others: weighted log-odds with an informative prior.

As Monroe, Colaresi and Quinn (2008, "Fightin' Words"), on document frequencies: a document holds a term or
does not, so that one long document says no more than one voice. The prior of a term is a Beta, the Dirichlet
of two outcomes, of `PRIOR` documents that hold it as often as all documents do. It draws the odds of rare
terms and of small groups together. Terms are ordered by the z-score of the difference in log-odds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer

LONGEST_TERM = 40
"""Longer runs of letters (hashes, base64) are no words."""

PRIOR = 10.0
"""Weight of the prior, in documents."""

LEAST_Z = 1.0
"""z-score, in standard errors, above which a term distinguishes a group."""

LEAST_DOCUMENTS = 2
"""Documents of the group that must hold a term: one document's words are its own."""

_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0e7f"
"""Kana, Han and Thai, which put no space between words."""
_RUN = re.compile(rf"[{_UNSPACED}]+|[^\W{_UNSPACED}]+")
_IS_UNSPACED = re.compile(rf"[{_UNSPACED}]")


@dataclass(frozen=True)
class Keywords:
    """Terms of one group, strongest first."""

    anywhere: list[str]
    prompt: list[str]
    """By the prompts alone: what the group answers to."""
    response: list[str]
    """By the responses alone: what the group says."""


def terms(text: str) -> list[str]:
    """The words of a text in lower case; pairs of characters where a script puts no space between words."""
    found: list[str] = []
    for run in _RUN.findall(text.lower()):
        if not _IS_UNSPACED.match(run):
            if 2 <= len(run) <= LONGEST_TERM:
                found.append(run)
        elif len(run) > 1:
            found += _pairs(run)
    return found


def split_unspaced(run: str) -> list[str]:
    """A word as it is; pairs of neighbouring characters of what a script writes without spaces."""
    if not _IS_UNSPACED.search(run):
        return [run]
    parts: list[str] = []
    for part in _RUN.findall(run):
        parts += _pairs(part) if _IS_UNSPACED.match(part) and len(part) > 1 else [part]
    return parts


def _pairs(run: str) -> list[str]:
    return [run[place : place + 2] for place in range(len(run) - 1)]


def left_out(count: int, active: NDArray[np.int64], group: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which of `count` documents a group of the `active` ones is not compared with: all that are active.

    Where fewer than the group are left then (in small sets most documents are active), the group alone.
    """
    return active if count - len(active) >= len(group) else group


def distinctive_keywords(
    texts: Iterable[tuple[str, str]], active: Sequence[NDArray[np.int64]], most: int, limit: int = 10
) -> list[Keywords]:
    """Up to `limit` terms for each group, by z-score; ties are broken by the alphabet.

    `texts` are prompt and response of each document, `active` positions in them, strongest first: a group is
    the first `most` of these, compared with documents that are not active (see `left_out`). A group that is
    compared with nothing has no keywords, and a term that every document holds is nobody's.
    """
    vectorizer = CountVectorizer(analyzer=terms, binary=True)  # pyright: ignore[reportArgumentType]
    try:
        rows = csr_matrix(vectorizer.fit_transform(chain.from_iterable(texts)))
    except ValueError:  # scikit-learn's way to say that there is no word at all
        return [Keywords([], [], []) for _ in active]
    names: NDArray[np.str_] = vectorizer.get_feature_names_out()
    prompts, responses = rows[::2], rows[1::2]
    count = prompts.shape[0]
    sides = [((prompts + responses) > 0).tocsr(), prompts, responses]
    totals = [_frequency(side) for side in sides]
    found: list[Keywords] = []
    for order in active:
        group = order[:most]
        out = left_out(count, order, group)
        lists: list[list[str]] = []
        for side, total in zip(sides, totals, strict=True):
            held = _frequency(side[group])
            scores = log_odds(
                held, len(group), total - _frequency(side[out]), count - len(out), total / count
            )
            scores[held < LEAST_DOCUMENTS] = 0.0
            strongest = np.argsort(-scores, kind="stable")[:limit]  # terms are in alphabetical order already
            lists.append([str(names[item]) for item in strongest if scores[item] > LEAST_Z])
        found.append(Keywords(*lists))
    return found


def log_odds(
    held: NDArray[np.float64],
    size: int,
    held_by_others: NDArray[np.float64],
    others: int,
    share: NDArray[np.float64],
) -> NDArray[np.float64]:
    """z-scores (V,) of the difference in log-odds between `size` documents and `others`.

    `held` and `held_by_others` (V,) count the documents on each side that hold a term, `share` (V,) is its
    share of all documents. 0 where a side has no document, or where every document or none holds the term.
    """
    scores = np.zeros(len(share))
    if not size or not others:
        return scores
    told = (share > 0) & (share < 1)
    prior = PRIOR * share[told]
    counts = [held[told] + prior, size - held[told] + PRIOR - prior]
    counts += [held_by_others[told] + prior, others - held_by_others[told] + PRIOR - prior]
    difference = np.log(counts[0] / counts[1]) - np.log(counts[2] / counts[3])
    scores[told] = difference / np.sqrt(sum(1 / count for count in counts))
    return scores


def _frequency(rows: Any) -> NDArray[np.float64]:  # noqa: ANN401  (a sparse matrix of 0 and 1)
    """Documents (V,) that hold each term."""
    return np.asarray(rows.sum(0), dtype=np.float64).ravel()
