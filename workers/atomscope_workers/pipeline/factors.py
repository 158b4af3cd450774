"""Sums for the Kronecker factors of every module: inputs A = sum x x^T, output gradients S = sum s s^T.

The batches of a shard are added up in float32, shards in float64. Modules that read one and the same
tensor (the `lora_A` of q, k and v) share one input sum, kept under the name of the first of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch

from atomscope.errors import AtomscopeError
from atomscope_workers.pipeline.products import OuterSum


class FactorMismatch(AtomscopeError):  # noqa: N818
    """Factor sums of different models or groupings were to be added."""


@dataclass
class FactorSums:
    """Sums over the tokens of some documents; add shards in shard order to get the same bits every time."""

    groups: dict[str, str] = field(default_factory=dict[str, str])
    """Parameter name -> name of its input group, itself a parameter name."""
    inputs: dict[str, OuterSum] = field(default_factory=dict[str, OuterSum])
    """Input group -> sum of d_in columns."""
    outputs: dict[str, OuterSum] = field(default_factory=dict[str, OuterSum])
    """Parameter name -> sum of d_out columns."""
    input_tokens: dict[str, int] = field(default_factory=dict[str, int])
    """Input group -> token inputs summed."""
    output_tokens: dict[str, int] = field(default_factory=dict[str, int])
    """Parameter name -> token output-gradients summed."""

    def add_input(self, group: str, rows: torch.Tensor) -> None:
        """Add the inputs `rows`, (tokens, d_in) of any float dtype, of real tokens only."""
        _add(self.inputs, group, rows)
        self.input_tokens[group] = self.input_tokens.get(group, 0) + rows.shape[0]

    def add_output(self, name: str, rows: torch.Tensor, tokens: int) -> None:
        """Add output gradients, (any, d_out) of any float dtype; rows beyond the `tokens` real are zero."""
        _add(self.outputs, name, rows)
        self.output_tokens[name] = self.output_tokens.get(name, 0) + tokens

    def mean_input(self, name: str) -> torch.Tensor:
        """A of module `name`: the mean of x x^T over its token inputs, float64."""
        group = self.groups[name]
        return self.inputs[group].matrix().double() / self.input_tokens[group]

    def mean_output(self, name: str) -> torch.Tensor:
        """S of module `name`: the mean of s s^T over its token output-gradients, float64."""
        return self.outputs[name].matrix().double() / self.output_tokens[name]


def _add(sums: dict[str, OuterSum], name: str, rows: torch.Tensor) -> None:
    if name not in sums:
        sums[name] = OuterSum.zeros(rows.shape[1], rows.device, rows.dtype)
    sums[name].add(rows)


def reduce_factors(parts: Iterable[FactorSums]) -> FactorSums:
    """Add up the sums of shards in the order given, in float64.

    Raises `FactorMismatch` when the shards do not hold the same modules in the same groups.
    """
    total: FactorSums | None = None
    for part in parts:
        if total is None:
            total = FactorSums(groups=dict(part.groups))
        if part.groups != total.groups:
            raise FactorMismatch("the factor sums of the shards do not group the same modules")
        _merge(total.inputs, part.inputs)
        _merge(total.outputs, part.outputs)
        for counts, more in (
            (total.input_tokens, part.input_tokens),
            (total.output_tokens, part.output_tokens),
        ):
            for name, count in more.items():
                counts[name] = counts.get(name, 0) + count
    if total is None:
        raise FactorMismatch("there are no factor sums to add")
    return total


def _merge(into: dict[str, OuterSum], more: Mapping[str, OuterSum]) -> None:
    for name, value in more.items():
        if name in into:
            into[name].merge(value)
        else:
            into[name] = value.double()
