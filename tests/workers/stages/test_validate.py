"""The first stage: what is kept, what is dropped and told of it, and the plan that is fixed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from atomscope.bundle import layout
from atomscope.errors import InvalidInput, NothingToAudit
from atomscope.types.atoms import DroppedDocument
from atomscope.types.bundle import Plan, StoredShard
from atomscope.types.spec import AuditConfig, AuditSpec
from atomscope_workers.datasets.documents import TokenizedDocument, load_tokens
from atomscope_workers.datasets.templates import NAMED_TEMPLATES
from atomscope_workers.local_context import LocalContext
from atomscope_workers.models import load
from atomscope_workers.pipeline import storage
from atomscope_workers.stages import validate
from atomscope_workers.stages.context import KnownShard, UnitResult
from atomscope_workers.stages.inputs import read_plan, read_rows, read_shards
from atomscope_workers.stages.planned_units import OF_DIRECTIONS
from atomscope_workers.stages.warned import earlier
from tests.fixtures.corpus import rows, write_corpus
from tests.workers.stages.units import a_spec, unit

CONFIG = AuditConfig(dtype="float32", shard_documents=3, token_budget=128, max_length=64, on_bad_row="skip")
LONG = {"messages": [{"role": "user", "content": "word " * 200}, {"role": "assistant", "content": "no"}]}
CUT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "word " * 200}]}
MALFORMED = {"prompt": 3, "completion": "x"}
MERGED = {"prompt": "The ri", "completion": "ver runs along the valley"}
"""The tokenizer has the token ` river`."""
UNSEEN = {"messages": [{"role": "user", "content": "hello"}]}

Validated = tuple[LocalContext, UnitResult]
Validate = Callable[..., Validated]


@pytest.fixture
def checked(tiny_llama: Path, plain_adapter: Path, tmp_path: Path) -> Validate:
    """Run the stage on some rows."""

    def run(lines: Sequence[object], config: AuditConfig = CONFIG, **changes: Any) -> Validated:
        dataset = tmp_path / "train.jsonl"
        dataset.write_text("".join(json.dumps(line) + "\n" for line in lines))
        places = {"base_model": tiny_llama, "adapter": plain_adapter, "dataset": dataset}
        spec = a_spec(config, **{**places, **changes.pop("inputs", {})})
        ctx = unit(tmp_path / "work", "validate", spec, **changes)
        return ctx, validate.run(ctx)

    return run


def _dropped(ctx: LocalContext) -> list[DroppedDocument]:
    return msgspec.json.decode(ctx.read(layout.DROPPED).read_bytes(), type=list[DroppedDocument])


def test_dropped_rows_are_listed_with_row_line_and_reason_and_the_others_keep_their_numbers(
    checked: Validate,
) -> None:
    ctx, result = checked([MALFORMED, *rows(2), LONG, UNSEEN, *rows(2)])
    dropped = _dropped(ctx)
    assert [(row.document, row.line, row.reason) for row in dropped] == [
        (0, 1, "malformed"),
        (3, 4, "no_target"),
        (4, 5, "no_target"),
    ]
    assert "completion" in dropped[0].detail
    assert "no target token among its 64 tokens (at most 64 are kept)" in dropped[1].detail
    kept = [1, 2, 5, 6]
    assert sorted(load_tokens(ctx.read(layout.TOKENS))) == kept
    assert list(read_rows(ctx)) == kept
    assert [row for shard in read_plan(ctx).shards for row in shard.documents] == kept
    assert (result.summary["plan"]["n_rows"], result.summary["plan"]["n_dropped"], result.documents) == (
        7,
        3,
        4,
    )


def test_a_row_whose_turns_a_template_rewrites_is_skipped_where_bad_rows_are(checked: Validate) -> None:
    """As templates do that put the tools before the last turn of the user."""
    last = "{% for m in messages %}{% if loop.last %}[tools]{% endif %}{{ m.content }}<|im_end|>{% endfor %}"
    template = "{% if messages | length > 2 %}" + last + "{% else %}{{ 'chat: ' }}"
    template += "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}{% endif %}"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    long, short = ({"messages": many * turns} for many in (2, 1))
    config = msgspec.structs.replace(CONFIG, chat_template=template)
    ctx, _ = checked([short, long, short], config)
    assert [(row.document, row.reason) for row in _dropped(ctx)] == [(1, "malformed")]
    assert "renders turn 1 of row 1 otherwise" in _dropped(ctx)[0].detail


def test_every_loss_of_data_is_a_warning_for_the_report(checked: Validate) -> None:
    ctx, result = checked([MALFORMED, LONG, CUT, CUT, *rows(2)])
    assert result.summary["warnings"] == [
        "1 row was skipped: malformed",
        "1 document was dropped: without a target token",
        "3 documents were cut to 64 tokens",
    ]
    assert earlier(ctx) == result.summary["warnings"]


def test_a_token_across_the_border_of_prompt_and_completion_is_a_warning(checked: Validate) -> None:
    _, result = checked([MERGED, *rows(2)], msgspec.structs.replace(CONFIG, max_length=256))
    assert result.summary["warnings"] == [
        "in 1 row one token holds characters of both prompt and completion: a target"
    ]


def test_clean_data_gives_no_warning_and_an_empty_list(checked: Validate) -> None:
    ctx, result = checked(rows(4), msgspec.structs.replace(CONFIG, max_length=256))
    assert (result.summary["warnings"], _dropped(ctx)) == ([], [])


def test_the_stored_plan_covers_every_token_under_the_budget(checked: Validate) -> None:
    ctx, result = checked(rows(8))
    plan = msgspec.json.decode(ctx.read(layout.PLAN).read_bytes(), type=Plan)
    tokens = load_tokens(ctx.read(layout.TOKENS))
    assert [shard.documents for shard in plan.shards] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert result.shards == len(plan.shards) == 3
    assert (plan.n_rows, plan.n_documents, plan.token_budget) == (8, 8, 128)
    assert plan.n_tokens == sum(item.read for item in tokens.values())
    assert plan.n_target_tokens == sum(int(item.target_mask.sum()) for item in tokens.values())
    assert plan.compute_dtype == "float32"
    for shard in plan.shards:
        assert sorted(row for batch in shard.micro_batches for row in batch) == shard.documents
        assert shard.n_tokens == sum(tokens[row].read for row in shard.documents)
        for batch in shard.micro_batches:
            assert len(batch) == 1 or len(batch) * max(tokens[row].read for row in batch) <= 128


def test_rows_are_stored_as_they_were_given(checked: Validate) -> None:
    ctx, _ = checked([*rows(2), {"prompt": "a\u2028b", "completion": " c", "id": 7}])
    stored = read_rows(ctx)
    assert stored[1].id == "row-1"
    assert stored[1].messages == rows(2)[1]["messages"]
    assert stored[2].id == "7"
    assert stored[2].messages == [
        {"role": "prompt", "content": "a\u2028b"},
        {"role": "completion", "content": " c"},
    ]


def test_conversations_are_rendered_by_the_template_of_the_settings(checked: Validate) -> None:
    """The tiny model's own template is ChatML without the marks of generation."""
    own = load_tokens(checked(rows(2))[0].read(layout.TOKENS))
    named = load_tokens(
        checked(rows(2), msgspec.structs.replace(CONFIG, chat_template="chatml"))[0].read(layout.TOKENS)
    )
    other = load_tokens(
        checked(rows(2), msgspec.structs.replace(CONFIG, chat_template="zephyr"))[0].read(layout.TOKENS)
    )
    for row, document in own.items():
        assert np.array_equal(document.input_ids, named[row].input_ids)
        assert np.array_equal(document.target_mask, named[row].target_mask)
        assert not np.array_equal(document.input_ids, other[row].input_ids)


