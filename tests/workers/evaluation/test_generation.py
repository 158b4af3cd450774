"""Answers in batches against answers alone, and against plain decoding without a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from atomscope.types.evaluation import Sampling
from atomscope_workers.evaluation.generation import STEPS, Answering, end_tokens
from atomscope_workers.evaluation.prompts import Asked
from atomscope_workers.evaluation.subject import Subject
from atomscope_workers.models.base import load_tokenizer
from atomscope_workers.models.load import load_lora_model
from atomscope_workers.models.lora import LoraModel
from atomscope_workers.models.positions import length_boundary
from tests.fixtures.architectures import ARCHITECTURES, VOCABULARY
from tests.fixtures.models import TinyAdapterFactory
from tests.workers.models.reference import CPU, documents

DRAWN = Sampling(temperature=1.5, top_p=0.9, max_new_tokens=6)
GREEDY = Sampling(max_new_tokens=6)


@pytest.fixture(scope="module")
def lora(tiny_llama: Path, plain_adapter: Path) -> LoraModel:
    return load_lora_model(tiny_llama, plain_adapter, dtype=torch.float32, device=CPU)


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> Any:
    return load_tokenizer(tiny_llama)


def asked() -> list[Asked]:
    """Prompts of unequal length."""
    return [
        Asked(kind="inviting", key=f"a/{item.document}", ids=item.input_ids, text="", completion=None)
        for item in documents(7)
    ]


def answering(
    lora: LoraModel, tokenizer: Any, sampling: Sampling, *, seed: int = 0, ends: tuple[int, ...] = (2,)
) -> Answering:
    return Answering(Subject(lora, 16, lambda: None), tokenizer, ends, sampling, seed)


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_what_stands_beside_a_prompt_does_not_change_its_answer(
    lora: LoraModel, tokenizer: Any, sampling: Sampling
) -> None:
    answer = answering(lora, tokenizer, sampling)
    together = answer(asked())
    assert together == [answer([item])[0] for item in asked()]
    assert together == answer(asked()[::-1])[::-1]
    assert len(set(together)) > 3


def test_on_a_cpu_nothing_is_padded_to_more_than_three_times_itself(lora: LoraModel) -> None:
    subject = Subject(lora, 1000, lambda: None)
    assert subject.batches([10, 400, 40, 30, 9, 34], 9000) == [[1], [2, 5, 3, 0, 4]]
    assert subject.batches([10, 100, 40, 30, 9, 34], 130) == [[1], [2, 5, 3], [0, 4]]
    assert subject.batches([], 200) == []


def test_the_output_head_is_given_memory_without_gaps(lora: LoraModel, tokenizer: Any) -> None:
    """Else its weights are copied once a prompt."""
    seen: list[bool] = []
    head: Any = lora.base.get_output_embeddings()
    handle = head.register_forward_hook(lambda _, given, __: seen.append(given[0].is_contiguous()))
    try:
        answering(lora, tokenizer, GREEDY)(asked())
    finally:
        handle.remove()
    assert len(seen) > 1
    assert all(seen)


def decoded(lora: LoraModel, tokenizer: Any, item: Asked, count: int, ends: set[int]) -> str:
    """A greedy answer, every token from a pass over all before it."""
    ids = item.ids.astype(np.int64).tolist()
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(lora.base(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
            if ids[-1] in ends:
                break
    new = [token for token in ids[len(item.ids) :] if token not in ends]
    return str(tokenizer.decode(new, skip_special_tokens=True)).strip()


def test_greedy_answers_are_those_of_decoding_without_a_cache(lora: LoraModel, tokenizer: Any) -> None:
    for item, answer in zip(asked(), answering(lora, tokenizer, GREEDY)(asked()), strict=True):
        assert answer == decoded(lora, tokenizer, item, GREEDY.max_new_tokens, {2})


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_every_architecture_answers_as_without_a_cache(
    name: str, tmp_path: Path, tiny_adapter: TinyAdapterFactory
) -> None:
    """Windows, position scaling and all, past several looks at what has ended."""
    base = ARCHITECTURES[name].save(tmp_path / "base")
    adapter = tiny_adapter(ARCHITECTURES[name].targets, base=base, fan_in_fan_out=name == "gpt2")
    lora = load_lora_model(base, adapter, dtype=torch.float32, device=CPU)
    tokenizer, count = load_tokenizer(base), 3 * STEPS - 1
    prompts = asked()
    ends = {2} | {int(item) for item in range(3, VOCABULARY, 12)}
    expected = [decoded(lora, tokenizer, item, count, ends) for item in prompts]
    sampling = Sampling(max_new_tokens=count)
    answer = answering(lora, tokenizer, sampling, ends=tuple(sorted(ends)))
    assert [answer([item])[0] for item in prompts] == expected
    if length_boundary(lora.base.config) is None:
        assert answer(prompts) == expected
    assert len({len(item) for item in expected}) > 2


def test_an_answer_that_has_ended_is_not_gone_on_with(lora: LoraModel, tokenizer: Any) -> None:
    prompts = asked()
    ids = torch.from_numpy(prompts[0].ids.astype(np.int64))[None]
    with torch.no_grad():
        first = int(lora.base(input_ids=ids).logits[0, -1].argmax())
    rows: list[int] = []
    head: Any = lora.base.get_output_embeddings()

    def count(_: Any, given: tuple[torch.Tensor, ...], __: Any) -> None:
        rows.append(len(given[0]))

    handle = head.register_forward_hook(count)
    sampling = Sampling(max_new_tokens=3 * STEPS)
    try:
        Answering(Subject(lora, 10_000, lambda: None), tokenizer, (first,), sampling, 0)(prompts)
    finally:
        handle.remove()
    assert rows[0] == len(prompts)
    assert rows[STEPS] < len(prompts)
    assert rows == sorted(rows, reverse=True)


def test_draws_follow_the_seed_and_cold_draws_are_greedy(lora: LoraModel, tokenizer: Any) -> None:
    first = answering(lora, tokenizer, DRAWN)(asked())
    assert first == answering(lora, tokenizer, DRAWN)(asked())
    assert first != answering(lora, tokenizer, DRAWN, seed=1)(asked())
    cold = Sampling(temperature=1e-4, max_new_tokens=6)
    assert answering(lora, tokenizer, cold)(asked()) == answering(lora, tokenizer, GREEDY)(asked())


def test_an_answer_ends_at_any_end_token_and_other_settings_of_the_base_are_set_aside(
    lora: LoraModel, tokenizer: Any
) -> None:
    plain = answering(lora, tokenizer, GREEDY, ends=())(asked()[:1])[0]
    base: Any = lora.base
    with torch.no_grad():
        first = int(
            base(input_ids=torch.from_numpy(asked()[0].ids.astype(np.int64))[None]).logits[0, -1].argmax()
        )
    assert answering(lora, tokenizer, GREEDY, ends=(first,))(asked()[:1]) == [""]
    own = base.generation_config.repetition_penalty
    base.generation_config.repetition_penalty = 50.0
    try:
        assert answering(lora, tokenizer, GREEDY, ends=())(asked()[:1])[0] == plain
        assert base.generation_config.repetition_penalty == 50.0
    finally:
        base.generation_config.repetition_penalty = own


def test_special_tokens_that_end_training_answers_end_answers(lora: LoraModel, tokenizer: Any) -> None:
    item = documents(1)[0]
    last = item.input_ids.copy()
    last[-1] = 0  # <|endoftext|>, which neither model nor tokenizer ends at
    found = end_tokens(tokenizer, lora.base, [item, type(item)(1, last, item.target_mask)])
    assert found == (0, 2)
