"""What an audit computed, for bundles that are to be equal whoever made them."""

from __future__ import annotations

import os
from pathlib import Path

import torch

import atomscope
from atomscope.bundle import layout
from atomscope.cli.registry import LocalRun
from atomscope_workers.local import run_local

FOLDERS = (
    "gradients/",
    "projected/",
    "curvature/",
    "atoms/",
    "vectors/",
    "adapter/",
    "documents/",
    "schemas/",
)


def paths(bundle: atomscope.Bundle) -> set[str]:
    return {entry.path for entry in bundle.manifest.files}


def computed(bundle: atomscope.Bundle) -> dict[str, str]:
    """Digest of every file of the bundle that does not name its audit."""
    digests = {entry.path: entry.sha256 for entry in bundle.manifest.files}
    return {
        path: digest for path, digest in digests.items() if path.startswith(FOLDERS) or path == layout.PLAN
    }


def run_alone(request: LocalRun, workers: int = 1) -> Path:
    """The audit in this process, with as many threads as each of so many workers of one machine has.

    Some CPUs round products otherwise on other numbers of threads.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    try:
        return run_local(request, lambda stage, progress: None)
    finally:
        torch.set_num_threads(before)