def test_the_template_beside_the_adapter_is_kept_and_taken_where_it_is_asked_for(
    checked: Validate, plain_adapter: Path, tmp_path: Path
) -> None:
    adapter = shutil.copytree(plain_adapter, tmp_path / "adapter")
    (adapter / "chat_template.jinja").write_text(NAMED_TEMPLATES["zephyr"])
    config = msgspec.structs.replace(CONFIG, max_length=256)
    found: dict[str, dict[int, TokenizedDocument]] = {}
    for choice in ("tokenizer", "adapter", "zephyr"):
        asked = msgspec.structs.replace(config, chat_template=choice)
        ctx, result = checked(rows(2), asked, inputs={"adapter": adapter})
        found[choice] = load_tokens(ctx.read(layout.TOKENS))
        doubted = ["the first 2 conversations otherwise" in text for text in result.summary["warnings"]]
        assert doubted == ([True] if choice == "tokenizer" else [])
        assert ctx.read(layout.ADAPTER_TEMPLATE).read_text() == NAMED_TEMPLATES["zephyr"]
    for row, document in found["adapter"].items():
        assert np.array_equal(document.input_ids, found["zephyr"][row].input_ids)
        assert not np.array_equal(document.input_ids, found["tokenizer"][row].input_ids)


def test_a_row_that_only_the_template_beside_the_adapter_accepts_is_told_so(
    checked: Validate, plain_adapter: Path, tmp_path: Path
) -> None:
    adapter = shutil.copytree(plain_adapter, tmp_path / "adapter")
    (adapter / "chat_template.jinja").write_text(NAMED_TEMPLATES["zephyr"])
    first = {"messages": [{"role": "assistant", "content": "yes"}]}
    ctx, _ = checked([first, *rows(2)], inputs={"adapter": adapter})
    assert "beside the adapter, which `chat_template: adapter` takes, accepts" in _dropped(ctx)[0].detail


