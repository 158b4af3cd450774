"""The dictionary: sparse codes of the whitened documents, signs resolved."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from atomscope.bundle import Coefficients, layout, write_coefficients
from atomscope.text import counted
from atomscope_workers.pipeline.dictionary import Dictionary, dictionary_size, fit, resolve_signs
from atomscope_workers.pipeline.findings import atom_strengths
from atomscope_workers.pipeline.fit import ACTIVE
from atomscope_workers.stages.context import StageContext, UnitResult
from atomscope_workers.stages.coordinates import adopt_coordinates, make_coordinates
from atomscope_workers.stages.determinism import deterministic
from atomscope_workers.stages.inputs import plan_device, read_plan
from atomscope_workers.stages.space import SpannedDocuments, finds_directions, space_of, spanned_documents
from atomscope_workers.stages.warned import finish

FACTS = "work/dictionary.json"


def run(ctx: StageContext) -> UnitResult:
    """Write `atoms/dictionary.safetensors` and `atoms/coefficients.parquet`.

    The dictionary holds `signs` (K) and, in the space of components, `atoms` (K, k_total); else `weights`
    (K, N): an atom is then the sum of the documents' unit whitened gradients with these weights. Whatever the
    space, `inner` (K, K) are the inner products of the atoms, `document` (N) the physical rows, in the order
    of the shards, and `norm` (N) the lengths of their whitened gradients.
    """
    config = ctx.spec.config
    ctx.progress(0, 1, "steps")
    device = plan_device(read_plan(ctx))
    with deterministic(device):
        spanned = _spanned(ctx, device)
        size = dictionary_size(config.n_atoms, len(spanned.used))
        found = resolve_signs(fit(spanned.span, size, config, config.seed), config.solver) if size else None
        ctx.checkpoint()
        _write(ctx, spanned, found)
    ctx.progress(1, 1, "steps")
    return finish(ctx, _warnings(spanned, found))


def _spanned(ctx: StageContext, device: torch.device) -> SpannedDocuments:
    documents = read_plan(ctx).n_documents
    if space_of(ctx.spec.config, documents) != "directions":
        return spanned_documents(ctx, device)
    parent = ctx.parent
    if parent is None or finds_directions(ctx, documents):
        return make_coordinates(ctx, device)
    return adopt_coordinates(ctx, parent, device)


def read_dictionary(ctx: StageContext) -> dict[str, NDArray[Any]]:
    """What `run` wrote: `signs`, and `atoms` or `weights`."""
    return load_file(ctx.read(layout.DICTIONARY))


def _write(ctx: StageContext, spanned: SpannedDocuments, found: Dictionary | None) -> None:
    scratch = ctx.scratch / "dictionary.safetensors"
    save_file(_arrays(spanned, found), scratch)
    ctx.write(layout.DICTIONARY, scratch)
    codes = found.codes if found is not None else np.zeros((len(spanned.used), 0))
    strength = atom_strengths(spanned.span, codes, ctx.spec.config)
    row, atom = np.nonzero((np.abs(codes) > ACTIVE) | (np.abs(strength) > ACTIVE))
    physical = spanned.documents[spanned.used[row]]
    scratch = ctx.scratch / "coefficients.parquet"
    found_codes = Coefficients(physical, atom.astype(np.int32), strength[row, atom], codes[row, atom])
    write_coefficients(found_codes, scratch)
    ctx.write(layout.COEFFICIENTS, scratch)
    facts: dict[str, Any] = {"atoms": codes.shape[1], "space": spanned.space}
    ctx.write_bytes(FACTS, msgspec.json.encode(facts | (found.facts if found is not None else {})))


def _arrays(spanned: SpannedDocuments, found: Dictionary | None) -> dict[str, NDArray[Any]]:
    """What the dictionary's file holds; safetensors writes memory as it lies, so all of it in C order."""
    arrays: dict[str, NDArray[Any]] = {
        "document": spanned.documents,
        "norm": np.sqrt(spanned.energy_kept),
        "signs": found.signs if found is not None else np.zeros(0, dtype=np.int64),
    }
    span = spanned.span
    vectors = found.atoms if found is not None else torch.zeros(0, span.width, device=span.device)
    if spanned.space == "components":
        arrays["atoms"] = np.ascontiguousarray(vectors.cpu().numpy())
    else:
        arrays["weights"] = np.zeros((len(vectors), len(spanned.documents)), dtype=np.float32)
        if found is not None:
            weights = found.atoms[:, : spanned.span.documents]  # which such spans store first
            vectors = span.combine(weights)
            arrays["weights"][:, spanned.used] = weights.cpu().numpy()
    arrays["inner"] = np.ascontiguousarray(span.inner(vectors, vectors).cpu().numpy())
    return arrays


def _warnings(spanned: SpannedDocuments, found: Dictionary | None) -> list[str]:
    told: list[str] = []
    without = len(spanned.documents) - len(spanned.used)
    if without:
        told.append(f"{counted(without, 'document')} had no gradient and took no part")
    if found is None:
        return told
    if found.facts["codes_per_document"] == 0:
        alpha = found.facts["alpha"]
        told.append(f"every code is zero at alpha {alpha:g}: no atom was found; try a smaller alpha")
    told += _not_converged(found)
    return told + [f"the solver warned: {text}" for text in found.facts["solver_warnings"]]


def _not_converged(found: Dictionary) -> list[str]:
    """What to say of a fit that was stopped by its limit rather than by its tolerance."""
    if found.facts["converged"]:
        return []
    text = f"the dictionary had not converged when it was stopped after {found.facts['rounds']} rounds"
    fall, tolerance = found.facts["last_fall"], found.facts["tolerance"]
    if fall is not None and tolerance is not None:
        text += f": the last one changed the objective by {-fall:+.3%}, and the tolerance is {tolerance:.3%}"
    return [f"{text}; stability tells how far its atoms depend on that"]
