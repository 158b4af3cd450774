"""What an audit cannot do without, by stage, and whether the memory that is free holds it.

A floor, not a forecast: parts that are certain are added up, so that only what cannot fit is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from atomscope.errors import InvalidInput
from atomscope.types.bundle import Plan
from atomscope_workers.models.device_memory import size_text
from atomscope_workers.pipeline.plan import padded_tokens
from atomscope_workers.pipeline.products import held_numbers
from atomscope_workers.stages.by_parameter import MOST_UNITS
from atomscope_workers.stages.sizes import Shapes

GRAM_BYTES = 8
"""Bytes a pair of documents, while inner products are scaled: float32 twice."""
DECOMPOSED_BYTES = 12
"""Bytes a pair, while their principal directions are found: float32 and float64."""
MADE_BYTES, TURNED_BYTES = 12, 12
"""Bytes a pair, while they are added up and stored (float64 and float32), and while a surrogate is made."""
ROW_BYTES = 12
"""Bytes a value of the whitened rows, while they are joined and scaled."""
ALONG_BYTES = 12
"""Bytes a document and direction: earlier weights, products of a unit and their sum, float32."""
SKLEARN_BYTES = 24
"""Bytes a coordinate of a document in the span of all, with scikit-learn's solver: float64 coordinates, what
the codes rebuild of them, and what is left. There are no more coordinates than documents."""
CODE_BYTES = 8
"""Bytes a document and atom of a fit: float32 codes, and products with the atoms."""
VECTOR_BYTES = 8
"""Bytes a document and atom known by weights: float32 ones of the atoms, and of the sums that they fit."""


@dataclass(frozen=True)
class Need:
    """What one stage cannot do without, by part."""

    stage: str
    parts: dict[str, int] = field(default_factory=dict[str, int])
    on_host: bool = False
    """Held by the host, whatever the audit's device."""
    advice: str = ""
    """What helps, where it is not what helps the stage."""

    @property
    def bytes(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Free:
    """Bytes that are free where an audit runs."""

    kind: str
    """`cpu` or `cuda`."""
    device: int
    host: int
    """On a CPU the same memory."""

    def of(self, need: Need) -> int:
        return self.host if need.on_host else self.device

    def holds(self, need: Need) -> bool:
        return need.bytes <= self.of(need)


def needs(
    shapes: Shapes,
    plan: Plan,
    lengths: Mapping[int, int],
    target_counts: Mapping[int, int],
    *,
    vocabulary: int,
    model: int,
    item: int,
    hidden: int = 0,
) -> list[Need]:
    """Floors of the stages that hold most.

    `model` are bytes of weights that are still to be loaded, `item` those of a number of the model pass.
    `hidden` are the widths of the inputs of all decoder layers, added up; needed of a plan whose layers are
    recomputed.
    """
    batches = [batch for shard in plan.shards for batch in shard.micro_batches]
    sums, squares = sum(map(held_numbers, shapes.bases)), sum(size**2 for size in shapes.bases)
    kept = hidden + shapes.layer_inputs if plan.recompute else sum(shapes.inputs.values())
    extract = {
        "the model's weights": model,
        "inputs of layers": item * kept * max(padded_tokens([batch], lengths) for batch in batches),
        "logits": 4 * vocabulary * max(sum(target_counts[row] for row in batch) for batch in batches),
        "gradients of a micro-batch": 4 * shapes.gradient * max(map(len, batches)),
        "curvature sums": 4 * sums,
    }
    return [
        Need("extract", extract),
        Need("eigenbases", {"curvature sums": 12 * sums}, on_host=True),
        Need("curvature", {"eigenvectors": 4 * squares, "lambda": 16 * shapes.gradient}, on_host=True),
        *product_needs(shapes),
        *fit_needs(shapes),
    ]


def product_needs(shapes: Shapes) -> list[Need]:
    """Floors of inner products, where every one of them is made, and of those with directions."""
    if shapes.space == "directions":
        rows, along = shapes.documents * shapes.sketch_columns, shapes.documents * shapes.directions
        return [
            Need("directions", {"the sketch": ROW_BYTES * rows}, on_host=True),
            Need("directions", {"the sketch": 4 * rows, "directions": 8 * along}),
            Need("along", {"sums along directions": 4 * shapes.directions * shapes.gradient // MOST_UNITS}),
            Need("directions_again", {"products with directions": ALONG_BYTES * along}, on_host=True),
        ]
    if shapes.space != "gram":
        return []
    name, pairs = "inner products of the documents", shapes.documents**2
    found = [Need("project", {name: MADE_BYTES * pairs})]
    if shapes.keeps_sketch:
        parts = {f"{name}, decomposed": DECOMPOSED_BYTES * pairs}
        found.append(Need("vectors", parts, on_host=True, advice="another setting of `gradients`"))
    return found


def fit_needs(shapes: Shapes) -> list[Need]:
    """Floors of the stages that fit, of a refit too."""
    documents = shapes.documents
    whitened = {
        "gram": ("inner products of the documents", GRAM_BYTES, documents**2),
        "directions": ("coordinates along directions", ROW_BYTES, documents * shapes.whitened),
        "components": ("whitened rows", ROW_BYTES, documents * shapes.whitened),
    }
    span, size, numbers = whitened[shapes.space]
    # What the host has made of the documents goes to the device, and is fitted there.
    at_once = 2 if shapes.surrogates else 1
    fitted = {"codes of the documents": CODE_BYTES * documents * shapes.pieces}
    if shapes.space == "directions":
        fitted["weights of the documents in atoms"] = VECTOR_BYTES * documents * shapes.pieces
    fits = {f"{span}, and of a surrogate" if at_once > 1 else span: 4 * numbers * at_once} | fitted
    if shapes.space == "gram" and shapes.surrogates:
        turned = [Need("evidence", {f"{span}, while a surrogate is made": TURNED_BYTES * numbers})]
    else:
        turned = []
    found = [
        Need("dictionary", {span: size * numbers}, on_host=True),
        Need("dictionary", {span: 4 * numbers} | fitted),
        Need("evidence", fits),
        *turned,
    ]
    if shapes.solver == "sklearn":
        coordinates = SKLEARN_BYTES * documents * min(documents, shapes.whitened)
        parts = {"float64 coordinates": coordinates} | fitted
        found.append(Need("dictionary", parts, on_host=True, advice="`solver: torch`, fewer `components`"))
    return found


_ADVICE = {
    "extract": "a smaller `token_budget` or `max_length`, `dtype: bfloat16`",
    "eigenbases": "an adapter of fewer or narrower layers",
    "curvature": "an adapter of fewer or narrower layers",
    "project": "a smaller `exact_documents`",
    "directions": "a smaller `sketch_columns` or fewer `directions`",
    "along": "fewer `directions`",
    "directions_again": "fewer `directions`",
    "dictionary": "a smaller `exact_documents` or fewer `directions`",
    "evidence": "a smaller `exact_documents`, fewer `directions`, or no `surrogates`",
}


def require_memory(wanted: list[Need], free: Free) -> None:
    """Raise `InvalidInput` (`not_enough_memory`), with the numbers, for a stage that cannot fit."""
    for need in wanted:
        if not free.holds(need):
            where = "the host" if need.on_host and free.kind != "cpu" else free.kind
            parts = ", ".join(
                f"{name} {size_text(size)}"
                for name, size in sorted(need.parts.items(), key=lambda part: -part[1])
            )
            least, most = size_text(need.bytes), size_text(free.of(need))
            raise InvalidInput(
                "not_enough_memory",
                f"`{need.stage}` needs at least {least} and {most} are free on {where}: {parts}. "
                f"What helps: more memory, or {need.advice or _ADVICE[need.stage]}",
            )
