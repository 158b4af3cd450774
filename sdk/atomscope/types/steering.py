"""How targets of steering are written, in what formats adapters are steered, and in what units."""

from __future__ import annotations

import re
from typing import Literal, get_args

TARGET_KEY = re.compile(r"(?:(atom|behaviour):)?(0|[1-9][0-9]{0,8})", re.ASCII)
"""How an atom (`7`, `atom:7`) or a behaviour (`behaviour:3`) is written: to be matched in full."""

Format = Literal["adapter", "delta", "vector", "gguf", "gguf-delta"]
"""`adapter`: a PEFT folder of the same rank. `delta`: a PEFT adapter of twice the rank that goes beside the
audited one, linear in its strength. `vector`: what is added to the weights. `gguf`, `gguf-delta`: the first
two for llama.cpp."""

FORMATS: tuple[Format, ...] = get_args(Format)

Unit = Literal["norm", "alpha"]
"""`norm`: strengths are in units of the adapter's norm. `alpha`: a vector is multiplied as it is stored."""

UNITS: tuple[Unit, ...] = get_args(Unit)
