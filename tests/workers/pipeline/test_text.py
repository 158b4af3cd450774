"""The control by text alone: scikit-learn's words, and pairs of characters where a script has no spaces."""

from __future__ import annotations

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from atomscope_workers.pipeline.text import text_span, words

SPACED = [
    "The cat eats, and the cat sleeps.",
    "Don't wake a sleeping DOG!",
    "dogs can't eat 2 cats",
    "naïve cats",
]


def test_words_between_spaces_are_those_of_scikit_learn() -> None:
    of_theirs = TfidfVectorizer().build_analyzer()
    for text in SPACED:
        assert words(text) == of_theirs(text)


def test_a_script_without_spaces_is_told_by_pairs_of_characters() -> None:
    assert words("東京の天気 is fine") == ["東京", "京の", "の天", "天気", "is", "fine"]
    assert words("x中文9") == ["x", "中文", "9"]


def test_documents_of_one_subject_are_alike_in_such_a_script() -> None:
    texts = ["東京の天気は晴れ", "大阪の天気は雨です", "猫は魚を食べる", "犬と猫は魚が好き"]
    found = text_span(texts, exact_documents=10, columns=8, seed=0)
    assert found is not None
    span, used = found
    assert used.tolist() == [0, 1, 2, 3]
    gram = np.asarray(span.gram)
    assert min(gram[0, 1], gram[2, 3]) > 2 * gram[:2, 2:].max()
