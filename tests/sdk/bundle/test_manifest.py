"""`manifest.json` is written last, and nothing in it is believed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

import atomscope
from atomscope.bundle import layout, write_manifest
from atomscope.bundle.manifest import decode_manifest
from atomscope.store import LocalStore
from atomscope.types.bundle import FileEntry
from atomscope.types.spec import FORMAT_VERSION
from tests.sdk.bundle.golden_bundle import AUDIT_ID, GOLDEN, entries

SHA256 = "0" * 64
HOSTILE = [
    "../outside", "a/../../outside", "/etc/passwd", "//host/share", "./a", "a/./b", "a//b", "a/", "", ".",
    "..", "a\\b", "C:\\a", "c:a", ".hidden", "a/.tmp-1", "-rf", "~/a", "$HOME", "a b", "a\x00b", "a\nb",
    "\x1b[2J", "\u202egnp.exe", "caf\u00e9", "a\uff0fb", "%2e%2e/a", "a" * 901, "a/" + "b" * 256,
]  # fmt: skip


def _changed(change: Callable[[dict[str, Any]], object]) -> bytes:
    content = json.loads((GOLDEN / layout.MANIFEST).read_bytes())
    change(content)
    return json.dumps(content).encode()


def test_without_a_manifest_there_is_no_bundle(copied: Path) -> None:
    (copied / layout.MANIFEST).unlink()
    with pytest.raises(atomscope.BundleError, match=r"no manifest\.json"):
        atomscope.open(copied)


def test_it_lists_every_file_by_path_with_the_time_in_utc(copied: Path) -> None:
    (copied / layout.MANIFEST).unlink()
    listed = entries(copied)
    manifest = write_manifest(LocalStore(copied), "", AUDIT_ID, reversed(listed))
    assert atomscope.open(copied).manifest == manifest
    assert [entry.path for entry in manifest.files] == sorted(entry.path for entry in listed)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", manifest.created_at)
    assert datetime.fromisoformat(manifest.created_at).tzinfo == UTC


@pytest.mark.parametrize("fault", ["missing", "size"])
def test_nothing_is_committed_before_every_file_is_there(copied: Path, fault: str) -> None:
    (copied / layout.MANIFEST).unlink()
    listed = entries(copied)
    if fault == "missing":
        (copied / layout.REPORT).unlink()
    else:
        (copied / layout.REPORT).write_bytes(b"{}")
    with pytest.raises(atomscope.BundleError, match=r"report\.json is to hold \d+ bytes"):
        write_manifest(LocalStore(copied), "", AUDIT_ID, listed)
    assert not (copied / layout.MANIFEST).exists()


def test_a_bundle_under_a_prefix_is_committed_there(copied: Path) -> None:
    (copied / layout.MANIFEST).unlink()
    write_manifest(LocalStore(copied.parent), "bundle/", AUDIT_ID, entries(copied))
    atomscope.open(copied).verify()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_leads_elsewhere_is_refused_by_reader_and_writer(copied: Path, name: str) -> None:
    entry = FileEntry(path=name, size=0, sha256=SHA256)
    content = _changed(lambda manifest: manifest["files"].append(msgspec.to_builtins(entry)))
    (copied / layout.MANIFEST).write_bytes(content)
    with pytest.raises(atomscope.BundleError, match="outside of the bundle") as caught:
        atomscope.open(copied)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300
    (copied / layout.MANIFEST).unlink()
    with pytest.raises(atomscope.BundleError, match="outside of the bundle"):
        write_manifest(LocalStore(copied), "", AUDIT_ID, [entry])
    assert not (copied / layout.MANIFEST).exists()


@pytest.mark.parametrize(
    "entry",
    [
        FileEntry(path=layout.REPORT, size=0, sha256=SHA256),
        FileEntry(path=layout.MANIFEST, size=0, sha256=SHA256),
    ],
    ids=["twice", "itself"],
)
def test_a_file_is_listed_once_and_the_manifest_never(entry: FileEntry) -> None:
    content = _changed(lambda manifest: manifest["files"].append(msgspec.to_builtins(entry)))
    with pytest.raises(atomscope.BundleError, match=f"may not list {entry.path}"):
        decode_manifest(content)


@pytest.mark.parametrize(
    "change",
    [
        {"size": -1},
        {"sha256": ""},
        {"sha256": "0" * 63},
        {"sha256": "A" * 64},
        {"sha256": "0" * 64 + "\n"},
        {"sha256": "g" * 64},
    ],
    ids=repr,
)
def test_a_size_or_digest_that_can_be_none_is_refused_by_file(change: dict[str, object]) -> None:
    content = _changed(lambda manifest: manifest["files"][3].update(change))
    path = atomscope.open(GOLDEN).manifest.files[3].path
    with pytest.raises(atomscope.BundleError, match=f"no proper size and SHA-256 of {re.escape(path)}"):
        decode_manifest(content)


def test_a_newer_format_is_refused_whatever_its_shape() -> None:
    newer = json.dumps({"format_version": FORMAT_VERSION + 1, "parts": []}).encode()
    with pytest.raises(atomscope.BundleError, match=f"of format {FORMAT_VERSION + 1} .*: upgrade atomscope"):
        decode_manifest(newer)


@pytest.mark.parametrize("version", [0, -1])
def test_a_format_that_never_was_is_refused(version: int) -> None:
    content = _changed(lambda manifest: manifest.update(format_version=version))
    with pytest.raises(atomscope.BundleError, match=f"of format {version} ") as caught:
        decode_manifest(content)
    assert "upgrade" not in str(caught.value)


def test_another_kind_is_refused_by_name() -> None:
    with pytest.raises(atomscope.BundleError, match="of kind 'refit', not 'audit'"):
        decode_manifest(_changed(lambda manifest: manifest.update(kind="refit")))


def test_fields_of_a_later_minor_change_are_passed_over() -> None:
    content = _changed(lambda manifest: (manifest.update(note=1), manifest["files"][0].update(note=1)))
    assert decode_manifest(content) == atomscope.open(GOLDEN).manifest


def test_a_cut_manifest_is_told_at_every_length() -> None:
    whole = (GOLDEN / layout.MANIFEST).read_bytes().rstrip()
    decode_manifest(whole)
    for length in range(len(whole)):
        with pytest.raises(atomscope.BundleError, match=r"^manifest\.json is damaged"):
            decode_manifest(whole[:length])


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"null",
        b"{}",
        b"[" * 100_000,
        b'{"format_version": "1"}',
        b'{"format_version": 1}',
        b"\xff\xfe",
    ],
    ids=["list", "null", "empty", "deep", "text", "only version", "not UTF-8"],
)
def test_what_is_no_manifest_is_told(content: bytes) -> None:
    with pytest.raises(atomscope.BundleError, match=r"^manifest\.json is damaged"):
        decode_manifest(content)
