"""Two audits side by side: what was planted in one set should be found there and not in the other.

    python benchmarks/planted.py BUNDLE DATASET OTHER_BUNDLE OTHER_DATASET BASE_MODEL [--exemplars 5]

Both sets are JSONL with a `label` in every row. Of every label of the first set, the atom and the
behaviour that serve it best are compared by the cosine of steering vectors: with the atoms and behaviours of
a fit of the same audit under another seed, which says how alike the same thing is when it is found twice,
and with those of the other audit; the higher of the two counts. The threshold is the lowest of the first,
over the labels that both sets share. Beside it, how much of the label's first exemplars the atoms of either
audit explain (`attribute`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from atomscope.bundle import Bundle, layout, open_bundle
from atomscope.steering import Target
from atomscope.types.attribution import AttributionQuery
from atomscope.types.spec import AuditConfig
from atomscope_workers.attribution import attribute
from atomscope_workers.opened_audit import OpenedAudit
from atomscope_workers.pipeline.dictionary import dictionary_size, fit, resolve_signs
from atomscope_workers.pipeline.findings import atom_strengths, group
from atomscope_workers.pipeline.span import unit_gram
from atomscope_workers.pipeline.vectors import combined_vectors
from atomscope_workers.stages.arrays import load_curvature, load_gram
from atomscope_workers.stages.gradient_file import GradientShards

Vectors = NDArray[np.float32]


def unit(vectors: list[dict[str, Vectors]]) -> Vectors:
    """(K, d), rows of unit norm, parameters in the order of their names."""
    flat = np.stack([np.concatenate([vector[name].ravel() for name in sorted(vector)]) for vector in vectors])
    return flat / np.linalg.norm(flat, axis=1, keepdims=True).clip(min=1e-30)


def strengths_of(bundle: Bundle, rows: int) -> NDArray[np.float64]:
    """(rows, atoms + behaviours): by physical row; atoms and behaviours by rank."""
    stored = bundle.coefficients
    atoms = np.zeros((rows, int(stored.atom.max()) + 1))
    atoms[stored.document, stored.atom] = stored.value
    found = np.zeros((rows, len(bundle.behaviours)))
    for place, behaviour in enumerate(bundle.behaviours):
        for member in behaviour.behaviour.documents:
            found[member.document, place] = member.strength
    return np.hstack([atoms[:, [atom.index for atom in bundle.atoms]], found])


def vectors_of(bundle: Bundle) -> Vectors:
    """Steering directions (atoms + behaviours, d) in the order of `strengths_of`."""
    targets = [Target("atom", atom.index) for atom in bundle.atoms]
    targets += [Target("behaviour", behaviour.index) for behaviour in bundle.behaviours]
    return unit([dict(bundle.direction(target)) for target in targets])


def of_another_seed(bundle: Path, seed: int) -> Vectors:
    """Directions of the atoms and behaviours of a fit of the same documents under another seed."""
    _, gram = load_gram(bundle / layout.GRAM)
    span, config = unit_gram(gram), AuditConfig()
    fitted = resolve_signs(fit(span, dictionary_size("auto", len(gram)), config, seed), config.solver)
    found = group(span, fitted.codes, atom_strengths(span, fitted.codes, config), config)
    shards = GradientShards(sorted((bundle / "gradients").glob("*.safetensors")), torch.device("cpu"))
    weights = fitted.atoms[:, : len(gram)] / gram.diagonal().double().sqrt().float()
    weights = weights[torch.from_numpy(found.kept)]
    grouped = torch.zeros(len(found.grouping.groups), len(weights), dtype=weights.dtype)
    for place, members in enumerate(found.grouping.groups):
        documents = found.behaviours[:, place] > 0
        means = found.atoms[np.ix_(documents, np.asarray(members))].clip(min=0).mean(0)
        grouped[place, torch.as_tensor(members)] = torch.from_numpy(means).to(weights.dtype)
    curvature = load_curvature(bundle / layout.CURVATURE)
    both = torch.cat([weights, grouped @ weights])
    return unit(combined_vectors(both, curvature, shards.shard, shards.sizes, config.vector_power))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("bundle", "dataset", "other_bundle", "other_dataset", "base_model"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--exemplars", type=int, default=5)
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.dataset.read_text(encoding="utf-8").splitlines()]
    others = [json.loads(line) for line in args.other_dataset.read_text(encoding="utf-8").splitlines()]
    labels = np.array([row["label"] for row in rows])
    shared = set(labels) & {row["label"] for row in others}
    audit, other = open_bundle(args.bundle), open_bundle(args.other_bundle)
    codes = strengths_of(audit, len(rows))
    vectors, there = vectors_of(audit), vectors_of(other)
    again = of_another_seed(args.bundle, audit.spec.config.seed + 1)
    found: dict[str, tuple[str, float, float, float, float, float]] = {}
    for label in sorted(set(labels)):
        precision = np.array([average_precision_score(labels == label, column) for column in codes.T])
        best = int(precision.argmax())
        count = len(audit.atoms)
        serving = [int(precision[:count].argmax()), count + int(precision[count:].argmax())]
        first = np.argsort(-codes[:, best] * (labels == label), kind="stable")[: args.exemplars]
        explained = [
            np.mean(
                [
                    attribute(
                        OpenedAudit(bundle, args.base_model, lambda progress: None),
                        AttributionQuery(messages=rows[int(row)]["messages"], documents=0),
                    ).explained
                    for row in first
                ]
            )
            for bundle in (audit, other)
        ]
        found[label] = (
            "atom" if best < count else "behaviour",
            float(precision[best]),
            float((again @ vectors[serving].T).max()),
            float((there @ vectors[serving].T).max()),
            float(explained[0]),
            float(explained[1]),
        )
    threshold = min(item[2] for label, item in found.items() if label in shared)
    print(f"threshold {threshold:.2f}: the lowest cosine between two seeds, of the shared labels\n")
    print("| label | serves it | AP | another seed | the other audit | matches | explained here | there |")
    print("|---|---|---|---|---|---|---|---|")
    for label, (kind, ap, seed, cosine, here, away) in sorted(
        found.items(), key=lambda item: item[0] in shared
    ):
        name = label if label in shared else f"**{label}**"
        print(
            f"| {name} | {kind} | {ap:.2f} | {seed:.2f} | {cosine:.2f} "
            f"| {'yes' if cosine >= threshold else 'no'} | {here:.2f} | {away:.2f} |"
        )


if __name__ == "__main__":
    main()
