"""How well an audit finds labelled behaviours: each preset beside text controls and random atoms.

    python benchmarks/discovery.py --score SCORE.py --set NAME BUNDLE DATASET [--set ...] [--seeds 5]

BUNDLE is an audit of DATASET whose bundle holds its gradients: every preset is computed anew from these, so
that one extraction serves all. DATASET is JSONL with a `label` in every row, which no audit sees. SCORE.py
holds `rank_scores(codes, labels)`: the average precision of every (label, atom). What is printed is its
one-to-one mean (each atom may serve one label) under its caps: at most N / 10 atoms; at most 40 behaviours, 3
a document.

The text controls know the words and nothing of the model: scikit-learn's NMF on TF-IDF, and this project's
own learner, with the same sizes, grouping and memberships, on TF-IDF rows.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.decomposition import NMF
from sklearn.feature_extraction.text import TfidfVectorizer

from atomscope.types.presets import preset
from atomscope.types.spec import AuditConfig, Preconditioner
from atomscope_workers.pipeline.behaviours import behaviour_count
from atomscope_workers.pipeline.curvature import ModuleCurvature, choose_components, kronecker_lambda
from atomscope_workers.pipeline.dictionary import dictionary_size
from atomscope_workers.pipeline.direction_span import direction_span
from atomscope_workers.pipeline.directions import (
    coordinates,
    probes,
    sharpened_directions,
    sketched_directions,
)
from atomscope_workers.pipeline.findings import find
from atomscope_workers.pipeline.gram import accumulate_gram, blocks, whitened_block
from atomscope_workers.pipeline.projection import project
from atomscope_workers.pipeline.sketch import sketch_rows
from atomscope_workers.pipeline.span import RowSpan, Span, unit_gram, unit_rows
from atomscope_workers.pipeline.text import text_span
from atomscope_workers.pipeline.vectors import weighted_sums
from atomscope_workers.stages.arrays import load_curvature
from atomscope_workers.stages.gradient_file import GradientShards

Codes = NDArray[np.float64]
MOST_BEHAVIOURS = 40


@dataclass(frozen=True)
class LabelledSet:
    """One audited data set."""

    name: str
    bundle: Path
    labels: NDArray[np.str_]
    texts: list[str]


@dataclass(frozen=True)
class Scored:
    """One-to-one average precision, and the best for each label."""

    one_to_one: float
    best: dict[str, float]
    codes_per_document: float


def read_set(name: str, bundle: Path, dataset: Path) -> LabelledSet:
    rows = [json.loads(line) for line in dataset.read_text(encoding="utf-8").splitlines()]
    texts = ["\n".join(turn["content"] for turn in row["messages"]) for row in rows]
    return LabelledSet(name, bundle, np.array([row["label"] for row in rows]), texts)


def load_scorer(path: Path) -> Callable[[Codes, NDArray[np.str_]], tuple[list[str], Codes, Codes]]:
    spec = importlib.util.spec_from_file_location("score", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.rank_scores


class Bench:
    """Scores tables of codes against labels."""

    def __init__(self, data: LabelledSet, rank_scores: Callable[..., Any]) -> None:
        self.data = data
        self._rank_scores = rank_scores

    def atoms(self, codes: Codes) -> Scored:
        most = len(codes) // 10
        return self._scored(codes[:, np.argsort(-np.abs(codes).sum(0), kind="stable")[:most]])

    def behaviours(self, strength: Codes) -> Scored:
        strength = strength[:, :MOST_BEHAVIOURS].copy()
        third = -np.sort(-strength, axis=1)[:, 2:3]
        strength[strength < third] = 0.0
        return self._scored(strength)

    def _scored(self, codes: Codes) -> Scored:
        names, precision, _ = self._rank_scores(codes, self.data.labels)
        rows, columns = linear_sum_assignment(-precision)
        best = {name: float(precision[row].max()) for row, name in enumerate(names)}
        return Scored(
            float(precision[rows, columns].mean()), best, float((np.abs(codes) > 1e-6).sum(1).mean())
        )


def learned(span: Span, config: AuditConfig, seed: int) -> tuple[Codes, Codes]:
    """Strengths on the atoms and on the behaviours, as an audit makes them."""
    found = find(span, config, seed)
    return found.atoms, found.behaviours


class Spaces:
    """The documents in the space of every preset, from the stored gradients."""

    def __init__(self, bundle: Path) -> None:
        self._curvature = load_curvature(bundle / "curvature" / "curvature.safetensors")
        self._shards = GradientShards(
            sorted((bundle / "gradients").glob("*.safetensors")), torch.device("cpu")
        )

    @cached_property
    def gram(self) -> Span:
        return unit_gram(accumulate_gram(self._curvature, self._shards.shard, self._shards.sizes))

    def directions(self, count: int, columns: int, seed: int) -> Span:
        """What stands in for `gram` past `exact_documents`."""
        rows = self.sketch(columns, seed)
        found = sharpened_directions(self._products(sketched_directions(rows.rows, count, seed)))
        return direction_span(coordinates(found, self._products(found)))

    def sketch(self, columns: int, seed: int) -> RowSpan:
        """Documents in seeded columns, in which directions are first looked for."""
        parts = [
            sketch_rows(self._curvature, partial(self._shards.shard, shard), size, columns=columns, seed=seed)
            for shard, size in enumerate(self._shards.sizes)
        ]
        return unit_rows(torch.cat([rows for rows, _ in parts]))

    @cached_property
    def _norms(self) -> torch.Tensor:
        """Lengths (N,) of the whitened gradients."""
        squares = torch.zeros(sum(self._shards.sizes), dtype=torch.float64)
        for block in blocks(self._curvature, len(squares)):
            squares += whitened_block(block, self._shards.shard, self._shards.sizes).double().square().sum(1)
        return squares.sqrt().float()

    def _products(self, weights: torch.Tensor) -> torch.Tensor:
        raw = (weights / self._norms[:, None]).T.contiguous()
        total, load, sizes = torch.zeros(weights.shape), self._shards.shard, self._shards.sizes
        for module in self._curvature:
            if module.has_energy:
                summed = weighted_sums(raw, load, sizes, [module.name])[module.name]
                probe = probes(module, summed).flatten(1).T
                parts = [load(shard, module.name).flatten(1) @ probe for shard in range(len(sizes))]
                total += torch.cat(parts)
        return total / self._norms[:, None]

    @cached_property
    def ekfac(self) -> Span:
        return self._rows("ekfac", lambda module: module.lambdas)

    @cached_property
    def kfac(self) -> Span:
        return self._rows("kfac", lambda module: kronecker_lambda(module.rotation))

    def _rows(
        self, preconditioner: Preconditioner, lambdas: Callable[[ModuleCurvature], torch.Tensor]
    ) -> Span:
        chosen = [
            choose_components(
                module.rotation,
                lambdas(module),
                preconditioner=preconditioner,
                components=50,
                damping=0.01,
            )
            for module in self._curvature
        ]
        parts = [
            project(partial(self._shards.shard, shard), chosen, size).rows
            for shard, size in enumerate(self._shards.sizes)
        ]
        return unit_rows(torch.from_numpy(np.concatenate(parts)))


def contenders(data: LabelledSet) -> Iterator[tuple[str, Callable[[int], tuple[Codes, Codes]]]]:
    """Name and what it finds under a seed: codes of atoms, strengths of behaviours."""
    spaces = Spaces(data.bundle)
    default = AuditConfig()
    documents = len(data.labels)
    yield "default", lambda seed: learned(spaces.gram, default, seed)
    for count, columns in ((600, 16_384), (300, 16_384), (600, 1024), (300, 1024), (300, 256)):
        yield (
            f"default, {count} directions of {columns:,} columns",
            lambda seed, count=count, columns=columns: learned(
                spaces.directions(count, columns, seed), default, seed
            ),
        )
    for columns in (16_384, 1024, 256):
        yield (
            f"default, {columns:,} columns alone",
            lambda seed, columns=columns: learned(spaces.sketch(columns, seed), default, seed),
        )
    top = preset("top-components")
    yield "top-components", lambda seed: learned(spaces.ekfac, top, seed)
    paper = preset("paper", n_atoms=documents // 10)
    yield "paper", lambda seed: learned(spaces.kfac, paper, seed)
    text = text_span(data.texts, exact_documents=documents, columns=1, seed=0)
    if text is None:
        raise SystemExit(f"{data.name}: no word is in two texts")
    span, used = text

    def by_text(seed: int) -> tuple[Codes, Codes]:
        tables = learned(span, default, seed)
        whole = tuple(np.zeros((documents, table.shape[1])) for table in tables)
        for table, part in zip(whole, tables, strict=True):
            table[used] = part
        return whole[0], whole[1]

    yield "text, own learner", by_text

    @cache
    def nmf(size: int) -> Codes:
        tfidf = TfidfVectorizer(min_df=2, sublinear_tf=True).fit_transform(data.texts)
        return NMF(n_components=size, init="nndsvd", random_state=0, max_iter=300).fit_transform(tfidf)

    sizes = dictionary_size("auto", documents), behaviour_count("auto", documents)
    yield "text, NMF", lambda seed: (nmf(sizes[0]), nmf(sizes[1]))

    def shuffled(seed: int) -> tuple[Codes, Codes]:
        random = np.random.default_rng(seed)
        codes, strength = learned(spaces.gram, default, seed)
        return random.permuted(codes, axis=0), random.permuted(strength, axis=0)

    yield "random atoms", shuffled


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--score", type=Path, required=True)
    parser.add_argument(
        "--set", nargs=3, action="append", required=True, metavar=("NAME", "BUNDLE", "DATASET")
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="*", metavar="ROW", help="rows of the table, by name; all by default")
    parser.add_argument("--show", nargs="*", default=[], help="labels whose best AP is printed as well")
    args = parser.parse_args()
    rank_scores = load_scorer(args.score)
    for name, bundle, dataset in args.set:
        data = read_set(name, Path(bundle), Path(dataset))
        bench = Bench(data, rank_scores)
        print(f"\n{name}: {len(data.labels)} documents, {len(set(data.labels))} labels, {args.seeds} seeds")
        print("| what | atoms | codes a document | behaviours |", *(f"{item} |" for item in args.show))
        print("|---|---|---|---|" + "---|" * len(args.show))
        for title, found in contenders(data):
            if args.only is not None and title not in args.only:
                continue
            tables = [found(seed) for seed in range(args.seeds)]
            atoms = [bench.atoms(codes) for codes, _ in tables]
            grouped = [bench.behaviours(strength) for _, strength in tables]
            cells = [
                _spread([item.one_to_one for item in atoms]),
                f"{np.mean([item.codes_per_document for item in atoms]):.1f}",
                _spread([item.one_to_one for item in grouped]),
                *(_best(label, atoms, grouped) for label in args.show),
            ]
            print(f"| {title} | " + " | ".join(cells) + " |", flush=True)


def _best(label: str, atoms: list[Scored], grouped: list[Scored]) -> str:
    """Mean over seeds of the label's best average precision, by an atom or a behaviour."""
    pairs = zip(atoms, grouped, strict=True)
    return f"{np.mean([max(a.best.get(label, 0.0), b.best.get(label, 0.0)) for a, b in pairs]):.2f}"


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ± {np.std(values):.3f}"


if __name__ == "__main__":
    main()
