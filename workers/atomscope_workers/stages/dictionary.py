"""The dictionary: sparse codes of the whitened rows, signs resolved."""

from __future__ import annotations

import msgspec
import numpy as np
from safetensors.numpy import save_file

from atomscope.bundle import Coefficients, layout, write_coefficients
from atomscope_workers.pipeline.dictionary import ACTIVE, Dictionary, fit_dictionary
from atomscope_workers.stages.arrays import load_projected
from atomscope_workers.stages.context import StageContext, UnitResult
from atomscope_workers.stages.warned import finish

FACTS = "work/dictionary.json"


def run(ctx: StageContext) -> UnitResult:
    """Write `atoms/dictionary.safetensors` (`atoms`, `signs`) and `atoms/coefficients.parquet`."""
    config = ctx.spec.config
    ctx.progress(0, 1, "steps")
    documents, projected = load_projected([ctx.read(layout.projected_shard(i)) for i in range(ctx.shards)])
    fitted = fit_dictionary(projected.rows, n_atoms=config.n_atoms, alpha=config.alpha, seed=config.seed)
    ctx.checkpoint()
    scratch = ctx.scratch / "dictionary.safetensors"
    save_file({"atoms": fitted.atoms, "signs": fitted.signs}, scratch)
    ctx.write(layout.DICTIONARY, scratch)
    row, atom = np.nonzero(np.abs(fitted.codes) > ACTIVE)
    scratch = ctx.scratch / "coefficients.parquet"
    write_coefficients(Coefficients(documents[row], atom.astype(np.int32), fitted.codes[row, atom]), scratch)
    ctx.write(layout.COEFFICIENTS, scratch)
    ctx.write_bytes(FACTS, msgspec.json.encode({"atoms": len(fitted.atoms), **fitted.facts}))
    ctx.progress(1, 1, "steps")
    return finish(ctx, _warnings(fitted, config.alpha))


def _warnings(fitted: Dictionary, alpha: float) -> list[str]:
    found: list[str] = []
    if len(fitted.zero_rows):
        found.append(f"{len(fitted.zero_rows)} documents had no gradient and took no part")
    if len(fitted.atoms) and fitted.facts["codes_per_document"] == 0:
        found.append(f"every code is zero at alpha {alpha:g}: no atom was found; try a smaller alpha")
    found += [f"the solver warned: {text}" for text in fitted.facts["solver_warnings"]]
    return found
