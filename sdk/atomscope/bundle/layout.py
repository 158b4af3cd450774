"""Where everything lies: keys in the object store and paths within a bundle.

Every key of a project begins with `projects/<project_id>/`, so that a store prefix is a tenant.

    projects/<project>/uploads/<upl>/<file number>            while an upload is open
    projects/<project>/models/<mdl>/<files>                   base models
    projects/<project>/adapters/<ada>/<files>                 adapters
    projects/<project>/datasets/<ds>/data.<format>            data sets
    projects/<project>/steered/<str>/<files>                  steered adapters
    projects/<project>/audits/<aud>/a<attempt>/spec.json      one attempt at an audit
    ....................................../units/<stage>/NNNN/f<fence>/<bundle path>, unit.json
    projects/<project>/audits/<aud>/bundle-a<attempt>-f<fence>/   the bundle, manifest.json last

    projects/<project>/audits/<aud>/jobs/<job>/f<fence>.json  results of jobs on it
    projects/<project>/extractions/<aud>/<shard>/f<fence>/    gradients, losses and factor sums of one shard
                                                              that the audit extracted, entry.json last

A unit writes its outputs under its own fence at the path they will have in the bundle; the `report`
stage copies the winners' into the bundle. Paths that begin with `work/` never reach the bundle. What
`extract` writes lies among the extractions, which audits share; a bundle refers to the gradients there.
"""

from __future__ import annotations

from atomscope.types.work import Stage

MANIFEST = "manifest.json"
SPEC = "spec.json"
PLAN = "plan.json"
REPORT = "report.json"
DOCUMENTS = "documents/documents.parquet"
DROPPED = "documents/dropped.json"
ATOMS = "atoms/atoms.json"
BEHAVIOURS = "atoms/behaviours.json"
HIERARCHY = "atoms/hierarchy.json"
LABELS = "atoms/labels.json"
"""What the endpoint for labels was asked and answered, where labels were asked for."""
DICTIONARY = "atoms/dictionary.safetensors"
COEFFICIENTS = "atoms/coefficients.parquet"
ADAPTER_CONFIG = "adapter/adapter_config.json"
ADAPTER_WEIGHTS = "adapter/adapter_model.safetensors"
"""The audited adapter, so that a bundle can be steered with nothing else at hand."""
ADAPTER_TEMPLATE = "adapter/chat_template.jinja"
"""The chat template that lay beside the adapter, where one did."""
BASE_CONFIG = "base/config.json"
"""`config.json` of the base model: which architecture a steered adapter is for."""
CURVATURE = "curvature/curvature.safetensors"
EIGENBASES = "work/eigenbases.safetensors"
"""Eigenvectors and eigenvalues of the Kronecker factors, of all shards' sums."""
GRAM = "projected/gram.safetensors"
"""Inner products of the whitened gradients, where every one of them is kept."""
DIRECTIONS = "projected/directions.safetensors"
"""Coordinates of the documents along the directions in which they vary most, where these are kept."""
BASIS = "sketches/basis.safetensors"
"""Sums of raw gradients along some directions of the documents, under `gradients: sketch`."""
BASIS_WEIGHTS = "sketches/basis_weights.safetensors"
"""The documents' weights in these sums, as weights of their unit whitened rows."""
UNIT = "unit.json"
ENTRY = "entry.json"
"""Of a stored shard, written last: the size and SHA-256 of its files."""
TOKENS = "documents/tokens.safetensors"
"""Token ids and target masks of the audited documents, which a refit has no other way to come by."""

WORK = "work/"
SHARDS = "work/shards.json"
"""Where each shard of the plan is stored, or is to be."""


GRADIENTS = "gradients/"
DOCUMENT = "document"
"""Name in a gradient shard of the physical rows."""
SCALE = "scale/"
"""Before a parameter's name in a gradient shard of float16: what its rows are to be multiplied by."""


def gradient_shard(index: int) -> str:
    """Bundle path of the per-document gradients of shard `index`."""
    return f"gradients/{index:04d}.safetensors"


def gradient_sketch(index: int) -> str:
    """Bundle path of the sketched raw gradients of shard `index`, under `gradients: sketch`."""
    return f"sketches/{index:04d}.safetensors"


