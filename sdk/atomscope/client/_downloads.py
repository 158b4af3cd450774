"""Downloading bundles and steered adapters: each file whole or not at all, resumed where it broke off."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from atomscope.bundle.layout import MANIFEST
from atomscope.client._service import Service
from atomscope.client._wire import Request, parse
from atomscope.errors import APIConnectionError, APIError, APIStatusError, BundleError, PermissionDeniedError
from atomscope.input_files import file_digest
from atomscope.result_folder import enclosing_bundle
from atomscope.steering.output import FILES, PROVENANCE, claim_folder, remove_others
from atomscope.store import StoreError, check_key
from atomscope.text import visible
from atomscope.types.resources import BundleFile, BundleListing, FileDownload, SteeredAdapterDownload

PARTIAL = ".partial"


@dataclass(frozen=True)
class _Source:
    """A file behind a signed URL, and how to get another URL when that one has expired."""

    path: str
    size: int
    url: str
    relink: Callable[[], Awaitable[dict[str, str]]]


async def download_bundle(service: Service, audit_id: str, folder: Path) -> Path:
    """Bring the whole bundle into `folder`, its manifest last; files that are there already are kept.

    Raises `BundleError` when the folder holds something else, and when a file does not arrive as listed.
    """

    async def listing() -> list[BundleFile]:
        return parse(await service.send(Request("GET", f"v1/audits/{audit_id}/bundle")), BundleListing).files

    async def links() -> dict[str, str]:
        return {file.path: file.url for file in await listing()}

    files = await listing()
    names = {file.path for file in files}
    if MANIFEST not in names:
        raise APIError(f"the bundle of {audit_id} was listed without its manifest")
    for name in names:
        _check_path(name)
    await service.work(lambda: _claim(folder, names))
    for file in sorted(files, key=lambda file: file.path == MANIFEST):
        await _bring(service, file, folder / file.path, links)
    return folder


async def _bring(
    service: Service, file: BundleFile, target: Path, links: Callable[[], Awaitable[dict[str, str]]]
) -> None:
    """One file of a bundle to `target`, unless it is there already."""
    if await service.work(lambda: _is(target, file)):
        return
    source = _Source(file.path, file.size, file.url, links)
    partial = target.with_name(f"{target.name}{PARTIAL}")
    resumed = partial.exists()
    await _fetch(service, source, partial)
    whole = await service.work(lambda: _is(partial, file))
    if not whole and resumed:
        # What was left of an earlier try may have been of something else.
        partial.unlink()
        await _fetch(service, source, partial)
        whole = await service.work(lambda: _is(partial, file))
    if not whole:
        partial.unlink()
        raise BundleError(f"{file.path} did not arrive as listed: its size or SHA-256 differs")
    partial.replace(target)


async def download_steered(service: Service, steered_id: str, folder: Path) -> Path:
    """Write the files of a steered adapter; raises `SteeringError` when the folder is in use."""

    async def listing() -> list[FileDownload]:
        request = Request("GET", f"v1/steered-adapters/{steered_id}/download")
        return parse(await service.send(request), SteeredAdapterDownload).files

    async def links() -> dict[str, str]:
        return {file.path: file.url for file in await listing()}

    files = await listing()
    for file in files:
        if file.path not in FILES:
            raise APIError(f"a steered adapter was listed with a file {visible(file.path, 100)}")
    claim_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # What tells a later save that the folder is one of ours comes first.
    for file in sorted(files, key=lambda file: file.path != PROVENANCE):
        partial = folder / f"{file.path}{PARTIAL}"
        # No digest is listed, so nothing of an earlier try can be trusted.
        partial.unlink(missing_ok=True)
        await _fetch(service, _Source(file.path, file.size, file.url, links), partial)
        partial.replace(folder / file.path)
    remove_others(folder, {file.path for file in files})
    return folder


async def _fetch(service: Service, source: _Source, partial: Path) -> None:
    """Bring `partial` to the size listed, going on from what it holds, through lost connections."""
    url, relinked, failures = source.url, False, 0
    partial.parent.mkdir(parents=True, exist_ok=True)
    while True:
        start = partial.stat().st_size if partial.exists() else 0
        if start > source.size:
            partial.unlink()
            start = 0
        if start == source.size:
            partial.touch()
            return
        try:
            await _append(service, url, partial, start, source)
        except PermissionDeniedError:
            if relinked:
                raise
            relinked, url = True, (await source.relink()).get(source.path, url)
        except APIStatusError as error:
            if error.status != 416 or not start:
                raise
            partial.unlink()
        except APIConnectionError:
            grown = partial.stat().st_size if partial.exists() else 0
            failures = 0 if grown > start else failures + 1
            if failures > service.policy.max_retries:
                raise
            await service.sleep(service.policy.pause(failures))


async def _append(service: Service, url: str, partial: Path, start: int, source: _Source) -> None:
    async with service.download(url, start) as body:
        # Without 206 the whole file comes again.
        whole = body.head.status != 206
        if not whole and not body.head.headers.get("content-range", "").startswith(f"bytes {start}-"):
            raise APIError(f"{source.path} was answered with another range than was asked for")
        written = 0 if whole else start
        with partial.open("wb" if whole else "ab") as sink:
            while chunk := await body.read():
                written += len(chunk)
                if written > source.size:
                    break
                await service.work(lambda chunk=chunk: sink.write(chunk))
    if written != source.size:
        partial.unlink()
        raise APIError(f"{source.path} has another size than the {source.size} bytes that were listed")


def _check_path(path: str) -> None:
    """Refuse a listed path that leads out of the folder."""
    try:
        check_key(path)
    except StoreError as error:
        raise APIError(f"a bundle was listed with a file outside of it: {visible(path, 100)}") from error


def _claim(folder: Path, names: set[str]) -> None:
    """Raise `BundleError` when `folder` holds what is not of this bundle, or lies within another one."""
    around = enclosing_bundle(folder)
    if around is not None:
        raise BundleError(f"{folder} is within the bundle {around}: give a folder outside of it")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise BundleError(f"{folder} is not a folder")
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or (path.is_file() and name.removesuffix(PARTIAL) not in names):
            raise BundleError(f"{folder} holds {name}, which is not of this bundle: give an empty folder")


def _is(path: Path, file: BundleFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size and file_digest(path) == file.sha256
