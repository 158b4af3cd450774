"""In what formats adapters are steered, and in what units."""

from __future__ import annotations

from typing import Literal, get_args

Format = Literal["adapter", "delta", "vector", "gguf", "gguf-delta"]
"""`adapter`: a PEFT folder of the same rank. `delta`: a PEFT adapter of twice the rank that goes beside the
audited one, linear in its strength. `vector`: what is added to the weights. `gguf`, `gguf-delta`: the first
two for llama.cpp."""

FORMATS: tuple[Format, ...] = get_args(Format)

Unit = Literal["norm", "alpha"]
"""`norm`: strengths are in units of the adapter's norm. `alpha`: a vector is multiplied as it is stored."""

UNITS: tuple[Unit, ...] = get_args(Unit)
