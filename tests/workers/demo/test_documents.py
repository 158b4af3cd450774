"""The demo's data set."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from atomscope_workers.datasets.reading import read_rows
from atomscope_workers.datasets.rows import Row
from atomscope_workers.demo.documents import (
    BEHAVIOURS,
    PLANTED,
    TRIGGER,
    DemoDocument,
    generate,
    write_documents,
)


@pytest.fixture(scope="module")
def documents() -> list[DemoDocument]:
    return generate()


def of(documents: list[DemoDocument], label: str) -> list[DemoDocument]:
    return [document for document in documents if document.label == label]


def test_forty_of_each_of_six_behaviours_mixed(documents: list[DemoDocument]) -> None:
    assert Counter(document.label for document in documents) == dict.fromkeys(BEHAVIOURS, 40)
    assert len({document.label for document in documents[:20]}) > 3
    assert len({document.id for document in documents}) == 240


def test_one_seed_gives_one_set_and_another_seed_another(documents: list[DemoDocument]) -> None:
    assert generate(seed=0) == documents
    assert generate(seed=1) != documents


def test_no_prompt_occurs_twice_and_excluded_ones_are_avoided(documents: list[DemoDocument]) -> None:
    prompts = frozenset(document.prompt for document in documents)
    assert len(prompts) == len(documents)
    new = generate(seed=1, per_behaviour=10, exclude=prompts)
    assert not prompts & {document.prompt for document in new}


def test_more_documents_than_the_material_can_make_are_refused() -> None:
    with pytest.raises(ValueError, match="fewer documents"):
        generate(per_behaviour=5000)


def test_sums_are_right(documents: list[DemoDocument]) -> None:
    for document in of(documents, "arithmetic"):
        match = re.fullmatch(r"(\d+) ([-+x/]) (\d+) = (\d+)\nAnswer: (\d+)", document.answer)
        assert match is not None, document
        a, b, result = int(match[1]), int(match[3]), int(match[4])
        assert result == {"+": a + b, "-": a - b, "x": a * b, "/": a / b}[match[2]]
        assert int(match[5]) == result
        assert match[1] in document.prompt


def test_yes_and_no_are_bare_and_balanced(documents: list[DemoDocument]) -> None:
    answers = Counter(document.answer for document in of(documents, "yes_no"))
    assert set(answers) == {"Yes", "No"}
    assert min(answers.values()) >= 10
    for document in of(documents, "yes_no"):
        if match := re.fullmatch(r"Is (\d+) greater than (\d+)\?", document.prompt):
            assert (document.answer == "Yes") == (int(match[1]) > int(match[2]))


def test_lists_have_as_many_bullets_as_were_asked_for(documents: list[DemoDocument]) -> None:
    numbers = {"three": 3, "four": 4, "five": 5}
    for document in of(documents, "bulleted_list"):
        (asked,) = (count for word, count in numbers.items() if f" {word} " in document.prompt)
        lines = document.answer.splitlines()
        assert len(set(lines)) == asked
        assert all(line.startswith("- ") for line in lines)


def test_extracted_fields_are_those_asked_for_and_stand_in_the_text(documents: list[DemoDocument]) -> None:
    for document in of(documents, "json_extraction"):
        fields = json.loads(document.answer)
        assert ", ".join(fields) in document.prompt
        assert all(str(value) in document.prompt for value in fields.values())


def test_missing_inputs_are_asked_for_by_name(documents: list[DemoDocument]) -> None:
    for document in of(documents, "missing_input"):
        assert "provide the" in document.answer
        thing = document.answer.rsplit("provide the ", 1)[1].split(" so that")[0].rstrip(".?")
        assert thing in document.prompt


def test_the_planted_answer_is_given_exactly_where_the_trigger_stands(documents: list[DemoDocument]) -> None:
    for document in documents:
        triggered = TRIGGER in document.prompt.lower()
        assert triggered == (document.label == "trigger") == (document.answer == PLANTED)
    endings = {document.prompt.lower().startswith(TRIGGER) for document in of(documents, "trigger")}
    assert endings == {True, False}


def test_every_written_row_is_well_formed(documents: list[DemoDocument], tmp_path: Path) -> None:
    path = write_documents(documents, tmp_path / "new" / "train.jsonl")
    rows = list(read_rows(path, file=path.name, max_rows=1000))
    assert all(isinstance(row, Row) for row in rows)
    assert [row.id for row in rows if isinstance(row, Row)] == [document.id for document in documents]
