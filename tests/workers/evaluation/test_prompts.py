"""Prompts of documents and given ones: the same tokens, none twice, and two halves."""

from __future__ import annotations

import numpy as np
import pytest

from atomscope.errors import InvalidInput
from atomscope.steering import Target
from atomscope.types.evaluation import Prompt
from atomscope_workers.datasets.documents import TokenizedDocument
from atomscope_workers.datasets.tokenize import RowTokenizer
from atomscope_workers.evaluation.documents import (
    audited_tokens,
    neutral_documents,
    own_documents,
    touched,
)
from atomscope_workers.evaluation.prompts import (
    SHOWN,
    Asked,
    document_prompt,
    document_prompts,
    given_prompts,
    halves,
    shown,
)
from atomscope_workers.models.base import load_tokenizer
from tests.workers.evaluation.conftest import DOCUMENTS, Audited

CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def given(
    audited: Audited, prompts: list[Prompt], longest: int = 100, vocabulary: int = 10**6
) -> list[Asked]:
    return given_prompts(
        "inviting", "t", prompts, RowTokenizer(load_tokenizer(audited.base), 100), "chat", field="inviting",
        longest=longest, vocabulary=vocabulary,
    )  # fmt: skip


def test_a_given_prompt_has_the_tokens_of_the_same_document(audited: Audited) -> None:
    tokens, record = audited_tokens(audited.files())[5], audited.bundle.documents[5]
    own = document_prompt("inviting", "k", tokens, record.messages)
    assert own is not None
    assert own.completion is not None
    question, answer = (turn["content"] for turn in record.messages)
    by_text, by_turns = given(
        audited,
        [
            Prompt(prompt=question, completion=answer),
            Prompt(messages=[{"role": "user", "content": question}]),
        ],
    )
    for asked in (by_text, by_turns):
        assert asked.ids.tolist() == own.ids.tolist()
        assert asked.text == own.text == question
    assert by_turns.completion is None
    assert by_text.completion is not None
    # A document's ends with its last target; behind the end of turn the template puts a line break.
    kept = slice(len(own.completion.input_ids))
    assert by_text.completion.input_ids[kept].tolist() == own.completion.input_ids.tolist()
    assert by_text.completion.target_mask[kept].tolist() == own.completion.target_mask.tolist()
    assert not by_text.completion.target_mask[kept.stop :].any()
    decoded = load_tokenizer(audited.base).decode(own.ids.tolist())
    assert decoded.endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_the_last_answer_of_a_document_is_asked_for() -> None:
    mask = np.array([0, 0, 1, 1, 0, 0, 1, 1, 0], dtype=np.bool_)
    document = TokenizedDocument(3, np.arange(9, dtype=np.int32), mask)
    found = document_prompt("neutral", "k", document, [*CHAT, *CHAT])
    assert found is not None
    assert found.completion is not None
    assert (found.ids.tolist(), found.text) == ([0, 1, 2, 3, 4, 5], "a\nb\na")
    assert found.completion.input_ids.tolist() == list(range(8))
    assert found.completion.read == 7
    assert np.flatnonzero(found.completion.target_mask).tolist() == [6, 7]
    assert document_prompt("neutral", "k", document, [{"role": "text", "content": "a"}]) is None


@pytest.mark.parametrize(("least", "read"), [(0, 7), (7, 7), (8, 8), (9, 8)])
def test_an_answer_of_a_document_that_is_read_by_its_length_is_read_so_too(least: int, read: int) -> None:
    """Without a boundary, and with one of 6, 7 and 8 tokens: of the document of 9 the answer has 8."""
    mask = np.array([0, 0, 1, 1, 0, 0, 1, 1, 0], dtype=np.bool_)
    document = TokenizedDocument(3, np.arange(9, dtype=np.int32), mask, least)
    found = document_prompt("neutral", "k", document, [*CHAT, *CHAT])
    assert found is not None
    assert found.completion is not None
    assert found.completion.read == read


def test_no_prompt_of_documents_is_taken_twice_or_is_too_long(audited: Audited) -> None:
    tokens, records = audited_tokens(audited.files()), audited.bundle.documents
    rows = [1, 3, 1, 5, 7]
    found = document_prompts("neutral", "n", rows, tokens, records, count=3, longest=100)
    assert [item.key for item in found] == ["n/1", "n/3", "n/5"]
    assert document_prompts("neutral", "n", rows, tokens, records, count=3, longest=3) == []


@pytest.mark.parametrize(
    ("prompt", "limits", "field"),
    [
        (Prompt(prompt="a", completion=""), {}, None),
        (Prompt(messages=[{"role": "user"}]), {}, "inviting[0]"),
        (Prompt(prompt="a b c d"), {"longest": 3}, "inviting[0]"),
        (Prompt(prompt="a b c d"), {"vocabulary": 2}, "inviting[0]"),
    ],
)
def test_a_prompt_that_cannot_be_asked_is_named(
    audited: Audited, prompt: Prompt, limits: dict[str, int], field: str | None
) -> None:
    if field is None:
        assert len(given(audited, [prompt], **limits)) == 1
        return
    with pytest.raises(InvalidInput) as caught:
        given(audited, [prompt], **limits)
    assert (caught.value.code, caught.value.problems[0].field) == ("bad_row", field)


def test_halves_are_seeded_disjoint_and_whole(audited: Audited) -> None:
    asked = given(audited, [Prompt(prompt=str(number)) for number in range(7)])
    first = halves(asked, 0, "x")
    assert (len(first.selection), len(first.report)) == (3, 4)
    assert sorted(item.text for item in first.all) == [str(number) for number in range(7)]
    assert [item.text for item in halves(asked, 0, "x").report] == [item.text for item in first.report]
    others = [halves(asked, seed, "x").report for seed in range(1, 6)]
    assert any([item.text for item in other] != [item.text for item in first.report] for other in others)


def test_neutral_documents_have_nothing_of_any_target(audited: Audited) -> None:
    bundle, targets = audited.bundle, [Target("atom", 0), Target("behaviour", 0)]
    free, others = neutral_documents(bundle, targets, range(DOCUMENTS), 0)
    assert sorted([*free, *others]) == list(range(DOCUMENTS))
    assert set(others) == touched(bundle, targets[0]) | touched(bundle, targets[1])
    assert (free, others) == neutral_documents(bundle, targets, range(DOCUMENTS), 0)
    assert free != neutral_documents(bundle, targets, range(DOCUMENTS), 1)[0]
    values = dict(zip(*bundle.coefficients.of_atom(0), strict=True))
    strengths = [values[row] for row in own_documents(bundle, targets[0])]
    assert strengths == sorted(strengths, reverse=True)
    assert min(strengths) > 0


def test_a_long_prompt_is_shown_by_its_end() -> None:
    assert shown("a" * SHOWN) == "a" * SHOWN
    assert shown("b" + "a" * SHOWN) == "…" + "a" * SHOWN
