"""What a worker needs to write a bundle; each writer stands beside its reader in its own module."""

from __future__ import annotations

from atomscope.bundle._json import encode as encode_json
from atomscope.bundle.documents import write_documents
from atomscope.bundle.manifest import write_manifest
from atomscope.bundle.tables import write_coefficients

__all__ = ["encode_json", "write_coefficients", "write_documents", "write_manifest"]
