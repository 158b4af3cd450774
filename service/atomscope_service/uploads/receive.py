"""Receiving one part into the local store: streamed, in constant memory, exactly as long as announced."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import anyio.to_thread

from atomscope_service.api.problems import ProblemError
from atomscope_service.uploads.transfer import CHUNK, temporary_beside


async def receive_part(stream: AsyncIterator[bytes], path: Path, size: int) -> str:
    """Write the stream to `path`, atomically; its ETag (the SHA-256, quoted).

    Raises 413 `part_too_large` at the first byte past `size`, and 400 `part_incomplete` when it ends
    short. Nothing is left behind then.
    """
    await anyio.to_thread.run_sync(lambda: path.parent.mkdir(parents=True, exist_ok=True))
    temporary = temporary_beside(path)
    digest = hashlib.sha256()
    received = 0
    try:
        async with await anyio.open_file(temporary, "xb") as sink:
            pending = bytearray()

            async def flush() -> None:
                # One hop to a thread a MiB, not one a network packet.
                content = bytes(pending)
                pending.clear()
                await anyio.to_thread.run_sync(digest.update, content)
                await sink.write(content)

            async for chunk in stream:
                received += len(chunk)
                if received > size:
                    raise ProblemError(413, "part_too_large", f"This part holds {size} bytes, no more.")
                pending += chunk
                if len(pending) >= CHUNK:
                    await flush()
            await flush()
        if received != size:
            detail = f"{received} bytes of {size} arrived: send the part again."
            raise ProblemError(400, "part_incomplete", detail)
        await anyio.to_thread.run_sync(temporary.replace, path)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(lambda: temporary.unlink(missing_ok=True))
    return f'"{digest.hexdigest()}"'
