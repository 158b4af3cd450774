"""Shapes of an audit, and the bytes that follow from them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from atomscope.types.spec import AuditConfig, Solver
from atomscope_workers.pipeline.dictionary import dictionary_size, piece_count
from atomscope_workers.pipeline.sketch import BASIS_SUMS
from atomscope_workers.pipeline.storage import DTYPES, GradientDtype, gradient_bytes
from atomscope_workers.stages.retention import keeps_gradients
from atomscope_workers.stages.sketch_columns import planned_directions, raw_columns, whitened_columns
from atomscope_workers.stages.space import Space, space_of

_LAYER = re.compile(r"\.\d+\.")


@dataclass(frozen=True)
class Shapes:
    """What the audit's bytes follow from."""

    documents: int
    parameters: dict[str, tuple[int, int]]
    """Parameter name -> (d_out, d_in)."""
    groups: dict[str, str]
    """Parameter name -> name of its input group."""
    atoms: int
    components: int
    space: Space = "components"
    directions: int = 0
    """Along which documents have coordinates, past `exact_documents`."""
    sketch_columns: int = 0
    """Of whitened gradients, in which directions are looked for."""
    raw_columns: int = 0
    """Of raw gradients."""
    gradients: GradientDtype = "float32"
    """In what they are stored."""
    keeps_gradients: bool = True
    keeps_sketch: bool = False
    pieces: int = 0
    """Atoms of a fit, before they are merged."""
    surrogates: int = 0
    """Surrogate data sets, of which the evidence holds one at a time."""
    solver: Solver = "torch"

    @property
    def gradient(self) -> int:
        """d, the LoRA parameters."""
        return sum(rows * columns for rows, columns in self.parameters.values())

    @property
    def kept(self) -> int:
        """k_total: components kept over all modules; none where none are cut."""
        if self.space != "components":
            return 0
        return sum(min(self.components, rows * columns) for rows, columns in self.parameters.values())

    @property
    def whitened(self) -> int:
        """Columns of the matrix in which the documents are compared."""
        return {"components": self.kept, "gram": self.documents, "directions": self.directions}[self.space]

    @property
    def inputs(self) -> dict[str, int]:
        """Input group -> d_in."""
        return {self.groups[name]: shape[1] for name, shape in self.parameters.items()}

    @property
    def layer_inputs(self) -> int:
        """Widths of the inputs of the widest decoder layer, added up."""
        layers: dict[str, int] = {}
        for name, width in self.inputs.items():
            number = _LAYER.search(name)
            layer = number[0] if number else name
            layers[layer] = layers.get(layer, 0) + width
        return max(layers.values())

    @property
    def bases(self) -> list[int]:
        """Sizes of the eigendecompositions: one a module's output and one an input group."""
        return [*(shape[0] for shape in self.parameters.values()), *self.inputs.values()]


def shapes_of(
    config: AuditConfig,
    documents: int,
    parameters: Mapping[str, tuple[int, int]],
    groups: Mapping[str, str],
    dtype: GradientDtype,
) -> Shapes:
    """Shapes of an audit under these settings."""
    atoms = dictionary_size(config.n_atoms, documents)
    return Shapes(
        documents=documents,
        parameters=dict(parameters),
        groups=dict(groups),
        atoms=atoms,
        pieces=piece_count(config, atoms, documents),
        components=config.components,
        space=space_of(config, documents),
        directions=planned_directions(config, documents),
        sketch_columns=whitened_columns(config, documents),
        raw_columns=raw_columns(config),
        gradients=dtype,
        keeps_gradients=keeps_gradients(config),
        keeps_sketch=config.gradients == "sketch",
        surrogates=config.surrogates,
        solver=config.solver,
    )


def fewest_groups(parameters: Mapping[str, tuple[int, int]]) -> dict[str, str]:
    """Input groups before a pass has told them: as if all that could share an input did.

    These are modules of one block (`self_attn`, `mlp`) with inputs of one width.
    """
    first: dict[tuple[str, int], str] = {}
    return {
        name: first.setdefault((name.rsplit(".", 3)[0], shape[1]), name)
        for name, shape in sorted(parameters.items())
    }


def sketch_bytes(shapes: Shapes) -> int:
    """Bytes of what `gradients: sketch` keeps of raw gradients, but for headers."""
    columns = 4 * shapes.documents * shapes.raw_columns
    if shapes.space == "components":
        return columns
    directions = min(BASIS_SUMS, shapes.documents)
    basis = gradient_bytes("float16", directions, shapes.gradient, len(shapes.parameters))
    return columns + basis + 4 * directions * shapes.documents


def gradient_bytes_by_setting(shapes: Shapes) -> dict[str, int]:
    """Bytes kept of the gradients under every value of the setting `gradients` but `auto`."""
    found: dict[str, int] = {
        dtype: gradient_bytes(dtype, shapes.documents, shapes.gradient, len(shapes.parameters))
        for dtype in DTYPES
    }
    return {**found, "sketch": sketch_bytes(shapes), "none": 0}


def bundle_bytes(shapes: Shapes) -> dict[str, int]:
    """Bytes of the bundle's arrays, by folder; every one but the vectors' is exact but for its headers."""
    bases = sum(size * size * 4 + size * 8 for size in shapes.bases)
    lambdas = 8 * shapes.gradient
    gradients = gradient_bytes(shapes.gradients, shapes.documents, shapes.gradient, len(shapes.parameters))
    return {
        "gradients": gradients if shapes.keeps_gradients else 0,
        "sketches": sketch_bytes(shapes) if shapes.keeps_sketch else 0,
        "projected": 4 * shapes.documents * shapes.whitened,
        "curvature": bases + lambdas + shapes.kept * (16 + 8),
        "dictionary": 4 * shapes.atoms * (shapes.kept or shapes.documents),
        "vectors": 4 * shapes.atoms * shapes.gradient,
    }
