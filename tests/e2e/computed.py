"""What an audit computed, for bundles that are to be equal whoever made them."""

from __future__ import annotations

import atomscope
from atomscope.bundle import layout

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


def computed(bundle: atomscope.Bundle) -> dict[str, str]:
    """Digest of every file of the bundle that does not name its audit."""
    digests = {entry.path: entry.sha256 for entry in bundle.manifest.files}
    return {
        path: digest for path, digest in digests.items() if path.startswith(FOLDERS) or path == layout.PLAN
    }
