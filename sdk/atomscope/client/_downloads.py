"""Downloading bundles and steered adapters, each file whole or not at all."""

from __future__ import annotations

import hashlib
from pathlib import Path

from atomscope.bundle.layout import MANIFEST
from atomscope.client._transport import Transport
from atomscope.client._wire import Request, parse
from atomscope.errors import APIError, BundleError
from atomscope.steering.adapter import FILES, claim_folder
from atomscope.store import check_key
from atomscope.types.resources import BundleFile, BundleListing, SteeredAdapterDownload


async def download_bundle(transport: Transport, audit_id: str, folder: Path) -> Path:
    """Bring the whole bundle into `folder`, its manifest last; files that are there already are kept.

    Raises `BundleError` when the folder holds something else, and when a file does not arrive as listed.
    """
    listing = parse(await transport.send(Request("GET", f"v1/audits/{audit_id}/bundle")), BundleListing)
    names = {file.path for file in listing.files}
    if MANIFEST not in names:
        raise APIError(f"the bundle of {audit_id} was listed without its manifest")
    if folder.exists():
        strange = [
            path.relative_to(folder).as_posix()
            for path in folder.rglob("*")
            if path.is_file() and path.relative_to(folder).as_posix().removesuffix(".partial") not in names
        ]
        if strange:
            raise BundleError(
                f"{folder} holds {strange[0]}, which is not of this bundle: give an empty folder"
            )
    for file in sorted(listing.files, key=lambda file: file.path == MANIFEST):
        target = folder / check_key(file.path)
        if not (target.is_file() and _is(target, file)):
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f"{target.name}.partial")
            await transport.download(file.url, partial)
            if not _is(partial, file):
                partial.unlink()
                raise BundleError(f"{file.path} did not arrive as listed: its size or SHA-256 differs")
            partial.replace(target)
    return folder


async def download_steered(transport: Transport, steered_id: str, folder: Path) -> Path:
    """Write a steered adapter as a PEFT folder; raises `SteeringError` when the folder is in use."""
    path = f"v1/steered-adapters/{steered_id}/download"
    listing = parse(await transport.send(Request("GET", path)), SteeredAdapterDownload)
    claim_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for file in listing.files:
        if file.path not in FILES:
            raise APIError(f"a steered adapter was listed with a file {file.path!r}")
        partial = folder / f"{file.path}.partial"
        await transport.download(file.url, partial)
        if partial.stat().st_size != file.size:
            partial.unlink()
            raise APIError(f"{file.path} did not arrive whole")
        partial.replace(folder / file.path)
    return folder


def _is(path: Path, file: BundleFile) -> bool:
    if path.stat().st_size != file.size:
        return False
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest() == file.sha256
