"""Random generators that depend on the audit's seed and on what they are for, and on nothing else."""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def seeded(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator for `purpose`, such as a module's name: the same on every machine and in any order."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def drawn(seed: int, purpose: str) -> np.random.Generator:
    """The same for numpy."""
    return np.random.default_rng(seeded(seed, purpose).initial_seed())
