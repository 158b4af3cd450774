"""The audit bundle: its layout, reading and writing."""

from atomscope.bundle.atom_list import AtomAttributes, AtomList
from atomscope.bundle.behaviour_list import BehaviourAttributes, BehaviourList
from atomscope.bundle.directions import directions, needed_files
from atomscope.bundle.documents import read_documents, write_documents
from atomscope.bundle.reader import ACTIVE, Bundle, BundleAtom, BundleBehaviour, open_bundle
from atomscope.bundle.schemas import json_schemas
from atomscope.bundle.strengths import Steerable, Strengths, strengths_by_target
from atomscope.bundle.tables import Coefficients, read_coefficients, write_coefficients
from atomscope.bundle.writer import encode_json, write_manifest

__all__ = [
    "ACTIVE",
    "AtomAttributes",
    "AtomList",
    "BehaviourAttributes",
    "BehaviourList",
    "Bundle",
    "BundleAtom",
    "BundleBehaviour",
    "Coefficients",
    "Steerable",
    "Strengths",
    "directions",
    "encode_json",
    "json_schemas",
    "needed_files",
    "open_bundle",
    "read_coefficients",
    "read_documents",
    "strengths_by_target",
    "write_coefficients",
    "write_documents",
    "write_manifest",
]