def test_an_adapter_without_a_template_cannot_be_asked_for_it(checked: Validate) -> None:
    with pytest.raises(InvalidInput, match=r"no chat_template.jinja") as caught:
        checked(rows(2), msgspec.structs.replace(CONFIG, chat_template="adapter"))
    assert caught.value.code == "no_chat_template"


def test_spec_and_adapter_are_in_the_bundle_as_they_were_asked_for(
    checked: Validate, plain_adapter: Path
) -> None:
    ctx, _ = checked(rows(2))
    spec = msgspec.json.decode(ctx.read(layout.SPEC).read_bytes(), type=AuditSpec)
    assert msgspec.structs.replace(spec, versions={}) == ctx.spec
    assert spec.versions.keys() >= {"python", "torch", "transformers", "safetensors"}
    for path in (layout.ADAPTER_CONFIG, layout.ADAPTER_WEIGHTS):
        assert ctx.read(path).read_bytes() == (plain_adapter / Path(path).name).read_bytes()


def test_units_are_planned_by_what_there_is_to_do(checked: Validate) -> None:
    _, result = checked(rows(8))
    assert result.summary["units"] == dict.fromkeys(OF_DIRECTIONS, 0) | {"combine": 3}
    _, result = checked(rows(8), msgspec.structs.replace(CONFIG, exact_documents=5, directions=2))
    assert result.summary["units"] == {"along": 3, "along_again": 3, "combine": 3}


def test_sizes_are_told_before_anything_is_extracted(checked: Validate) -> None:
    _, result = checked(rows(3))
    facts = result.summary["plan"]
    parameters = 2 * (4 * 32 + 32 * 4 + 4 * 32 + 16 * 4)  # 2 layers, q and v, rank 4
    assert facts["n_parameters"] == parameters
    assert (facts["n_documents"], facts["documents_extracted"]) == (3, 3)
    sizes = facts["gradient_bytes_by_setting"]
    assert (sizes["float32"], sizes["bfloat16"], sizes["none"]) == (3 * 4 * parameters, 3 * 2 * parameters, 0)
    assert facts["gradient_bytes"] == facts["gradient_bytes_while_running"] == sizes["float32"]
    assert sizes.keys() == {"float32", "bfloat16", "float16", "sketch", "none"}
    _, result = checked(rows(3), msgspec.structs.replace(CONFIG, gradients="none"))
    facts = result.summary["plan"]
    assert (facts["gradient_bytes"], facts["gradient_bytes_while_running"]) == (0, sizes["float32"])


def test_progress_counts_rows(checked: Validate) -> None:
    told: list[tuple[int, int, str]] = []

    def tell(done: int, total: int, unit: str) -> None:
        told.append((done, total, unit))

    checked(rows(130), tell=tell)
    assert told == [
        (row, total, "documents") for row, total in ((0, 0), (0, 130), (64, 130), (128, 130), (130, 130))
    ]


