"""Whole evaluations of a local audit of the tiny model: what steers, what does not, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from atomscope.errors import InvalidInput
from atomscope.types.evaluation import EvaluationQuery, EvaluationResult, TargetEvaluation
from atomscope.types.resources import Progress
from atomscope_workers.evaluation import evaluate
from atomscope_workers.evaluation.strength import chosen_strength
from atomscope_workers.query import audited_model
from tests.workers.evaluation.conftest import Audited

ATOM = 0
"""Lists; half of the documents have it."""
LIKELY: dict[str, Any] = {
    "targets": [{"target": str(ATOM), "detector": {"type": "log-probability"}}],
    "strengths": [0.1, -0.1], "kl_budget": 5, "prompts": 12, "neutral_documents": 4,
}  # fmt: skip
WRITTEN: dict[str, Any] = {
    "targets": [
        {"target": "behaviour:0", "name": "lists", "detector": {"type": "pattern", "pattern": "[a-h]"}}
    ],
    "kl_budget": 0.3, "prompts": 8, "neutral_documents": 10, "random_at": "chosen", "answers": 2,
    "sampling": {"max_new_tokens": 4},
}  # fmt: skip


@pytest.fixture(scope="module")
def likely(audited: Audited) -> TargetEvaluation:
    return audited.evaluate(**LIKELY).targets[0]


@pytest.fixture(scope="module")
def written(audited: Audited) -> EvaluationResult:
    return audited.evaluate(**WRITTEN)


def test_the_direction_of_documents_makes_them_likelier_up_and_unlikelier_down(
    likely: TargetEvaluation,
) -> None:
    assert likely.verdict == "steers"
    assert likely.up is not None
    assert likely.down is not None
    assert (likely.up.verdict, likely.down.verdict) == ("steers", "steers")
    assert likely.gain > 0.5
    down, up = likely.points
    assert (down.strength, up.strength) == (-0.1, 0.1)
    assert min(down.shift, up.shift, down.selection_shift, up.selection_shift) > 0.3
    assert likely.baseline is not None
    assert up.overall.value - likely.baseline.value == pytest.approx(up.shift)
    assert likely.baseline.value - down.overall.value == pytest.approx(down.shift)
    assert up.overall == up.inviting  # a neutral completion does not hold the behaviour
    assert likely.unrelated not in (None, ATOM)
    assert likely.answers == []


def test_a_random_direction_in_its_place_does_not_steer(audited: Audited, tmp_path: Path) -> None:
    found = audited.with_noise(tmp_path / "noise", ATOM, 1).evaluate(**LIKELY).targets[0]
    assert found.verdict == "indistinguishable from random"
    assert [item.verdict for item in found.points] == ["indistinguishable from random"] * 2


def test_a_direction_that_works_the_other_way_is_told(
    audited: Audited, likely: TargetEvaluation, tmp_path: Path
) -> None:
    found = audited.with_opposite(tmp_path / "opposite", ATOM).evaluate(**LIKELY).targets[0]
    assert found.verdict == "steers the other way"
    assert [item.verdict for item in found.points] == ["steers the other way"] * 2
    # Its step up is the step down of the vector as it was.
    for item, mirrored in zip(found.points, reversed(likely.points), strict=True):
        assert item.shift == pytest.approx(-mirrored.shift, rel=1e-4)


def test_random_directions_stand_beside_every_point_at_equal_norm_and_cost(likely: TargetEvaluation) -> None:
    for item in likely.points:
        norm, cost = item.equal_norm, item.equal_kl
        assert norm is not None
        assert cost is not None
        assert (norm.match, cost.match) == ("norm", "kl")
        assert len(norm.shifts) == len(cost.shifts) == len(norm.costs) == len(cost.costs) == 20
        assert all(found == pytest.approx(item.cost.kl, rel=0.101) for found in cost.costs)
        assert item.unrelated is not None
        assert item.q_value is not None
    down, up = likely.points
    assert down.equal_norm is not None
    assert up.equal_norm is not None
    # One set of directions serves both signs.
    assert down.equal_norm.shifts == pytest.approx([-shift for shift in up.equal_norm.shifts])


def test_what_goes_with_it_leaves_out_its_own_behaviour_and_documents(
    audited: Audited, likely: TargetEvaluation
) -> None:
    own = {f"behaviour:{item.index}" for item in audited.bundle.behaviours if ATOM in item.behaviour.atoms}
    assert likely.others
    assert not own & likely.others.keys()
    assert all(abs(change) < likely.gain for change in likely.others.values())


def test_answers_are_counted_and_kept_side_by_side(written: EvaluationResult) -> None:
    (found,) = written.targets
    assert (found.target, found.name) == ("behaviour:0", "lists")
    assert found.baseline_inviting is not None
    assert found.baseline_neutral is not None
    assert found.baseline is not None
    assert (found.baseline_inviting.n, found.baseline_neutral.n, found.baseline.n) == (4, 4, 8)
    assert found.baseline.hits == (found.baseline_inviting.hits or 0) + (found.baseline_neutral.hits or 0)
    assert [item.kind for item in found.answers] == ["inviting", "inviting", "neutral", "neutral"]
    assert found.answers[0].prompt.startswith("List two facts about")
    assert found.answers[2].prompt.startswith("What is")
    assert any(item.base not in (item.up, item.down) for item in found.answers)
    assert written.neutral_documents == 10
    assert written.baseline_cost.kl == 0


def test_auto_takes_the_largest_strength_its_half_and_its_quarter(written: EvaluationResult) -> None:
    (found,) = written.targets
    assert found.auto_up is not None
    assert found.auto_down is not None
    expected = [share * end for end in (found.auto_up, found.auto_down) for share in (1, 0.5, 0.25)]
    assert [item.strength for item in found.points] == pytest.approx(sorted(expected))
    assert [item.strength for item in found.curve] == sorted(item.strength for item in found.curve)
    costs = {item.strength: item.cost.kl for item in found.curve}
    assert costs[found.auto_up] <= 0.3 < min(kl for s, kl in costs.items() if s > found.auto_up)
    assert found.up is not None
    points = {item.strength: item for item in found.points}
    up = {item.strength: item.selection_shift for item in found.points if item.strength > 0}
    assert found.up.strength == chosen_strength(up)
    assert found.up.shift == points[found.up.strength].shift


def test_random_directions_at_the_chosen_alone_leave_the_others_untested(written: EvaluationResult) -> None:
    (found,) = written.targets
    chosen = {item.strength for item in (found.up, found.down) if item is not None}
    for item in found.points:
        tested = item.strength in chosen
        assert (item.equal_norm is not None, item.equal_kl is not None, item.q_value is not None) == (
            tested,
        ) * 3
        assert (item.unrelated is not None, item.verdict is not None) == (tested,) * 2


def test_one_query_has_one_result_and_leaves_the_model_as_it_was(
    audited: Audited, written: EvaluationResult
) -> None:
    files = audited.files()
    lora = audited_model(files, files.bundle.plan)
    before = {item.name: item.linear.weight.clone() for item in lora.parameters}
    told: list[Progress] = []
    again = evaluate(audited.files(told.append), msgspec.convert(WRITTEN, EvaluationQuery))
    assert msgspec.structs.replace(again, seconds=0) == msgspec.structs.replace(written, seconds=0)
    assert all(item.linear.weight.equal(before[item.name]) for item in lora.parameters)
    assert msgspec.json.decode(msgspec.json.encode(again), type=EvaluationResult) == again
    assert {item.unit for item in told} == {"passes"}
    counts = [(item.done, item.total) for item in told]
    assert counts == sorted(counts)
    assert counts[-1][0] == counts[-1][1]

    class Stop(Exception):  # noqa: N818
        """Stands for a canceled job."""

    def stop(progress: Progress) -> None:
        if progress.done > 30:
            raise Stop

    with pytest.raises(Stop):
        evaluate(audited.files(stop), msgspec.convert(WRITTEN, EvaluationQuery))
    assert all(item.linear.weight.equal(before[item.name]) for item in lora.parameters)


def test_without_a_detector_cost_and_the_largest_strength_are_found(audited: Audited) -> None:
    query = {"targets": [{"target": str(ATOM)}], "unit": "alpha", "kl_budget": 0.2, "neutral_documents": 4}
    (found,) = audited.evaluate(**query).targets
    (same,) = audited.evaluate(**(query | {"unit": "norm"})).targets
    assert (found.verdict, found.points, found.up, found.others) == (None, [], None, {})
    assert found.auto_up is not None
    assert same.auto_up is not None
    ratio = found.auto_up / same.auto_up
    assert ratio != pytest.approx(1)
    assert [item.strength for item in found.curve] == pytest.approx(
        [item.strength * ratio for item in same.curve]
    )


def test_both_budgets_hold_at_the_largest_strength(audited: Audited) -> None:
    targets = [{"target": str(ATOM)}]
    by_divergence = audited.evaluate(targets=targets, kl_budget=0.3).targets[0]
    result = audited.evaluate(targets=targets, kl_budget=0.3, perplexity_budget=1.02)
    found, most = result.targets[0], 1.02 * result.baseline_cost.perplexity
    assert found.auto_down is not None
    assert by_divergence.auto_down is not None
    assert abs(found.auto_down) < abs(by_divergence.auto_down)
    perplexity = {point.strength: point.cost.perplexity for point in found.curve}
    beyond = [strength for strength in perplexity if strength < found.auto_down]
    assert perplexity[found.auto_down] <= most < perplexity[max(beyond)]


def test_given_prompts_take_the_form_of_the_data_and_few_are_told(audited: Audited) -> None:
    asked = [{"prompt": "List two facts about the yak."}, {"messages": [{"role": "user", "content": "Hi"}]}]
    target = {"target": str(ATOM), "detector": {"type": "length", "at_least": 1}, "inviting": asked}
    found = audited.evaluate(targets=[target], strengths=[0.1], neutral_documents=2, prompts=4)
    assert (found.targets[0].verdict, found.targets[0].points) == ("too few prompts", [])
    assert found.warnings == [
        "2 inviting prompts of atom 0 are too few: at least 4 different ones are needed"
    ]


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"targets": [{"target": "99"}]}, "invalid_steering", "targets[0].target"),
        ({"targets": [{"target": "behaviour:99"}]}, "invalid_steering", "targets[0].target"),
        ({"targets": [{"target": "0"}, {"target": "77"}]}, "invalid_steering", "targets[1].target"),
        ({"targets": [{"target": "0"}], "strengths": [200.0]}, "invalid_steering", "targets[0].target"),
        (
            {"targets": [{"target": "0", "detector": {"type": "length"},
                          "inviting": [{"messages": [{"role": "robot", "content": "a"}]}] * 2}]},
            "bad_row", "targets[0].inviting[0]",
        ),
        (
            {"targets": [{"target": "0", "detector": {"type": "length"},
                          "inviting": [{"prompt": "one two three " * 300}] * 2}]},
            "bad_row", "targets[0].inviting[0]",
        ),
        (
            {"targets": [{"target": "0"}], "sampling": {"max_new_tokens": 512}},
            "too_long", "sampling.max_new_tokens",
        ),
        (
            {"targets": [{"target": "0", "detector": {"type": "judge", "question": "So?"}}]},
            "judge_unavailable", None,
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_evaluated_is_refused_with_its_field(
    audited: Audited, changes: dict[str, Any], code: str, field: str | None
) -> None:
    with pytest.raises(InvalidInput) as caught:
        audited.evaluate(**({"strengths": [0.1]} | changes))
    assert caught.value.code == code
    assert [item.field for item in caught.value.problems] == ([] if field is None else [field])
