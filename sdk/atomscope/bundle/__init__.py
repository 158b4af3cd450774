"""The audit bundle: its layout, reading and writing."""

from atomscope.bundle.atom_list import AtomList, AtomView
from atomscope.bundle.documents import read_documents, write_documents
from atomscope.bundle.reader import ACTIVE, Bundle, BundleAtom, open_bundle
from atomscope.bundle.tables import Coefficients, read_coefficients, write_coefficients
from atomscope.bundle.writer import write_manifest

__all__ = [
    "ACTIVE",
    "AtomList",
    "AtomView",
    "Bundle",
    "BundleAtom",
    "Coefficients",
    "open_bundle",
    "read_coefficients",
    "read_documents",
    "write_coefficients",
    "write_documents",
    "write_manifest",
]