def shard_plan(index: int) -> str:
    """Work path of the plan with shard `index` alone."""
    return f"work/plan/{index:04d}.json"


def shard_tokens(index: int) -> str:
    """Work path of the tokens of shard `index`, where it is to be extracted."""
    return f"work/tokens/{index:04d}.safetensors"


def shard_losses(index: int) -> str:
    """Work path of the losses and gradient norms of shard `index`."""
    return f"work/losses/{index:04d}.safetensors"


def factor_sums(index: int) -> str:
    """Work path of the Kronecker factor sums of shard `index`."""
    return f"work/factors/{index:04d}.safetensors"


def squared_sums(index: int) -> str:
    """Work path of the sums of squared rotated gradients of shard `index`, of which lambda is the mean."""
    return f"work/lambdas/{index:04d}.safetensors"


def vector_part(parameter: int) -> str:
    """Work path of one parameter, by its place among the sorted names, of every atom's vector."""
    return f"work/vectors/{parameter:04d}.safetensors"


def raw_sketch(index: int) -> str:
    """Work path of the sketched raw gradients of shard `index`, where the bundle is not to keep them."""
    return f"work/sketches/{index:04d}.safetensors"


def whitened_sketch(index: int) -> str:
    """Work path of the sketched whitened gradients of shard `index`, in which directions are looked for."""
    return f"work/whitened/{index:04d}.safetensors"


def direction_weights(stage: Stage) -> str:
    """Work path of the documents' weights in the directions that `stage` found."""
    return f"work/{stage}.safetensors"


def products_along(stage: Stage, index: int) -> str:
    """Work path of the documents' products with directions, over the parameters of unit `index`."""
    return f"work/{stage}/{index:04d}.safetensors"


def shard_facts(index: int) -> str:
    """Work path of what the gradients of shard `index` are gradients of, but for the audit's own names."""
    return f"work/facts/{index:04d}.json"


STORED_FILES = {
    "gradients.safetensors": gradient_shard,
    "losses.safetensors": shard_losses,
    "factors.safetensors": factor_sums,
    "facts.json": shard_facts,
}
"""Name among the files of a stored shard -> the path it has in an audit, by index."""


def projected_shard(index: int) -> str:
    """Bundle path of the whitened rows of shard `index`."""
    return f"projected/{index:04d}.safetensors"


def vector(atom: int) -> str:
    """Bundle path of the steering vector of atom `atom` (its index, not its rank)."""
    return f"vectors/{atom:04d}.safetensors"


def schema(path: str) -> str:
    """Bundle path of the JSON Schema of the JSON file at `path`."""
    return f"schemas/{path.rpartition('/')[2].removesuffix('.json')}.schema.json"


def project_prefix(project_id: str) -> str:
    return f"projects/{project_id}/"


def audit_prefix(project_id: str, audit_id: str) -> str:
    return f"projects/{project_id}/audits/{audit_id}/"


def extraction_prefix(project_id: str, audit_id: str) -> str:
    """Key prefix of the shards that an audit extracted; other audits may read them after its end."""
    return f"projects/{project_id}/extractions/{audit_id}/"


def extraction_of(key: str) -> str:
    """The audit that extracted what lies at a key of the store; raises `ValueError` for any other key."""
    parts = key.split("/")
    if len(parts) < 5 or (parts[0], parts[2]) != ("projects", "extractions"):
        raise ValueError(f"{key} is not the key of an extraction")
    return parts[3]


def attempt_prefix(project_id: str, audit_id: str, attempt: int) -> str:
    return f"{audit_prefix(project_id, audit_id)}a{attempt}/"


def unit_prefix(work_prefix: str, stage: Stage, index: int, fence: int) -> str:
    """Key prefix of the outputs of one unit under one fence."""
    return f"{work_prefix}units/{stage}/{index:04d}/f{fence}/"


def bundle_prefix(project_id: str, audit_id: str, attempt: int, fence: int) -> str:
    return f"{audit_prefix(project_id, audit_id)}bundle-a{attempt}-f{fence}/"
