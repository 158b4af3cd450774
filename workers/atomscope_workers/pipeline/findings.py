"""What one fit finds: atoms with their documents' strengths, and the behaviours that the atoms make up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atomscope.types.spec import AuditConfig
from atomscope_workers.pipeline.atoms import memberships
from atomscope_workers.pipeline.behaviours import CUT, behaviour_count, strengths
from atomscope_workers.pipeline.completion import completed
from atomscope_workers.pipeline.dictionary import dictionary_size, fit, resolve_signs
from atomscope_workers.pipeline.grouping import Grouping, group_atoms, summed_products
from atomscope_workers.pipeline.span import Span


@dataclass(frozen=True)
class Findings:
    """Atoms that enough documents belong to, and their groups."""

    kept: NDArray[np.int64]
    """(A,): indices of these atoms in the dictionary."""
    atoms: NDArray[np.float64]
    """(N, A): strength of every document on each."""
    grouping: Grouping
    behaviours: NDArray[np.float64]
    """(N, groups): strength of every document on each."""


def find(span: Span, config: AuditConfig, seed: int) -> Findings:
    """The whole fit: dictionary, signs, strengths, groups. One seed gives one result."""
    size = dictionary_size(config.n_atoms, span.documents)
    if not size:
        return group(span, np.zeros((0, 0)), np.zeros((0, 0)), config)
    codes = resolve_signs(fit(span, size, config, seed), config.solver).codes
    return group(span, codes, atom_strengths(span, codes, config), config)


def atom_strengths(span: Span, codes: NDArray[np.float64], config: AuditConfig) -> NDArray[np.float64]:
    """Strengths (N, K) from codes (N, K): completed where codes have no sign, else the codes."""
    return completed(span, codes) if config.codes == "nonnegative" else codes


def group(
    span: Span, codes: NDArray[np.float64], strength: NDArray[np.float64], config: AuditConfig
) -> Findings:
    """Keep the atoms with enough documents and group them, from codes and strengths (N, K).

    They are grouped by their codes: documents that two atoms share by completion would make them alike.
    """
    kept = np.array([member.index for member in memberships(strength, config.min_active)], dtype=np.int64)
    positive, strength = codes[:, kept].clip(min=0), strength[:, kept]
    most = behaviour_count(config.behaviours, len(codes))
    grouping = group_atoms(summed_products(span, positive), positive.sum(0), cut=CUT, most=most)
    return Findings(kept, strength, grouping, strengths(strength, grouping.groups))
