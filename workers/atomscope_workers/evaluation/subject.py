"""The model that is evaluated, how it is moved, and how its work is cut into batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from atomscope.errors import InvalidInput, SteeringError
from atomscope_workers.models.lora import LoraModel
from atomscope_workers.models.positions import length_boundary
from atomscope_workers.pipeline.plan import micro_batches
from atomscope_workers.steered import StepOf, moved_weights

WIDEST = 3


@dataclass(frozen=True)
class Subject:
    """The audited model in this process; its weights are its own whenever none of `moved` is open."""

    lora: LoraModel
    token_budget: int
    """Tokens of one batch of a forward pass, padding included."""
    checkpoint: Callable[[], None]
    """Called before every batch; what it raises ends the evaluation."""

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The LoRA matrices by parameter name."""
        return {item.name: item.linear.weight for item in self.lora.parameters}

    @contextmanager
    def moved(self, step: StepOf | None) -> Generator[None]:
        """Within it the adapter stands a step away, or, with None, where it stood.

        Raises `InvalidInput` (`strength_too_large`) where the weights' dtype cannot hold the result.
        """
        if step is None:
            yield
            return
        moving = moved_weights(self.weights, step)
        try:
            moving.__enter__()
        except SteeringError as error:
            raise InvalidInput("strength_too_large", str(error)) from error
        try:
            yield
        finally:
            moving.__exit__(None, None, None)

    def batches(self, lengths: Sequence[int], budget: int) -> list[list[int]]:
        """Places in batches of at most `budget` tokens, padding included, the longest first.

        What the model reads otherwise beside something longer is never put beside it. On a CPU, whose time
        goes by tokens and not by batches, neither is what would be padded to more than `WIDEST` times itself.
        """
        known = dict(enumerate(lengths))
        boundary = length_boundary(self.lora.base.config)
        if boundary is None:
            batches = micro_batches(list(known), known, budget)
        else:
            short = [place for place, length in known.items() if length <= boundary]
            long = [place for place, length in known.items() if length > boundary]
            batches = micro_batches(long, known, budget) + micro_batches(short, known, budget)
        return batches if self.lora.device.type != "cpu" else _narrow(batches, known)


def _narrow(batches: Iterable[Sequence[int]], lengths: Mapping[int, int]) -> list[list[int]]:
    """The same, cut wherever a row is shorter than its batch's first by more than `WIDEST` times."""
    found: list[list[int]] = []
    for batch in batches:
        width = math.inf
        for place in batch:
            if lengths[place] * WIDEST < width:
                found.append([])
                width = lengths[place]
            found[-1].append(place)
    return found