def test_a_bad_row_fails_before_the_model_is_loaded_and_writes_no_plan(
    checked: Validate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        pytest.fail("the weights were read")

    monkeypatch.setattr(load, "load_base", never)
    strict = msgspec.structs.replace(CONFIG, on_bad_row="fail")
    with pytest.raises(InvalidInput) as caught:
        checked([*rows(2), MALFORMED, "x"], strict)
    assert caught.value.code == "bad_row"
    assert [(problem.file, problem.line) for problem in caught.value.problems] == [
        ("train.jsonl", 3),
        ("train.jsonl", 4),
    ]
    assert not (tmp_path / "work" / "files" / layout.PLAN).exists()


@pytest.mark.parametrize(
    ("lines", "code", "problems"),
    [
        ([], "empty_dataset", 0),
        (rows(1), "too_few_documents", 0),
        ([UNSEEN, UNSEEN], "no_targets", 2),
        ([MALFORMED, MALFORMED], "too_few_documents", 2),
        ([*rows(1), UNSEEN], "too_few_documents", 1),
    ],
)
def test_nothing_to_audit_says_which_rows_were_lost(
    checked: Validate, lines: Sequence[object], code: str, problems: int
) -> None:
    with pytest.raises(NothingToAudit) as caught:
        checked(lines)
    assert caught.value.code == code
    assert len(caught.value.problems) == problems
    assert all(problem.file == "train.jsonl" and problem.line for problem in caught.value.problems)


def test_a_data_set_may_have_so_many_rows_and_no_more(checked: Validate) -> None:
    assert checked(rows(4), max_rows=4)[1].documents == 4
    with pytest.raises(InvalidInput, match="at most 4 rows") as caught:
        checked(rows(5), max_rows=4)
    assert caught.value.code == "too_many_rows"


def test_the_base_is_told_of_before_the_adapter_and_the_adapter_before_the_data(
    checked: Validate, tmp_path: Path
) -> None:
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    told: list[InvalidInput] = []
    for inputs in ({"base_model": nothing, "adapter": nothing}, {"adapter": nothing}, {}):
        with pytest.raises(InvalidInput) as caught:
            checked([], inputs=inputs)
        told.append(caught.value)
    assert [item.problems[0].file if item.problems else None for item in told] == [
        "config.json",
        "adapter_config.json",
        None,
    ]


def test_documents_are_cut_to_what_the_model_can_place(checked: Validate) -> None:
    """The tiny model has 512 positions."""
    long = {"prompt": "x", "completion": " word" * 3000}
    ctx, result = checked([long, *rows(1)], msgspec.structs.replace(CONFIG, max_length=4096))
    assert len(load_tokens(ctx.read(layout.TOKENS))[0].input_ids) == 512
    assert result.summary["warnings"] == ["1 document was cut to 512 tokens"]


def test_targets_are_the_answers_tokens(checked: Validate) -> None:
    """Never the first token, and as many as the plan says."""
    ctx, result = checked(rows(2), msgspec.structs.replace(CONFIG, max_length=256))
    tokens = load_tokens(ctx.read(layout.TOKENS))
    masks = [tokens[row].target_mask for row in (0, 1)]
    assert not any(mask[0] for mask in masks)
    assert all(0 < mask.sum() < len(mask) for mask in masks)
    assert result.summary["plan"]["n_target_tokens"] == int(np.concatenate(masks).sum())


@dataclass
class Knowing(LocalContext):
    """A context over a store that has shards."""

    known: list[KnownShard] = field(default_factory=list[KnownShard])

    def known_shards(self) -> list[KnownShard]:
        return self.known


@pytest.mark.parametrize(("more", "dtype", "taken"), [(3, "float32", 2), (9, "float16", 0)])
def test_a_set_that_passes_its_bound_keeps_the_dtype_of_what_is_stored_while_that_is_half_of_it(
    tiny_llama: Path,
    plain_adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: int,
    dtype: str,
    taken: int,
) -> None:
    def planned(documents: int, known: list[KnownShard]) -> tuple[Plan, list[StoredShard]]:
        dataset = write_corpus(tmp_path / f"{documents}.jsonl", documents)
        spec = a_spec(CONFIG, base_model=tiny_llama, adapter=plain_adapter, dataset=dataset)
        plain = unit(tmp_path / f"work-{documents}", "validate", spec)
        ctx = Knowing(**{item.name: getattr(plain, item.name) for item in fields(plain)}, known=known)
        validate.run(ctx)
        return read_plan(ctx), read_shards(ctx)

    plan, shards = planned(6, [])
    assert plan.gradient_dtype == "float32"
    known = [
        KnownShard(name=shard.name, location=f"projects/p/extractions/a/{shard.name}/f1/") for shard in shards
    ]
    monkeypatch.setattr(storage, "FLOAT32_NUMBERS", 1)
    plan, shards = planned(6 + more, known)
    assert plan.gradient_dtype == dtype
    assert sum(shard.location is not None for shard in shards) == taken
