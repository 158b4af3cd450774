"""Whatever happened to a file of a bundle, the reader says so by a `BundleError` that names it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import atomscope
from atomscope.bundle import layout, read_coefficients, read_documents
from atomscope.store import StoreError
from tests.sdk.bundle.golden_bundle import GOLDEN

LISTED = [entry.path for entry in atomscope.open(GOLDEN).manifest.files]

READERS: dict[str, Callable[[atomscope.Bundle], object]] = {
    layout.SPEC: lambda bundle: bundle.spec,
    layout.PLAN: lambda bundle: bundle.plan,
    layout.REPORT: lambda bundle: bundle.report,
    layout.ATOMS: lambda bundle: bundle.atoms,
    layout.COEFFICIENTS: lambda bundle: bundle.coefficients,
    layout.DOCUMENTS: lambda bundle: bundle.documents,
    layout.gradient_shard(1): lambda bundle: list(bundle.gradients()),
    layout.vector(1): lambda bundle: bundle.vector(1),
    layout.ADAPTER_CONFIG: lambda bundle: bundle.steer({1: 0.5}),
    layout.ADAPTER_WEIGHTS: lambda bundle: bundle.steer({1: 0.5}),
}


def _remove(path: Path) -> None:
    path.unlink()


def _rename(path: Path) -> None:
    path.rename(path.with_name(f"x{path.name}"))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


VISIBLE_AT_ONCE = [_remove, _rename, _cut, _empty, _grow, _folder, _pipe]


@pytest.mark.parametrize("path", LISTED)
def test_verify_names_the_file_and_no_other(copied: Path, path: str) -> None:
    original = (copied / path).read_bytes()
    for damage in (_remove, _cut, _grow, _flip):
        damage(copied / path)
        with pytest.raises(atomscope.BundleError) as caught:
            atomscope.open(copied).verify()
        assert [name for name in LISTED if re.search(rf"(^|; ){re.escape(name)} is ", str(caught.value))] == [
            path
        ]
        (copied / path).write_bytes(original)
    atomscope.open(copied).verify()


@pytest.mark.parametrize("damage", VISIBLE_AT_ONCE)
@pytest.mark.parametrize("path", READERS)
def test_reading_a_file_that_is_not_the_one_of_the_manifest_names_it(
    copied: Path, path: str, damage: Callable[[Path], None]
) -> None:
    damage(copied / path)
    with pytest.raises(atomscope.BundleError, match=rf"^{re.escape(path)} is (missing|damaged)"):
        READERS[path](atomscope.open(copied))


@pytest.mark.parametrize("damage", [_folder, _pipe])
def test_what_is_no_file_is_missing_even_where_its_size_is_right(
    copied: Path, damage: Callable[[Path], None]
) -> None:
    damage(copied / layout.REPORT)
    manifest = json.loads((copied / layout.MANIFEST).read_bytes())
    for entry in manifest["files"]:
        entry["size"] = (copied / entry["path"]).stat().st_size
    (copied / layout.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(atomscope.BundleError, match=r"^report\.json is missing"):
        _ = atomscope.open(copied).report


def test_a_file_that_is_not_listed_is_told_and_never_read(copied: Path) -> None:
    content = (copied / layout.vector(1)).read_bytes()
    (copied / layout.vector(2)).write_bytes(content)
    bundle = atomscope.open(copied)
    with pytest.raises(atomscope.BundleError, match=r"^vectors/0002\.safetensors is not listed"):
        bundle.verify()
    with pytest.raises(atomscope.BundleError, match="no vector of atom 2"):
        bundle.vector(2)
    with pytest.raises(atomscope.SteeringError, match="no atom 2"):
        bundle.steer({2: 0.5})
    with pytest.raises(atomscope.BundleError, match=r"does not hold vectors/0002\.safetensors"):
        bundle.file(layout.vector(2))


def test_a_renamed_file_is_told_by_both_names(copied: Path) -> None:
    (copied / "report.json").rename(copied / "Report.json")
    with pytest.raises(atomscope.BundleError, match=r"report\.json is missing.*; Report\.json is not listed"):
        atomscope.open(copied).verify()


def test_many_faults_are_counted_and_five_are_named(copied: Path) -> None:
    for path in LISTED:
        _flip(copied / path)
    with pytest.raises(atomscope.BundleError) as caught:
        atomscope.open(copied).verify()
    assert str(caught.value).count("damaged") == 5
    assert str(caught.value).endswith(f"; and {len(LISTED) - 5} more")


@pytest.mark.parametrize("path", ["../../outside", "report.json/../plan.json", "/etc/passwd", "atoms", ""])
def test_only_listed_files_are_given_out(path: str) -> None:
    with pytest.raises(atomscope.BundleError, match="does not hold"):
        atomscope.open(GOLDEN).file(path)


def test_a_planted_link_is_not_followed(copied: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (copied / layout.REPORT).rename(outside)
    (copied / layout.REPORT).symlink_to(outside)
    with pytest.raises(StoreError, match=r"report\.json.*symbolic link"):
        _ = atomscope.open(copied).report


@pytest.mark.parametrize("path", [path for path in READERS if path != layout.ADAPTER_CONFIG])
def test_changed_bytes_of_the_same_number_are_refused_or_read_but_never_crash(
    copied: Path, path: str
) -> None:
    file = copied / path
    original = file.read_bytes()
    told: list[str] = []
    for at in range(0, len(original), 11):
        for bits in (0x80, 0xFF):
            changed = bytearray(original)
            changed[at] ^= bits
            file.write_bytes(changed)
            try:
                READERS[path](atomscope.open(copied))
            except (atomscope.BundleError, atomscope.SteeringError) as error:
                told.append(str(error))
    assert len(told) > 10
    assert [message for message in told if file.name not in message] == []


@pytest.mark.parametrize(
    ("read", "path"), [(read_documents, layout.DOCUMENTS), (read_coefficients, layout.COEFFICIENTS)]
)
def test_a_table_cut_at_any_length_is_refused(tmp_path: Path, read: Callable[[Path], Any], path: str) -> None:
    whole = (GOLDEN / path).read_bytes()
    cut = tmp_path / Path(path).name
    for length in range(0, len(whole), 29):
        cut.write_bytes(whole[:length])
        with pytest.raises(atomscope.BundleError, match=rf"^{cut.name} is damaged"):
            read(cut)
