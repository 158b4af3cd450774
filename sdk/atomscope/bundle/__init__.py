"""The audit bundle: its layout, reading and writing."""

from atomscope.bundle.atom_list import AtomAttributes, AtomList, strengths_by_index
from atomscope.bundle.documents import read_documents, write_documents
from atomscope.bundle.reader import ACTIVE, Bundle, BundleAtom, open_bundle
from atomscope.bundle.schemas import json_schemas
from atomscope.bundle.tables import Coefficients, read_coefficients, write_coefficients
from atomscope.bundle.writer import encode_json, write_manifest

__all__ = [
    "ACTIVE",
    "AtomAttributes",
    "AtomList",
    "Bundle",
    "BundleAtom",
    "Coefficients",
    "encode_json",
    "json_schemas",
    "open_bundle",
    "read_coefficients",
    "read_documents",
    "strengths_by_index",
    "write_coefficients",
    "write_documents",
    "write_manifest",
]
