"""Answers of the model to many prompts, in batches, greedy or drawn.

A prompt's tokens stand at the right of its row, padding before them, and positions count from its own first
token. Draws are made by the Gumbel-max trick with one generator a prompt, seeded by its key: the largest of
logit plus Gumbel noise is a draw from the softmax. So neither greedy nor drawn answers depend on what stands
beside a prompt, as far as the arithmetic does not (in bfloat16, near ties may fall otherwise in another
batch), and two steered models are drawn from with the same noise.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, TopPLogitsWarper

from atomscope.types.evaluation import Sampling
from atomscope_workers.datasets.documents import TokenizedDocument
from atomscope_workers.evaluation.prompts import Asked
from atomscope_workers.evaluation.subject import Subject
from atomscope_workers.pipeline.seeds import seeded

STEPS = 4
"""Tokens between two looks at which answers have ended; those are not gone on with."""
ROOM = 4
"""An answering batch holds this many times the tokens of a gradient pass, which keeps far more of each."""


@dataclass(frozen=True)
class Answering:
    """How a model answers."""

    subject: Subject
    tokenizer: Any
    ends: tuple[int, ...]
    """Tokens that end an answer."""
    sampling: Sampling
    seed: int

    def __call__(self, prompts: Sequence[Asked]) -> list[str]:
        """The answers, special tokens left out, in the order of the prompts.

        Memory: keys and values of `ROOM` times the token budget. Weights are taken as they stand.
        """
        answers = [""] * len(prompts)
        room = self.sampling.max_new_tokens
        lengths = [len(item.ids) + room for item in prompts]
        for batch in self.subject.batches(lengths, ROOM * self.subject.token_budget):
            self.subject.checkpoint()
            for place, answer in zip(batch, self._batch([prompts[place] for place in batch]), strict=True):
                answers[place] = answer
        return answers

    def _batch(self, prompts: list[Asked]) -> list[str]:
        base: Any = self.subject.lora.base
        width = max(len(item.ids) for item in prompts)
        ids = torch.zeros(len(prompts), width, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, item in enumerate(prompts):
            ids[row, width - len(item.ids) :] = torch.from_numpy(item.ids.astype("int64"))
            mask[row, width - len(item.ids) :] = 1
        drawn = prompts if self.sampling.temperature > 0 else []
        generators = [seeded(self.seed, f"answer/{item.key}") for item in drawn]
        own = base.generation_config
        handle = base.get_output_embeddings().register_forward_pre_hook(_contiguous)
        # What a folder's generation_config.json asks for (penalties, temperatures) would be merged in.
        base.generation_config = GenerationConfig()
        try:
            with torch.no_grad():
                written = self._written(ids, mask, generators)
        finally:
            handle.remove()
            base.generation_config = own
        return [self._text(row) for row in written]

    def _written(
        self, ids: torch.Tensor, mask: torch.Tensor, generators: Sequence[torch.Generator]
    ) -> list[list[int]]:
        """The tokens of each row's answer, and what follows its end within `STEPS`.

        `generators` are of the rows, or none where answers are greedy.
        """
        base: Any = self.subject.lora.base
        ids, mask = ids.to(self.subject.lora.device), mask.to(self.subject.lora.device)
        written: list[list[int]] = [[] for _ in range(len(ids))]
        left, cache, room = list(range(len(written))), None, self.sampling.max_new_tokens
        while left and room > 0:
            processors = LogitsProcessorList()
            if generators:
                processors.append(Draws(self.sampling, [generators[row] for row in left]))
            output = base.generate(
                input_ids=ids,
                attention_mask=mask,
                past_key_values=cache,
                generation_config=self._settings(min(STEPS, room)),
                logits_processor=processors,
            )
            new: list[list[int]] = output.sequences[:, ids.shape[1] :].tolist()
            for row, tokens in zip(left, new, strict=True):
                written[row] += tokens
            going = [place for place, tokens in enumerate(new) if not set(tokens) & set(self.ends)]
            left, room = [left[place] for place in going], room - STEPS
            kept = torch.tensor(going, dtype=torch.int64, device=ids.device)
            ids, cache = output.sequences[kept], output.past_key_values
            mask = torch.nn.functional.pad(mask[kept], (0, ids.shape[1] - mask.shape[1]), value=1)
            if len(going) < len(new):
                cache.batch_select_indices(kept)
        return written

    def _settings(self, tokens: int) -> GenerationConfig:
        return GenerationConfig(
            max_new_tokens=tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=list(self.ends) or None,
            pad_token_id=self.ends[0] if self.ends else 0,
            use_cache=True,
            return_dict_in_generate=True,
        )

    def _text(self, row: list[int]) -> str:
        end = next((place for place, token in enumerate(row) if token in self.ends), len(row))
        return str(self.tokenizer.decode(row[:end], skip_special_tokens=True)).strip()


def _contiguous(_: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Of a slice with gaps, the last tokens of prompts, PyTorch copies the head's weights for every row."""
    return arguments[0].contiguous(), *arguments[1:]


class Draws(LogitsProcessor):
    """Scores whose largest is a draw: logits over the temperature, the unlikely cut, plus Gumbel noise."""

    def __init__(self, sampling: Sampling, generators: Sequence[torch.Generator]) -> None:
        """One CPU generator for every row of the batch."""
        self._temperature = sampling.temperature
        self._generators = generators
        self._cut = TopPLogitsWarper(sampling.top_p) if sampling.top_p < 1 else None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        warm: torch.Tensor = scores.float() / self._temperature
        if self._cut is not None:
            warm = self._cut(cast(Any, input_ids), cast(Any, warm))
        size = warm.shape[-1]
        uniform = torch.stack([torch.rand(size, generator=item) for item in self._generators])
        noise = -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))
        return warm + noise.to(warm.device)


def end_tokens(tokenizer: Any, base: Any, documents: Iterable[TokenizedDocument]) -> tuple[int, ...]:  # noqa: ANN401
    """Tokens that end an answer: the model's and the tokenizer's, and those that ended answers in training.

    The last are the end of turn that the adapter was taught, which base models' settings often lack: special
    tokens that stand last in a document's targets.
    """
    found: set[int] = set()
    for item in (base.generation_config.eos_token_id, base.config.eos_token_id, tokenizer.eos_token_id):
        if item is not None:
            found.update(item if isinstance(item, Collection) else [item])
    special = {int(token) for token in tokenizer.added_tokens_decoder}
    for document in documents:
        if len(document.input_ids) and document.target_mask[-1] and int(document.input_ids[-1]) in special:
            found.add(int(document.input_ids[-1]))
    return tuple(sorted(int(token) for token in found))
